"""Objects -> studies on disk: the queue of the listener, in which nothing that was accepted is lost.

A file is on the disk, and its row is committed, before its sender hears of success. Its name is a hash: no UID and no
PatientID becomes a path. States of a study: ``receiving`` -> ``predicted`` (its report lies in the outbox) -> ``sent``;
or ``failed``, and then its files lie in the folder of failures. A restart goes on wherever the process died.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pydicom
from filelock import FileLock, Timeout

from monai_mvreg.cache.atomic import sync_folder
from monai_mvreg.scans.formats.byte_ranges import ScanError

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "StudyDate", "StudyTime"]
_TABLES = """
CREATE TABLE IF NOT EXISTS studies (
    key TEXT PRIMARY KEY, patient TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'receiving', changed REAL NOT NULL,
    version INTEGER NOT NULL DEFAULT 1, answered INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0, emptied INTEGER NOT NULL DEFAULT 0,
    answer TEXT, sent_answer TEXT);
CREATE TABLE IF NOT EXISTS instances (
    study TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (study, name));
"""


@dataclass(frozen=True)
class ObjectFacts:
    """What the queue knows of a DICOM file: ``kind`` is its class; ``date`` YYYYMMDD, ``time`` HHMMSS or empty."""

    kind: str
    instance: str
    study: str
    patient: str
    date: str
    time: str


@dataclass(frozen=True)
class QueuedStudy:
    """A study in the queue.

    ``version`` counts the objects that changed it, ``crashes`` how often the process ended while it was predicted, and
    ``tries`` how often something failed that is tried again. ``emptied`` is whether files were deleted after an answer.
    ``sent_answer`` names that answer by its UIDs: study, series, class and instance, with spaces between.
    """

    key: str
    patient: str
    version: int
    crashes: int
    tries: int
    emptied: bool
    sent_answer: str | None


_FIELDS = ", ".join(QueuedStudy.__annotations__)


def hashed(identifier: str) -> str:
    """A name for a UID or PatientID that is safe as a path and in a log."""
    return hashlib.sha256(identifier.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def read_facts(path: Path) -> ObjectFacts:
    """Read whose object a DICOM file holds.

    Raises:
        ScanError: if it is no DICOM file, or one of its three UIDs is missing or malformed.
    """
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS, "SpecificCharacterSet"])
        kind, instance, study, patient, date, clock = (str(header.get(tag, "") or "").strip() for tag in _TAGS)
    except Exception as error:  # a header may hold anything
        raise ScanError(f"expected a DICOM file, its header cannot be read ({type(error).__name__})") from None
    if not all(len(uid) <= 64 and _UID.fullmatch(uid) for uid in (kind, instance, study)):
        raise ScanError("expected the UIDs of class, instance and study in the header, one is missing or malformed")
    return ObjectFacts(
        kind,
        instance,
        study,
        patient,
        date if re.fullmatch(r"\d{8}", date) else "",
        clock[:6] if re.match(r"\d{6}", clock) else "",
    )


class Inbox:
    """The queue in a folder; safe to use from several threads of one process.

    Args:
        home: the folder; made if there is none, readable by its owner alone.

    Raises:
        OSError: if another process uses the folder, or it cannot be written.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.incoming, self.outbox = home, home / "incoming", home / "outbox"
        for folder in (home, self.incoming, self.outbox, home / "inbox", home / "failed", home / "work"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._held = FileLock(home / "lock", thread_local=False)
        try:
            self._held.acquire(timeout=0)
        except Timeout:
            raise OSError(f"expected a queue that no other process uses, {home} is in use") from None
        # Every statement is its own transaction, and on the disk when it returns.
        self._base = sqlite3.connect(home / "queue.sqlite", check_same_thread=False, isolation_level=None)
        self._base.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {_TABLES}")
        for folder in (self.incoming, home / "work"):
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._find_again()
        # Who was sending when the last process ended needs time to come back.
        self._opened = time.time()

    def close(self) -> None:
        """Let another process use the folder."""
        with self._lock:
            self._base.close()
            self._held.release()

    def folder(self, key: str) -> Path:
        """Where the files of a study lie."""
        return self.home / "inbox" / key

    def report(self, key: str) -> Path:
        """Where the report of a study lies until it is sent."""
        return self.outbox / f"{key}.dcm"

    def keep(self, file: Path, facts: ObjectFacts, *, digest: str) -> bool:
        """Move a file, whose bytes are on the disk already, into its study.

        Args:
            file: on the same file system; gone afterwards.
            facts: of the file.
            digest: SHA-256 of its bytes, in hexadecimal.

        Returns:
            Whether it is new; false for the same bytes again.

        Raises:
            OSError: if it cannot be stored; then nothing is changed.
        """
        key, name, digest = hashed(facts.study), hashed(facts.instance), digest[:16]
        folder = self.folder(key)
        target = folder / f"{name}-{digest}.dcm"
        with self._lock:
            row = self._base.execute("SELECT emptied FROM studies WHERE key = ?", (key,)).fetchone()
            known = self._digest(key, name)
            failed = self.home / "failed" / key
            if known == digest and (target.exists() or (failed / target.name).exists() or (row and row[0])):
                file.unlink()
                return False
            if failed.exists():
                failed.rename(folder)
            folder.mkdir(exist_ok=True, mode=0o700)
            sync_folder(folder.parent)
            file.replace(target)
            try:
                sync_folder(folder)
                self._note(key, name, digest, hashed(facts.patient) if facts.patient else "")
            except (sqlite3.Error, OSError):
                target.unlink(missing_ok=True)
                raise OSError(errno.ENOSPC, "the queue cannot be written") from None
            if known is not None:
                (folder / f"{name}-{known}.dcm").unlink(missing_ok=True)
        return True

    def _digest(self, key: str, name: str) -> str | None:
        found = self._base.execute("SELECT digest FROM instances WHERE study = ? AND name = ?", (key, name)).fetchone()
        return None if found is None else str(found[0])

    def _note(self, key: str, name: str, digest: str, patient: str) -> None:
        """Commit an object; a study that had its answer, or had failed, waits again."""
        try:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.execute("INSERT OR REPLACE INTO instances VALUES (?, ?, ?)", (key, name, digest))
            self._base.execute(
                "INSERT INTO studies (key, patient, changed) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "patient = excluded.patient, changed = excluded.changed, version = version + 1, crashes = 0, due = 0, "
                # A report on its way is sent first: the next one names it as the one that it replaces.
                "state = CASE state WHEN 'predicted' THEN 'predicted' ELSE 'receiving' END",
                (key, patient, time.time()),
            )
            self._base.execute("COMMIT")
        except sqlite3.Error:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise

    def _find_again(self) -> None:
        """Let the table say what the folders say: a process may have died between the two, or a person moved one."""
        for folder in (self.home / "inbox").iterdir():
            for file in folder.glob("*.dcm"):
                name, _, digest = file.stem.partition("-")
                known = self._digest(folder.name, name)
                if known is not None and known != digest and (folder / f"{name}-{known}.dcm").exists():
                    file.unlink()  # was replaced, or was to replace the other and its sender never heard of success
                elif known != digest:
                    self._note(folder.name, name, digest, _patient_of(file))
            self._base.execute(
                "UPDATE studies SET state = 'receiving', crashes = 0, tries = 0, due = 0 "
                "WHERE key = ? AND state = 'failed'",
                (folder.name,),
            )
        for folder in (self.home / "failed").iterdir():
            self._base.execute("UPDATE studies SET state = 'failed' WHERE key = ?", (folder.name,))
        for file in self.outbox.iterdir():
            if (
                self._base.execute(
                    "SELECT 1 FROM studies WHERE key = ? AND state = 'predicted'", (file.stem,)
                ).fetchone()
                is None
            ):
                file.unlink()
        for row in self._rows("state = 'predicted'"):
            if not self.report(row.key).exists():
                self._set(row.key, "state = 'receiving', tries = 0, due = 0")

    def ready(self, *, quiet: float, busy: Collection[str] = ()) -> QueuedStudy | None:
        """The study that is complete for longest: nothing of it came for a while, nor of another of its patient.

        An earlier study of which half has come would give a number of half a scan.

        Args:
            quiet: seconds.
            busy: keys of studies that somebody is still sending.
        """
        now = time.time()
        if 0 <= now - self._opened < quiet:
            return None
        coming = self._rows(f"changed > ? OR key IN ({', '.join('?' * len(busy))})", now - quiet, *busy)
        patients = {row.patient for row in coming} - {""}
        # What ended the process goes last: the others get their turn.
        complete = "state = 'receiving' AND changed <= ? AND due <= ? ORDER BY crashes, changed"
        rows = self._rows(complete, now - quiet, now)
        return next((row for row in rows if row.key not in busy and row.patient not in patients), None)

    def unsent(self) -> QueuedStudy | None:
        """The study whose report is due to be sent."""
        return next(iter(self._rows("state = 'predicted' AND due <= ? ORDER BY due LIMIT 1", time.time())), None)

    def folders_of(self, patient: str) -> list[Path]:
        """Folders of the studies of a patient in the queue; those that failed are left out."""
        rows = self._rows("patient = ? AND state != 'failed' AND NOT emptied", hashed(patient))
        return [self.folder(row.key) for row in rows]

    def _rows(self, where: str, *values: object) -> list[QueuedStudy]:
        with self._lock:
            found = self._base.execute(f"SELECT {_FIELDS} FROM studies WHERE {where}", values).fetchall()
        return [QueuedStudy(*row) for row in found]

    def _set(self, key: str, changes: str, *values: object) -> None:
        with self._lock:
            self._base.execute(f"UPDATE studies SET {changes} WHERE key = ?", (*values, key))

    def begin(self, key: str) -> None:
        """Note that a study is being predicted: if the process dies of it, the next one knows."""
        self._set(key, "crashes = crashes + 1")

    def postpone(self, waiting: QueuedStudy, seconds: float) -> None:
        """Try again later; what went wrong was not the study's fault."""
        due = time.time() + seconds
        self._set(waiting.key, "crashes = ?, tries = tries + 1, due = ?", waiting.crashes, due)

    def forgive(self, key: str) -> None:
        """Take back that a study was begun: the process ends because it was told to."""
        self._set(key, "crashes = max(crashes - 1, 0)")

    def hurry(self) -> None:
        """Try everything now that waits for another try: the archive is back."""
        with self._lock:
            self._base.execute("UPDATE studies SET due = 0 WHERE tries > 0")

    def answered(self, waiting: QueuedStudy, answer: str) -> None:
        """Note that the report of this version lies in the outbox; ``answer`` names it."""
        changes = "state = 'predicted', crashes = 0, tries = 0, due = 0, answered = ?, answer = ?"
        self._set(waiting.key, changes, waiting.version, answer)

    def sent(self, key: str) -> None:
        """Note that the archive has the report; a study that grew meanwhile waits again."""
        self._set(
            key,
            "state = CASE WHEN version > answered THEN 'receiving' ELSE 'sent' END, tries = 0, due = 0, "
            "sent_answer = answer",
        )
        self.report(key).unlink(missing_ok=True)

    def unchanged(self, waiting: QueuedStudy) -> None:
        """Note that the report of this version would be the one that the archive has."""
        changes = "state = CASE WHEN version > ? THEN 'receiving' ELSE 'sent' END, crashes = 0, tries = 0, due = 0"
        self._set(waiting.key, changes, waiting.version)

    def fail(self, waiting: QueuedStudy, reason: str) -> bool:
        """Put a study aside with the reason in a file; moving its folder back, and a restart, tries again.

        Returns:
            Whether it was put aside: not so if an object came that this version, or its report, did not know.
        """
        key, grown = waiting.key, "key = ? AND version > CASE state WHEN 'predicted' THEN answered ELSE ? END"
        with self._lock:
            if self._rows(grown, key, waiting.version):
                self._set(key, "state = 'receiving', crashes = 0, tries = 0, due = 0")
                self.report(key).unlink(missing_ok=True)
                return False
            place = self.home / "failed" / key
            if self.folder(key).exists():
                self.folder(key).rename(place)
            place.mkdir(exist_ok=True)
            (place / "reason.txt").write_text(f"{reason}\n", encoding="utf-8")
            sync_folder(place.parent)
            self._set(key, "state = 'failed'")
            self.report(key).unlink(missing_ok=True)
        return True

    def counts(self) -> dict[str, int]:
        """Studies by state."""
        with self._lock:
            found = self._base.execute("SELECT state, count(*) FROM studies GROUP BY state").fetchall()
        return {"receiving": 0, "predicted": 0, "sent": 0, "failed": 0} | dict(found)

    def oldest(self) -> float:
        """Seconds since the last object of the study that waits for longest; 0 if none waits."""
        with self._lock:
            found = self._base.execute(
                "SELECT min(changed) FROM studies WHERE state IN ('receiving', 'predicted')"
            ).fetchone()[0]
        return 0.0 if found is None else max(0.0, time.time() - found)

    def clean(self, *, keep_files: float, remember: float) -> None:
        """Delete the files of studies whose report was sent, and later all that is known of them.

        Args:
            keep_files: seconds since the last object, after which the files of a study go.
            remember: seconds after which an object of a study would count as new again.
        """
        now = time.time()
        for row in self._rows("state = 'sent' AND changed < ?", now - keep_files):
            if row.emptied and not self.folder(row.key).exists():  # it is there again if a late object came
                continue
            with self._lock:  # an object that comes now finds the study as it was, or emptied
                if self._rows("key = ? AND state = 'sent' AND version = ?", row.key, row.version):
                    self._set(row.key, "emptied = 1")
                    shutil.rmtree(self.folder(row.key), ignore_errors=True)
        with self._lock:
            old = "SELECT key FROM studies WHERE state = 'sent' AND emptied AND changed < ?"
            self._base.execute(f"DELETE FROM instances WHERE study IN ({old})", (now - remember,))
            self._base.execute(
                "DELETE FROM studies WHERE state = 'sent' AND emptied AND changed < ?", (now - remember,)
            )


def _patient_of(file: Path) -> str:
    try:
        patient = read_facts(file).patient
    except ScanError:
        return ""
    return hashed(patient) if patient else ""

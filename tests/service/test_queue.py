"""The queue on disk: what is kept is there after a crash, and stands there once."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest
from make_dicom import write_slice

from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.service.queue import Inbox, ObjectFacts, QueuedStudy, hashed, read_facts

UID = "1.2.3.4"


def put(inbox: Inbox, *, study: str = UID, instance: str = "1.2.9", content: float = 0, patient: str = "P") -> bool:
    """Let an object arrive."""
    path = write_slice(
        inbox.incoming / "x.part", content, StudyInstanceUID=study, SOPInstanceUID=instance, PatientID=patient
    )
    return inbox.keep(path, read_facts(path), digest=hashlib.sha256(path.read_bytes()).hexdigest())


def ready(inbox: Inbox) -> QueuedStudy:
    found = inbox.ready(quiet=0)
    assert found is not None
    return found


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "queue")


def again(inbox: Inbox) -> Inbox:
    """The queue as the next process finds it."""
    inbox.close()
    return Inbox(inbox.home)


def test_what_was_kept_is_there_for_the_next_process(inbox: Inbox) -> None:
    assert put(inbox) and put(inbox, instance="1.2.10")
    found = ready(again(inbox))
    assert (found.key, found.version) == (hashed(UID), 2)
    assert len(list(inbox.folder(found.key).iterdir())) == 2


def test_the_same_bytes_again_change_nothing(inbox: Inbox) -> None:
    put(inbox)
    assert not put(inbox)
    assert ready(inbox).version == 1 and not any(inbox.incoming.iterdir())


def test_other_bytes_of_the_same_object_replace_it(inbox: Inbox) -> None:
    put(inbox)
    assert put(inbox, content=1)
    assert ready(inbox).version == 2 and len(list(inbox.folder(hashed(UID)).iterdir())) == 1


def test_an_object_without_its_row_is_found_again(inbox: Inbox) -> None:
    put(inbox)
    with sqlite3.connect(inbox.home / "queue.sqlite") as base:
        base.execute("DELETE FROM studies")
        base.execute("DELETE FROM instances")
    found = ready(again(inbox))
    assert (found.key, found.patient) == (hashed(UID), hashed("P"))


def test_what_cannot_be_committed_leaves_no_file_and_can_be_sent_again(inbox: Inbox) -> None:
    class Full:
        def __init__(self, base: sqlite3.Connection) -> None:
            self.base, self.in_transaction = base, False

        def execute(self, statement: str, *values: object) -> object:
            if statement.startswith("BEGIN"):
                raise sqlite3.OperationalError("database or disk is full")
            return self.base.execute(statement, *values)

    base = inbox._base
    inbox._base = Full(base)  # type: ignore[assignment]
    with pytest.raises(OSError) as error:
        put(inbox)
    assert error.value.errno == errno.ENOSPC and not list(inbox.folder(hashed(UID)).iterdir())
    inbox._base = base
    assert put(inbox)


def test_other_bytes_of_an_object_whose_file_was_deleted_are_kept(inbox: Inbox) -> None:
    put(inbox)
    inbox.answered(ready(inbox), "1 2 3 4")
    inbox.sent(hashed(UID))
    inbox.clean(keep_files=-1, remember=1000)
    assert put(inbox, content=1) and ready(inbox).version == 2


def test_the_name_of_a_file_is_on_the_disk_before_it_is_acknowledged(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    put(inbox)
    assert synced == ["inbox", hashed(UID)]
    assert inbox._base.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_file_that_was_half_written_is_gone_after_a_restart(inbox: Inbox) -> None:
    (inbox.incoming / "half.part").write_bytes(b"1")
    assert not any(again(inbox).incoming.iterdir())


def test_a_study_waits_until_nothing_came_for_a_while(inbox: Inbox) -> None:
    put(inbox)
    assert inbox.ready(quiet=3600) is None and inbox.ready(quiet=0) is not None


def test_a_study_that_is_still_being_sent_waits(inbox: Inbox) -> None:
    put(inbox)
    assert inbox.ready(quiet=0, busy={hashed(UID)}) is None


def test_senders_have_time_to_come_back_after_a_restart(inbox: Inbox) -> None:
    put(inbox)
    inbox._set(hashed(UID), "changed = changed - 1000")
    inbox._opened -= 1000
    assert inbox.ready(quiet=100) is not None
    assert again(inbox).ready(quiet=100) is None


def test_a_late_object_makes_an_answered_study_wait_again(inbox: Inbox) -> None:
    put(inbox)
    inbox.answered(ready(inbox), "1 2 3 4")
    inbox.sent(hashed(UID))
    assert inbox.ready(quiet=0) is None and inbox.counts()["sent"] == 1
    put(inbox, instance="1.2.11")
    assert ready(inbox).sent_answer == "1 2 3 4"


def test_a_late_object_lets_a_report_on_its_way_be_sent_first(inbox: Inbox) -> None:
    put(inbox)
    inbox.answered(ready(inbox), "1 2 3 4")
    put(inbox, instance="1.2.11")
    assert inbox.ready(quiet=0) is None and inbox.unsent() is not None
    inbox.sent(hashed(UID))
    assert ready(inbox).sent_answer == "1 2 3 4"


def test_a_report_is_kept_until_it_is_sent(inbox: Inbox) -> None:
    put(inbox)
    key = hashed(UID)
    inbox.report(key).write_bytes(b"1")
    inbox.answered(ready(inbox), "1 2 3 4")
    inbox = again(inbox)
    assert inbox.report(key).exists() and inbox.unsent() is not None
    inbox.sent(key)
    assert not inbox.report(key).exists()


def test_a_report_that_was_not_committed_is_made_anew(inbox: Inbox) -> None:
    put(inbox)
    inbox.report(hashed(UID)).write_bytes(b"1")
    inbox = again(inbox)
    assert not inbox.report(hashed(UID)).exists() and ready(inbox).key == hashed(UID)


def test_a_study_that_failed_waits_again_when_its_folder_is_moved_back(inbox: Inbox) -> None:
    put(inbox)
    key = hashed(UID)
    inbox.fail(ready(inbox), "why")
    inbox = again(inbox)
    assert inbox.ready(quiet=0) is None and (inbox.home / "failed" / key / "reason.txt").read_text() == "why\n"
    (inbox.home / "failed" / key).rename(inbox.folder(key))
    assert ready(again(inbox)).key == key


def test_a_late_object_brings_back_all_files_of_a_study_that_failed(inbox: Inbox) -> None:
    put(inbox)
    inbox.fail(ready(inbox), "one slice is missing")
    assert not put(inbox)
    put(inbox, instance="1.2.11")
    assert len(list(inbox.folder(ready(inbox).key).glob("*.dcm"))) == 2


def test_a_crash_between_putting_aside_and_its_row_is_mended(inbox: Inbox) -> None:
    put(inbox)
    inbox.folder(hashed(UID)).rename(inbox.home / "failed" / hashed(UID))
    assert again(inbox).counts()["failed"] == 1


def test_what_ended_the_process_goes_last(inbox: Inbox) -> None:
    put(inbox)
    put(inbox, study="1.2.5", instance="1.2.50")
    inbox.begin(hashed(UID))
    inbox = again(inbox)
    assert ready(inbox).key == hashed("1.2.5")
    inbox.forgive(hashed(UID))
    assert ready(inbox).key == hashed(UID)


def test_a_study_to_be_tried_later_is_not_ready_before_the_archive_is_back(inbox: Inbox) -> None:
    put(inbox)
    inbox.postpone(ready(inbox), 1000)
    assert inbox.ready(quiet=0) is None
    inbox.hurry()
    assert (ready(inbox).tries, ready(inbox).crashes) == (1, 0)


def test_files_go_after_an_answer_and_a_duplicate_still_changes_nothing(inbox: Inbox) -> None:
    put(inbox)
    put(inbox, study="1.2.5", instance="1.2.50")
    inbox.answered(next(row for row in inbox._rows("key = ?", hashed(UID))), "1 2 3 4")
    inbox.sent(hashed(UID))
    inbox.clean(keep_files=-1, remember=1000)
    assert not inbox.folder(hashed(UID)).exists() and inbox.folder(hashed("1.2.5")).exists()
    assert not put(inbox)
    put(inbox, instance="1.2.12")
    inbox._set(hashed("1.2.5"), "state = 'sent'")
    assert ready(inbox).emptied


def test_what_was_answered_long_ago_is_forgotten(inbox: Inbox) -> None:
    put(inbox)
    inbox.answered(ready(inbox), "1 2 3 4")
    inbox.sent(hashed(UID))
    inbox.clean(keep_files=-1, remember=-1)
    assert inbox.counts() == {"receiving": 0, "predicted": 0, "sent": 0, "failed": 0}
    assert put(inbox)


def test_the_studies_of_a_patient_are_found_without_those_that_failed(inbox: Inbox) -> None:
    put(inbox)
    put(inbox, study="1.2.5", instance="1.2.50")
    put(inbox, study="1.2.6", instance="1.2.60", patient="another")
    (other,) = inbox._rows("key = ?", hashed("1.2.5"))
    inbox.fail(other, "why")
    assert inbox.folders_of("P") == [inbox.folder(hashed(UID))]


def test_a_study_waits_while_another_of_the_patient_comes_in(inbox: Inbox) -> None:
    put(inbox)
    put(inbox, study="1.2.5", instance="1.2.50")
    put(inbox, study="1.2.6", instance="1.2.60", patient="another")
    long_ago = "changed = changed - 1000"
    inbox._set(hashed(UID), long_ago)
    inbox._set(hashed("1.2.6"), long_ago)
    inbox._opened -= 1000
    found = inbox.ready(quiet=100)
    assert found is not None and found.key == hashed("1.2.6")
    assert inbox.ready(quiet=100, busy={hashed("1.2.6")}) is None
    inbox._set(hashed("1.2.5"), long_ago)
    found = inbox.ready(quiet=100, busy={hashed("1.2.5"), hashed("1.2.6")})
    assert found is None and inbox.ready(quiet=100) is not None


def test_studies_of_nobody_do_not_wait_for_each_other(inbox: Inbox) -> None:
    put(inbox, patient="")
    put(inbox, study="1.2.5", instance="1.2.50", patient="")
    assert inbox.ready(quiet=0, busy={hashed(UID)}) is not None


def test_files_of_a_late_object_go_too_and_never_become_a_study_of_their_own(inbox: Inbox) -> None:
    put(inbox)
    for _ in range(2):
        inbox.answered(ready(inbox), "1 2 3 4")
        inbox.sent(hashed(UID))
        inbox.clean(keep_files=-1, remember=1000)
        assert not inbox.folder(hashed(UID)).exists()
        put(inbox, instance="1.2.12")
    inbox.clean(keep_files=-1, remember=-1)
    assert again(inbox).counts() == {"receiving": 0, "predicted": 0, "sent": 0, "failed": 0}


@pytest.mark.parametrize("committed", [True, False])
def test_a_crash_while_an_object_is_replaced_leaves_one_file_of_it(inbox: Inbox, committed: bool) -> None:
    put(inbox)
    (first,) = inbox.folder(hashed(UID)).iterdir()
    old = first.read_bytes()
    with sqlite3.connect(inbox.home / "queue.sqlite") as base:
        (known,) = base.execute("SELECT digest FROM instances").fetchone()
    put(inbox, content=1)
    (second,) = inbox.folder(hashed(UID)).iterdir()
    first.write_bytes(old)  # as before it was deleted
    if not committed:
        with sqlite3.connect(inbox.home / "queue.sqlite") as base:
            base.execute("UPDATE instances SET digest = ?", (known,))
    assert list(again(inbox).folder(hashed(UID)).iterdir()) == [second if committed else first]


def test_a_study_whose_report_is_gone_is_predicted_again(inbox: Inbox) -> None:
    put(inbox)
    inbox.answered(ready(inbox), "1 2 3 4")
    assert ready(again(inbox)).key == hashed(UID)


def test_an_object_that_came_before_a_study_failed_gives_it_another_chance(inbox: Inbox) -> None:
    put(inbox)
    waiting = ready(inbox)
    put(inbox, instance="1.2.11")
    assert not inbox.fail(waiting, "no scan that the model can take")
    assert ready(inbox).version == 2 and inbox.fail(ready(inbox), "no scan") and inbox.counts()["failed"] == 1


def test_a_report_that_is_refused_gives_way_to_that_of_a_late_object(inbox: Inbox) -> None:
    put(inbox)
    inbox.answered(ready(inbox), "1 2 3 4")
    inbox.report(hashed(UID)).write_bytes(b"1")
    put(inbox, instance="1.2.11")
    waiting = inbox.unsent()
    assert waiting is not None and not inbox.fail(waiting, "refused")
    assert ready(inbox).sent_answer is None and not inbox.report(hashed(UID)).exists()


def test_two_processes_cannot_use_one_folder(inbox: Inbox) -> None:
    with pytest.raises(OSError, match="no other process"):
        Inbox(inbox.home)


def test_nobody_else_may_look_into_the_queue(inbox: Inbox) -> None:
    put(inbox)
    for place in (inbox.home, inbox.folder(hashed(UID))):
        assert place.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2/../3", "", "1." * 40 + "1", "1.2\x003", "a.b"])
def test_a_uid_that_is_none_is_refused(tmp_path: Path, uid: str) -> None:
    path = write_slice(tmp_path / "x.dcm", SOPInstanceUID="1.3", StudyInstanceUID=uid)
    with pytest.raises(ScanError, match=r"malformed|cannot be read"):
        read_facts(path)


@pytest.mark.parametrize("content", [b"", b"DICM", os.urandom(500), bytes(128) + b"DICM" + b"\xff" * 100])
def test_what_is_no_dicom_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ScanError):
        read_facts(tmp_path / "x")


def test_facts_are_those_of_the_header(tmp_path: Path) -> None:
    path = write_slice(
        tmp_path / "x", StudyInstanceUID="1.2", SOPInstanceUID="1.3", PatientID=" P ", StudyTime="101112.5"
    )
    assert read_facts(path) == ObjectFacts("1.2.840.10008.5.1.4.1.1.4", "1.3", "1.2", "P", "20200131", "101112")

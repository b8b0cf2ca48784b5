"""A study that is complete -> its report in the archive: gather, predict, report, send; one study at a time.

Every step may be killed and is then made again: the report of the same scans has the same UIDs, so an archive that has
it already has it once.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Collection
from pathlib import Path
from shutil import copyfile, rmtree
from threading import Event

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from monai_mvreg.cache.atomic import sync_folder
from monai_mvreg.dicom_results.structured_report import make_report
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.service.archive import Archive, ArchivedStudy, ArchiveError, RefusedError
from monai_mvreg.service.health import Metrics
from monai_mvreg.service.queue import Inbox, ObjectFacts, QueuedStudy, hashed, read_facts
from monai_mvreg.service.service_settings import ListenSettings

logger = logging.getLogger(__name__)

_CLEAN_EVERY = 600.0  # seconds
_FIRST_WAIT = 1.0


class Worker:
    """Takes studies out of the queue.

    Args:
        settings: of the listener.
        inbox: the queue.
        predictor: the model.
        archive: where earlier studies come from and reports go to.
        metrics: count what is done.
        busy: keys of the studies that are still being sent.
    """

    def __init__(
        self,
        settings: ListenSettings,
        inbox: Inbox,
        *,
        predictor: Predictor,
        archive: Archive,
        metrics: Metrics,
        busy: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self.settings, self.inbox, self.predictor, self.archive = settings, inbox, predictor, archive
        self.metrics, self.busy, self.last_turn = metrics, busy, time.monotonic()
        self._cleaned, self._down = -_CLEAN_EVERY, False
        self._begun = ""
        self._modalities = frozenset(
            name for member in predictor.trained.members for name in member.domain.modalities if name
        )

    def run(self, stop: Event) -> None:
        """Work until told to stop; ends between two studies."""
        while not stop.is_set():
            self.last_turn = time.monotonic()
            try:
                if not self.turn():
                    stop.wait(0.2)
            except Exception:  # of the queue itself, as on a full disk: the service goes on
                logger.exception("the queue could not be worked on")
                stop.wait(_FIRST_WAIT)

    def turn(self) -> bool:
        """Send one report that is due, or predict one study that is complete; say whether there was anything to do."""
        if time.monotonic() - self._cleaned > _CLEAN_EVERY:
            given = self.settings
            self.inbox.clean(keep_files=given.keep_hours * 3600, remember=given.remember_days * 86_400)
            self._cleaned = time.monotonic()
        if (waiting := self.inbox.unsent()) is not None:
            self._send(waiting)
        elif (waiting := self.inbox.ready(quiet=self.settings.quiet, busy=self.busy())) is not None:
            self._answer(waiting)
        else:
            return False
        return True

    def _send(self, waiting: QueuedStudy) -> None:
        """Send a report; what the archive refuses is tried some times, for that may be mended there."""
        try:
            self.archive.store(self.inbox.report(waiting.key))
        except RefusedError as error:
            if waiting.tries + 1 >= self.settings.max_refusals:
                self._fail(waiting, f"the archive refused the report {waiting.tries + 1} times: {error}")
            else:
                self._later(waiting, "send", error)
        except OSError as error:
            self._later(waiting, "send", error)
        else:
            self.inbox.sent(waiting.key)
            self.metrics.answers.inc()
            self._log("report sent", waiting)
            if self._down:
                self._down = False
                self.inbox.hurry()

    def _answer(self, waiting: QueuedStudy) -> None:
        """Predict a study; what cannot be predicted is put aside, and so is what ended the process too often."""
        if waiting.crashes >= self.settings.max_crashes:
            self._fail(waiting, f"the process ended {waiting.crashes} times while it was predicted")
            return
        self.inbox.begin(waiting.key)
        self._begun = waiting.key
        place = self.inbox.home / "work" / waiting.key
        try:
            with self.metrics.seconds.time():
                self._predict(waiting, place)
        except ValueError as error:  # of the scans or the report: the same next time
            self._fail(waiting, str(error))
        except (OSError, sqlite3.Error) as error:  # of the archive or the disk
            self._later(waiting, "predict", error)
        except Exception as error:
            logger.exception("a study could not be predicted", extra={"facts": {"study": waiting.key[:12]}})
            if waiting.crashes + 1 >= self.settings.max_crashes:
                self._fail(waiting, f"it could not be predicted: {type(error).__name__}")
        finally:
            self._begun = ""
            rmtree(place, ignore_errors=True)

    def leave(self) -> None:
        """Leave the study that is being predicted to the next process, which does not count this as a crash."""
        if self._begun:
            self.inbox.forgive(self._begun)

    def _predict(self, waiting: QueuedStudy, place: Path) -> None:
        """Write the report of a study into the outbox."""
        rmtree(place, ignore_errors=True)
        own = self._link(self.inbox.folder(waiting.key), place / waiting.key)
        if own is None:
            raise ValueError("expected objects of the study in the queue, there are none")
        if not own.patient:
            raise ValueError("expected a PatientID, there is none: nobody knows whose report it would be")
        self._gather(waiting, own, place)
        report = self._report(own, place)
        if waiting.sent_answer is not None:
            if waiting.sent_answer.split()[-1] == report.SOPInstanceUID:  # the same again: nothing to say
                self.inbox.unchanged(waiting)
                return
            report.PredecessorDocumentsSequence = Sequence([_reference(waiting.sent_answer)])
        names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
        unfinished = self.inbox.incoming / f"{waiting.key}.report"
        with unfinished.open("wb") as file:
            report.save_as(file, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.inbox.report(waiting.key))
        sync_folder(self.inbox.outbox)
        self.inbox.answered(waiting, " ".join(str(report[name].value) for name in names))
        self._log("report made", waiting)

    def _report(self, own: ObjectFacts, place: Path) -> Dataset:
        """Predict and report; a study with a scan newer than all of this one is no earlier one, and left out."""
        key = hashed(own.study)
        while True:
            prediction = self.predictor.predict_folder(place)
            if not any(scan.address.startswith(key) for scan in prediction.scans):
                raise ValueError("expected a scan in the study that the model can take, all used are of earlier ones")
            report = make_report(prediction, home=place)
            if report.StudyInstanceUID == own.study:
                return report
            rmtree(place / hashed(report.StudyInstanceUID))

    def _gather(self, waiting: QueuedStudy, own: ObjectFacts, place: Path) -> None:
        """Bring the earlier studies of the patient together, from the archive and from the queue."""
        moment = (own.date, own.time or "235959")
        here = {folder.name: folder for folder in self.inbox.folders_of(own.patient) if folder.name != waiting.key}
        archived = self.archive.studies(own.patient)
        if waiting.emptied:  # its other objects are only there by now
            kept = [file.name.partition("-")[0] for file in (place / waiting.key).iterdir()]
            self.archive.fetch(own.study, self._modalities, place / waiting.key)
            for name in kept:
                (place / waiting.key / f"{name}.dcm").unlink(missing_ok=True)
        if not own.date:  # then none is known to be earlier
            return
        wanted = [
            study
            for study in sorted(archived, key=lambda one: (one.date, one.uid), reverse=True)
            if study.uid != own.study and study.date and study.date <= own.date
            if study.may_hold(self._modalities)
        ]
        for study in wanted[: self.settings.max_earlier_studies]:
            self._bring(study, here.pop(hashed(study.uid), None), place)
        for key, folder in here.items():
            self._link(folder, place / key)
        for folder in place.iterdir():
            if folder.name != waiting.key:
                _only_earlier(folder, own.patient, moment)

    def _bring(self, study: ArchivedStudy, folder: Path | None, place: Path) -> None:
        target = place / hashed(study.uid)
        if folder is None:
            target.mkdir()
            self.archive.fetch(study.uid, self._modalities, target)
        else:
            self._link(folder, target)

    def _link(self, folder: Path, target: Path) -> ObjectFacts | None:
        """Let the files of a study stand in another folder too; facts of one of them."""
        target.mkdir(parents=True)
        files = sorted(folder.glob("*.dcm"))
        for file in files:
            try:
                os.link(file, target / file.name)
            except OSError:  # no links on this file system
                copyfile(file, target / file.name)
        return read_facts(files[0]) if files else None

    def _later(self, waiting: QueuedStudy, what: str, error: Exception) -> None:
        """Wait twice as long as last time, and a random part of it, so that not all come at once."""
        wait = min(_FIRST_WAIT * 2**waiting.tries, self.settings.max_wait) * random.uniform(0.5, 1)
        self.inbox.postpone(waiting, wait)
        self._down = True
        self.metrics.retries.labels(what).inc()
        facts = {"study": waiting.key[:12], "what": what, "error": type(error).__name__, "wait": round(wait, 1)}
        facts |= {"reason": str(error)} if isinstance(error, ArchiveError) else {}  # our own words, of nobody
        logger.warning("to be tried again", extra={"facts": facts})

    def _fail(self, waiting: QueuedStudy, reason: str) -> None:
        if self.inbox.fail(waiting, reason):
            self.metrics.failures.inc()
            self._log("study put aside", waiting)

    def _log(self, event: str, waiting: QueuedStudy) -> None:
        logger.info(event, extra={"facts": {"study": waiting.key[:12], "version": waiting.version}})


def _only_earlier(folder: Path, patient: str, moment: tuple[str, str]) -> None:
    """Remove what is of another patient, whatever the archive says, or not earlier."""
    for file in folder.iterdir():
        try:
            facts = read_facts(file)
            earlier = facts.date and (facts.date, facts.time or "000000") <= moment
            fits = facts.patient == patient and hashed(facts.study) == folder.name and earlier
        except ScanError:
            fits = False
        if not fits:
            file.unlink()


def _reference(answer: str) -> Dataset:
    """A reference to an earlier report (PS3.3 C.17.2, SOP instance reference macro)."""
    study, series, kind, instance = answer.split()
    item, in_series, in_study = Dataset(), Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = kind, instance
    in_series.SeriesInstanceUID, in_series.ReferencedSOPSequence = series, Sequence([item])
    in_study.StudyInstanceUID, in_study.ReferencedSeriesSequence = study, Sequence([in_series])
    return in_study

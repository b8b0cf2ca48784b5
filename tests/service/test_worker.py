"""A study -> its report: earlier studies of the same patient alone, one answer, and nothing tried for ever."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from orthanc import referenced_studies, study, values
from pydicom.dataset import Dataset
from tiny_model import BUNDLE, write_model

from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.service.archive import ArchivedStudy, ArchiveError, RefusedError
from monai_mvreg.service.health import JsonLines, Metrics
from monai_mvreg.service.queue import Inbox, hashed, read_facts
from monai_mvreg.service.service_settings import ListenSettings, WebArchive
from monai_mvreg.service.worker import Worker


class Shelf:
    """An archive that is a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, Path] = {}
        self.dates: dict[str, str] = {}
        self.stored: list[Dataset] = []
        self.fetched: list[str] = []
        self.error: OSError | None = None

    def add(self, folder: Path) -> str:
        facts = read_facts(next(folder.iterdir()))
        self.held[facts.study], self.dates[facts.study] = folder, facts.date
        return facts.study

    def studies(self, patient: str) -> list[ArchivedStudy]:
        if self.error:
            raise self.error
        return [ArchivedStudy(uid, self.dates[uid], frozenset({"MR"})) for uid in self.held]

    def fetch(self, study: str, modalities: Collection[str], folder: Path) -> int:
        self.fetched.append(study)
        for file in self.held[study].iterdir():
            shutil.copy(file, folder / f"{hashed(read_facts(file).instance)}.dcm")
        return len(list(self.held[study].iterdir()))

    def store(self, report: Path) -> None:
        if self.error:
            raise self.error
        self.stored.append(pydicom.dcmread(report))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.from_bundle(BUNDLE, models=write_model(tmp_path_factory.mktemp("model") / "models"))


@pytest.fixture
def worker(tmp_path: Path, predictor: Predictor) -> Iterator[Worker]:
    settings = ListenSettings(tmp_path / "queue", BUNDLE, web=WebArchive("http://x"), quiet=0.0, max_refusals=2)
    made = Worker(settings, Inbox(tmp_path / "queue"), predictor=predictor, archive=Shelf(), metrics=Metrics())
    yield made
    made.inbox.close()


def arrive(worker: Worker, *files: Path) -> None:
    for file in files:
        copy = shutil.copy(file, worker.inbox.incoming / "x.part")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        worker.inbox.keep(Path(copy), read_facts(Path(copy)), digest=digest)


def all_turns(worker: Worker) -> list[Dataset]:
    for _ in range(50):
        if not worker.turn():
            break
    return worker.archive.stored  # type: ignore[attr-defined,no-any-return]


def uid_of(folder: Path) -> str:
    return read_facts(next(folder.iterdir())).study


def test_the_report_is_made_of_the_study_and_the_earlier_ones(worker: Worker, tmp_path: Path) -> None:
    old, new = study(tmp_path / "p/old", number=1, date="20200110"), study(tmp_path / "p/new", number=2)
    worker.archive.add(old)  # type: ignore[attr-defined]
    arrive(worker, *new.iterdir())
    (report,) = all_turns(worker)
    assert referenced_studies(report) == {uid_of(old), uid_of(new)} and report.StudyInstanceUID == uid_of(new)
    expected = worker.predictor.predict_folder(tmp_path / "p").numbers[0].value
    assert values(report)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        {"date": "20220101"},
        {"date": "20200101", "patient": "Somebody"},
        {"date": "20210301", "StudyTime": "235959"},
        {"date": "20210301", "StudyTime": "080000", "AcquisitionTime": "230000"},
        {"date": "", "StudyInstanceUID": "1.2.826.7", "SeriesInstanceUID": "1.2.826.8"},
    ],
    ids=["later", "of another patient", "later that day", "with later scans that day", "without a date"],
)
def test_a_study_that_is_not_an_earlier_one_is_not_used(worker: Worker, tmp_path: Path, other: dict[str, Any]) -> None:
    worker.archive.add(study(tmp_path / "other", number=1, **other))  # type: ignore[attr-defined]
    new = study(tmp_path / "new", number=2)
    arrive(worker, *new.iterdir())
    (report,) = all_turns(worker)
    assert referenced_studies(report) == {uid_of(new)}


def test_an_earlier_study_in_the_queue_is_used_before_the_archive_has_it(worker: Worker, tmp_path: Path) -> None:
    old, new = study(tmp_path / "old", number=1, date="20200110"), study(tmp_path / "new", number=2)
    arrive(worker, *old.iterdir(), *new.iterdir())
    first, second = all_turns(worker)
    assert referenced_studies(first) == {uid_of(old)} and referenced_studies(second) == {uid_of(old), uid_of(new)}
    assert worker.archive.fetched == []  # type: ignore[attr-defined]


def test_the_newest_of_too_many_earlier_studies_are_used(worker: Worker, tmp_path: Path) -> None:
    worker.settings = replace(worker.settings, max_earlier_studies=1)
    for number, year in enumerate(("2018", "2019"), start=1):
        worker.archive.add(study(tmp_path / year, number=number, date=f"{year}0101"))  # type: ignore[attr-defined]
    new = study(tmp_path / "new", number=3)
    arrive(worker, *new.iterdir())
    (report,) = all_turns(worker)
    assert referenced_studies(report) == {uid_of(new), uid_of(tmp_path / "2019")}


def test_a_late_object_gives_a_new_report_that_names_the_one_it_replaces(worker: Worker, tmp_path: Path) -> None:
    files = sorted(study(tmp_path / "new", number=1).iterdir())
    late = sorted(study(tmp_path / "late", number=1, SeriesInstanceUID="1.2.3.4").iterdir())
    arrive(worker, *files)
    (first,) = all_turns(worker)
    arrive(worker, *late)
    _, second = all_turns(worker)
    (named,) = second.PredecessorDocumentsSequence
    assert named.StudyInstanceUID == first.StudyInstanceUID
    (series,) = named.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert (series.SeriesInstanceUID, instance.ReferencedSOPInstanceUID, instance.ReferencedSOPClassUID) == (
        first.SeriesInstanceUID,
        first.SOPInstanceUID,
        first.SOPClassUID,
    )
    assert "PredecessorDocumentsSequence" not in first and second.SOPInstanceUID != first.SOPInstanceUID


def test_duplicates_give_no_second_report(worker: Worker, tmp_path: Path) -> None:
    new = study(tmp_path / "new", number=1)
    arrive(worker, *new.iterdir())
    all_turns(worker)
    arrive(worker, *new.iterdir())
    assert len(all_turns(worker)) == 1


def test_a_change_that_does_not_change_the_report_gives_no_second_one(worker: Worker, tmp_path: Path) -> None:
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())
    (first,) = all_turns(worker)
    worker.inbox._set(hashed(first.StudyInstanceUID), "version = version + 1, state = 'receiving'")
    assert len(all_turns(worker)) == 1 and worker.inbox.counts()["sent"] == 1


def test_a_late_object_after_the_files_were_deleted_brings_the_others_back(worker: Worker, tmp_path: Path) -> None:
    new = study(tmp_path / "new", number=1)
    arrive(worker, *new.iterdir())
    all_turns(worker)
    worker.inbox.clean(keep_files=-1, remember=1000)
    worker.archive.add(new)  # type: ignore[attr-defined]
    arrive(worker, *study(tmp_path / "late", number=1, SeriesInstanceUID="1.2.3.4").iterdir())
    _, second = all_turns(worker)
    (evidence,) = second.CurrentRequestedProcedureEvidenceSequence
    assert len(evidence.ReferencedSeriesSequence) == 2


def reason(worker: Worker) -> str:
    (file,) = (worker.inbox.home / "failed").glob("*/reason.txt")
    return file.read_text()


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({"patient": ""}, "expected a PatientID"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "expected a scan that the model can take"),
    ],
)
def test_what_cannot_be_predicted_is_put_aside_with_the_reason(
    worker: Worker, tmp_path: Path, tags: dict[str, Any], sentence: str
) -> None:
    arrive(worker, *study(tmp_path / "new", number=1, **tags).iterdir())
    assert all_turns(worker) == [] and sentence in reason(worker)
    assert worker.inbox.counts()["failed"] == 1 and worker.metrics.failures._value.get() == 1


def test_earlier_scans_alone_are_no_answer_to_a_new_study(worker: Worker, tmp_path: Path) -> None:
    worker.archive.add(study(tmp_path / "old", number=1, date="20200101"))  # type: ignore[attr-defined]
    arrive(worker, *study(tmp_path / "new", number=2, ImageType=["DERIVED", "SECONDARY", "MIP"]).iterdir())
    assert all_turns(worker) == [] and "all used are of earlier ones" in reason(worker)


def test_two_patients_in_one_study_are_refused(worker: Worker, tmp_path: Path) -> None:
    arrive(worker, *study(tmp_path / "a", number=1).iterdir())
    arrive(worker, *study(tmp_path / "b", number=1, patient="Other", SeriesInstanceUID="1.2.9").iterdir())
    assert all_turns(worker) == [] and "one patient" in reason(worker)


def test_a_study_that_ends_the_process_is_put_aside_after_three_times(worker: Worker, tmp_path: Path) -> None:
    new = study(tmp_path / "new", number=1)
    arrive(worker, *new.iterdir())
    for _ in range(3):
        worker.inbox.begin(hashed(uid_of(new)))
    assert all_turns(worker) == [] and "ended 3 times" in reason(worker)


def test_an_unexpected_error_is_tried_three_times(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())
    calls = []

    def broken(folder: Path) -> None:
        calls.append(folder)
        raise RuntimeError("Mustermann")

    monkeypatch.setattr(worker.predictor, "predict_folder", broken)
    all_turns(worker)
    assert len(calls) == 3 and "RuntimeError" in reason(worker) and "Mustermann" not in reason(worker)


@pytest.mark.parametrize("when", ["asked", "sent to"])
def test_an_archive_that_is_away_is_waited_for(worker: Worker, tmp_path: Path, when: str) -> None:
    shelf: Any = worker.archive
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())
    if when == "sent to":
        worker.turn()
    shelf.error = ArchiveError("away")
    assert all_turns(worker) == [] and worker.inbox.counts()["failed"] == 0
    shelf.error = None
    assert all_turns(worker) == []  # not at once
    worker.inbox.hurry()
    assert len(all_turns(worker)) == 1


def test_when_the_archive_is_back_nothing_waits_any_longer(worker: Worker, tmp_path: Path) -> None:
    shelf: Any = worker.archive
    shelf.error = ArchiveError("away")
    for number in range(3):
        arrive(worker, *study(tmp_path / str(number), number=number + 1, patient=str(number)).iterdir())
    all_turns(worker)
    shelf.error = None
    worker.inbox._set(hashed(uid_of(tmp_path / "0")), "due = 0")
    assert len(all_turns(worker)) == 3


def test_each_wait_is_longer_up_to_a_limit(worker: Worker, tmp_path: Path) -> None:
    worker.settings = replace(worker.settings, max_wait=5.0)
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())
    waits: list[float] = []
    worker.inbox.postpone = lambda waiting, seconds: waits.append(seconds)  # type: ignore[method-assign]
    (waiting,) = worker.inbox._rows("1 = 1")
    for tries in range(12):
        worker._later(replace(waiting, tries=tries), "send", ArchiveError())
    assert 0.5 <= waits[0] <= 1 and 1 <= waits[1] <= 2 and max(waits) <= 5 and min(waits[5:]) >= 2.5


def test_a_report_that_is_refused_is_put_aside_after_some_tries(worker: Worker, tmp_path: Path) -> None:
    shelf: Any = worker.archive
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())
    worker.turn()
    shelf.error = RefusedError("HTTP status 400")
    worker.turn()
    worker.inbox.hurry()
    worker.turn()
    assert "refused the report 2 times" in reason(worker)


def test_a_full_disk_is_waited_for(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("monai_mvreg.service.worker.sync_folder", full)
        assert all_turns(worker) == [] and worker.inbox.counts()["receiving"] == 1
    worker.inbox.hurry()
    assert len(all_turns(worker)) == 1


def test_a_full_queue_is_waited_for_as_a_full_disk(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(worker.inbox, "answered", full)
        for _ in range(4):
            worker.turn()
            worker.inbox.hurry()
    assert worker.inbox.counts()["failed"] == 0 and len(all_turns(worker)) == 1


def test_an_object_that_comes_while_a_study_fails_is_tried(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = sorted(study(tmp_path / "late", number=1, SeriesInstanceUID="1.2.3.4").iterdir())
    arrive(worker, *study(tmp_path / "new", number=1, ImageType=["DERIVED", "SECONDARY", "MIP"]).iterdir())
    predict = worker.predictor.predict_folder

    def slow(folder: Path) -> Any:
        try:
            return predict(folder)
        finally:
            if late:
                arrive(worker, *late)
                late.clear()

    monkeypatch.setattr(worker.predictor, "predict_folder", slow)
    assert len(all_turns(worker)) == 1 and worker.inbox.counts()["failed"] == 0
    assert worker.metrics.failures._value.get() == 0


def test_an_object_that_comes_during_the_prediction_is_not_lost(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = sorted(study(tmp_path / "late", number=1, SeriesInstanceUID="1.2.3.4").iterdir())
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())
    predict = worker.predictor.predict_folder

    def slow(folder: Path) -> Any:
        found = predict(folder)
        if not worker.archive.stored:  # type: ignore[attr-defined]
            arrive(worker, *late)
        return found

    monkeypatch.setattr(worker.predictor, "predict_folder", slow)
    first, second = all_turns(worker)
    assert "PredecessorDocumentsSequence" in second and "PredecessorDocumentsSequence" not in first


def test_nothing_of_the_patient_is_left_between_studies(worker: Worker, tmp_path: Path) -> None:
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())
    all_turns(worker)
    assert not any((worker.inbox.home / "work").iterdir()) and not any(worker.inbox.outbox.iterdir())


def test_the_log_names_nobody(worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    arrive(worker, *study(tmp_path / "new", number=1).iterdir())
    all_turns(worker)
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [one["event"] for one in lines if "study" in one] == ["report made", "report sent"]
    assert "Mustermann" not in str(lines) and "1.2.826" not in str(lines)

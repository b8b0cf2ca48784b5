"""The whole service against a real Orthanc: studies in, reports back, nothing lost and nothing twice."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from orthanc import (
    ListenerProcess,
    Orthanc,
    free_port,
    in_a_fork,
    needs_orthanc,
    referenced_studies,
    running,
    send,
    send_until_accepted,
    study,
    values,
    wait_for,
)
from tiny_model import BUNDLE, write_model

from monai_mvreg.predict.predictor import Predictor

pytestmark = needs_orthanc


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "models")


def pair(home: Path, models: Path, *, dimse: bool = False, **settings: object) -> tuple[Orthanc, ListenerProcess]:
    port = free_port()
    archive = Orthanc(home / "orthanc", listener_port=port)
    place = (
        {"dimse": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.port, "timeout": 5}}
        if dimse
        else {"web": {"url": f"{archive.url}/dicom-web", "timeout": 5}}
    )
    given = {"bundle": str(BUNDLE), "models": str(models), "port": port, **place, **settings}
    return archive, ListenerProcess(home / "listener", **given)


@pytest.mark.parametrize("dimse", [False, True], ids=["DICOMweb", "DIMSE"])
def test_the_report_of_two_studies_comes_back_with_the_number_of_mvreg_predict(
    tmp_path: Path, models: Path, dimse: bool
) -> None:
    old = study(tmp_path / "patient" / "old", number=1, date="20200110")
    new = study(tmp_path / "patient" / "new", number=2, date="20210301")
    archive, listener = pair(tmp_path, models, dimse=dimse)
    with running(archive, listener):
        archive.put(old, new)
        assert send(listener.port, sorted(new.iterdir())) == [0, 0, 0]
        (report,) = wait_for(archive.reports)
        wait_for(lambda: listener.metrics()['mvreg_studies{state="sent"}'] == 1)
        assert listener.end(signal.SIGTERM) == 0
    assert len(referenced_studies(report)) == 2
    prediction = Predictor.from_bundle(BUNDLE, models=models).predict_folder(tmp_path / "patient")
    assert values(report)[0] == pytest.approx(prediction.numbers[0].value, rel=1e-6)
    assert report.PatientID == "Mustermann"
    log = (tmp_path / "listener" / "log").read_text()
    assert "Mustermann" not in log and "1.2.826" not in log


def survive_kills(home: Path, models: Path, *, studies: int, kills: int, pause: tuple[float, float]) -> Counter[str]:
    """Send studies while the listener is killed at random points; say in the middle of what it was killed."""
    folders = [study(home / "sent" / str(at), number=at + 1, patient=f"P{at}") for at in range(studies)]
    archive, listener = pair(home, models, quiet=1.0, max_crashes=50)  # these crashes are not the fault of a study
    draw = random.Random(studies)
    killed: Counter[str] = Counter()
    with running(archive):
        listener.start()
        sender = in_a_fork(lambda: send_until_accepted(listener.port, folders, pause=0.3))
        queue = home / "listener" / "queue"

        def all_sent() -> bool:
            metrics = listener.metrics()
            waiting = metrics['mvreg_studies{state="receiving"}'] + metrics['mvreg_studies{state="predicted"}']
            return not waiting and metrics['mvreg_studies{state="sent"}'] == studies

        try:
            for _ in range(kills):
                time.sleep(draw.uniform(*pause))
                listener.end(signal.SIGKILL)
                killed["kills"] += 1
                killed["storing"] += any((queue / "incoming").glob("*.part"))
                killed["predicting"] += any((queue / "work").iterdir())
                killed["sending"] += any((queue / "outbox").iterdir())
                listener.launch()
            sender.wait(120 + studies)
            assert sender.code == 0
            wait_for(all_sent, seconds=60 + studies)
            assert listener.metrics()['mvreg_studies{state="failed"}'] == 0
            reports = archive.reports()
        finally:
            for process in (sender, listener.process):
                if process is not None and process.running():
                    process.kill()
                    process.wait()
    of_study = Counter(uid for report in reports for uid in referenced_studies(report))
    assert len(reports) == studies and set(of_study.values()) == {1} and len(of_study) == studies
    assert not [report for report in reports if "PredecessorDocumentsSequence" in report]
    return killed


def test_every_accepted_study_has_one_report_though_the_listener_is_killed(tmp_path: Path, models: Path) -> None:
    assert survive_kills(tmp_path, models, studies=8, kills=4, pause=(0.2, 3.0))["kills"] == 4


@pytest.mark.slow
def test_two_hundred_studies_have_one_report_each_though_the_listener_is_killed(tmp_path: Path, models: Path) -> None:
    print(survive_kills(tmp_path, models, studies=200, kills=100, pause=(0.2, 4.0)))

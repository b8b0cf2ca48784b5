"""The whole service against a real Orthanc: studies in, reports back, nothing lost and nothing twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from orthanc import ListenerProcess, Orthanc, needs_orthanc, referenced_studies, running, send, study, values, wait_for
from tiny_model import BUNDLE, write_model

from monai_mvreg.predict.predictor import Predictor

pytestmark = needs_orthanc


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "models")


def pair(home: Path, models: Path, *, dimse: bool = False, **settings: object) -> tuple[Orthanc, ListenerProcess]:
    from orthanc import free_port

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

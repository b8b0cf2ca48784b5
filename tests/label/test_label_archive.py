"""The MONAI Label app on a real DICOM archive: Orthanc with DICOMweb."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import SimpleITK
from label_server import LabelServer, free_port, serve_fork
from tiny_model import BUNDLE, write_model, write_visit

from monai_mvreg.cli.main import main
from monai_mvreg.predict.predictor import Predictor

PLUGIN = next(Path("/usr").glob("*/orthanc/plugins/libOrthancDicomWeb.so"), None)
pytestmark = pytest.mark.skipif(
    shutil.which("Orthanc") is None or PLUGIN is None, reason="Orthanc with its DICOMweb plugin is not installed"
)
DATES = ("20200101", "20200301")
UIDS = [f"1.2.3.{at}.{date}" for at, date in enumerate(DATES)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its DICOMweb address, and the folder of the patient's files; another patient's name begins alike."""
    place = tmp_path_factory.mktemp("orthanc")
    for at, date in enumerate(DATES):
        write_visit(place / "patient" / f"visit-{at}", date=date, seed=at)
    write_visit(place / "other", date=DATES[0], seed=8, PatientID="Mustermann2")
    report = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "SR"}
    write_visit(place / "report", date=DATES[0], seed=9, **report)
    port = free_port()
    settings = {
        "StorageDirectory": str(place / "storage"),
        "IndexDirectory": str(place / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (place / "orthanc.json").write_text(json.dumps(settings))
    with (place / "orthanc.log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(place / "orthanc.json")], stdout=log, stderr=log)
        try:
            for _ in range(100):
                try:
                    requests.get(f"http://127.0.0.1:{port}/system", timeout=5)
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            for path in sorted(place.glob("*/**/im*")):
                requests.post(
                    f"http://127.0.0.1:{port}/instances", data=path.read_bytes(), timeout=10
                ).raise_for_status()
            yield f"http://127.0.0.1:{port}/dicom-web", place / "patient"
        finally:
            process.kill()
            process.wait(20)


@pytest.fixture(scope="module")
def server(
    archive: tuple[str, Path], monailabel_packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelServer]:
    place = tmp_path_factory.mktemp("label")
    models, port = write_model(place / "model" / "models"), free_port()
    command = ["label", "--bundle", str(BUNDLE), "--models", str(models), "--studies", archive[0]]
    command += ["--port", str(port), "--work", str(place / "work")]
    with serve_fork(monailabel_packages, place, lambda: main(command), port):
        url = f"http://127.0.0.1:{port}"
        yield LabelServer(url, archive[1], models, monailabel_packages, place / "work", place / "server.log")


@pytest.mark.parametrize(
    ("image", "params"),
    [("Mustermann", {"patient": "Mustermann"}), (UIDS[0], {"scans": "patient"}), (UIDS[1], {"images": UIDS})],
)
def test_the_series_of_a_patient_give_the_number_of_their_files(
    server: LabelServer, image: str, params: dict[str, object]
) -> None:
    reply = server.infer(params, image=image).json()
    expected = Predictor.from_bundle(BUNDLE, models=server.models).predict_folder(server.studies)
    [found] = reply["predictions"]
    assert found["numbers"][0]["value"] == pytest.approx(expected.numbers[0].value, rel=1e-6)
    assert [scan["weight"] for scan in found["scans"]] == pytest.approx([scan.weight for scan in expected.scans])
    assert [scan["day"] for scan in found["scans"]] == [0, 60] and reply["images"] == UIDS


def test_a_map_has_the_grid_of_its_series(server: LabelServer, tmp_path: Path) -> None:
    params = {"scans": "patient", "saliency": "gradcam", "saliency_image": UIDS[1], "result_extension": ".nrrd"}
    answer = server.infer(params, image=UIDS[0], output="image")
    (tmp_path / "map.nrrd").write_bytes(answer.content)
    found = SimpleITK.ReadImage(str(tmp_path / "map.nrrd"))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(server.studies / "visit-1")))
    own = reader.Execute()
    for part in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        assert getattr(found, part)() == pytest.approx(getattr(own, part)(), abs=1e-4), part


@pytest.mark.parametrize(
    ("image", "params", "status"),
    [
        ("*", {"patient": "*"}, 400),
        ("Muster?ann", {"patient": "Muster?ann"}, 400),
        ("Musterman", {"patient": "Musterman"}, 404),
        ("1.2.3.4.5", {}, 404),
        ("Mustermann", {}, 404),
        (UIDS[0], {"patient": "Mustermann2"}, 400),
        (UIDS[0], {"images": ["1.2.3.8.20200101"]}, 400),
    ],
)
def test_no_other_patient_can_be_asked_in(
    server: LabelServer, image: str, params: dict[str, object], status: int
) -> None:
    answer = server.infer(params, image=image)
    assert answer.status_code == status and "Mustermann" not in answer.text


def test_nothing_of_the_archive_is_kept_and_no_identifier_is_logged(server: LabelServer) -> None:
    assert server.infer({"patient": "Mustermann", "saliency": "gradcam"}, image="Mustermann").ok
    for _ in range(50):
        left = [path for path in server.work.rglob("*") if path.suffix in (".dcm", ".gz", ".nii")]
        if not left:
            break
        time.sleep(0.1)
    assert left == []
    lines = server.log.read_text()
    assert "Mustermann" not in lines and "1.2.3." not in lines and '"event": "predicted"' in lines

"""The MONAI Label app in a running server: by plain HTTP, by MONAI Label's client, and as stock Slicer asks."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import requests
import SimpleITK
from label_server import DATES, LabelServer
from tiny_model import BUNDLE, write_scan, write_visit

from monai_mvreg.predict.prediction import Prediction
from monai_mvreg.predict.predictor import Predictor

IMAGES = [f"P001_{date}" for date in DATES]


@pytest.fixture(scope="session")
def predictor(label_server: LabelServer) -> Predictor:
    return Predictor.from_bundle(BUNDLE, models=label_server.models)


@pytest.fixture(scope="session")
def expected(label_server: LabelServer, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Prediction:
    """The patient P001 as ``mvreg predict`` would, from a folder with the three files."""
    folder = tmp_path_factory.mktemp("patient")
    for image in IMAGES:
        shutil.copy(label_server.studies / f"{image}.nii.gz", folder)
    return predictor.predict_folder(folder)


def clients(server: LabelServer) -> dict[str, ModuleType]:
    """MONAI Label's own client and the copy of it in its Slicer extension, as they are in the wheel."""
    found = {}
    for name, pattern in {"own": "monailabel/client/client.py", "slicer": "**/MONAILabelLib/client.py"}.items():
        [path] = server.packages.glob(pattern)
        spec = importlib.util.spec_from_file_location(f"monailabel_client_{name}", path)
        assert spec is not None and spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


def value_of(reply: dict[str, Any]) -> float:
    value: float = reply["predictions"][0]["numbers"][0]["value"]
    return value


def assert_is(reply: dict[str, Any], expected: Prediction) -> None:
    """Value, interval, weights and contributions to 1e-6."""
    [found] = reply["predictions"]
    [number], [truth] = found["numbers"], expected.numbers
    assert (number["name"], number["unit"]) == (truth.name, truth.unit)
    assert (number["value"], number["low"], number["high"]) == pytest.approx(
        (truth.value, truth.low, truth.high), rel=1e-6
    )
    weights = [scan["weight"] for scan in found["scans"]]
    assert weights == pytest.approx([scan.weight for scan in expected.scans], rel=1e-6)
    parts = [scan["contributions"] for scan in found["scans"]]
    assert parts == [scan.contributions and pytest.approx(scan.contributions, rel=1e-6) for scan in expected.scans]


def test_info_lists_the_model_as_one_that_stock_viewers_show(label_server: LabelServer) -> None:
    info = requests.get(f"{label_server.url}/info/", timeout=60).json()
    model = info["models"]["mvreg"]
    assert model["type"] == "segmentation" and model["config"]["scans"] == ["image", "patient"]
    assert "volume" in model["description"] and "Not a medical device" in model["description"]
    assert info["datastore"]["total"] == 6


def test_all_scans_of_the_patient_give_the_number_of_mvreg_predict(
    label_server: LabelServer, expected: Prediction
) -> None:
    answer = label_server.infer({"scans": "patient"}, image=IMAGES[1])
    assert answer.status_code == 200 and answer.json()["images"] == IMAGES
    assert_is(answer.json(), expected)


@pytest.mark.parametrize(
    ("image", "params"),
    [
        ("P001", {"patient": "P001"}),
        (IMAGES[0], {"patient": "P001"}),
        (IMAGES[0], {"images": [IMAGES[2], IMAGES[1], IMAGES[0]]}),
    ],
)
def test_a_patient_or_a_list_of_images_means_the_same_scans(
    label_server: LabelServer, expected: Prediction, image: str, params: dict[str, Any]
) -> None:
    assert_is(label_server.infer(params, image=image).json(), expected)


def test_an_image_alone_is_predicted_from_it_alone(label_server: LabelServer, predictor: Predictor) -> None:
    reply = label_server.infer({}, image=IMAGES[0]).json()
    assert_is(reply, predictor.predict_folder(label_server.studies / f"{IMAGES[0]}.nii.gz"))
    assert reply["images"] == [IMAGES[0]]


def send(server: LabelServer, *files: Path, **query: str) -> requests.Response:
    opened = [("files", (file.name, file.read_bytes())) for file in files]
    return requests.put(f"{server.url}/session/", files=opened, params=query, timeout=60)


def test_a_session_of_several_files_is_one_patient(label_server: LabelServer, expected: Prediction) -> None:
    session = send(label_server, *(label_server.studies / f"{image}.nii.gz" for image in IMAGES)).json()["session_id"]
    assert_is(label_server.infer({}, session_id=session).json(), expected)
    assert requests.delete(f"{label_server.url}/session/{session}", timeout=60).status_code == 200
    assert label_server.infer({}, session_id=session).status_code == 404
    assert not (label_server.work / "sessions" / session).exists()


def test_a_zip_of_dicom_is_read_as_it_is_sent(label_server: LabelServer, predictor: Predictor, tmp_path: Path) -> None:
    for at, date in enumerate(("20200101", "20200301")):
        write_visit(tmp_path / "patient" / f"visit-{at}", date=date, seed=at)
    with zipfile.ZipFile(tmp_path / "patient.zip", "w") as archive:
        for path in sorted((tmp_path / "patient").rglob("im*")):
            archive.write(path, path.relative_to(tmp_path / "patient"))
    session = send(label_server, tmp_path / "patient.zip").json()["session_id"]
    reply = label_server.infer({}, session_id=session).json()
    requests.delete(f"{label_server.url}/session/{session}", timeout=60)
    assert_is(reply, predictor.predict_folder(tmp_path / "patient"))
    assert len(reply["predictions"][0]["scans"]) == 2 and "Mustermann" not in json.dumps(reply)


def test_scans_of_two_patients_are_refused(label_server: LabelServer, tmp_path: Path) -> None:
    files = []
    for at, name in enumerate(("Mustermann", "Musterfrau")):
        folder = write_visit(tmp_path / name, date="20200101", seed=at, PatientID=name)
        files += [path.rename(path.with_name(f"{at}-{path.name}")) for path in sorted(folder.iterdir())]
    session = send(label_server, *files).json()["session_id"]
    answer = label_server.infer({}, session_id=session)
    assert answer.status_code == 400 and "one patient" in answer.json()["detail"]
    assert "Muster" not in answer.text and str(label_server.work) not in answer.text


def test_a_map_comes_beside_the_numbers(label_server: LabelServer, expected: Prediction, tmp_path: Path) -> None:
    client = clients(label_server)["own"].MONAILabelClient(label_server.url, tmpdir=str(tmp_path))
    file, reply = client.infer("mvreg", IMAGES[1], {"scans": "patient", "saliency": "gradcam"})
    assert_is(reply, expected)
    assert file.endswith(".nii.gz") and reply["saliency"]["image"] == IMAGES[1]
    found, own = SimpleITK.ReadImage(file), SimpleITK.ReadImage(str(label_server.studies / f"{IMAGES[1]}.nii.gz"))
    assert found.GetSize() == own.GetSize() and found.GetPixelIDValue() == SimpleITK.sitkFloat32
    assert np.abs(SimpleITK.GetArrayFromImage(found)).max() > 0


def test_monailabels_client_gets_json_where_no_map_is_asked_for(
    label_server: LabelServer, expected: Prediction, tmp_path: Path
) -> None:
    client = clients(label_server)["own"].MONAILabelClient(label_server.url, tmpdir=str(tmp_path))
    file, reply = client.infer("mvreg", "P001", {"patient": "P001"})
    assert file is None
    assert_is(json.loads(reply), expected)


@pytest.mark.parametrize("scans", ["image", "patient"])
def test_the_request_of_stock_slicer_gets_a_label_that_is_named_with_the_number(
    label_server: LabelServer, scans: str, tmp_path: Path
) -> None:
    """The client of the extension, with the parameters that the extension makes of /info and adds (``logic.infer``)."""
    client = clients(label_server)["slicer"].MONAILabelClient(label_server.url, str(tmp_path), client_id="user-xyz")
    config = client.info()["models"]["mvreg"]["config"]
    params = {name: choices[0] for name, choices in config.items()} | {"scans": scans}
    params |= {"result_extension": ".nrrd", "result_dtype": "uint8"}
    file, reply = client.infer("mvreg", IMAGES[0], params, None, None, None)
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file))
    names = [name for name, _ in sorted(reply["label_names"].items(), key=lambda item: item[1])]
    assert file.endswith(".nrrd") and labels.dtype == np.uint8
    assert len(names) == labels.max() > 0 and f"volume: {value_of(reply):.4g} mL" in names[0]
    assert len(reply["images"]) == (1 if scans == "image" else 3)


def test_stock_slicer_finds_a_next_sample_to_show(label_server: LabelServer) -> None:
    client = clients(label_server)["slicer"].MONAILabelClient(label_server.url)
    sample = client.next_sample("random", {})
    image = requests.get(f"{label_server.url}/datastore/image", params={"image": sample["id"]}, timeout=60)
    assert image.content == (label_server.studies / f"{sample['id']}.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("status", "params", "image"),
    [
        (404, {}, "P003_2020-01-01"),
        (404, {"patient": "P003"}, "P003"),
        (400, {"patient": "P002"}, IMAGES[0]),
        (400, {"saliency": "gradcam", "saliency_image": "P002_2020-01-01"}, IMAGES[0]),
        (400, {"covariates": {"age": 63}}, IMAGES[0]),
        (400, {"scans": "some"}, IMAGES[0]),
    ],
)
def test_what_cannot_be_answered_is_told_in_one_sentence(
    label_server: LabelServer, status: int, params: dict[str, Any], image: str
) -> None:
    answer = label_server.infer(params, image=image)
    assert answer.status_code == status and answer.json()["detail"].startswith("expected")


def test_another_model_is_not_there(label_server: LabelServer) -> None:
    answer = requests.post(f"{label_server.url}/infer/spleen", params={"image": IMAGES[0]}, data={}, timeout=60)
    assert answer.status_code == 404


def test_an_image_that_is_no_scan_is_refused_and_the_server_goes_on(label_server: LabelServer, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"\x1f\x8b" + bytes(range(256)) * 4)
    session = send(label_server, tmp_path / "a.nii.gz").json()["session_id"]
    assert label_server.infer({}, session_id=session).status_code == 400
    assert label_server.infer({}, image=IMAGES[0]).status_code == 200


def test_an_image_that_is_added_while_the_server_runs_is_found(label_server: LabelServer, predictor: Predictor) -> None:
    path = write_scan(label_server.studies / "P009_2020-01-01.nii.gz", seed=9)
    try:
        for _ in range(50):
            answer = label_server.infer({}, image="P009_2020-01-01")
            if answer.ok:
                break
        assert value_of(answer.json()) == pytest.approx(predictor.predict_folder(path).numbers[0].value, rel=1e-6)
    finally:
        path.unlink()


def test_nothing_that_tells_a_patient_is_logged(label_server: LabelServer) -> None:
    label_server.infer({"patient": "P001", "saliency": "gradcam"}, image="P001")
    label_server.infer({}, image="P00X_secret")
    lines = label_server.log.read_text()
    assert '"event": "predicted", "scans": 3' in lines
    assert "P00" not in lines and DATES[0] not in lines


def test_no_file_of_a_request_stays(label_server: LabelServer) -> None:
    assert label_server.infer({"saliency": "gradcam"}, image=IMAGES[0], output="image").status_code == 200
    assert label_server.infer({}, image=IMAGES[0]).status_code == 200
    assert label_server.infer({"saliency": "gradcam", "saliency_image": "x"}, image=IMAGES[0]).status_code == 400
    for _ in range(50):  # they go after the answer
        left = [path for path in (label_server.work / "tmp").rglob("*") if path.is_file()]
        if not left:
            break
        time.sleep(0.1)
    assert left == []

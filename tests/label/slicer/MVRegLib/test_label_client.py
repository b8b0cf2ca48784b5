"""What 3D Slicer's module asks a server, against the running one, without Slicer."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import SimpleITK
from label_server import DATES, ROOT, LabelServer, free_port
from MVRegLib.label_client import LabelClient, Reply, ServerError, parts_of
from tiny_model import BUNDLE

from monai_mvreg.predict.prediction import Prediction
from monai_mvreg.predict.predictor import Predictor

SLICER = ROOT / "monai_mvreg" / "label" / "slicer"
FILES = [f"P001_{date}.nii.gz" for date in DATES]


@pytest.fixture
def client(label_server: LabelServer) -> LabelClient:
    return LabelClient(label_server.url)


@pytest.fixture(scope="module")
def expected(label_server: LabelServer, tmp_path_factory: pytest.TempPathFactory) -> Prediction:
    folder = tmp_path_factory.mktemp("patient")
    for name in FILES:
        (folder / name).write_bytes((label_server.studies / name).read_bytes())
    return Predictor.from_bundle(BUNDLE, models=label_server.models).predict_folder(folder)


def test_the_server_says_what_it_predicts(client: LabelClient) -> None:
    assert "volume" in client.describe()


def test_files_give_the_number_of_mvreg_predict_and_the_map_of_the_scan_that_is_named(
    client: LabelClient, label_server: LabelServer, expected: Prediction, tmp_path: Path
) -> None:
    files = [label_server.studies / name for name in FILES]
    reply = client.predict_files(files, saliency="gradcam", mapped="P001_2020-03-01")
    [number] = reply.prediction["numbers"]
    assert number["value"] == pytest.approx(expected.numbers[0].value, rel=1e-6)
    assert list(reply.images) == [name.removesuffix(".nii.gz") for name in FILES]
    assert reply.mapped == "P001_2020-03-01" and reply.volume is not None
    (tmp_path / "map.nrrd").write_bytes(reply.volume)
    assert SimpleITK.ReadImage(str(tmp_path / "map.nrrd")).GetSize() == (8, 7, 5)


def test_the_server_keeps_no_file_of_it(client: LabelClient, label_server: LabelServer) -> None:
    before = set((label_server.work / "sessions").iterdir())
    client.predict_files([label_server.studies / FILES[0]])
    with pytest.raises(ServerError):
        client.predict_files([label_server.studies / "datastore_v2.json"])
    assert set((label_server.work / "sessions").iterdir()) == before


def test_a_patient_that_the_server_has_is_named_alone(client: LabelClient, expected: Prediction) -> None:
    reply = client.predict_stored("P001")
    assert reply.prediction["numbers"][0]["value"] == pytest.approx(expected.numbers[0].value, rel=1e-6)
    assert reply.volume is None and reply.mapped is None


def test_why_the_server_refuses_is_told(client: LabelClient) -> None:
    with pytest.raises(ServerError, match=r"refuses \(404\): expected a patient with images"):
        client.predict_stored("P003")


def test_where_no_server_is_is_told() -> None:
    with pytest.raises(ServerError, match="none answers"):
        LabelClient(f"http://127.0.0.1:{free_port()}").describe()


def test_a_password_in_the_address_is_not_shown() -> None:
    with pytest.raises(ServerError, match="none answers") as found:
        LabelClient(f"http://reader:secret@127.0.0.1:{free_port()}").describe()
    assert "127.0.0.1" in str(found.value) and "secret" not in str(found.value)


def test_the_answer_in_words_has_value_interval_and_warnings(client: LabelClient) -> None:
    reply = client.predict_stored("P001")
    [number] = reply.prediction["numbers"]
    first, *others = reply.in_words().splitlines()
    assert first == (f"volume: {number['value']:.4g} mL (90% interval {number['low']:.4g} to {number['high']:.4g})")
    assert others == [f"warning: {one['message']}" for one in reply.prediction["warnings"]]


def test_a_number_without_unit_or_interval_is_told_without() -> None:
    number = {"name": "log_risk", "unit": "1", "value": 0.5, "low": None, "high": None, "confidence": None}
    left_out = [{"address": "a", "reason": "b"}]
    whole = {"numbers": [number], "left_out": left_out, "warnings": []}
    assert Reply(whole, [], None, None).in_words() == "log_risk: 0.5\nleft out: a: b"


def test_parts_of_an_answer_may_hold_any_bytes() -> None:
    body = bytes(range(256)) + b"\r\n--x\r\n\r\n"
    content = b'--q\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + body + b"\r\n--q--\r\n"
    assert parts_of(content, "multipart/form-data; boundary=q") == {"image": body}
    assert parts_of(b"{}", "application/json") == {}


@pytest.mark.parametrize("path", sorted(SLICER.rglob("*.py")), ids=lambda path: path.name)
def test_slicers_python_is_enough(path: Path) -> None:
    """That of Slicer 5.6 is 3.9, and has neither torch nor this package."""
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    names = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {(node.module or "").partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) <= {"slicer", "vtk", "qt", "ctk", "requests", "MVRegLib"}
    strict = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "strict"]
    assert strict == []  # of zip, from 3.10 on

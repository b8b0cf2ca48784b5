from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import onnxruntime
import pytest
from tiny_model import BUNDLE, write_model, write_visit

from monai_mvreg.cli.main import main
from monai_mvreg.predict.prediction import read_predictions


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_model(home / "models")
    write_visit(home / "patient", date="20200101", seed=1)
    return home


def given(home: Path) -> list[str]:
    return ["--bundle", str(BUNDLE), "--models", str(home / "models")]


def test_verify_says_that_a_hash_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "m.zip"), "--sha256", "a" * 63 + "x"]) == 2
    assert "expected a SHA-256, 64 digits" in capsys.readouterr().err


def test_a_bundle_goes_from_one_hospital_to_another_and_says_the_same(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, there = tmp_path / "model.zip", tmp_path / "there"
    assert main(["pack", str(pack), *given(home)]) == 0
    sha256 = hashlib.sha256(pack.read_bytes()).hexdigest()
    assert f"SHA-256 of the pack: {sha256}" in capsys.readouterr().out
    assert main(["verify", str(pack), "--sha256", sha256, "--out", str(there)]) == 0
    told = capsys.readouterr().out
    assert f"Unpacked: mvreg predict PATIENT --bundle {there}" in told and "whose it is" not in told
    patient = str(home / "patient")
    assert main(["predict", patient, *given(home), "--out", str(tmp_path / "a")]) == 0
    assert main(["predict", patient, "--bundle", str(there), "--out", str(tmp_path / "b")]) == 0
    one, other = (read_predictions(tmp_path / name / "predictions.json") for name in "ab")
    assert one == other


def test_verify_says_in_words_what_is_code_and_that_hashes_are_no_signature(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pack", str(tmp_path / "model.zip"), *given(home)])
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "model.zip")]) == 0
    told = capsys.readouterr().out
    assert "predicts volume [mL]" in told and "Weights are tensors alone (safetensors)" in told
    assert "  models/settings.json: 1 expressions\n" in told
    assert "  configs/vgg16_lstm.yaml: 0 expressions; calls timm.create_model\n" in told
    assert "take packs only from whom you trust" in told and "not whose it is" in told


def test_json_is_all_that_is_printed_and_holds_every_expression(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for arguments in (["pack", str(tmp_path / "model.zip"), *given(home)], ["verify", str(tmp_path / "model.zip")]):
        assert main([*arguments, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["expressions"]["models/settings.json"][0].startswith("$torch.nn.Sequential")


def test_what_a_terminal_would_obey_is_not_printed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pack", str(tmp_path / "model.zip"), *given(home)])
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(files["configs/metadata.json"]) | {"name": "\x1b[2Jclean"}
    files["configs/metadata.json"] = json.dumps(metadata).encode()
    manifest = json.loads(files.pop("manifest.json"))
    manifest["files"] = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()}
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for name, content in [*files.items(), ("manifest.json", json.dumps(manifest).encode())]:
            archive.writestr(zipfile.ZipInfo(name), content)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "evil.zip")]) == 0
    told = capsys.readouterr().out
    assert "?[2Jclean 0.1.0: predicts" in told and "\x1b" not in told


def test_a_pack_that_is_not_whole_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    assert main(["verify", str(tmp_path / "model.zip")]) == 2
    assert capsys.readouterr().err.startswith("error: model.zip: expected a pack of mvreg pack, got a damaged one")
    assert main(["verify", str(tmp_path / "absent.zip")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent.zip'}: No such file or directory\n"


def test_export_writes_what_it_is_asked_for_and_says_how_close_it_is(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--onnx", str(tmp_path / "model.onnx"), "--torchscript", str(tmp_path / "model.ts")]
    assert main(["export", *given(home), *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == files[1::2]
    assert all(" mL apart on random scans" in line for line in lines)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [entry.name for entry in session.get_inputs()] == ["image", "mask", "time"]
    assert main(["export", *given(home)]) == 2
    assert "expected a file to write, --onnx FILE or --torchscript FILE" in capsys.readouterr().err

"""Predictions and explanations with ``--device cuda``: the numbers of a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from monai_mvreg.cli.main import main
from monai_mvreg.experiments.crossval import Plan
from monai_mvreg.predict.predictor import Predictor

pytestmark = pytest.mark.gpu


@pytest.fixture
def source(volumes: Plan) -> Path:
    """A patient with two visits."""
    folders = sorted((volumes.dataset / "dicom").iterdir())
    return next(folder for folder in folders if len(list(folder.iterdir())) == 2)


@pytest.mark.usefixtures("reads_models")
def test_mvreg_predict_gives_the_numbers_of_a_cpu(
    volumes: Plan,
    source: Path,
    trained: Path,
    device: torch.device,
    on_device: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["predict", str(source), "--bundle", str(volumes.bundle), "--models", str(trained / "models"), "--json"]
    assert main(command) == 0
    wanted = json.loads(capsys.readouterr().out)
    with on_device():
        assert main([*command, "--device", str(device)]) == 0
    found = json.loads(capsys.readouterr().out)
    expect_equal(found, wanted)


def expect_equal(found: Any, wanted: Any) -> None:
    """The same JSON but for the fifth digit of a number."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            expect_equal(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            expect_equal(one, other)
    elif isinstance(wanted, float):
        assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    else:
        assert found == wanted


@pytest.mark.usefixtures("reads_models")
@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_mvreg_explain_writes_the_maps_of_a_cpu(
    volumes: Plan, source: Path, trained: Path, device: torch.device, on_device: Any, tmp_path: Path, method: str
) -> None:
    command = ["explain", str(source), "--bundle", str(volumes.bundle), "--models", str(trained / "models")]
    command += ["--method", method]
    assert main([*command, "--out", str(tmp_path / "cpu")]) == 0
    with on_device():
        assert main([*command, "--out", str(tmp_path / "gpu"), "--device", str(device)]) == 0
    names = sorted(path.name for path in (tmp_path / "cpu").glob("*.nii.gz"))
    assert names and names == sorted(path.name for path in (tmp_path / "gpu").glob("*.nii.gz"))
    for name in names:
        found, wanted = (nib.load(tmp_path / where / name).get_fdata() for where in ("gpu", "cpu"))
        assert np.abs(wanted).max() > 0
        assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.usefixtures("reads_models")
def test_the_predictor_of_the_label_server_gives_the_numbers_of_a_cpu_from_what_a_gpu_kept(
    volumes: Plan, source: Path, trained: Path, device: torch.device, on_device: Any, tmp_path: Path
) -> None:
    def predictor(where: str, kept: Path | None) -> Predictor:
        return Predictor.from_bundle(volumes.bundle, models=trained / "models", kept=kept, device=where)

    wanted = predictor("cpu", None).predict_folder(source)
    with on_device():
        found = predictor(str(device), tmp_path).predict_folder(source)
    again = predictor("cpu", tmp_path).predict_folder(source)  # from the embeddings that the GPU made
    assert list(tmp_path.rglob("*"))
    for prediction in (found, again):
        assert_allclose(prediction.numbers[0].value, wanted.numbers[0].value, rtol=1e-4)
        shares = ([scan.weight for scan in one.scans] for one in (prediction, wanted))
        assert_allclose(*shares, rtol=1e-4, atol=1e-6)


def test_a_device_that_is_not_there_is_refused_in_one_sentence(
    volumes: Plan, source: Path, trained: Path, device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(source), "--bundle", str(volumes.bundle), "--models", str(trained / "models")]
    assert main([*command, "--device", "cuda:99"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "cuda:99" in line

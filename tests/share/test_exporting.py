from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.data import load_net_with_metadata
from tiny_model import BUNDLE, POOL, write_model, write_visit

from monai_mvreg.losses import CoxLoss
from monai_mvreg.networks import pools
from monai_mvreg.predict.prediction import PURPOSE
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.share.exporting import describe_export, export_onnx, export_torchscript

POOLS = [name for name in dir(pools) if name.endswith("Pool")]
DATED = {"AttentionPool", "GatedAttentionPool", "GRUPool", "LSTMPool", "TransformerPool"}
LOSSES: dict[str, dict[str, Any]] = {
    "CoxLoss": {"outputs": 1, "horizons": [100]},
    "LogNormalLoss": {"outputs": 2, "horizons": [100], "scale": 100},
    "WeibullLoss": {"outputs": 2, "horizons": [100], "scale": 100},
    "DiscreteHazardLoss": {"outputs": 4, "horizons": [100], "edges": [50, 100, 200, 400]},
    "QuantileLoss": {"outputs": 3, "quantiles": [0.1, 0.5, 0.9]},
    "GaussianLoss": {"outputs": 2},
}


def predictor(place: Path, **settings: Any) -> Predictor:
    return Predictor.from_bundle(BUNDLE, models=write_model(place / "models", **settings))


def with_pool(place: Path, name: str) -> Predictor:
    dates = {"time_encoding": {"_target_": "monai_mvreg.networks.pools.TimeEncoding"}} if name in DATED else {}
    return predictor(place, pool={**POOL, "_target_": f"monai_mvreg.networks.pools.{name}", **dates})


def with_loss(place: Path, name: str) -> Predictor:
    settings = dict(LOSSES[name])
    own = {key: settings.pop(key) for key in ("scale", "edges", "quantiles") if key in settings}
    return predictor(place, loss={"_target_": f"monai_mvreg.losses.{name}", **own}, **settings)


def batch(patients: int, scans: int) -> dict[str, torch.Tensor]:
    """Patients with 2, 3, 4 ... of the scans, in no order of time, with noise where there is no scan."""
    draw = torch.Generator().manual_seed(7)
    return {
        "image": torch.rand(patients, scans, 1, 6, 6, 4, generator=draw),
        "mask": torch.arange(scans) < torch.arange(2, patients + 2).clamp(max=scans)[:, None],
        "time": (1000 * torch.rand(patients, scans, generator=draw)).round(),
    }


def run(file: Path, given: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(file))
    found: np.ndarray[Any, Any] = session.run(["number"], {name: value.numpy() for name, value in given.items()})[0]
    return found


@pytest.mark.parametrize("name", POOLS)
def test_with_every_pool_both_files_say_what_the_network_says_of_any_number_of_scans(name: str, tmp_path: Path) -> None:
    found = with_pool(tmp_path, name)
    export_onnx(found, tmp_path / "model.onnx")
    export_torchscript(found, tmp_path / "model.ts")
    assert torch.backends.mha.get_fastpath_enabled()  # as it was before
    script = torch.jit.load(tmp_path / "model.ts")
    for shape in ((2, 3), (1, 9), (5, 4)):
        given = batch(*shape)
        with torch.no_grad():
            expected = found.members[0](**given)
            np.testing.assert_allclose(run(tmp_path / "model.onnx", given), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(script(**given), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_with_every_loss_the_number_is_that_of_the_prediction(name: str, tmp_path: Path) -> None:
    found = with_loss(tmp_path, name)
    for at, date in enumerate(("20200101", "20200301")):
        write_visit(tmp_path / "patient" / str(at), date=date, seed=at)
    prediction = found.predict_folder(tmp_path / "patient")
    images = [found.prepare(str(tmp_path / "patient" / str(at))) for at in range(2)]
    given = {
        "image": torch.stack([torch.as_tensor(image).as_subclass(torch.Tensor) for image in images])[None],
        "mask": torch.ones(1, 2, dtype=torch.bool),
        "time": torch.tensor([[scan.day for scan in prediction.scans]]),
    }
    export_onnx(found, tmp_path / "model.onnx")
    export_torchscript(found, tmp_path / "model.ts")
    expected = pytest.approx(prediction.numbers[0].value, rel=1e-5, abs=1e-5)
    assert run(tmp_path / "model.onnx", given).tolist() == [[expected]]
    assert torch.jit.load(tmp_path / "model.ts")(**given).tolist() == [[expected]]


def test_padding_never_changes_the_number_of_a_file(tmp_path: Path) -> None:
    export_onnx(predictor(tmp_path), tmp_path / "model.onnx")
    whole = batch(1, 2)
    padded = {name: torch.cat([value, torch.zeros_like(value)], dim=1) for name, value in whole.items()}
    padded["image"][:, 2:], padded["time"][:, 2:] = torch.nan, 1e6
    np.testing.assert_allclose(run(tmp_path / "model.onnx", padded), run(tmp_path / "model.onnx", whole), rtol=1e-6)


def test_views_and_missing_covariates_are_inputs_where_the_model_has_them(tmp_path: Path) -> None:
    more = {"columns#views": ["T1", "T2"], "columns#covariates": {"age": "number", "sex": ["F", "M"]}}
    found = predictor(tmp_path, **more)
    export_onnx(found, tmp_path / "model.onnx")
    export_torchscript(found, tmp_path / "model.ts")
    given = {**batch(2, 3), "view": torch.tensor([[0, 1, 0], [1, 1, 0]])}
    for age in (torch.nan, 60.0):
        given["covariates"] = torch.tensor([[age, 0.0], [61.0, 1.0]])
        with torch.no_grad():
            expected = found.members[0](**given)
        np.testing.assert_allclose(run(tmp_path / "model.onnx", given), expected, rtol=1e-4)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(**given), expected)


def test_the_networks_of_a_cross_validation_are_averaged_in_one_file(tmp_path: Path) -> None:
    for seed, fold in enumerate("abc"):
        write_model(tmp_path / f"fold-{fold}_seed-0" / "models", seed=seed)
    (tmp_path / "residuals.csv").write_text("fold,volume\na,1.0\n")
    found = Predictor.from_bundle(BUNDLE, models=tmp_path)
    export_onnx(found, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = torch.stack([member(**batch(2, 3)) for member in found.members]).mean(0)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", batch(2, 3)), expected, rtol=1e-4)


def test_a_file_says_what_it_is_and_what_it_may_be_used_for(tmp_path: Path) -> None:
    found = predictor(tmp_path)
    export_onnx(found, tmp_path / "model.onnx")
    export_torchscript(found, tmp_path / "model.ts")
    props = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "model.onnx")).metadata_props}
    assert props == describe_export(found)
    assert (json.loads(props["target"]), props["unit"], props["purpose"]) == (["volume"], "mL", PURPOSE)
    assert json.loads(props["weights"]) == list(found.model.weights)
    assert props["preprocessing"] == found.model.preprocessing
    assert json.loads(props["inputs"]) == ["image", "mask", "time"]
    _, told, _ = load_net_with_metadata(str(tmp_path / "model.ts"))
    assert told == props
    survival = describe_export(with_loss(tmp_path / "survival", "CoxLoss"))
    assert survival["unit"] == "1" and survival["output"].startswith("log risk")


def test_a_patient_without_scans_is_refused_by_the_compiled_network(tmp_path: Path) -> None:
    export_torchscript(predictor(tmp_path), tmp_path / "model.ts")
    given = batch(2, 3)
    given["mask"][1] = False
    with pytest.raises(Exception, match="expected at least one scan per patient"):
        torch.jit.load(tmp_path / "model.ts")(**given)


def test_a_file_that_differs_from_the_model_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What Python counts, a trace keeps as it was of its example.
    def readout(self: CoxLoss, prediction: torch.Tensor) -> torch.Tensor:
        return prediction + len(prediction)

    monkeypatch.setattr(CoxLoss, "log_risk", readout)
    found = with_loss(tmp_path, "CoxLoss")
    for write in (export_onnx, export_torchscript):
        (tmp_path / "model").write_text("before")
        with pytest.raises(ValueError, match="expected a file with the numbers of the model, got one that is 1 apart"):
            write(found, tmp_path / "model")
        assert (tmp_path / "model").read_text() == "before" and not (tmp_path / "model.part").exists()


class Odd(torch.nn.Module):
    """It computes with what neither file can express."""

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        return torch.fft.fftn(scans, dim=sorted([4, 3], key=lambda axis: -axis)).abs()


def test_a_network_that_cannot_be_exported_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predictor(tmp_path)
    found.members[0].encoder = torch.nn.Sequential(Odd(), found.members[0].encoder)
    for kind, write in (("ONNX", export_onnx), ("TorchScript", export_torchscript)):
        with pytest.raises(ValueError, match=f"expected a network that {kind} can express, got another: ") as refused:
            write(found, tmp_path / "model")
        assert "\n" not in str(refused.value) and not list(tmp_path.glob("model*.part"))
    assert "graph" not in capsys.readouterr().out


def test_without_onnx_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install .monai-mvreg\[deploy\]"):
        export_onnx(predictor(tmp_path), tmp_path / "model.onnx")

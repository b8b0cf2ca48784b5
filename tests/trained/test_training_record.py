"""What a training writes down: counts and quantiles of groups, versions and a hash, and nobody's name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from monai_mvreg.trained.training_record import describe_group, describe_patients, save_training, spread_of
from monai_mvreg.trained.weights import weights_hash

KEY = "Erika Mustermann 1964"
NAMES = {"target": ["volume"], "covariates": ["age", "sex=M"]}


def items(patients: int = 20, fold: str = "1") -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [
        {
            "patient": f"{KEY}-{i}",
            "image": [f"{KEY}-{i}-{n}.nii" for n in range(1 + i % 3)],
            "time": [float(90 * n) for n in range(1 + i % 3)],
            "view": [0] * (1 + i % 3),
            "fold": fold,
            "label": [float(draw.normal(100, 20))],
            "covariates": [float("nan") if i < 2 else 60.0 + i, float(i % 2)],
            "groups": {"age": "" if i < 2 else f"{60 + i}", "sex": "FM"[i % 2], "site": KEY if i == 7 else "North"},
        }
        for i in range(patients)
    ]


def trainer() -> Any:
    network = torch.nn.Linear(4, 1)
    network.bias.requires_grad_(False)
    state = SimpleNamespace(epoch=7, times={"COMPLETED": 12.34}, device=torch.device("cpu"))
    return SimpleNamespace(network=network, state=state)


def saved(folder: Path) -> dict[str, Any]:
    torch.save({"weight": torch.ones(2)}, folder / "model.pt")
    save_training(
        str(folder / "training.json"),
        {"training": items(), "validation": items(10, "0")},
        names=NAMES,
        settings={"epochs": 9, "seed": 3, "processes": 1, "loss#_target_": "torch.nn.HuberLoss"},
        trainer=trainer(),
        best_epoch=5,
    )
    found: dict[str, Any] = json.loads((folder / "training.json").read_text())
    return found


def test_patients_scans_folds_targets_and_what_is_missing_are_counted() -> None:
    found = describe_patients(items(), NAMES)
    assert (found["patients"], found["scans"], found["folds"]) == (20, 39, {"1": 20})
    assert found["scans_per_patient"]["p50"] == 2 and found["days_spanned"]["p95"] == 180
    assert found["missing"] == {"age": 2, "sex=M": 0}
    values = [item["label"][0] for item in items()]
    assert found["target"]["volume"]["mean"] == float(f"{np.mean(values):.6g}")
    assert found["target"]["volume"]["p50"] == float(f"{np.median(values):.6g}")


def test_groups_are_counted_and_a_value_of_few_patients_is_not_named() -> None:
    found = describe_patients(items(), NAMES)["groups"]
    assert found["sex"] == {"F": 10, "M": 10} and found["site"] == {"North": 19}
    assert found["age"]["p50"] == 70.5 and found["age"]["unknown"] == 2


def test_an_event_is_a_share_and_a_number_has_mean_and_quantiles() -> None:
    assert spread_of([0, 1, 1, 0, 0]) == {"ones": 2, "share": 0.4}
    assert spread_of([1.0, 2.0, 3.0])["sd"] == float(f"{np.std([1, 2, 3]):.6g}")


def test_few_numbers_are_counted_by_value() -> None:
    assert describe_group(pd.Series(["1", "2"] * 5)) == {"1": 5, "2": 5}


def test_epochs_seed_versions_and_the_hash_of_the_weights_are_written(tmp_path: Path) -> None:
    found = saved(tmp_path)
    assert found["epochs"] == {"planned": 9, "run": 7, "best": 5} and found["seed"] == 3
    assert found["parameters"] == {"all": 5, "learned": 4} and found["device"] == "cpu"
    assert found["weights"] == weights_hash({"weight": torch.ones(2)})
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["patients"]["validation"]["patients"] == 10


def test_no_patient_and_no_scan_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    text = (tmp_path / "training.json").read_text()
    assert KEY not in text and ".nii" not in text

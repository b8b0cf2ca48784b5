"""A model that version 0.1 trained is read: the modules that its settings name have moved since."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser
from tiny_model import BUNDLE, SETTINGS, write_model, write_scan

from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.trained.moved_names import _MOVED, with_current_names

# What a training wrote whose transforms, encoder and imports name modules of this package.
SCALE = {**SETTINGS["intensity"][0], "a_min": "$0 if @collate else 1", "a_max": "$weights.read_weights and 100"}
ENCODER = "$torch.nn.Sequential(own.Conv3d(1, 4, 3), torch.nn.ReLU(), nifti.Nifti and torch.nn.Flatten())"
OLD: dict[str, Any] = {
    "collate": {"_target_": "monai_mvreg.data.collate_scans", "_mode_": "callable"},
    "imports": [
        "$import monai_mvreg.weights as weights",
        "$import monai_mvreg.scans.files",
        "$import torch.nn as own",
        "$from monai_mvreg.scans import nifti",
    ],
}
NEW: dict[str, Any] = {
    "collate": {"_target_": "monai_mvreg.training.batches.collate_scans", "_mode_": "callable"},
    "imports": [
        "$import monai_mvreg.trained.weights as weights",
        "$import monai_mvreg.scans.formats.byte_ranges",
        "$import torch.nn as own",
        "$from monai_mvreg.scans.formats import nifti as nifti",
    ],
}


def test_every_old_path_of_the_settings_becomes_the_one_of_today() -> None:
    assert with_current_names(OLD) == NEW
    assert with_current_names(NEW) == NEW


@pytest.mark.parametrize("current", sorted(set(_MOVED.values())))
def test_what_an_old_path_became_is_there(current: str) -> None:
    module, _, name = current.rpartition(".")
    try:
        importlib.import_module(current)
    except ModuleNotFoundError:
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    "text",
    [
        "monai_mvreg.scans.reader.ScanReader",
        "monai_mvreg.networks.pools.MeanPool",
        "monai_mvreg.training.transforms.PackScansd",
        "mine.monai_mvreg.data",
        "monai_mvreg.database",
        "$from monai_mvreg.networks import pools",
    ],
)
def test_what_has_not_moved_stays(text: str) -> None:
    assert with_current_names(text) == text


def predicted(models: Path, bundle: Path, patient: Path) -> list[float | None]:
    predictor = Predictor.from_bundle(bundle, models=models)
    return [value for number in predictor.predict_folder(patient).numbers for value in (number.value, number.low)]


def test_a_model_of_version_0_1_predicts_the_same_number(tmp_path: Path) -> None:
    for visit, day in enumerate(("2020-01-01", "2020-06-01")):
        write_scan(tmp_path / "patient" / f"{day}.nii", seed=visit)
    parts = {"intensity": [SCALE], "encoder": ENCODER}
    models = write_model(tmp_path / "models", **parts, own=NEW, collate=NEW["collate"])
    settings = json.loads((models / "settings.json").read_text())
    del settings["collate"]  # it stands in "own"
    (models / "settings.json").write_text(json.dumps(settings))
    expected = predicted(models, BUNDLE, tmp_path / "patient")

    (models / "settings.json").write_text(json.dumps({**settings, "own": OLD}))
    assert predicted(models, BUNDLE, tmp_path / "patient") == expected
    # A pack holds the configs of its version too.
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    config = bundle / "configs" / "inference.yaml"
    back = {current: old for old, current in _MOVED.items()}
    text = config.read_text()
    for current in sorted(back, key=len, reverse=True):
        text = text.replace(current, back[current])
    assert "$import monai_mvreg.workflow as workflow" in text and "monai_mvreg.transforms.UnpackScansd" in text
    config.write_text(text)
    assert predicted(models, bundle, tmp_path / "patient") == expected


def test_a_run_of_the_bundle_takes_the_settings_of_version_0_1_for_its_own(tmp_path: Path) -> None:
    parts: dict[str, Any] = {name: [] for name in ("target", "channels", "spatial_size", "encoder", "pool", "outputs")}
    config = {
        **parts,
        "columns": {"_target_": "monai_mvreg.cohort.table.Columns"},
        "reader": None,
        "grid": [],
        "intensity": [NEW["collate"]],
        "imports": ["$import monai_mvreg.training.workflow as workflow"],
        "run": [f"$workflow.same_settings({str(tmp_path / 'settings.json')!r}, columns=@columns)"],
    }
    kept = {name: config[name] for name in ("reader", "grid", *parts)}
    kept |= {"columns#views": None, "columns#covariates": None, "intensity": [OLD["collate"]], "unit": "mL"}
    kept |= {"dated": False, "loss": None, "horizons": None, "own": {"imports": []}}
    (tmp_path / "settings.json").write_text(json.dumps(kept))
    [trained] = ConfigParser(config).get_parsed_content("run")
    assert trained.unit == "mL" and trained.entries["intensity"] == [NEW["collate"]]

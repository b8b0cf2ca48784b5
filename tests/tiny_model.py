"""A model as a training leaves it, made in a moment, and scans that it can take; for the tests of prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from make_dicom import write_series
from monai.bundle import ConfigParser

from monai_mvreg.cache.typed_json import write_json
from monai_mvreg.results.calibration import Baseline, Interval
from monai_mvreg.trained.training_domain import learn_domain

BUNDLE = Path(__file__).parents[1] / "bundle"
POOL = {"_target_": "monai_mvreg.networks.pools.GatedAttentionPool", "size": "@embedding_size"}
TASKS = "monai_mvreg.networks.task"
SETTINGS: dict[str, Any] = {
    "target": ["volume"],
    "channels": 1,
    "reader": {"_target_": "monai_mvreg.scans.reader.ScanReader"},
    "spatial_size": [6, 6, 4],
    "grid": [
        {"_target_": "monai.transforms.Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {"_target_": "monai.transforms.Resized", "keys": "image", "spatial_size": "@spatial_size"},
    ],
    "intensity": [
        {"_target_": "monai.transforms.ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 100}
        | {"b_min": 0, "b_max": 1}
    ],
    "encoder": "$torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())",
    "pool": {**POOL, "time_encoding": {"_target_": "monai_mvreg.networks.pools.TimeEncoding"}},
    "outputs": 1,
    "columns#views": None,
    "columns#covariates": None,
    "unit": "mL",
    "loss": {"_target_": "torch.nn.HuberLoss"},
    "horizons": None,
    "dated": True,
    "own": {"imports": []},
}


def write_scan(path: Path, *, seed: int, size: tuple[int, ...] = (8, 7, 5), level: float = 50.0) -> Path:
    """A NIfTI volume of noise around a level."""
    voxels = np.random.default_rng(seed).normal(level, 10, size).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    return path


def write_visit(folder: Path, *, date: str, seed: int, **tags: Any) -> Path:
    """A DICOM series of one patient."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(20, 90, (6, 8)).astype(np.uint16)
    uid = f"1.2.3.{seed}.{date}"
    own = {"SeriesInstanceUID": uid, "StudyInstanceUID": f"{uid}.1", "PatientID": "Mustermann"}
    own |= {"Rows": 6, "Columns": 8, "PixelData": pixels.tobytes(), "AcquisitionDate": date, "StudyDate": date}
    return write_series(folder, **{**own, **tags})


def task_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The task of a loss."""
    if settings["horizons"]:
        return {"_target_": f"{TASKS}.TimeToEvent", "loss": "@loss", "horizons": "@horizons"}
    spread = settings["loss"]["_target_"].endswith(("GaussianLoss", "QuantileLoss"))
    return {"_target_": f"{TASKS}.{'NumberWithSpread' if spread else 'Number'}", "loss": "@loss"}


def write_model(place: Path, *, seed: int = 0, **settings: Any) -> Path:
    """A folder ``models`` with random weights; training saw 40 scans of noise like that of :func:`write_scan`."""
    place.mkdir(parents=True, exist_ok=True)
    whole = {**SETTINGS, **settings}
    whole["task"] = task_of(whole)
    (place / "settings.json").write_text(json.dumps(whole), encoding="utf-8")
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    parser.update({"imports": parser["imports"] + whole["own"]["imports"]})
    parser.update(
        {name: entry for name, entry in whole.items() if name not in ("own", "unit", "dated") and entry is not None}
    )
    torch.manual_seed(seed)
    network = parser.get_parsed_content("network_def").eval()
    network.head.weight.data *= 20  # so that scans move the number
    for name, parameter in network.named_parameters():
        if name in ("view.weight", "covariates.stand_in"):  # zero before any training
            torch.nn.init.normal_(parameter)
    torch.save(network.state_dict(), place / "model.pt")
    scans = [write_scan(place.parent / "training" / f"{at}.nii", seed=100 + at) for at in range(40)]
    items = [
        {"image": [str(a), str(b)], "time": [0.0, 300.0], "label": [float(at)]}
        for at, (a, b) in enumerate(zip(scans[::2], scans[1::2], strict=True))
    ]
    steps = [part for name in ("load", "grid", "intensity") for part in parser.get_parsed_content(name)][1:]
    learn_domain(
        str(place / "domain.json"),
        network,
        reader=parser.get_parsed_content("reader"),
        transform=steps,
        items=(items[:13], items[13:]),
        target=whole["target"],
    )
    write_json(dict.fromkeys(whole["target"], Interval(3.0, 0.9)), place / "intervals.json")
    write_json(Baseline((100.0, 400.0, 900.0), (0.1, 0.5, 1.0), 0.8, 0.1), place / "survival.json")
    return place

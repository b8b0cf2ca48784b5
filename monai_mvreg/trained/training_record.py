"""A training -> ``training.json`` beside its model: counts of patients and scans, epochs, seed, versions.

Who reads a model months later finds here what no other file says. Numbers are counts and quantiles of groups of
patients; a value that fewer than 5 patients share is counted with others.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.results.levels import UNKNOWN, levels_of
from monai_mvreg.trained.weights import read_weights, weights_hash

_PACKAGES = ("monai-mvreg", "monai", "torch", "pytorch-ignite", "timm", "numpy", "nibabel", "pydicom", "SimpleITK")
_SHARES = (5, 25, 50, 75, 95)


def save_training(
    path: str,
    patients: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    names: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    trainer: Any,
    best_epoch: int,
) -> None:
    """Write down what a training was, for its model card; for the end of the list ``run`` of training.

    Args:
        path: the JSON file, beside ``model.pt``.
        patients: the items of the datasets: ``training`` and ``validation``.
        names: ``target``, ending with the event if there is one, and ``covariates``, those of the numbers of each item.
        settings: every setting that a number depends on, as :func:`~monai_mvreg.training.workflow.describe_run`
            finds them.
        trainer: the trainer when it is done.
        best_epoch: the one whose weights were kept.
    """
    weights = list(trainer.network.parameters())
    device = trainer.state.device
    found = {
        "finished": pd.Timestamp.now(tz="UTC").date().isoformat(),
        "epochs": {"planned": settings["epochs"], "run": trainer.state.epoch, "best": best_epoch},
        "seconds": round(trainer.state.times["COMPLETED"], 1),  # since the start, or since the last interruption
        "seed": settings["seed"],
        "processes": settings["processes"],
        "device": _device(device),
        "parameters": {
            "all": sum(weight.numel() for weight in weights),
            "learned": sum(weight.numel() for weight in weights if weight.requires_grad),
        },
        "weights": weights_hash(read_weights(Path(path).parent)),
        "versions": {"python": platform.python_version(), **_versions()},
        "patients": {part: describe_patients(items, names) for part, items in patients.items()},
        "settings": dict(settings),
    }
    atomic_write_text(Path(path), json.dumps(found, indent=1, allow_nan=False))


def training_folds(path: Path) -> dict[str, int]:
    """Patients of each fold that a network learned from, by its ``training.json``; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        folds: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["patients"]["training"]["folds"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path}: expected the record of a training, got something else") from None
    return folds


def describe_patients(items: Sequence[Mapping[str, Any]], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Count patients and scans, and say how targets and groups are spread.

    Args:
        items: one for each patient, with ``image``, ``time``, ``fold``, ``label`` and, where there are any,
            ``covariates`` and ``groups``.
        names: ``target`` and ``covariates``, in the order of ``label`` and ``covariates``.
    """
    scans = [len(item["image"]) for item in items]
    folds = pd.Series([item["fold"] for item in items]).value_counts().sort_index()
    label = np.array([item["label"] for item in items], dtype=np.float64)
    found: dict[str, Any] = {
        "patients": len(items),
        "scans": sum(scans),
        "scans_per_patient": quantiles_of(scans),
        "days_spanned": quantiles_of([max(item["time"]) - min(item["time"]) for item in items]),
        "folds": {str(fold): int(count) for fold, count in folds.items()},
        "target": {name: spread_of(label[:, place]) for place, name in enumerate(names["target"])},
    }
    if names["covariates"]:
        missing = np.isnan(np.array([item["covariates"] for item in items], dtype=np.float64)).sum(0)
        found["missing"] = {name: int(count) for name, count in zip(names["covariates"], missing, strict=True)}
    groups = pd.DataFrame([item.get("groups", {}) for item in items])
    found["groups"] = {str(name): describe_group(groups[name]) for name in groups}
    return found


def describe_group(column: pd.Series[str]) -> dict[str, Any]:
    """Quantiles of a column with many numbers, else the number of patients of each value."""
    numbers = pd.to_numeric(column.replace("", None), errors="coerce")
    empty = column.isna() | (column.astype(str) == "")
    if numbers[~empty].notna().all() and numbers.nunique() > 6:
        return {**quantiles_of(numbers.dropna()), UNKNOWN: int(empty.sum())}
    return {text: int(mine.sum()) for text, mine in levels_of(column).items()}


def spread_of(values: Any) -> dict[str, float]:
    """Mean, standard deviation and quantiles; of zeros and ones the share of ones, and how many they are."""
    values = np.asarray(values, dtype=np.float64)
    if np.isin(values, (0, 1)).all():
        return {"ones": int(values.sum()), "share": round(float(values.mean()), 6)}
    return {"mean": _short(values.mean()), "sd": _short(values.std()), **quantiles_of(values)}


def quantiles_of(values: Any) -> dict[str, float]:
    """Percentiles of numbers, each under its name: ``p50``."""
    found = np.percentile(np.asarray(values, dtype=np.float64), _SHARES)
    return {f"p{share}": _short(number) for share, number in zip(_SHARES, found, strict=True)}


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device(device: Any) -> str:
    return torch.cuda.get_device_name(device) if getattr(device, "type", "") == "cuda" else str(device)

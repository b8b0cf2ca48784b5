"""A trained bundle -> its networks, ready to predict, and what belongs to them; the way back from files to objects."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.transforms import Compose

from monai_mvreg.cache.typed_json import read_json
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.task import Task, TimeToEvent
from monai_mvreg.results.calibration import Baseline, Interval, read_intervals
from monai_mvreg.results.predictions_table import PredictionsTable
from monai_mvreg.trained.model_files import check_files, has_model, read_whole
from monai_mvreg.trained.model_settings import (
    OF_EVALUATION,
    OF_SPLIT,
    ModelSettings,
    inference_config,
    read_settings,
    setting_differences,
)
from monai_mvreg.trained.training_domain import Domain
from monai_mvreg.trained.weights import read_weights, set_weights, weights_file, weights_hash


@dataclass(frozen=True)
class Member:
    """One trained network, in evaluation mode.

    ``weights`` is the SHA-256 of its tensors; ``intervals`` has one entry for each target, and is empty for a time to
    event, which has ``curves``. ``fold`` is the part of the cohort that a network of a cross-validation has not seen.
    """

    network: MultiScanNet
    weights: str
    domain: Domain
    intervals: tuple[Interval | None, ...]
    curves: Baseline | None
    fold: str


@dataclass(frozen=True)
class Trained:
    """All that a training left: how a scan is prepared, the networks, and what their outputs are.

    Args:
        settings: what the networks depend on.
        reader: what reads a scan.
        transform: ``{"image": address}`` to a scan ``(C, *spatial)``; its first step reads the scan.
        task: what the outputs of the networks mean.
        covariates: names of the covariates.
        views: kinds of scans.
        members: one, or those of a cross-validation.
        name: of the bundle.
        version: of the bundle.
    """

    settings: ModelSettings
    reader: Any
    transform: Compose
    task: Task
    covariates: tuple[str, ...]
    views: tuple[str, ...]
    members: tuple[Member, ...]
    name: str
    version: str

    @property
    def survival(self) -> bool:
        """Whether a time to event is predicted."""
        return isinstance(self.task, TimeToEvent)


def read_trained(bundle: Path, models: Path, device: torch.device) -> Trained:
    """Read a trained model, or all those of a cross-validation, as files of settings and weights.

    A bundle's configs and ``settings.json`` are code: read only those you trust. Weights are read as numbers alone.

    Args:
        bundle: the folder of the bundle.
        models: ``model_dir`` of a training, or the folder of a cross-validation.
        device: where the networks shall run.

    Raises:
        FileNotFoundError: if there is no trained model, or a part of it is missing.
        ValueError: if a file holds something else, or models of one cross-validation differ in their settings.
    """
    config = bundle / "configs" / "inference.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"expected a bundle with configs/inference.yaml in {bundle}, found none: give --bundle")
    places = model_folders(models)
    if not places and has_model(models / "models"):
        raise FileNotFoundError(f"expected a trained model in {models}, found one in {models / 'models'}: give that")
    if not places:
        raise FileNotFoundError(
            f"expected a trained model in {models}, found no settings.json: train first, or name its folder "
            "(--models; in a file of settings, models)"
        )
    read = [read_whole(place, lambda folder: _read_member(folder, config, device)) for place in places]
    settings = read[0][0]
    for place, (other, _) in zip(places, read, strict=True):
        if differ := setting_differences(settings, other, [*OF_EVALUATION, *OF_SPLIT], labels=("there", "here")):
            raise ValueError(
                f"{place.parent.name}: expected the settings of {places[0].parent.name}, these differ: "
                f"{', '.join(differ)}"
            )
    parser = inference_config(settings, config)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    columns = parser.get_parsed_content("columns")
    steps = [part for name in ("load", "grid", "intensity") for part in parser.get_parsed_content(name)]
    return Trained(
        settings=settings,
        reader=parser.get_parsed_content("reader"),
        transform=Compose(steps[1:]),  # the first unpacks the scans of a patient
        task=parser.get_parsed_content("task"),
        covariates=tuple(columns.covariate_names),
        views=tuple(columns.views),
        members=tuple(replace(member, fold=_fold(place)) for place, (_, member) in zip(places, read, strict=True)),
        name=metadata["name"],
        version=metadata["version"],
    )


def model_folders(models: Path) -> list[Path]:
    """Find the folder of each trained model: the given one, or those of a cross-validation; empty if there is none."""
    if has_model(models):
        return [models]
    return [place for place in sorted(fold / "models" for fold in models.glob("fold-*_seed-*")) if has_model(place)]


def read_residuals(models: Path, target: Sequence[str]) -> pd.DataFrame:
    """Read how far the models of a cross-validation were from patients that they had not seen.

    Args:
        models: the folder of the cross-validation, with ``predictions.csv``; or ``residuals.csv``, what a pack keeps of
            that.
        target: names of the predicted numbers.

    Returns:
        One row per patient: ``fold`` and, for each number, the measured minus the predicted value, over the predicted
        spread where there is one; missing where it was not measured.

    Raises:
        FileNotFoundError: if the cross-validation is not finished.
        ValueError: if ``predictions.csv`` is not a table of these targets.
    """
    if (models / "residuals.csv").is_file():
        # A fold may be called NA.
        found = pd.read_csv(models / "residuals.csv", dtype=str, keep_default_na=False)
        for name in found.columns.drop("fold"):
            found[name] = [float(cell or "nan") for cell in found[name]]
        return found
    if not (models / "predictions.csv").is_file():
        raise FileNotFoundError(f"expected a finished cross-validation in {models}, found no predictions.csv")
    known = PredictionsTable.read(models / "predictions.csv")
    columns: dict[str, Any] = {"fold": known.fold}
    if not known.is_time_to_event:
        columns |= {name: (known.measured(name) - known.predicted(name)) / known.spread(name) for name in target}
    return pd.DataFrame(columns)


def _read_member(folder: Path, config: Path, device: torch.device) -> tuple[ModelSettings, Member]:
    """Read the files of one training."""
    settings = read_settings(folder / "settings.json")
    # A parser keeps the objects that it makes: each network needs one of its own.
    parser = inference_config(settings, config)
    network = parser.get_parsed_content("network_def")
    survival = isinstance(parser.get_parsed_content("task"), TimeToEvent)
    weights = read_weights(folder)
    digest = weights_hash(weights)
    check_files(folder, settings.files, weights=digest)
    set_weights(network, weights, source=weights_file(folder))
    member = Member(
        network=network.to(device).eval(),
        weights=digest,
        domain=read_json(Domain, folder / "domain.json"),
        intervals=() if survival else tuple(read_intervals(folder / "intervals.json", settings.target)),
        curves=read_json(Baseline, folder / "survival.json") if survival else None,
        fold="",
    )
    return settings, member


def _fold(models: Path) -> str:
    found = re.match(r"fold-(.*)_seed-", models.parent.name)
    return found[1] if found else ""

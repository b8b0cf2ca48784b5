"""A trained bundle -> its networks, ready to predict, and what belongs to them; the way back from files to objects."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import nn

from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.results.calibration import Baseline, Interval, read_intervals, read_part
from monai_mvreg.trained.moved_names import with_current_names
from monai_mvreg.trained.training_domain import Domain, read_domain
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
        settings: what :func:`monai_mvreg.training.workflow.save_settings` wrote.
        reader: what reads a scan.
        transform: ``{"image": address}`` to a scan ``(C, *spatial)``; its first step reads the scan.
        loss: the loss of the training, which knows what the outputs mean.
        covariates: names of the covariates.
        views: kinds of scans.
        members: one, or those of a cross-validation.
        name: of the bundle.
        version: of the bundle.
    """

    settings: Mapping[str, Any]
    reader: Any
    transform: Compose
    loss: nn.Module
    covariates: tuple[str, ...]
    views: tuple[str, ...]
    members: tuple[Member, ...]
    name: str
    version: str

    @property
    def survival(self) -> bool:
        """Whether a time to event is predicted."""
        return hasattr(self.loss, "log_risk")


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
    if not places and (models / "models" / "settings.json").is_file():
        raise FileNotFoundError(f"expected a trained model in {models}, found one in {models / 'models'}: give that")
    if not places:
        raise FileNotFoundError(
            f"expected a trained model in {models}, found no settings.json: train first, or name its folder "
            "(--models; in a file of settings, models)"
        )
    settings = _settings(places[0])
    if differ := [place.parent.name for place in places if _settings(place) != settings]:
        raise ValueError(f"expected models of the same settings, others are those of {', '.join(differ)}")
    parser = _parser(config, settings)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    columns = parser.get_parsed_content("columns")
    loss = parser.get_parsed_content("loss")
    steps = [part for name in ("load", "grid", "intensity") for part in parser.get_parsed_content(name)]
    return Trained(
        settings=settings,
        reader=parser.get_parsed_content("reader"),
        transform=Compose(steps[1:]),  # the first unpacks the scans of a patient
        loss=loss,
        covariates=tuple(columns.covariate_names),
        views=tuple(columns.views),
        members=tuple(_member(place, config, settings, hasattr(loss, "log_risk"), device) for place in places),
        name=metadata["name"],
        version=metadata["version"],
    )


def model_folders(models: Path) -> list[Path]:
    """Find the folder of each trained model: the given one, or those of a cross-validation; empty if there is none."""
    if (models / "settings.json").is_file():
        return [models]
    places = sorted(place / "models" for place in models.glob("fold-*_seed-*"))
    return [place for place in places if (place / "settings.json").is_file()]


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
    """
    if (models / "residuals.csv").is_file():
        return pd.read_csv(models / "residuals.csv", dtype={"fold": str}, float_precision="round_trip")
    if not (models / "predictions.csv").is_file():
        raise FileNotFoundError(f"expected a finished cross-validation in {models}, found no predictions.csv")
    known = pd.read_csv(models / "predictions.csv", dtype={"fold": str})
    found = known[["fold"]].copy()
    for name in target:
        if f"{name}_predicted" in known:  # not of a time to event
            found[name] = (known[name] - known[f"{name}_predicted"]) / known.get(f"{name}_spread", 1.0)
    return found


def _settings(place: Path) -> dict[str, Any]:
    content = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    settings: dict[str, Any] = with_current_names(content)
    if not {"loss", "dated", "own", "horizons"} <= set(settings):
        raise ValueError(f"{place / 'settings.json'}: expected the settings of a training by this version: train again")
    return settings


def _parser(config: Path, settings: Mapping[str, Any]) -> ConfigParser:
    """The config of inference with the settings of the training."""
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.set(with_current_names(parser.get()))
    own = dict(settings["own"])
    known = set(parser.get())
    imports = [line for line in own.pop("imports") if line not in parser["imports"]]
    parser.update({"bundle_root": str(config.parents[1]), "imports": parser["imports"] + imports})
    parser.update({name: entry for name, entry in own.items() if name not in known})
    told = {"unit", "dated", "own"}  # no settings of the bundle
    parser.update({name: entry for name, entry in settings.items() if name not in told and entry is not None})
    return parser


def _member(place: Path, config: Path, settings: Mapping[str, Any], survival: bool, device: torch.device) -> Member:
    # A parser keeps the objects that it makes: each network needs one of its own.
    network = _parser(config, settings).get_parsed_content("network_def")
    weights = read_weights(place)
    set_weights(network, weights, source=weights_file(place))
    targets = [str(name) for name in settings["target"]]
    fold = re.match(r"fold-(.*)_seed-", place.parent.name)
    return Member(
        network=network.to(device).eval(),
        weights=weights_hash(weights),
        domain=read_domain(place / "domain.json"),
        intervals=() if survival else tuple(read_intervals(place / "intervals.json", targets)),
        curves=read_part(Baseline, place / "survival.json") if survival else None,
        fold=fold[1] if fold else "",
    )

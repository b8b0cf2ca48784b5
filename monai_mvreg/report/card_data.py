"""Files of a training and its evaluation -> one record, and from it the tables of patients in a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from monai_mvreg.report import tripod
from monai_mvreg.report.page import Section, rounded, with_unit
from monai_mvreg.results.predictions_table import PredictionsTable
from monai_mvreg.trained.model_files import current_folder
from monai_mvreg.trained.model_settings import ModelSettings, read_settings
from monai_mvreg.trained.training_record import describe_group, quantiles_of, spread_of
from monai_mvreg.trained.weights import weights_file

UNRECORDED = "not recorded"


@dataclass(frozen=True)
class RunRecord:
    """What the files of a training and, where there was one, of an evaluation hold.

    Args:
        models: the folder of the model.
        settings: what the model depends on.
        training: what its training was; empty where it left no record.
        metadata: of the bundle; may be empty.
        evaluation: the folder of the evaluation, or None.
        metrics: of the evaluation.
        table: its predictions; None without an evaluation.
        answers: what the authors say, by item of TRIPOD+AI.
        domain: what the training scans were; empty where that was not recorded.
    """

    models: Path
    settings: ModelSettings
    training: dict[str, Any]
    metadata: dict[str, Any]
    evaluation: Path | None
    metrics: dict[str, Any]
    table: PredictionsTable | None
    answers: dict[str, str]
    domain: dict[str, Any]

    @property
    def survival(self) -> bool:
        """Whether it is a time to an event."""
        return (self.table is not None and self.table.is_time_to_event) or bool(self.settings.horizons)

    @property
    def target(self) -> list[str]:
        """The columns of the targets, without the event."""
        return list(self.settings.target)

    @property
    def unit(self) -> str:
        """Of the targets, ``"1"`` for none."""
        return "d" if self.survival else self.settings.unit

    @property
    def known(self) -> PredictionsTable | None:
        """The evaluated patients with a measured value; None if there are none."""
        known = None if self.table is None else self.table.known(self.target[0])
        return known if known is not None and len(known) else None

    @property
    def learned_from(self) -> bool:
        """Whether some evaluated folds were learned from by this model, as in a cross-validation."""
        folds = self.training.get("patients", {}).get("training", {}).get("folds", {})
        return self.known is not None and bool(set(self.known.fold) & set(folds))


def read_record(models: Path, *, evaluation: Path | None, metadata: Path | None, answers: Path | None) -> RunRecord:
    """Read the files; arguments and errors as of :func:`~monai_mvreg.report.card.write_card`."""
    models = current_folder(models)
    weights_file(models)
    if not (models / "settings.json").is_file():
        raise FileNotFoundError(f"expected a trained model in {models}, found no settings.json")
    table, metrics = None, {}
    if evaluation is not None:
        for name in ("predictions.csv", "metrics.json"):
            if not (evaluation / name).is_file():
                raise FileNotFoundError(f"expected an evaluation in {evaluation}, found no {name}")
        table, metrics = PredictionsTable.read(evaluation / "predictions.csv"), _json(evaluation / "metrics.json")
    said = yaml.safe_load(answers.read_text(encoding="utf-8")) or {} if answers is not None else {}
    if not isinstance(said, Mapping):
        raise ValueError("answers: expected a text for each item, such as 5b: 2011 to 2019, got something else")
    return RunRecord(
        models=models,
        settings=read_settings(models / "settings.json"),
        training=_json(models / "training.json") if (models / "training.json").is_file() else {},
        domain=_json(models / "domain.json") if (models / "domain.json").is_file() else {},
        metadata=_json(metadata) if metadata is not None else {},
        evaluation=evaluation,
        metrics=metrics,
        table=table,
        answers=tripod.check_answers(said),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise ValueError(f"{path.name}: expected JSON, got something else") from None
    return found


def training_data(run: RunRecord) -> Section:
    """Patients that were learned from, and that chose the epoch."""
    parts = run.training.get("patients")
    if not parts:
        text = "The training left no record of its patients (training.json): numbers and spread are not known."
        return Section(tripod.TRAINING, text)
    folds = {part: ", ".join(f"{fold} ({n})" for fold, n in entry["folds"].items()) for part, entry in parts.items()}
    settings = run.training["settings"]
    left = ", ".join(str(fold) for name, fold in settings.items() if name.startswith("test_folds#"))
    text = (
        f"Patients are in one part alone. Folds (patients) that were learned from: {folds['training']}; that chose the "
        f"epoch, and that intervals or curves were fitted on: {folds['validation']}; left out: {left or 'none'}. A "
        "table with a patient without target is refused. A missing covariate is flagged to the network, which learns "
        "what to put in its place. Calendar dates are not kept."
    )
    rows = _characteristics(list(parts.values()), run.unit)
    return Section(tripod.TRAINING, text, table=pd.DataFrame(rows, columns=["", "Training", "Validation"]))


def evaluation_data(run: RunRecord) -> Section:
    """Patients of the evaluation, beside those of the training."""
    known = run.known
    if known is None:
        return Section(tripod.EVALUATION, "There is no evaluation.")
    names = known.outcome if known.is_time_to_event else known.targets
    found: dict[str, Any] = {
        "patients": len(known),
        "target": {name: spread_of(known.measured(name)) for name in names},
        "groups": {name: describe_group(pd.Series(column)) for name, column in known.groups.items()},
        "scans": int(known.scans.sum()),
        "scans_per_patient": quantiles_of(known.scans),
        "days_spanned": quantiles_of(known.days_spanned),
    }
    folds = pd.Series(known.fold).value_counts().sort_index()
    said = ", ".join(f"{fold} ({count})" for fold, count in folds.items())
    text = f"Folds (patients): {said}. {whose(run)}"
    parts = [run.training["patients"]["training"]] if run.training.get("patients") else []
    rows = _characteristics([found, *parts], run.unit)
    columns = ["", "Evaluation", *(["Training"] if parts else [])]
    return Section(tripod.EVALUATION, text, table=pd.DataFrame(rows, columns=columns))


def whose(run: RunRecord) -> str:
    """How far the evaluated patients were from the training."""
    parts, folds = run.training.get("patients"), set() if run.known is None else set(run.known.fold)
    if not parts:
        return "Whether the training saw these patients is not recorded."
    if run.learned_from:
        return (
            "Some folds were learned from by this model: the numbers are those of a cross-validation, in which each "
            "patient is predicted by models that never saw the patient, or they are worthless."
        )
    if folds & set(parts["validation"]["folds"]):
        return (
            "These patients chose the epoch and what intervals or curves were fitted on: the numbers are better than "
            "those of new patients will be. Evaluate on folds that were left out."
        )
    return "The training never saw these patients; they come from the same table as those of the training."


def _characteristics(parts: Sequence[Mapping[str, Any]], unit: str) -> list[tuple[str, ...]]:
    """Rows of a table with a column for each part of the patients."""
    rows: list[tuple[str, ...]] = []

    def add(name: str, cells: Sequence[str]) -> None:
        rows.append((name, *cells))

    for name, key in (("Patients", "patients"), ("Scans", "scans")):
        add(name, [str(part.get(key, UNRECORDED)) for part in parts])
    for name, key in (("Scans per patient", "scans_per_patient"), ("Days, first to last scan", "days_spanned")):
        if any(key in part for part in parts):
            add(f"{name}, median (5 to 95 %)", [_range(part.get(key)) for part in parts])
    for name in parts[0]["target"]:
        entries = [part["target"].get(name) for part in parts]
        if any(entry and "ones" in entry for entry in entries):
            add(f"{name}, share", [f"{e['ones']} ({100 * e['share']:.0f} %)" if e else UNRECORDED for e in entries])
            continue
        sized = with_unit(name, unit)
        add(f"{sized}, median (5 to 95 %)", [_range(entry) for entry in entries])
        add(f"{sized}, mean ± sd", [f"{rounded(e['mean'])} ± {rounded(e['sd'])}" if e else UNRECORDED for e in entries])
    for name in dict.fromkeys(name for part in parts for name in part.get("groups", {})):
        groups = [part.get("groups", {}).get(name, {}) for part in parts]
        if any("p50" in group for group in groups):
            add(f"{name}, median (5 to 95 %)", [_range(group) for group in groups])
            continue
        for level in dict.fromkeys(level for group in groups for level in group):
            add(f"{name}: {level}", [str(group.get(level, "fewer than 5")) for group in groups])
    for name in parts[0].get("missing", {}):
        add(f"{name}, missing", [str(part["missing"][name]) for part in parts])
    return rows


def _range(entry: Mapping[str, float] | None) -> str:
    if not entry or "p50" not in entry:
        return UNRECORDED
    return f"{rounded(entry['p50'])} ({rounded(entry['p5'])} to {rounded(entry['p95'])})"

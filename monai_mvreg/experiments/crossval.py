"""Cohort -> folds -> one bundle run each -> a prediction for every patient by models that never saw the patient.

A run trains on all folds but two: one chooses the epoch, the other is predicted. With several seeds another fold
chooses each time, so that together they learn from every patient but the predicted ones. Whatever is finished stays: a
cross-validation that was killed goes on where it stood, and one with other settings is refused.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from monai.bundle import ConfigParser
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.cohort.split import balanced_seed, select, split_cohort
from monai_mvreg.cohort.table import Cohort, TableRows, datalist
from monai_mvreg.metrics.survival import Forecast, survival_metrics
from monai_mvreg.report.evaluation import evaluation_sections, summarise
from monai_mvreg.report.page import write_report
from monai_mvreg.results.intervals import crossfit_intervals, extend_intervals
from monai_mvreg.results.predictions_table import PredictionsTable, average
from monai_mvreg.trained.model_settings import differences
from monai_mvreg.training.checks import expect_patients, validation_problem
from monai_mvreg.training.workflow import cohort_hash


@dataclass(frozen=True)
class Plan:
    """What is run: the bundle, its config files and settings.

    Args:
        bundle: the folder of the bundle.
        configs: config files on top of the bundle's own, in order.
        dataset: the folder of the scans.
        settings: further settings by name, ``{"epochs": 20}``, as on the command line of the bundle.
    """

    bundle: Path
    configs: tuple[Path, ...]
    dataset: Path
    settings: dict[str, Any]

    def arguments(self, kind: str) -> list[str]:
        """The command line of one of the bundle's configs, ``train``, ``evaluate`` or ``inference``."""
        files = [self.bundle / f"configs/{kind}.yaml", *self.configs]
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str([str(file) for file in files])]
        settings = {"bundle_root": self.bundle, "dataset_dir": self.dataset, **self.settings}
        # A setting of None would be taken for one that was not given.
        texts = {name: "$None" if value is None else str(value) for name, value in settings.items()}
        return command + [part for name, text in texts.items() for part in (f"--{name}", text)]

    def parser(self) -> ConfigParser:
        """The settings of the training, as MONAI would read them."""
        parser = ConfigParser()
        parser.read_config([str(self.bundle / "configs/train.yaml"), *map(str, self.configs)])
        parser.update({"bundle_root": str(self.bundle), "dataset_dir": str(self.dataset), **self.settings})
        return parser

    def read(self, setting: str) -> Any:
        """A setting as the training would read it, such as ``patients``."""
        return self.parser().get_parsed_content(setting)

    def cohort(self) -> Cohort:
        """The patients as the training would read them."""
        cohort: Cohort = self.read("patients")
        return cohort

    def permuted(self, table: Path, *, seed: int) -> Plan:
        """The same plan with the labels shuffled between patients: all that it still finds is a leak.

        Args:
            table: where to write the table with the shuffled labels.
            seed: of the shuffling.
        """
        setting = "outcomes_file" if self.read("outcomes_file") else "cohort_file"
        rows, columns = TableRows(Path(self.read(setting))), self.read("columns")
        names = [*columns.target, *([columns.event] if columns.event else [])]
        first = rows.frame.drop_duplicates(columns.patient)
        drawn = first[names].sample(frac=1, random_state=seed).set_axis(first[columns.patient], axis=0)
        table.parent.mkdir(parents=True, exist_ok=True)
        shuffled = rows.frame.assign(**{name: rows.frame[columns.patient].map(drawn[name]) for name in names})
        shuffled.to_csv(table, index=False)
        return replace(self, settings={**self.settings, setting: str(table)})


def crossvalidate(plan: Plan, out: Path, *, folds: int = 5, seeds: Sequence[int] = (0,)) -> PredictionsTable:
    """Train and predict fold by fold, and write ``predictions.csv``, ``metrics.json`` and ``report.html``.

    The folds are those of the cohort's table where it has any; otherwise patients are put into so many by a hash of
    their keys, whose seed is chosen to balance targets and events.

    Args:
        plan: what is run.
        out: the folder of the results; one that holds an unfinished run of the same plan is continued.
        folds: number of folds, where the table has none.
        seeds: each fold is trained once with each, and predictions are averaged.

    Returns:
        What ``predictions.csv`` holds: each patient predicted by models that did not see the patient.

    Raises:
        ValueError: if there are fewer than 3 folds, or the folder holds a run of another plan.
        ChildProcessError: if a run of the bundle ends with an error; its log is named.
    """
    cohort = plan.cohort()
    settings: dict[str, Any] = {}
    names = sorted({patient.fold for patient in cohort.patients if patient.fold is not None})
    if not names:
        names = [str(fold) for fold in range(folds)]
        settings = {"folds": folds, "split_seed": balanced_seed(cohort, folds)}
    if len(names) < 3:
        raise ValueError(f"expected at least 3 folds, to train, to choose the epoch and to test, got {names}")
    out.mkdir(parents=True, exist_ok=True)
    cohort_now = cohort_hash(datalist(cohort.patients), str(plan.dataset))
    _same_plan(out / "plan.json", plan, {"folds": names, "cohort": f"hash {cohort_now}, unit {cohort.unit}"}, settings)
    choosing = _choosing(plan, cohort if not settings else split_cohort(cohort, folds, seed=settings["split_seed"]))
    runs = [(test, other, seed) for test in names for other, seed in zip(choosing[test], seeds, strict=False)]
    for test, validation, seed in tqdm(runs, "folds", unit="run", disable=None):
        left_out = {"test_folds": [test], "validation_folds": [validation], "seed": seed}
        _run_fold(plan, out / f"fold-{test}_seed-{seed}", {**settings, **left_out}, test)
    parts = [
        average([PredictionsTable.read(out / f"fold-{name}_seed-{seed}/test/predictions.csv") for seed in seeds])
        for name in names
    ]
    rows = pd.concat([part.frame for part in parts], ignore_index=True)
    table = PredictionsTable(rows.sort_values("patient", ignore_index=True))
    for target in table.targets:
        table = crossfit_intervals(table, target)
    table.write(out / "predictions.csv")
    _report(table, out)
    return table


def validation_metric(out: Path, *, lower_is_better: bool) -> float:
    """The metric of the patients that chose the epochs, at these epochs, averaged over the runs of a cross-validation.

    Args:
        out: the folder of its results.
        lower_is_better: as the setting of that name.
    """
    histories = [pd.read_csv(path) for path in sorted(out.glob("fold-*_seed-*/training/history.csv"))]
    return float(np.mean([history.iloc[:, 2].agg("min" if lower_is_better else "max") for history in histories]))


def predict_new(plan: Plan, out: Path, table: Path) -> PredictionsTable:
    """Predict new patients by the mean of all models of a cross-validation, and write ``new_predictions.csv``.

    Args:
        plan: as it was cross-validated.
        out: the folder of its results.
        table: one row per scan of the new patients.

    Returns:
        What ``new_predictions.csv`` holds.

    Raises:
        FileNotFoundError: if the cross-validation is not finished.
        ChildProcessError: if a run of the bundle ends with an error.
    """
    if not (out / "predictions.csv").exists():
        raise FileNotFoundError(f"expected a finished cross-validation in {out}, found none")
    places = sorted(done.parent for done in out.glob("fold-*_seed-*/train.done"))
    for place in tqdm(places, "models", unit="model", disable=None):
        own = {"model_dir": str(place / "models"), "output_dir": str(place / "new"), "cohort_file": str(table)}
        _run(replace(plan, settings={**plan.settings, **own}), "inference", place)
    tables = {place.name: PredictionsTable.read(place / "new/predictions.csv") for place in places}
    found, known = average(list(tables.values())), PredictionsTable.read(out / "predictions.csv")
    models = [
        average([table for name, table in tables.items() if name.startswith(f"fold-{fold}_seed-")])
        for fold in sorted(set(known.fold))
    ]
    for target in found.targets:
        found = extend_intervals(found, models, known, target)
    found.write(out / "new_predictions.csv")
    return found


def _same_plan(path: Path, plan: Plan, table: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write down what is run and on which cohort, or refuse to go on with something else."""
    texts = {file.name: yaml.safe_load(file.read_text(encoding="utf-8")) for file in plan.configs}
    chosen = {name: value for name, value in plan.settings.items() if name != "bundle_root"}  # a place, not a choice
    now = {**table, "settings": {**chosen, **settings}, "configs": texts, "dataset": str(plan.dataset)}
    now = json.loads(json.dumps(now))
    if not path.exists():
        _write_json(path, now)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if "cohort" not in before:  # version 0.1 did not write it down
        del now["cohort"]
    if differ := differences(before, now, labels=("there", "now")):
        raise ValueError(f"{path.parent}: it holds a run that differs in {', '.join(differ)}: name another folder")


def _run_fold(plan: Plan, place: Path, settings: dict[str, Any], fold: str) -> None:
    """Train and test one fold, each unless it is done."""
    place.mkdir(exist_ok=True)
    folders = {"model_dir": str(place / "models")}
    steps = {
        "train": {**settings, **folders, "output_dir": str(place / "training"), "resume": True},
        "evaluate": {**settings, **folders, "output_dir": str(place / "test"), "evaluate_folds": [fold]},
    }
    steps["evaluate"].pop("seed")
    for kind, own in steps.items():
        done = place / f"{kind}.done"
        if done.exists():
            continue
        _run(replace(plan, settings={**plan.settings, **own}), kind, place)
        done.touch()


def _run(plan: Plan, kind: str, place: Path) -> None:
    """Run one config of the bundle, with its output in a log."""
    with (place / f"{kind}.log").open("w", encoding="utf-8") as log:
        ended = subprocess.run(plan.arguments(kind), stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if ended:
        lines = (place / f"{kind}.log").read_text(encoding="utf-8", errors="replace").split("\n")
        told = next((line for line in reversed(lines) if line.startswith("error: ")), f"it ended with {ended}")
        raise ChildProcessError(f"{place.name}, {kind}: {told.removeprefix('error: ')} (all of it: {place / kind}.log)")


def _choosing(plan: Plan, cohort: Cohort) -> dict[str, Iterator[str]]:
    """The folds behind each one, in turn, without end: that which chooses the epoch in each run that tests the one.

    A fold that cannot choose (one patient, no event) is passed over; what else a training refuses is refused here,
    before any of them.
    """
    task, columns = plan.read("task"), plan.read("columns")
    names = sorted({str(patient.fold) for patient in cohort.patients})
    items = {name: datalist(select(cohort, [name])) for name in names}
    found: dict[str, Iterator[str]] = {}
    for at, test in enumerate(names):
        others = [*names[at + 1 :], *names[:at]]
        able = [name for name in others if not validation_problem(task, items[name], columns=columns)]
        for name in able or others:
            training = [item for other in others if other != name for item in items[other]]
            try:
                expect_patients(task, training, items[name], columns=columns)
            except ValueError as error:
                raise ValueError(f"fold {test} for testing and {name} for validation: {error}") from None
        found[test] = itertools.cycle(able)
    return found


def _report(table: PredictionsTable, out: Path) -> None:
    metrics = _survival(table) if table.is_time_to_event else {}
    sections = []
    for target in table.targets:
        metrics |= summarise(table, target)
    _write_json(out / "metrics.json", metrics)
    for target in table.targets:
        measured, means = table.measured(target), np.empty(len(table))
        for fold in set(table.fold):
            mine = table.fold == fold
            means[mine] = np.nanmean(measured[~mine])
        baselines = {"Mean of the patients of other folds": means}
        sections += evaluation_sections(table, out, target, baselines=baselines)
    if sections:
        write_report(out / "report.html", title="Cross-validation", sections=sections)


def _survival(table: PredictionsTable) -> dict[str, Any]:
    """What ``metrics.json`` holds of a time to event."""
    known = np.asarray(np.isfinite(table.risks).all(axis=0))  # a horizon may lie beyond the follow-up of a fold
    horizons = [day for day, within in zip(table.horizons, known, strict=True) if within]
    forecast = Forecast(table.log_hazard, horizons or table.horizons, 1 - table.risks[:, known] if horizons else None)
    found = survival_metrics(forecast, table.label)
    numbers = {name: {key: None if np.isnan(v) else v for key, v in asdict(e).items()} for name, e in found.items()}
    events = int(table.label[:, 1].sum())
    return {table.outcome[0]: {"unit": "d", "patients": len(table), "events": events, **numbers}}


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")

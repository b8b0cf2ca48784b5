"""Choices -> a cross-validation of each, beside what needs no network, on the same patients and folds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.cohort.table import Cohort
from monai_mvreg.experiments.crossval import Plan, crossvalidate, validation_metric
from monai_mvreg.losses import CoxLoss
from monai_mvreg.metrics.bootstrap import Array, Estimate
from monai_mvreg.metrics.regression import cohort_metrics, difference
from monai_mvreg.metrics.survival import Forecast, survival_differences, survival_metrics
from monai_mvreg.results.predictions_table import PredictionsTable

_POOLS = "monai_mvreg.networks.pools"
# What every choice has to beat, with a pool that ignores all but the newest scan, or all dates.
BASELINES = {
    "last scan alone": {"pool": {"_target_": f"{_POOLS}.LastPool", "size": "@embedding_size"}},
    "mean of scans": {"pool": {"_target_": f"{_POOLS}.MeanPool", "size": "@embedding_size"}},
}
_STRENGTHS = 10.0 ** np.arange(-3, 4)  # of ridge and of the penalised Cox model


def choices(grid: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every combination of a grid, by name.

    Args:
        grid: setting -> name of a choice -> its value.

    Returns:
        Names such as ``"lstm, small"`` -> settings.

    Raises:
        ValueError: if an entry is not of that form.

    Example:
        >>> choices({"dropout": {"none": 0.0, "some": 0.3}, "epochs": {"few": 5}})
        {'none, few': {'dropout': 0.0, 'epochs': 5}, 'some, few': {'dropout': 0.3, 'epochs': 5}}
    """
    for setting, values in grid.items():
        if not isinstance(values, Mapping) or not values:
            raise ValueError(f"expected a name and a value for each choice of {setting!r}, got {values!r}")
        if {"low", "high"} & set(values):
            raise ValueError(f"expected names and values for {setting!r}, got a range: it needs a number of --trials")
    return {
        ", ".join(str(name) for name, _ in some): dict(zip(grid, (value for _, value in some), strict=True))
        for some in itertools.product(*(values.items() for values in grid.values()))
    }


def search(
    plan: Plan, space: Mapping[str, Mapping[str, Any]], out: Path, *, trials: int, seeds: Sequence[int] = (0,)
) -> dict[str, dict[str, Any]]:
    """Look for good settings with Optuna's tree-structured Parzen estimator, one cross-validation a trial.

    A trial is judged by its validation patients, never by the tested ones. A search that was stopped is played back
    from what is finished and goes on; more trials go on where fewer ended.

    Args:
        plan: what all of them share.
        space: setting -> its choices, as for :func:`choices`, or a range ``{low: 0.0001, high: 0.01}`` of numbers, with
            ``log: true`` for one of orders of magnitude; of whole numbers if both ends are whole.
        out: the folder of the results.
        trials: number of combinations to try.
        seeds: each fold is trained once with each.

    Returns:
        Names such as ``"trial 0, lstm, 0.0021"`` -> settings, in the order of the trials.

    Raises:
        ValueError: if an entry is neither choices nor a range, or Optuna, the extra ``search``, is not installed.

    Source: Bergstra et al., NeurIPS 2011; Akiba et al., KDD 2019. https://doi.org/10.1145/3292500.3330701
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ValueError('a search needs Optuna, which is not installed: pip install "monai-mvreg[search]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lower = plan.read("lower_is_better")
    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(direction="minimize" if lower else "maximize", sampler=sampler)
    found = {}
    for number in range(trials):
        trial, settings, names = study.ask(), {}, [f"trial {number}"]
        for setting, values in space.items():
            name, settings[setting] = _suggest(trial, setting, values)
            names.append(name)
        found[", ".join(names)] = settings
        place = out / _folder(", ".join(names))
        crossvalidate(replace(plan, settings={**plan.settings, **settings}), place, seeds=seeds)
        study.tell(trial, validation_metric(place, lower_is_better=lower))
    return found


def _suggest(trial: Any, setting: str, values: Mapping[str, Any]) -> tuple[str, Any]:
    """What a trial takes for a setting, and its name."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(f"expected choices or a range of {setting!r}, got {values!r}")
    if not {"low", "high"} & set(values):
        name = trial.suggest_categorical(setting, list(values))
        return str(name), values[name]
    if not {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        raise ValueError(f"expected low, high and perhaps log for the range of {setting!r}, got {sorted(values)}")
    whole = isinstance(values["low"], int) and isinstance(values["high"], int)
    number = (trial.suggest_int if whole else trial.suggest_float)(setting, **values)
    return f"{number:.3g}", number


def compare(
    plan: Plan, runs: Mapping[str, Mapping[str, Any]], out: Path, *, seeds: Sequence[int] = (0,)
) -> pd.DataFrame:
    """Cross-validate every choice and the baselines, and write ``comparison.csv``.

    Args:
        plan: what all of them share.
        runs: name of a choice -> its settings; see :func:`choices` and :func:`search`.
        out: the folder of the results; what is finished there is not run again.
        seeds: each fold is trained once with each.

    Returns:
        One row per choice, best first: the error (MAE) or, for a time to event, the concordance, with its interval; its
        difference from the first baseline, which knows no scan, on the same patients; and ``validation``, the metric on
        the patients that chose the epochs. Choose by the latter: a choice by the numbers of the tested patients makes
        them too good.

    Raises:
        ValueError: as :func:`~monai_mvreg.experiments.crossval.crossvalidate`.
        ChildProcessError: if a run of the bundle ends with an error.
    """
    runs = {**runs, **BASELINES}
    tables = {
        name: crossvalidate(replace(plan, settings={**plan.settings, **settings}), out / _folder(name), seeds=seeds)
        for name, settings in runs.items()
    }
    cohort, first = plan.cohort(), next(iter(tables.values()))
    rows_of = _survival_rows if first.is_time_to_event else _error_rows
    table = pd.DataFrame(rows_of(tables, first, cohort))
    lower = plan.read("lower_is_better")
    chosen_by = {name: validation_metric(out / _folder(name), lower_is_better=lower) for name in tables}
    table["validation"] = table["choice"].map(chosen_by)
    with atomic_write(out / "comparison.csv") as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.5g")
    return table


def _folder(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _error_rows(
    tables: Mapping[str, PredictionsTable], first: PredictionsTable, cohort: Cohort
) -> list[dict[str, Any]]:
    target = first.targets[0]
    measured = first.measured(target)
    predicted = {name: table.predicted(target) for name, table in tables.items()}
    features = _covariates(cohort, first)
    nothing = _by_fold(first, lambda train: np.full(len(first), measured[train].mean()))
    predicted["mean of the training patients"] = nothing
    if features is not None:
        predicted["covariates alone"] = _by_fold(first, lambda train: _ridge(_scaled(features, train), measured, train))
    rows = []
    for name, values in predicted.items():
        found = cohort_metrics(values, measured)
        row = {"choice": name, **_cells("mae", found["mae"]), "r2": found["r2"].value}
        rows.append(row | _cells("minus_mean", difference(values, nothing, measured)))
    return sorted(rows, key=lambda row: row["mae"])


def _survival_rows(
    tables: Mapping[str, PredictionsTable], first: PredictionsTable, cohort: Cohort
) -> list[dict[str, Any]]:
    days, label = first.horizons, first.label
    risks = {name: table.log_hazard for name, table in tables.items()}
    features = _covariates(cohort, first)
    risks["Kaplan-Meier"] = np.zeros(len(first))
    if features is not None:
        risks["covariates alone"] = _by_fold(first, lambda train: _cox(_scaled(features, train), label, train))
    rows = []
    for name, risk in risks.items():
        forecast = Forecast(risk, days)
        found = survival_metrics(forecast, label)
        apart = survival_differences(forecast, Forecast(risks["Kaplan-Meier"], days), label, names=["harrell"])
        row = {"choice": name, **_cells("concordance", found["harrell"]), "uno": found["uno"].value}
        rows.append(row | _cells("minus_chance", apart["harrell"]))
    return sorted(rows, key=lambda row: -row["concordance"])


def _cells(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _covariates(cohort: Cohort, table: PredictionsTable) -> Array | None:
    """Covariates ``(P, V)`` in the order of the table, nan where missing."""
    if not cohort.covariates:
        return None
    known = {patient.key: patient.covariates for patient in cohort.patients}
    return np.array([known[key] for key in table.patient], dtype=np.float64)


def _scaled(values: Array, train: Array) -> Array:
    """Covariates by mean and spread of the training patients, with a flag ``(P, 2 V)`` for each that is missing."""
    missing = np.isnan(values)
    centred = np.where(missing, 0, values - np.nanmean(values[train], axis=0))
    return np.hstack([centred / np.maximum(centred[train].std(0), 1e-9), missing])


def _by_fold(table: PredictionsTable, predict: Callable[[Array], Array]) -> Array:
    """Predict each fold from the patients of all others."""
    folds, found = table.fold, np.zeros(len(table))
    for name in sorted(set(folds)):
        test = folds == name
        found[test] = predict(~test)[test]
    return found


def _ridge(features: Array, target: Array, train: Array) -> Array:
    """Ridge regression, its strength by the error of leaving one patient out (PRESS), for all patients."""
    x, mean = features[train] - features[train].mean(0), target[train].mean()
    best: tuple[float, Array] = (np.inf, np.zeros(features.shape[1]))
    for strength in _STRENGTHS * len(x):
        inverse = np.linalg.inv(x.T @ x + strength * np.eye(x.shape[1]))
        weights = inverse @ x.T @ (target[train] - mean)
        leverage = np.einsum("ij,jk,ik->i", x, inverse, x) + 1 / len(x)
        error = float((((target[train] - mean - x @ weights) / (1 - leverage)) ** 2).mean())
        best = min(best, (error, weights), key=lambda found: found[0])
    return np.asarray(mean + (features - features[train].mean(0)) @ best[1])


def _cox(features: Array, label: Array, train: Array, *, strength: float = 0.01) -> Array:
    """Cox model with a small quadratic penalty, for all patients: its log risk."""
    x, y = torch.from_numpy(features), torch.from_numpy(label)
    mine, loss = torch.from_numpy(train), CoxLoss()
    weights = torch.zeros(x.shape[1], 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = loss(x[mine] @ weights, y[mine]) + strength * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return np.asarray((x @ weights.detach())[:, 0])

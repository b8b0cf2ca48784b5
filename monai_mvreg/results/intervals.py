"""Tables of predictions -> the same with a 90 % interval for every patient, fitted on patients who were held out.

A table has one row per patient with ``<target>``, ``<target>_predicted`` and, where the model predicts it,
``<target>_spread``; the ends become ``<target>_low`` and ``<target>_high``, empty where too few patients are known.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.results.calibration import Interval, cross_interval, fit_interval, write_intervals

_log = logging.getLogger(__name__)
_LEAST = 9  # patients, for an interval that holds 90 % of new ones


def fit_intervals(folder: str, intervals: str, target: Sequence[str]) -> None:
    """Fit the interval of each target on the held-out patients of a training, and add the ends to their predictions.

    Args:
        folder: holds ``predictions.csv`` of patients who were not trained on.
        intervals: the JSON file to write; a warning says where there are too few patients for an interval.
        target: names of the targets.
    """
    path = Path(folder) / "predictions.csv"
    texts = {name: str for name in ("patient", "fold", "unit", "days", "weights")}
    table = pd.read_csv(path, dtype=texts)
    found: dict[str, Interval | None] = {}
    for name in target:
        found[name] = interval = _fit(table, name)
        if interval is None:
            _log.warning("%s: no prediction intervals: expected at least %d measured values", name, _LEAST)
        _insert(table, name, *_around(interval, table, name))
    write_intervals(found, intervals)
    with atomic_write(path) as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.7g")


def crossfit_intervals(table: pd.DataFrame, target: str) -> pd.DataFrame:
    """Add an interval to the prediction of every patient, each fitted on the patients of other folds.

    Args:
        table: with ``fold``; the predictions of each fold are by models that did not see it.
        target: its name.
    """
    ends = pd.DataFrame({"low": np.nan, "high": np.nan}, table.index)
    for fold in table["fold"].unique():
        mine = table["fold"] == fold
        ends.loc[mine, ["low", "high"]] = np.stack(_around(_fit(table[~mine], target), table[mine], target), 1)
    table = table.copy()
    _insert(table, target, ends["low"].to_numpy(), ends["high"].to_numpy())
    return table


def extend_intervals(
    new: pd.DataFrame, models: Sequence[pd.DataFrame], table: pd.DataFrame, target: str
) -> pd.DataFrame:
    """Add an interval to the predictions of new patients, from all models of a cross-validation (CV+).

    Args:
        new: the predictions.
        models: those of the models of each fold for the same patients in the same order, folds as they sort.
        table: as of :func:`crossfit_intervals`.
        target: its name.
    """
    predicted, spread = (np.stack(parts) for parts in zip(*(_numbers(model, target) for model in models), strict=True))
    known = table[table[target].notna()]
    low = high = np.full(len(new), np.nan)
    if len(known) >= _LEAST:
        middle, own = _numbers(known, target)
        fold = np.unique(known["fold"], return_inverse=True)[1]
        low, high = cross_interval(predicted, (known[target].to_numpy(np.float64) - middle) / own, fold, spread=spread)
    new = new.copy()
    _insert(new, target, low, high)
    return new


def _fit(table: pd.DataFrame, target: str) -> Interval | None:
    known = table[table[target].notna()]
    if len(known) < _LEAST:
        return None
    predicted, spread = _numbers(known, target)
    return fit_interval(predicted, known[target].to_numpy(np.float64), spread=spread)


def _around(interval: Interval | None, table: pd.DataFrame, target: str) -> tuple[Array, Array]:
    if interval is None:
        nothing = np.full(len(table), np.nan)
        return nothing, nothing
    predicted, spread = _numbers(table, target)
    return interval.around(predicted, spread=spread)


def _numbers(table: pd.DataFrame, target: str) -> tuple[Array, Array]:
    """Predicted value and spread ``(P,)``, 1 where none is predicted."""
    predicted = table[f"{target}_predicted"].to_numpy(np.float64)
    name = f"{target}_spread"
    return predicted, table[name].to_numpy(np.float64) if name in table else np.ones(len(table))


def _insert(table: pd.DataFrame, target: str, low: Array, high: Array) -> None:
    at = list(table.columns).index(f"{target}_spread" if f"{target}_spread" in table else f"{target}_predicted")
    table.insert(at + 1, f"{target}_low", low)
    table.insert(at + 2, f"{target}_high", high)

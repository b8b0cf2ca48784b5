"""Predictions -> the same with a 90 % interval for every patient, fitted on patients who were held out.

The ends are empty where too few patients are known.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_mvreg.cache.typed_json import write_json
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.results.calibration import Interval, cross_interval, fit_interval
from monai_mvreg.results.predictions_table import PredictionsTable

_log = logging.getLogger(__name__)
_LEAST = 9  # patients, for an interval that holds 90 % of new ones


def fit_intervals(folder: str, intervals: str, target: Sequence[str]) -> None:
    """Fit the interval of each target on the held-out patients of a training, and add the ends to their predictions.

    Args:
        folder: holds ``predictions.csv`` of patients who were not trained on.
        intervals: the JSON file to write; a warning says where there are too few patients for an interval.
        target: names of the targets.

    Raises:
        ValueError: if ``predictions.csv`` is not a table of these targets.
    """
    path = Path(folder) / "predictions.csv"
    table = PredictionsTable.read(path)
    found: dict[str, Interval | None] = {}
    for name in target:
        found[name] = interval = _fit(table, name)
        if interval is None:
            _log.warning("%s: no prediction intervals: expected at least %d measured values", name, _LEAST)
        table = table.with_interval(name, *_around(interval, table, name))
    write_json(found, intervals)
    table.write(path)


def crossfit_intervals(table: PredictionsTable, target: str) -> PredictionsTable:
    """Add an interval to the prediction of every patient, each fitted on the patients of other folds.

    Args:
        table: the predictions of each fold are by models that did not see it.
        target: its name.

    Returns:
        The table with the intervals.
    """
    low, high = np.full((2, len(table)), np.nan)
    for fold in dict.fromkeys(table.fold):
        mine = table.fold == fold
        low[mine], high[mine] = _around(_fit(table.select(~mine), target), table.select(mine), target)
    return table.with_interval(target, low, high)


def extend_intervals(
    new: PredictionsTable, models: Sequence[PredictionsTable], table: PredictionsTable, target: str
) -> PredictionsTable:
    """Add an interval to the predictions of new patients, from all models of a cross-validation (CV+).

    Args:
        new: the predictions.
        models: those of the models of each fold for the same patients in the same order, folds as they sort.
        table: as of :func:`crossfit_intervals`.
        target: its name.

    Returns:
        The predictions of the new patients with the intervals.
    """
    known = table.known(target)
    low = high = np.full(len(new), np.nan)
    if len(known) >= _LEAST:
        residual = (known.measured(target) - known.predicted(target)) / known.spread(target)
        # A fold in which nobody was measured has a model all the same.
        fold = np.searchsorted(np.unique(table.fold.astype(str)), known.fold.astype(str))
        predicted = np.stack([model.predicted(target) for model in models])
        spread = np.stack([model.spread(target) for model in models])
        low, high = cross_interval(predicted, residual, fold, spread=spread)
    return new.with_interval(target, low, high)


def _fit(table: PredictionsTable, target: str) -> Interval | None:
    known = table.known(target)
    if len(known) < _LEAST:
        return None
    return fit_interval(known.predicted(target), known.measured(target), spread=known.spread(target))


def _around(interval: Interval | None, table: PredictionsTable, target: str) -> tuple[Array, Array]:
    if interval is None:
        nothing = np.full(len(table), np.nan)
        return nothing, nothing
    return interval.around(table.predicted(target), spread=table.spread(target))

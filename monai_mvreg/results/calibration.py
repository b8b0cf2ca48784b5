"""Predictions of held-out patients -> what turns further ones into true chances and intervals, kept as JSON.

Everything here is fitted on patients who had no part in training: what a model says of those it has learned from is too
good. A label of time to event is ``(P, 2)``: time in days, and 1 for an event or 0 for a censored patient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from monai_mvreg.cache.typed_json import read_json, strict
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.metrics.survival import censoring_survival, risk_slope
from monai_mvreg.networks.task import Task, TimeToEvent

_LEAST_HAZARD = 1e-12  # cumulative, before the first event


@strict
@dataclass(frozen=True)
class Baseline:
    """From log risk to chances in time: a cumulative hazard that every patient's risk multiplies.

    Args:
        days: days ``(U,)`` with events, increasing.
        hazard: cumulative hazard ``(U,)`` through each of them, of a patient with risk ``centre``.
        slope: factor of the log risk: below 1 where a model spreads its risks too far.
        centre: a log risk.
        last_day: the longest that any of the patients was followed, beyond which nothing is known; ``None`` in the file
            of an earlier version, which did not write it down.
    """

    days: tuple[float, ...]
    hazard: tuple[float, ...]
    slope: float
    centre: float
    last_day: float | None = None

    def survival(self, risk: Array, days: Array) -> Array:
        """Chance ``(P, T)`` of no event through each of ``days (T,)``, from log risk ``(P,)``.

        NaN beyond the last day.
        """
        through = np.searchsorted(self.days, days, side="right")
        hazard = np.concatenate([[0.0], self.hazard])[through]
        known = np.where(self.knows(days), 1.0, np.nan)
        return np.asarray(known * np.exp(-np.exp(self._log_ratio(risk))[:, None] * hazard))

    def knows(self, days: Array | float) -> npt.NDArray[np.bool_]:
        """Whether any patient was followed until each of ``days (T,)``."""
        return np.asarray(days, dtype=np.float64) <= (math.inf if self.last_day is None else self.last_day)

    def median_days(self, risk: Array) -> Array:
        """Day ``(P,)`` through which half of the patients of that risk have the event; infinite if it lies behind."""
        reached = np.searchsorted(self.hazard, math.log(2) * np.exp(-self._log_ratio(risk)))
        return np.concatenate([self.days, [np.inf]])[reached]

    def log_hazard(self, risk: Array, day: float) -> Array:
        """Give the log cumulative hazard ``(P,)`` through a day, from log risk ``(P,)``.

        It orders patients as their risk does, also where their probability of the event rounds to 1. Before the first
        event the cumulative hazard counts as 1e-12, not 0, so that this is finite.

        Example:
            >>> Baseline((100.0,), (0.5,), 1.0, 0.0).log_hazard(np.array([0.0, 60.0]), 365).round(4).tolist()
            [-0.6931, 59.3069]
        """
        through = int(np.searchsorted(self.days, day, side="right"))
        hazard = [0.0, *self.hazard][through]
        ratio = self.slope * (np.asarray(risk, dtype=np.float64) - self.centre)
        return np.asarray(ratio + math.log(max(hazard, _LEAST_HAZARD)))

    def _log_ratio(self, risk: Array) -> Array:
        # Beyond e^50 a chance is 0 or 1 whatever the hazard is.
        return np.clip(self.slope * (np.asarray(risk, dtype=np.float64) - self.centre), -50, 50)


def unknown_horizons(task: Task, curves: Sequence[Baseline | None]) -> list[float]:
    """Find the horizons of a task that lie beyond the follow-up of any of some curves.

    Args:
        task: of the model; without horizons there are none.
        curves: of its members; ``None`` for one without.
    """
    horizons = task.horizons if isinstance(task, TimeToEvent) else ()
    return [day for day in horizons if not all(curve.knows(day) for curve in curves if curve is not None)]


def fit_baseline(risk: Array, label: Array) -> Baseline:
    r"""Fit Breslow's cumulative hazard :math:`\sum_{t_i \le t} d_i / \sum_{j: t_j \ge t_i} e^{\beta (\eta_j - c)}`.

    The slope :math:`\beta` is that of a Cox model of the risk alone on these patients, and 0, one curve for all, where
    a higher risk does not come sooner.

    Args:
        risk: log risk ``(P,)`` of held-out patients.
        label: ``(P, 2)``, time in days and event.

    Raises:
        ValueError: if there is no event, or as :func:`~monai_mvreg.metrics.survival.concordance`.

    Source: Breslow, J R Stat Soc B 1972; van Houwelingen, Stat Med 2000.
    """
    label = np.asarray(label, dtype=np.float64)
    found = risk_slope(risk, label)
    if not label[:, 1].any():
        raise ValueError(f"expected an event among the {len(label)} held-out patients, got none: give more patients")
    slope, centre = max(found, 0.0) if math.isfinite(found) else 1.0, float(np.mean(risk))
    ratio = np.exp(np.clip(slope * (np.asarray(risk, dtype=np.float64) - centre), -50, 50))
    days, events = np.unique(label[label[:, 1] > 0, 0], return_counts=True)
    order = np.argsort(label[:, 0])
    from_here = np.cumsum(ratio[order][::-1])[::-1]
    at_risk = from_here[np.searchsorted(label[order, 0], days)]
    return Baseline(
        tuple(days.tolist()), tuple(np.cumsum(events / at_risk).tolist()), slope, centre, float(label[:, 0].max())
    )


def mean_log_hazard(log_hazard: Array) -> Array:
    r"""Log cumulative hazard of the mean survival of several models, :math:`\log(-\log \frac1K \sum_k e^{-e^{h_k}})`.

    Args:
        log_hazard: ``(K, P)``, of each model for each patient.

    Returns:
        ``(P,)``, calculated so that it neither saturates nor cancels.

    Example:
        >>> mean_log_hazard(np.array([[100.0, -100.0], [100.0, -100.0]])).tolist()
        [100.0, -100.0]
    """
    least = log_hazard.min(axis=0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # The least hazard is taken out of the mean of probabilities; what remains of each may be infinite or 0.
        beyond = np.where(log_hazard == least, 0.0, np.exp(least) * np.expm1(log_hazard - least))
        rest = -np.log1p(np.mean(np.expm1(-beyond), axis=0))  # between 0 and log K
        return np.asarray(np.logaddexp(least, np.log(rest)))


@strict
@dataclass(frozen=True)
class Interval:
    """A conformal interval: prediction plus and minus ``reach`` times the spread.

    Args:
        reach: in target units, or in spreads where a spread was given.
        confidence: share of new patients whose value lies inside, at least, whatever the model is worth.
    """

    reach: float
    confidence: float

    def around(self, pred: Array, *, spread: Array | float = 1.0) -> tuple[Array, Array]:
        """Lower and upper ends ``(P,)`` around predictions ``(P,)``; with the spread ``(P,)`` as it was fitted."""
        return pred - self.reach * spread, pred + self.reach * spread


def fit_interval(pred: Array, target: Array, *, spread: Array | float = 1.0, confidence: float = 0.9) -> Interval:
    """Fit a split conformal interval.

    Args:
        pred: predictions ``(P,)`` for held-out patients, one each.
        target: measured values ``(P,)``.
        spread: predicted standard deviation ``(P,)``, so that hard patients get wider intervals; 1: all alike.
        confidence: share of new patients inside, between 0 and 1.

    Raises:
        ValueError: if there are too few patients for that share, lengths differ, or a spread is not above 0.

    Example:
        >>> fit_interval(np.zeros(9), np.arange(9.0), confidence=0.8).reach
        7.0

    Source: Lei et al., J Am Stat Assoc 2018. https://doi.org/10.1080/01621459.2017.1307116
    """
    scores = np.sort(np.abs(_residuals(pred, target)) / _positive(spread))
    return Interval(float(scores[_rank(len(scores), confidence) - 1]), confidence)


def cross_interval(
    pred: Array, residual: Array, fold: npt.NDArray[np.integer], *, spread: Array | float = 1.0, confidence: float = 0.9
) -> tuple[Array, Array]:
    """Cross-validated conformal intervals (CV+): all patients train and all calibrate.

    They hold at least ``2 * confidence - 1`` of new patients whatever the model is worth, and about ``confidence`` of
    them in practice.

    Args:
        pred: predictions ``(K, Q)`` of the model of each fold for ``Q`` new patients.
        residual: measured minus predicted value ``(P,)`` of each patient by the model of the fold that left it out,
            over the predicted spread where there is one.
        fold: that fold ``(P,)``, from 0 to ``K - 1``.
        spread: predicted standard deviation ``(K, Q)`` of the new patients; 1: all alike.
        confidence: between 0 and 1.

    Returns:
        Lower and upper ends ``(Q,)``.

    Raises:
        ValueError: if there are too few patients for that share, or lengths differ.

    Source: Barber et al., Ann Stat 2021, section 3. https://doi.org/10.1214/20-AOS1965
    """
    if residual.shape != fold.shape or not np.isin(fold, range(len(pred))).all():
        raise ValueError(f"expected a fold from 0 to {len(pred) - 1} for each of {residual.shape} residuals")
    rank, wide = _rank(len(residual), confidence), np.broadcast_to(spread, pred.shape)
    reach = np.abs(residual)[:, None] * wide[fold]
    low, high = np.sort(pred[fold] - reach, axis=0), np.sort(pred[fold] + reach, axis=0)
    return low[len(residual) - rank], high[rank - 1]


@strict
@dataclass(frozen=True)
class LowerBound:
    """A day before which the event does not come, for a share of the patients, from a predicted day.

    Args:
        factor: what a predicted day is multiplied by.
        horizon: the latest day that is promised.
        confidence: share of new patients whose event comes later.
    """

    factor: float
    horizon: float
    confidence: float

    def before(self, predicted_days: Array) -> Array:
        """The bound ``(P,)`` in days for predicted days ``(P,)``, which may be infinite."""
        return np.minimum(self.factor * predicted_days, self.horizon)


def fit_lower_bound(predicted_days: Array, label: Array, *, horizon: float, confidence: float = 0.9) -> LowerBound:
    """Fit a conformal lower bound of a censored time, by weights against censoring.

    What counts is the time up to the horizon: it is known of patients with an event before it, and of all who were seen
    as long. Each stands for others that were censored before, as many as the inverse of the chance to be seen so long.
    This takes censoring to be independent of the event.

    Args:
        predicted_days: a predicted day ``(P,)`` of held-out patients, such as the median; it may be infinite.
        label: ``(P, 2)``, time in days and event.
        horizon: the latest day to promise; some patients must have been seen as long.
        confidence: share of new patients whose event comes later, between 0 and 1.

    Raises:
        ValueError: if nobody was seen up to the horizon, there are too few patients, or a predicted day is not above 0.

    Source: Candès, Lei, Ren, J R Stat Soc B 2023. https://doi.org/10.1093/jrsssb/qkac017
    """
    label = np.asarray(label, dtype=np.float64)
    time, event = label[:, 0], label[:, 1] > 0
    predicted = np.minimum(_positive(predicted_days), horizon)
    if not (time >= horizon).any():
        raise ValueError(f"expected patients who were seen for {horizon:g} days, the longest is {time.max():g}")
    days, chance = censoring_survival(label)
    known = event | (time >= horizon)
    until = np.minimum(time, horizon)[known]
    # Seen at a time is who was not censored before it.
    weight = 1 / np.concatenate([[1.0], chance])[np.searchsorted(days, until, side="left")]
    score = np.log(predicted[known] / np.maximum(until, 0.5))
    order = np.argsort(score)
    # The new patient may weigh as much as the heaviest one.
    share = np.cumsum(weight[order]) / (weight.sum() + weight.max())
    place = int(np.searchsorted(share, confidence))
    if place == len(order):
        raise ValueError(f"expected more than {len(order)} patients with a known time for a share of {confidence}")
    return LowerBound(float(np.exp(-score[order[place]])), horizon, confidence)


def fit_recalibration(pred: Array, target: Array) -> tuple[float, float]:
    """Fit the line from predicted to measured values by least squares.

    Args:
        pred: predictions ``(P,)`` for held-out patients.
        target: measured values ``(P,)``.

    Returns:
        Its slope and intercept, which measure calibration: 1 and 0 change nothing.

    Raises:
        ValueError: if lengths differ, or all predictions are the same.

    Source: Cox, Biometrika 1958. https://doi.org/10.1093/biomet/45.3-4.562
    """
    _residuals(pred, target)
    if np.ptp(pred) == 0:
        raise ValueError("expected predictions that differ, got one value")
    slope, intercept = np.polyfit(pred, target, 1)
    return float(slope), float(intercept)


Calibration: TypeAlias = Baseline | Sequence[Interval | None]


def read_intervals(path: str | Path, target: Sequence[str]) -> list[Interval | None]:
    """Read the intervals of a training, in the order of the targets.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    found = read_json(dict[str, Interval | None], path)
    if missing := [name for name in target if name not in found]:
        raise ValueError(f"{Path(path).name}: expected the intervals of {list(target)}, got none of {missing}")
    return [found[name] for name in target]


def _residuals(pred: Array, target: Array) -> Array:
    pred, target = np.asarray(pred, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if pred.ndim != 1 or pred.shape != target.shape or not np.isfinite(target - pred).all():
        raise ValueError(f"expected two finite (P,) arrays of one length, got shapes {pred.shape} and {target.shape}")
    return np.asarray(target - pred)


def _positive(values: Array | float) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if not (values > 0).all():
        raise ValueError("expected values above 0, got another one")
    return values


def _rank(patients: int, confidence: float) -> int:
    """Which of the ordered scores of so many patients holds that share of new ones."""
    if not 0 < confidence < 1:
        raise ValueError(f"expected a share between 0 and 1, got {confidence}")
    rank = math.ceil((patients + 1) * confidence - 1e-9)
    if rank > patients:
        raise ValueError(
            f"expected at least {math.ceil(confidence / (1 - confidence) - 1e-9)} patients, got {patients}"
        )
    return rank


def read_calibration(task: Task, models: str | Path, target: Sequence[str]) -> Calibration:
    """Read what was fitted on the held-out patients of a training.

    Args:
        task: what the outputs of the network mean.
        models: the folder of the model.
        target: names of the targets.

    Returns:
        The curve of a time to event, else one interval for each target.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it holds something else.
    """
    if isinstance(task, TimeToEvent):
        return read_json(Baseline, Path(models) / "survival.json")
    return read_intervals(Path(models) / "intervals.json", target)

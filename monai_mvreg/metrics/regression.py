"""Judge predicted numbers: errors and correlations over the whole cohort, one value per patient."""

from __future__ import annotations

from functools import partial

import numpy as np

from monai_mvreg.metrics.bootstrap import Array, Estimate, Measure, estimates, once
from monai_mvreg.metrics.smooth import CalibrationCurve


def mean_absolute_error(pred: Array, target: Array) -> float:
    """Mean distance between predicted and measured value, in target units.

    Args:
        pred: predicted values ``(P,)`` in target units, ``P >= 1``.
        target: measured values ``(P,)`` in target units.

    Raises:
        ValueError: if lengths differ, a value is not finite, or there is no patient.

    Example:
        >>> mean_absolute_error(np.array([1.0, 3.0]), np.array([1.0, 2.0]))
        0.5
    """
    pred, target = _pair(pred, target, least=1)
    return once(partial(_mae, pred=pred, target=target), len(target))


def limits_of_agreement(pred: Array, target: Array, *, z: float = 1.96) -> tuple[float, float, float]:
    r"""Bias and limits of agreement, :math:`\bar d \pm z\,s_d` with :math:`d = \hat y - y`, in target units.

    Args:
        pred: predicted values ``(P,)`` in target units, ``P >= 2``.
        target: measured values ``(P,)`` in target units.
        z: half width in standard deviations; 1.96 holds 95 of 100 normal differences.

    Returns:
        Bias, lower limit and upper limit.

    Raises:
        ValueError: if lengths differ, a value is not finite, or there are fewer than 2 patients.

    Example:
        >>> limits_of_agreement(np.array([2.0, 4.0, 6.0]), np.array([1.0, 4.0, 7.0]))  # differences 1, 0 and -1
        (0.0, -1.96, 1.96)

    Source: Bland, Altman, Lancet 1986. https://doi.org/10.1016/S0140-6736(86)90837-8
    """
    pred, target = _pair(pred, target, least=2)
    apart = pred - target
    bias, spread = float(apart.mean()), z * float(apart.std(ddof=1))
    return bias, bias - spread, bias + spread


def cohort_metrics(
    pred: Array, target: Array, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Errors and correlations of a cohort, each with a percentile bootstrap interval over patients.

    Args:
        pred: predicted values ``(P,)`` in target units, one per patient, ``P >= 2``.
        target: measured values ``(P,)`` in target units.
        resamples: number of bootstrap samples of the patients.
        confidence: share of the resamples inside the interval, between 0 and 1.
        seed: seed of the bootstrap; the same seed gives the same intervals.

    Returns:
        In target units: ``mae``; ``rmse``; ``bias``, the mean of predicted minus measured; ``ici``, the integrated
        calibration index: the mean distance between a prediction and the mean measured value at that prediction. It
        is never negative: its interval tells how large it may be, not whether it is 0.
        Without unit: ``r2``, the explained share of the variance between patients, below zero where the prediction is
        worse than the mean of these patients, nan for a constant target; ``slope`` of measured on predicted values, 1
        if calibrated; ``pearson`` and ``spearman``, where ties share their average rank. Slope and correlations are
        nan if prediction or target is constant.

    Raises:
        ValueError: if lengths differ, a value is not finite, there are fewer than 2 patients, or an option is
            out of range.

    Example:
        >>> metrics = cohort_metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
        >>> metrics["r2"].value
        0.5

    Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; Austin, Steyerberg, Stat Med 2019.
    https://doi.org/10.1002/sim.8281
    """
    pred, target = _pair(pred, target, least=2)
    measures = {"mae": _mae, "rmse": _rmse, "r2": _r2, "pearson": _pearson, "spearman": _spearman}
    measures |= {"bias": _bias, "slope": _slope}
    counted: dict[str, Measure] = {
        name: partial(measure, pred=pred, target=target) for name, measure in measures.items()
    }
    counted["ici"] = partial(_ici, curve=CalibrationCurve(pred), target=target)
    return estimates(counted, len(target), resamples=resamples, confidence=confidence, seed=seed)


def interval_metrics(
    low: Array, high: Array, target: Array, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Coverage and width of prediction intervals.

    Args:
        low: the lower end ``(P,)`` of the interval of each patient, in target units, ``P >= 2``.
        high: the upper end ``(P,)``.
        target: measured values ``(P,)``.
        resamples: number of bootstrap samples of the patients.
        confidence: share of the resamples inside the interval of each metric, between 0 and 1.
        seed: seed of the bootstrap.

    Returns:
        ``coverage``, the share of patients whose measured value lies inside, and ``width``, the mean in target units.

    Raises:
        ValueError: as :func:`cohort_metrics`.

    Example:
        >>> interval_metrics(np.zeros(2), np.ones(2), np.array([0.5, 2.0]))["coverage"].value
        0.5
    """
    low, target = _pair(low, target, least=2)
    high, target = _pair(high, target, least=2)
    inside = ((low <= target) & (target <= high)).astype(np.float64)
    measures: dict[str, Measure] = {
        "coverage": partial(_mean, values=inside),
        "width": partial(_mean, values=high - low),
    }
    return estimates(measures, len(target), resamples=resamples, confidence=confidence, seed=seed)


def difference(
    pred_a: Array, pred_b: Array, target: Array, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean absolute error of A minus that of B on the same patients; A beats B where the interval is below zero.

    Both errors of a patient are resampled together: a patient who is hard for both does not widen the interval.

    Args:
        pred_a: the first prediction ``(P,)`` in target units, one per patient, ``P >= 2``.
        pred_b: the second prediction ``(P,)`` in target units.
        target: measured values ``(P,)`` in target units.
        resamples: number of bootstrap samples of the patients.
        confidence: share of the resamples inside the interval, between 0 and 1.
        seed: seed of the bootstrap; the same seed gives the same interval.

    Returns:
        The difference in target units.

    Raises:
        ValueError: as :func:`cohort_metrics`.

    Example:
        >>> difference(np.array([1.0, 2.0]), np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        Estimate(value=-1.0, low=-1.0, high=-1.0)
    """
    pred_a, target = _pair(pred_a, target, least=2)
    pred_b, target = _pair(pred_b, target, least=2)
    apart = np.abs(pred_a - target) - np.abs(pred_b - target)
    measures = {"difference": lambda counts: _mean(counts, apart)}
    found = estimates(measures, len(apart), resamples=resamples, confidence=confidence, seed=seed)
    return found["difference"]


def _pair(pred: Array, target: Array, *, least: int) -> tuple[Array, Array]:
    """Both as float64 ``(P,)``, refused unless there is one finite value for each patient in both."""
    pred, target = np.asarray(pred, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if pred.ndim != 1 or pred.shape != target.shape:
        raise ValueError(f"expected two (P,) arrays of one length, got shapes {pred.shape} and {target.shape}")
    if len(pred) < least:
        raise ValueError(f"expected at least {least} patient{'s' * (least > 1)}, got {len(pred)}")
    for name, values in (("prediction", pred), ("target", target)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise ValueError(f"expected finite values, got {name} {values[wrong[0]]} at index {wrong[0]}")
    return pred, target


def _mean(counts: Array, values: Array) -> Array:
    mean: Array = counts @ values / len(values)
    return mean


def _mae(counts: Array, pred: Array, target: Array) -> Array:
    return _mean(counts, np.abs(pred - target))


def _rmse(counts: Array, pred: Array, target: Array) -> Array:
    return _mean(counts, (pred - target) ** 2) ** 0.5


def _bias(counts: Array, pred: Array, target: Array) -> Array:
    return _mean(counts, pred - target)


def _slope(counts: Array, pred: Array, target: Array) -> Array:
    x, y = _centred(counts, pred), _centred(counts, target)
    slope: Array = np.einsum("rp,rp,rp->r", counts, x, y) / np.einsum("rp,rp,rp->r", counts, x, x)
    return slope


def _ici(counts: Array, curve: CalibrationCurve, target: Array) -> Array:
    return curve.calibration_error(counts, counts, target)


def _r2(counts: Array, pred: Array, target: Array) -> Array:
    spread: Array = (counts * _centred(counts, target) ** 2).mean(1)
    return 1 - _mean(counts, (pred - target) ** 2) / spread


def _pearson(counts: Array, pred: Array, target: Array) -> Array:
    x, y = _centred(counts, pred), _centred(counts, target)
    both, alone_x, alone_y = (np.einsum("rp,rp,rp->r", counts, a, b) for a, b in ((x, y), (x, x), (y, y)))
    correlation: Array = np.clip(both / np.sqrt(alone_x * alone_y), -1, 1)
    return correlation


def _spearman(counts: Array, pred: Array, target: Array) -> Array:
    return _pearson(counts, _ranks(counts, pred), _ranks(counts, target))


def _ranks(counts: Array, values: Array) -> Array:
    """Average rank of every patient in every resample, ``(R, P)``; a patient drawn twice ties with itself."""
    order = np.argsort(values)
    _, first = np.unique(values[order], return_index=True)
    _, group = np.unique(values, return_inverse=True)
    sizes = np.add.reduceat(counts[:, order], first, axis=1)
    ranks: Array = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    return ranks[:, group]


def _centred(counts: Array, values: Array) -> Array:
    """Values less the mean of each resample, ``(R, P)``; nan throughout a resample that drew one value only."""
    seen = counts > 0
    constant = np.where(seen, values, -np.inf).max(1) == np.where(seen, values, np.inf).min(1)
    centred: Array = values - (counts * values).sum(1, keepdims=True) / counts.sum(1, keepdims=True)
    centred[constant] = np.nan
    return centred

"""Judge predicted risk: discrimination (who has the event first, who by a given day) and calibration.

A label is ``(P, 2)``: the time in days, and 1 if the event happened then or 0 if the patient was last seen without it.
A risk has no unit; higher is sooner. Survival is the probability of no event through a day. Censoring is handled by
inverse-probability-of-censoring weights (IPCW), from the Kaplan-Meier estimate of the censoring distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from monai_mvreg.metrics.bootstrap import Array, Estimate, Measure, estimates, once
from monai_mvreg.metrics.followup import ConcordantPairs, FollowUp, from_here
from monai_mvreg.metrics.smooth import CalibrationCurve


def kaplan_meier(label: Array) -> tuple[Array, Array]:
    """Survival by the product-limit method.

    Args:
        label: ``(P, 2)``, time in days and event, ``P >= 1``.

    Returns:
        The distinct times ``(U,)`` in days, increasing, and the probability ``(U,)`` of no event through each of them.

    Raises:
        ValueError: as :func:`concordance`.

    Example:
        >>> kaplan_meier(np.array([[1.0, 1], [2, 0], [3, 1]]))
        (array([1., 2., 3.]), array([0.66666667, 0.66666667, 0.        ]))

    Source: Kaplan, Meier, J Am Stat Assoc 1958. https://doi.org/10.1080/01621459.1958.10501452
    """
    followed = FollowUp(label)
    return followed.days, followed.survival(np.ones((1, len(followed.time))))[0]


def censoring_survival(label: Array) -> tuple[Array, Array]:
    """The censoring distribution by the product-limit method; events leave before censorings of the same time.

    Args:
        label: ``(P, 2)``, time in days and event.

    Returns:
        The distinct times ``(U,)`` in days, increasing, and the probability ``(U,)`` of no censoring through each.

    Raises:
        ValueError: as :func:`concordance`.
    """
    followed = FollowUp(label)
    return followed.days, followed.censoring_survival(np.ones((1, len(followed.time))))[0]


def risk_slope(risk: Array, label: Array) -> float:
    """The coefficient of the risk in a Cox model: 1 for a calibrated log risk, below 1 if it spreads too widely.

    Args:
        risk: ``(P,)``, higher is sooner.
        label: ``(P, 2)``, time in days and event.

    Returns:
        The coefficient; nan without events, for a constant risk, or if the risk orders all events perfectly.

    Raises:
        ValueError: as :func:`concordance`.

    Source: van Houwelingen, Stat Med 2000. https://doi.org/10.1002/1097-0258(20001230)19:24<3401::AID-SIM554>3.0.CO;2-2
    """
    followed = FollowUp(label)
    return once(partial(_slope, risk=_numbers(risk, followed, "risk"), followed=followed), len(followed.time))


def concordance(risk: Array, label: Array) -> float:
    """Harrell's concordance: of all pairs whose order is known, the share in which the higher risk comes first.

    An event and a censoring at the same time are a pair, two events are not; equal risks count half.

    Args:
        risk: ``(P,)``, higher is sooner, ``P >= 1``.
        label: ``(P, 2)``, time in days and event.

    Returns:
        0.5 for chance, 1 for the right order, nan without a pair.

    Raises:
        ValueError: if lengths differ, a value is not finite, a time is negative, or an event is not 0 or 1.

    Example:
        >>> concordance(np.array([3.0, 2.0, 1.0]), np.array([[1.0, 1], [2, 0], [3, 1]]))
        1.0

    Source: Harrell et al., Stat Med 1996. https://doi.org/10.1002/(SICI)1097-0258(19960229)15:4<361::AID-SIM168>3.0.CO;2-4
    """
    followed = FollowUp(label)
    return once(_harrell(_numbers(risk, followed, "risk"), followed), len(followed.time))


def concordance_with_interval(
    risk: Array, label: Array, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Harrell's concordance with a percentile bootstrap interval over patients; arguments as of the other metrics."""
    followed = FollowUp(label)
    measure = _harrell(_numbers(risk, followed, "risk"), followed)
    return estimates({"": measure}, len(label), resamples=resamples, confidence=confidence, seed=seed)[""]


def auc_over_time(
    risk: Array, label: Array, days: Sequence[float], *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> list[Estimate]:
    """For each day, the probability that a patient with an event by then has a higher risk than one without.

    Cumulative cases and dynamic controls with IPCW, each day with a percentile bootstrap interval over patients.
    Arguments as in :func:`survival_metrics`; nan where no two patients can be compared.

    Source: Uno et al., J Am Stat Assoc 2007. https://doi.org/10.1198/016214507000000149
    """
    followed = FollowUp(label)
    risk = _numbers(risk, followed, "risk")
    measures: dict[str, Measure] = {f"{day}": partial(_auc, risk=risk, followed=followed, day=day) for day in days}
    found = estimates(measures, len(label), resamples=resamples, confidence=confidence, seed=seed)
    return [found[f"{day}"] for day in days]


@dataclass(frozen=True)
class Forecast:
    """Predictions of the time to an event, one per patient.

    Args:
        risk: ``(P,)``, higher is sooner.
        days: the horizons ``(T,)`` in days, increasing; the last one should leave some patients under observation.
        survival: ``(P, T)``, probability of no event through each horizon; None: only the order is predicted.

    Example:
        >>> Forecast(risk=np.array([2.0, 1.0]), days=[365], survival=np.array([[0.4], [0.8]])).days
        [365]
    """

    risk: Array
    days: Sequence[float]
    survival: Array | None = None


def survival_metrics(
    forecast: Forecast, label: Array, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Discrimination and calibration, each with a percentile bootstrap interval over patients.

    Args:
        forecast: the predictions.
        label: ``(P, 2)``, time in days and event.
        resamples: number of bootstrap samples of the patients; censoring weights are estimated in each.
        confidence: share of the resamples inside the interval, between 0 and 1.
        seed: seed of the bootstrap; the same seed gives the same intervals.

    Returns:
        ``harrell`` and ``uno``, concordances, the latter of events before the last horizon and with IPCW; ``slope`` as
        in :func:`risk_slope`; per horizon, ``auc_<day>`` as in :func:`auc_over_time`. With survival also its squared
        error ``brier_<day>``, and ``ibs``, the mean of that from the first to the last horizon;
        ``observed_to_expected_<day>``, the Kaplan-Meier over the predicted number of events; and ``ici_<day>``, the
        mean distance between predicted and observed probability of an event (integrated calibration index).

    Raises:
        ValueError: as :func:`concordance`, or if horizons do not increase, or survival or an option is out of range.

    Example:
        >>> label = np.array([[100.0, 1], [200, 1], [400, 0]])
        >>> survival_metrics(Forecast(np.array([3.0, 2.0, 1.0]), days=[300]), label)["harrell"].value
        1.0

    Source: Uno et al., Stat Med 2011. https://doi.org/10.1002/sim.4154; Graf et al., Stat Med 1999; Austin, Harrell,
    van Klaveren, Stat Med 2020. https://doi.org/10.1002/sim.8570
    """
    measures = _measures(forecast, FollowUp(label))
    return estimates(measures, len(label), resamples=resamples, confidence=confidence, seed=seed)


def survival_differences(
    a: Forecast, b: Forecast, label: Array, *, names: Sequence[str] = (), resamples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """Metrics of A minus those of B on the same patients and resamples, with 95 % intervals.

    A is better where the interval of a concordance or an AUC lies above zero, or that of a Brier score below zero.

    Args:
        a: the first forecast; metrics that only one of them has are left out.
        b: the second forecast.
        label: ``(P, 2)``, time in days and event.
        names: the metrics; none: all.
        resamples: as in :func:`survival_metrics`.
        seed: as in :func:`survival_metrics`.

    Raises:
        ValueError: as :func:`survival_metrics`.
    """
    followed = FollowUp(label)
    of_a, of_b = _measures(a, followed), _measures(b, followed)
    apart: dict[str, Measure] = {n: partial(_minus, a=of_a[n], b=of_b[n]) for n in names or of_a if n in of_b}
    return estimates(apart, len(label), resamples=resamples, confidence=0.95, seed=seed)


def event_curve(forecast: Forecast, label: Array, day: float) -> tuple[Array, Array]:
    """Calibration curve: observed against predicted probability of an event by a day.

    Args:
        forecast: with survival.
        label: ``(P, 2)``, time in days and event.
        day: one of the horizons.

    Returns:
        Predicted probabilities ``(G,)``, increasing, and the observed one at each.

    Raises:
        ValueError: as :func:`survival_metrics`, or if the forecast has no survival.

    Example:
        >>> half = Forecast(np.zeros(4), days=[300], survival=np.full((4, 1), 0.5))
        >>> event_curve(half, np.array([[100.0, 1], [200, 1], [400, 0], [400, 0]]), 300)
        (array([0.5]), array([0.5]))

    Source: Gerds, Andersen, Kattan, Stat Med 2014. https://doi.org/10.1002/sim.6152
    """
    followed = FollowUp(label)
    if forecast.survival is None:
        raise ValueError("expected a forecast with chances, got one of the order alone")
    survival = _chances(forecast.survival, followed, (len(followed.time), len(forecast.days)))
    curve = CalibrationCurve(1 - survival[:, list(forecast.days).index(day)])
    known = _known(np.ones((1, len(followed.time))), followed=followed, day=day)
    return curve.places, np.clip(curve.heights(known, (followed.time <= day).astype(np.float64))[0], 0, 1)


def d_calibration(survival: Array, label: Array, *, bins: int = 10) -> float:
    """Test whether predicted survival at each patient's own time is uniformly distributed, as it is if calibrated.

    Args:
        survival: ``(P,)``, the predicted probability of no event through the patient's own time.
        label: ``(P, 2)``, time in days and event; a censored patient is spread over the bins of later times.
        bins: number of bins of equal width between 0 and 1.

    Returns:
        The p-value of Pearson's test with ``bins - 1`` degrees of freedom; below 0.05 survival is not calibrated.

    Raises:
        ValueError: as :func:`survival_metrics`.

    Source: Haider et al., J Mach Learn Res 2020. https://jmlr.org/papers/v21/18-772.html
    """
    followed = FollowUp(label)
    chance = _chances(survival, followed, (len(followed.time),))
    # An event lies in the bin of its survival; that of a censored patient is spread evenly from 0 up to its survival.
    low = np.arange(bins) / bins
    # The upper end belongs to the bin, but 0 to the first.
    own = np.clip(np.ceil(chance * bins) - 1, 0, bins - 1).astype(int)
    below = np.clip(chance[:, None] - low, 0, 1 / bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.where(chance[:, None] > 0, below / chance[:, None], low == 0)
    seen = np.where(followed.event[:, None], np.arange(bins) == own[:, None], spread).sum(0)
    expected = len(chance) / bins
    statistic = float(((seen - expected) ** 2 / expected).sum())
    half = torch.tensor([(bins - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _measures(forecast: Forecast, followed: FollowUp) -> dict[str, Measure]:
    risk, days, survival = _numbers(forecast.risk, followed, "risk"), forecast.days, forecast.survival
    if not len(days) or any(low >= high for low, high in zip([0.0, *days], days, strict=False)):
        raise ValueError(f"expected horizons in days that increase from above 0, got {list(days)}")
    lower = ConcordantPairs(risk, followed)
    measures: dict[str, Measure] = {
        "harrell": partial(_concordance, lower=lower, followed=followed, horizon=None),
        "uno": partial(_concordance, lower=lower, followed=followed, horizon=days[-1]),
        "slope": partial(_slope, risk=risk, followed=followed),
    }
    measures |= {f"auc_{day:g}": partial(_auc, risk=risk, followed=followed, day=day) for day in days}
    if survival is not None:
        survival = _chances(survival, followed, (len(risk), len(days)))
        for day, chance in zip(days, survival.T, strict=True):
            predicted = {"chance": chance, "followed": followed, "day": day}
            measures[f"brier_{day:g}"] = partial(_brier, **predicted)
            measures[f"observed_to_expected_{day:g}"] = partial(_observed_to_expected, **predicted)
            curve = CalibrationCurve(1 - chance)
            measures[f"ici_{day:g}"] = partial(_ici, curve=curve, followed=followed, day=day)
        if len(days) > 1:
            briers = [measures[f"brier_{day:g}"] for day in days]
            measures["ibs"] = partial(_over_days, measures=briers, days=np.asarray(days, dtype=np.float64))
    return measures


def _harrell(risk: Array, followed: FollowUp) -> Measure:
    return partial(_concordance, lower=ConcordantPairs(risk, followed), followed=followed, horizon=None)


def _concordance(counts: Array, *, lower: ConcordantPairs, followed: FollowUp, horizon: float | None) -> Array:
    weights = counts * followed.event
    if horizon is not None:
        before = followed.time < horizon
        weights = np.where(before, weights * _inverse(followed.censoring_survival(counts)[:, followed.index]) ** 2, 0)
    below, later = lower.sums(counts)
    return _ratio((weights * below).sum(1), (weights * later).sum(1))


def _auc(counts: Array, *, risk: Array, followed: FollowUp, day: float) -> Array:
    order = np.argsort(risk, kind="stable")
    time, event, index = followed.time[order], followed.event[order], followed.index[order]
    free = counts[:, order] * (time > day)
    happened = event & (time <= day)
    cases = np.where(happened, counts[:, order] * _inverse(followed.censoring_survival(counts)[:, index]), 0)
    running = np.zeros((len(counts), len(risk) + 1))
    np.cumsum(free, axis=1, out=running[:, 1:])
    ends = [np.searchsorted(risk[order], risk[order], side=side) for side in ("left", "right")]
    lower = 0.5 * (running[:, ends[0]] + running[:, ends[1]])
    return _ratio((cases * lower).sum(1), cases.sum(1) * free.sum(1))


def _known(counts: Array, *, followed: FollowUp, day: float) -> Array:
    """IPCW weights ``(R, P)`` of the patients whose state on a day is known; 0 for those censored before."""
    survival = followed.censoring_survival(counts)
    happened = followed.event & (followed.time <= day)
    own = np.where(happened, _inverse(survival[:, followed.index]), 0)
    return counts * np.where(followed.time > day, _inverse(followed.at(survival, day))[:, None], own)


def _brier(counts: Array, *, chance: Array, followed: FollowUp, day: float) -> Array:
    squared = np.where(followed.time > day, 1 - chance, chance) ** 2
    return _ratio((_known(counts, followed=followed, day=day) * squared).sum(1), counts.sum(1))


def _ici(counts: Array, *, curve: CalibrationCurve, followed: FollowUp, day: float) -> Array:
    happened = (followed.time <= day).astype(np.float64)
    return curve.calibration_error(counts, _known(counts, followed=followed, day=day), happened, high=1)


def _over_days(counts: Array, *, measures: Sequence[Measure], days: Array) -> Array:
    """The mean of a score over time, by the trapezoid rule."""
    scores = np.stack([measure(counts) for measure in measures], axis=1)
    return np.asarray((0.5 * (scores[:, 1:] + scores[:, :-1]) * np.diff(days)).sum(1) / (days[-1] - days[0]))


def _observed_to_expected(counts: Array, *, chance: Array, followed: FollowUp, day: float) -> Array:
    observed = 1 - followed.at(followed.survival(counts), day)
    return _ratio(observed, (counts * (1 - chance)).sum(1) / counts.sum(1))


def _slope(counts: Array, *, risk: Array, followed: FollowUp) -> Array:
    """Newton's method for the partial likelihood (Breslow's for ties) of all resamples at once."""
    risk = risk - risk.mean()
    events = followed.sums(counts * followed.event)
    of_events = (counts * followed.event) @ risk
    slope = np.zeros(len(counts))
    with np.errstate(all="ignore"):
        for _ in range(30):
            exponent = slope[:, None] * risk
            weight = counts * np.exp(exponent - exponent.max(1, keepdims=True))
            total, first, second = (from_here(followed.sums(weight * risk**power)) for power in (0, 1, 2))
            mean = first / total
            gradient = of_events - np.where(events > 0, events * mean, 0).sum(1)
            curvature = np.where(events > 0, events * (second / total - mean**2), 0).sum(1)
            step = gradient / curvature
            # A risk of another scale than the log hazard may start far off.
            slope = slope + np.clip(step, -2 - np.abs(slope), 2 + np.abs(slope))
            if not (np.abs(step) >= 1e-9 * (1 + np.abs(slope))).any():
                break
    return np.asarray(np.where(np.abs(step) < 1e-6 * (1 + np.abs(slope)), slope, np.nan))


def _minus(counts: Array, *, a: Measure, b: Measure) -> Array:
    return a(counts) - b(counts)


def _inverse(chance: Array) -> Array:
    """1 / chance; nan where nobody was left to be seen."""
    return 1 / np.where(chance > 0, chance, np.nan)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return numerator / np.where(denominator > 0, denominator, np.nan)


def _numbers(values: Array, followed: FollowUp, name: str) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != followed.time.shape:
        raise ValueError(f"expected a {name} for each of {len(followed.time)} patients, got shape {values.shape}")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"expected finite values, got {name} {values[wrong[0]]} at index {wrong[0]}")
    return values


def _chances(values: Array, followed: FollowUp, shape: tuple[int, ...]) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != shape:
        raise ValueError(f"expected chances of shape {shape}, got {values.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"expected chances between 0 and 1, got {values.min()} to {values.max()}")
    return values

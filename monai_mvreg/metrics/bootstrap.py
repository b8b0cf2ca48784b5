"""A measure of a cohort -> its value and an interval from resampled patients.

A measure is a function of how often each patient counts, ``counts (R, P) -> (R,)``: once each for the value itself, as
often as drawn for a resample. Whatever a measure estimates on the way, such as weights against censoring, is estimated
anew in each resample. Where it does not exist, such as the correlation with a constant, it is nan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Measure = Callable[[Array], Array]
# Values held at once by one step of the bootstrap, about 16 MB an array, however large the cohort.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A measure of the cohort and its interval; nan where the measure does not exist.

    Args:
        value: the measure on the patients as they are.
        low, high: ends of the interval, same unit as ``value``.
    """

    value: float
    low: float
    high: float


def once(measure: Measure, patients: int) -> float:
    """The measure with each patient counted once."""
    return float(measure(np.ones((1, patients)))[0])


def estimates(
    measures: Mapping[str, Measure], patients: int, *, resamples: int, confidence: float, seed: int
) -> dict[str, Estimate]:
    """Each measure with its percentile interval over the same resamples of the patients.

    Resamples in which a measure does not exist, such as one patient drawn over and over, are left out of its interval.

    Args:
        measures: name -> measure.
        patients: number of patients ``P``.
        resamples: how often the patients are drawn anew, with replacement.
        confidence: share of the resamples inside the interval, between 0 and 1.
        seed: of the draws; the same seed gives the same intervals.

    Raises:
        ValueError: if an option is out of range.

    Source: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    drawn: dict[str, list[Array]] = {name: [] for name in measures}
    for counts in _draws(patients, resamples, confidence, seed):
        for name, measure in measures.items():
            drawn[name].append(measure(counts))
    return {
        name: _estimate(once(measure, patients), np.concatenate(drawn[name]), confidence)
        for name, measure in measures.items()
    }


def _draws(patients: int, resamples: int, confidence: float, seed: int) -> Iterator[Array]:
    """How often each patient is drawn, ``(R, P)`` with rows that sum to ``P``, a chunk of resamples at a time."""
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected resamples >= 1 and 0 < confidence < 1, got {resamples} and {confidence}")
    generator, step = np.random.default_rng(seed), max(1, _CHUNK // patients)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        cells = generator.integers(patients, size=(rows, patients)) + patients * np.arange(rows)[:, None]
        yield np.bincount(cells.ravel(), minlength=rows * patients).reshape(rows, patients).astype(np.float64)


def _estimate(value: float, drawn: Array, confidence: float) -> Estimate:
    exists = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(exists):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(exists, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))

"""Intervals from resampled patients: they hold the truth as often as they say, and say it again with the same seed."""

import numpy as np
import pytest
import scipy.stats

from monai_mvreg.metrics.bootstrap import Array, Estimate, Measure, estimates, once


def mean_of(values: Array) -> Measure:
    return lambda counts: counts @ values / counts.sum(1)


def interval(values: Array, *, resamples: int = 300, confidence: float = 0.95, seed: int = 0) -> Estimate:
    measures = {"mean": mean_of(values)}
    return estimates(measures, len(values), resamples=resamples, confidence=confidence, seed=seed)["mean"]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth, held = np.sqrt(2 / np.pi), 0  # mean absolute value of a standard normal error
    for seed in range(300):
        found = interval(np.abs(np.random.default_rng(seed).normal(size=80)), seed=seed)
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_the_interval_is_about_that_of_the_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(0).normal(size=100)
    found = interval(values, resamples=4000, confidence=0.9)
    theirs = scipy.stats.bootstrap((values,), np.mean, confidence_level=0.9, method="percentile", rng=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert [found.low, found.high] == pytest.approx(list(theirs.confidence_interval), abs=0.05 * width)
    assert found.value == once(mean_of(values), 100) == pytest.approx(values.mean())


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.arange(30.0)
    assert interval(values) == interval(values) != interval(values, seed=1)


def test_resamples_without_the_measure_are_left_out_and_without_any_there_is_no_interval() -> None:
    def second(counts: Array) -> Array:
        return np.where(counts[:, 1] > 0, 7.0, np.nan)

    found = estimates({"second": second}, 3, resamples=100, confidence=0.9, seed=0)["second"]
    assert found == Estimate(7.0, 7.0, 7.0)
    nowhere = estimates({"none": lambda counts: np.full(len(counts), np.nan)}, 3, resamples=9, confidence=0.9, seed=0)
    assert np.isnan([nowhere["none"].value, nowhere["none"].low, nowhere["none"].high]).all()


@pytest.mark.parametrize("option", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 95}])
def test_an_option_out_of_range_is_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected resamples >= 1 and 0 < confidence < 1"):
        interval(np.arange(5.0), **option)  # type: ignore[arg-type]

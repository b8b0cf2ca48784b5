"""The smooth curve of what was observed where something was predicted."""

from __future__ import annotations

import numpy as np
import pytest

from monai_mvreg.metrics.smooth import CalibrationCurve


def by_definition(pred: np.ndarray, observed: np.ndarray, counts: np.ndarray, place: float, span: float) -> float:
    """A straight line through the nearest patients, weighted by tricube, by numpy's own least squares."""
    apart = np.abs(pred - place)
    reach = np.sort(apart)[int(span * len(pred)) - 1]
    weight = counts * np.clip(1 - (apart / reach) ** 3, 0, None) ** 3
    return float(np.polyval(np.polyfit(pred, observed, 1, w=np.sqrt(weight)), place))


@pytest.mark.parametrize("span", [0.3, 0.5, 0.75])
def test_the_curve_is_a_weighted_line_at_every_place(span: float) -> None:
    generator = np.random.default_rng(0)
    pred = generator.normal(size=80)
    observed, counts = pred**2 + generator.normal(size=80), generator.integers(0, 3, (4, 80)).astype(float)
    curve = CalibrationCurve(pred, span=span)
    found = curve.heights(counts, observed)
    expected = [[by_definition(pred, observed, row, place, span) for place in curve.places] for row in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_a_straight_relation_is_found_exactly_and_true_predictions_lie_on_it() -> None:
    pred, once = np.linspace(3, 9, 200), np.ones((1, 200))
    curve = CalibrationCurve(pred)
    np.testing.assert_allclose(curve.heights(once, 2 * pred - 5)[0], 2 * curve.places - 5)
    assert curve.calibration_error(once, once, pred)[0] < 1e-12
    np.testing.assert_allclose(curve.calibration_error(once, once, pred - 0.5), 0.5)


def test_the_unit_is_carried_through() -> None:
    generator = np.random.default_rng(1)
    pred, once = generator.normal(size=90), np.ones((1, 90))
    observed = np.sin(pred) + generator.normal(size=90)
    small = CalibrationCurve(pred).calibration_error(once, once, observed)
    np.testing.assert_allclose(CalibrationCurve(1e6 * pred).calibration_error(once, once, 1e6 * observed), 1e6 * small)
    shifted = CalibrationCurve(pred + 100).calibration_error(once, once, observed + 100)
    np.testing.assert_allclose(shifted, small, rtol=1e-6)


@pytest.mark.parametrize("pred", [np.full(7, 0.4), np.array([0.4]), np.array([0.4] * 6 + [0.9])])
def test_few_distinct_predictions_give_the_mean_at_each(pred: np.ndarray) -> None:
    observed, once = np.arange(float(len(pred))), np.ones((1, len(pred)))
    curve = CalibrationCurve(pred)
    means = [observed[pred == place].mean() for place in curve.places if (pred == place).any()]
    found = curve.heights(once, observed)[0][[int(np.searchsorted(curve.places, p)) for p in np.unique(pred)]]
    np.testing.assert_allclose(found, means)
    assert np.isfinite(curve.calibration_error(once, once, observed)).all()


def test_chances_that_are_squared_are_off_by_the_known_distance() -> None:
    generator = np.random.default_rng(2)
    pred = generator.uniform(size=20_000)
    happened, once = (generator.uniform(size=20_000) < pred**2).astype(float), np.ones((1, 20_000))
    found = CalibrationCurve(pred, span=0.1).calibration_error(once, once, happened, high=1)[0]
    assert found == pytest.approx(np.abs(pred - pred**2).mean(), abs=0.01)


def test_no_patient_and_a_span_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected predictions \(P,\) and a span in \(0, 1\], got shape \(0,\)"):
        CalibrationCurve(np.zeros(0))
    with pytest.raises(ValueError, match=r"and 1.5"):
        CalibrationCurve(np.zeros(3), span=1.5)

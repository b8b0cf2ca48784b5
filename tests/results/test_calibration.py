"""Calibration: chances and intervals that keep what they promise to patients who had no part in them."""

from __future__ import annotations

import math
from decimal import MIN_EMIN, Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from sksurv.datasets import load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from monai_mvreg.cache.typed_json import read_json, write_json
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.metrics.survival import d_calibration
from monai_mvreg.results.calibration import (
    Baseline,
    Interval,
    LowerBound,
    cross_interval,
    fit_baseline,
    fit_interval,
    fit_lower_bound,
    fit_recalibration,
    mean_log_hazard,
)


def weibull_cohort(patients: int, seed: int) -> tuple[Array, Array, Array]:
    """Log risk, label and the uncensored day of the event; about 40 in 100 are censored."""
    generator = np.random.default_rng(seed)
    log_risk = generator.normal(size=patients)
    event_day = 1000 * (-np.log(generator.uniform(size=patients)) * np.exp(-log_risk)) ** (1 / 1.5)
    censored_day = generator.uniform(100, 2500, size=patients)
    label = np.stack([np.minimum(event_day, censored_day), event_day <= censored_day], 1).astype(np.float64)
    return log_risk, label, event_day


def test_the_curves_are_those_of_a_cox_model_of_scikit_survival() -> None:
    table, outcome = load_whas500()
    label = np.array([[row[1], row[0]] for row in outcome], dtype=np.float64)
    features = table[["age"]].to_numpy(np.float64)
    model = CoxPHSurvivalAnalysis(ties="breslow", tol=1e-12).fit(
        features, Surv.from_arrays(label[:, 1] > 0, label[:, 0])
    )
    baseline = fit_baseline(features[:, 0], label)
    assert baseline.slope == pytest.approx(model.coef_[0], rel=1e-6)
    days = np.array([0.0, 30, 365, 1000, 2000])
    theirs = np.stack(
        [curve(np.clip(days, curve.domain[0], None)) for curve in model.predict_survival_function(features)]
    )
    theirs[:, 0] = 1
    np.testing.assert_allclose(baseline.survival(features[:, 0], days), theirs, atol=1e-9)


def test_curves_fall_from_one_and_the_median_is_where_they_pass_a_half() -> None:
    log_risk, label, _ = weibull_cohort(300, 0)
    baseline = fit_baseline(log_risk, label)
    days = np.linspace(0, label[:, 0].max(), 500)
    curves = baseline.survival(log_risk, days)
    assert (curves[:, 0] == 1).all() and (np.diff(curves, axis=1) <= 0).all() and (curves >= 0).all()
    median = baseline.median_days(log_risk)
    reached = np.isfinite(median)
    assert 0 < reached.mean() < 1
    at = baseline.survival(log_risk[reached], np.unique(median[reached]))
    place = np.searchsorted(np.unique(median[reached]), median[reached])
    assert (at[np.arange(len(at)), place] <= 0.5 + 1e-12).all()
    before = baseline.survival(log_risk[reached], median[reached] - 1e-6)
    assert (np.diag(before) > 0.5 - 1e-12).all()
    assert (baseline.survival(log_risk[~reached], np.array([label[:, 0].max()])) > 0.5).all()


@pytest.mark.parametrize("spread", [1.0, 3.0, 0.3])
def test_chances_are_calibrated_on_new_patients_however_wide_the_risks_are(spread: float) -> None:
    p_values = []
    for seed in range(60):
        log_risk, label, _ = weibull_cohort(400, 2 * seed)
        baseline = fit_baseline(spread * log_risk, label)
        new, new_label, _ = weibull_cohort(300, 2 * seed + 1)
        assert baseline.last_day is not None
        own = np.diag(baseline.survival(spread * new, np.minimum(new_label[:, 0], baseline.last_day)))
        p_values.append(d_calibration(own, new_label))
    assert np.mean(np.array(p_values) < 0.05) <= 0.15


def test_the_log_hazard_is_that_of_the_curve_and_orders_patients_whose_probability_rounds_to_one() -> None:
    log_risk, label, _ = weibull_cohort(300, 0)
    baseline = fit_baseline(log_risk, label)
    chance = baseline.survival(log_risk, np.array([900.0]))[:, 0]
    np.testing.assert_allclose(baseline.log_hazard(log_risk, 900.0), np.log(-np.log(chance)), rtol=1e-9)
    extreme = np.array([-1e3, -60, 0, 60, 200, 1e3])
    assert (np.diff(baseline.log_hazard(extreme, 900.0)) > 0).all()
    first = baseline.log_hazard(extreme, baseline.days[0] - 1)  # nobody had the event yet
    assert np.isfinite(first).all() and (np.diff(first) > 0).all()


def exact_mean(log_hazards: tuple[float, ...]) -> float:
    """The same with 80 digits."""
    with localcontext() as context:
        context.prec, context.Emin = 80, MIN_EMIN
        chances = [(-Decimal(hazard).exp()).exp() for hazard in log_hazards]
        return float((-(sum(chances) / len(chances)).ln()).ln())


@pytest.mark.parametrize(
    "log_hazards", [(0.0, 0.0), (-1.0, 2.0, 0.5), (-40.0, -41.0), (-30.0, 5.0), (20.0, 20.5), (30.0, -2.0), (9.0, 30.0)]
)
def test_the_mean_of_curves_is_exact_where_floating_point_saturates_or_cancels(log_hazards: tuple[float, ...]) -> None:
    [found] = mean_log_hazard(np.array(log_hazards)[:, None])
    assert found == pytest.approx(exact_mean(log_hazards), rel=1e-12, abs=1e-14)


def test_the_mean_of_curves_is_finite_and_grows_whatever_the_hazards() -> None:
    hazards = np.array([-1e3, -300.0, 0, 300.0, 800.0, 1e3])
    found = mean_log_hazard(np.stack([hazards, hazards + 1, hazards + 2]))
    assert np.isfinite(found).all() and (np.diff(found) > 0).all()
    np.testing.assert_allclose(mean_log_hazard(np.stack([hazards] * 3)), hazards)


def test_a_risk_that_is_worth_nothing_gives_everybody_the_same_curve() -> None:
    log_risk, label, _ = weibull_cohort(300, 0)
    baseline = fit_baseline(-log_risk, label)
    assert baseline.slope == 0
    assert np.ptp(baseline.survival(log_risk, np.array([500.0]))) == 0
    with pytest.raises(ValueError, match="expected an event among the 300"):
        fit_baseline(log_risk, label * [1, 0])


def test_extreme_risks_give_chances_and_no_overflow() -> None:
    log_risk, label, _ = weibull_cohort(100, 0)
    curves = fit_baseline(log_risk, label).survival(np.array([-1e4, 1e4]), np.array([500.0]))
    assert curves[0, 0] == pytest.approx(1) and curves[1, 0] == pytest.approx(0)


@pytest.mark.parametrize("confidence", [0.8, 0.9])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_split_interval_holds_its_share_of_new_patients(confidence: float, normalised: bool) -> None:
    held, widths = [], []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        spread = generator.uniform(0.2, 3, size=300)
        pred = generator.normal(size=300)
        target = pred + 0.5 + spread * generator.standard_t(4, size=300)  # biased, heavy-tailed
        known, new = slice(0, 99), slice(99, 300)
        given = {"spread": spread[known]} if normalised else {}
        interval = fit_interval(pred[known], target[known], confidence=confidence, **given)
        low, high = interval.around(pred[new], **({"spread": spread[new]} if normalised else {}))
        held.append(((target[new] >= low) & (target[new] <= high)).mean())
        widths.append(np.ptp(high - low))
    assert np.mean(held) == pytest.approx(confidence, abs=0.01)
    assert (max(widths) > 1e-9) == normalised


def test_a_cross_validated_interval_holds_its_share_of_new_patients() -> None:
    held = []
    for seed in range(150):
        generator = np.random.default_rng(seed)
        x, noise = generator.normal(size=(160, 5)), generator.normal(size=160)
        target = x @ np.arange(5.0) + noise
        fold, new = np.arange(60) % 5, slice(60, 160)
        fits = [np.linalg.lstsq(x[:60][fold != k], target[:60][fold != k], rcond=None)[0] for k in range(5)]
        residual = np.array([target[i] - x[i] @ fits[fold[i]] for i in range(60)])
        low, high = cross_interval(np.stack([x[new] @ fit for fit in fits]), residual, fold, confidence=0.9)
        held.append(((target[new] >= low) & (target[new] <= high)).mean())
    assert 0.88 <= np.mean(held) <= 0.94


@pytest.mark.parametrize("alpha", [Fraction(a, b) for a, b in ((1, 20), (1, 10), (1, 5), (1, 3), (9, 20), (1, 2))])
def test_cross_validated_ends_are_the_order_statistics_of_barber_et_al(alpha: Fraction) -> None:
    generator = np.random.default_rng(0)
    for patients in range(math.ceil((1 - alpha) / alpha), 101):
        pred, residual = generator.normal(size=(3, 1)), generator.normal(size=patients)
        fold = generator.integers(3, size=patients)
        low, high = cross_interval(pred, residual, fold, confidence=float(1 - alpha))
        below = sorted(float(pred[k, 0]) - abs(r) for k, r in zip(fold, residual, strict=True))
        above = sorted(float(pred[k, 0]) + abs(r) for k, r in zip(fold, residual, strict=True))
        assert low.tolist() == [below[math.floor(alpha * (patients + 1)) - 1]]
        assert high.tolist() == [above[math.ceil((1 - alpha) * (patients + 1)) - 1]]


def test_a_spread_multiplies_the_residuals_of_the_fold_whose_model_predicts_it() -> None:
    generator = np.random.default_rng(0)
    pred, residual, fold = generator.normal(size=(3, 1)), generator.normal(size=30), generator.integers(3, size=30)
    spread = np.array([[0.1], [1.0], [10.0]])
    scaled = cross_interval(pred, residual * spread[fold, 0], fold)
    np.testing.assert_array_equal(cross_interval(pred, residual, fold, spread=spread), scaled)


@pytest.mark.parametrize(("confidence", "least"), [(0.5, 1), (2 / 3, 2), (0.8, 4), (0.9, 9), (0.95, 19)])
def test_a_cross_validated_interval_that_would_be_unbounded_is_refused(confidence: float, least: int) -> None:
    """The rank of the upper end, (1 - alpha) (n + 1), is above n for fewer than (1 - alpha) / alpha patients."""
    residual = np.arange(1.0, least + 1)
    low, high = cross_interval(np.zeros((1, 1)), residual, np.zeros(least, int), confidence=confidence)
    assert (low.tolist(), high.tolist()) == ([-least], [least])
    with pytest.raises(ValueError, match=f"expected at least {least} patients, got {least - 1}"):
        cross_interval(np.zeros((1, 1)), residual[1:], np.zeros(least - 1, int), confidence=confidence)


def test_the_bound_of_a_censored_time_holds_its_share_and_is_tighter_than_taking_censoring_for_the_event() -> None:
    held, naive_held, bounds, naive_bounds = [], [], [], []
    for seed in range(200):
        log_risk, label, _ = weibull_cohort(400, 2 * seed)
        new, _, day = weibull_cohort(400, 2 * seed + 1)
        guess, new_guess = 1000 * np.exp(-log_risk / 1.5), 1000 * np.exp(-new / 1.5)
        found = fit_lower_bound(guess, label, horizon=1500, confidence=0.9)
        naive = fit_lower_bound(guess, np.stack([label[:, 0], np.ones(400)], 1), horizon=1500, confidence=0.9)
        held.append((day >= found.before(new_guess)).mean())
        naive_held.append((day >= naive.before(new_guess)).mean())
        bounds.append(found.before(new_guess).mean())
        naive_bounds.append(naive.before(new_guess).mean())
    assert 0.895 <= np.mean(held) <= 0.93
    assert np.mean(naive_held) > np.mean(held) and np.mean(bounds) > 1.15 * np.mean(naive_bounds)


def test_a_recalibrated_prediction_lies_on_the_line() -> None:
    generator = np.random.default_rng(0)
    pred = generator.normal(size=500)
    measured = 3 + 0.5 * pred + 0.1 * generator.normal(size=500)
    slope, intercept = fit_recalibration(pred, measured)
    assert (slope, intercept) == pytest.approx((0.5, 3), abs=0.02)
    assert fit_recalibration(slope * pred + intercept, measured) == pytest.approx((1, 0), abs=1e-12)


def test_every_part_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    parts = [Baseline((1.0, 2.0), (0.1, 0.3), 0.7, 0.2), Interval(1.5, 0.9), LowerBound(0.4, 900.0, 0.9)]
    for part in parts:
        write_json(part, tmp_path / "a/part.json")
        assert read_json(type(part), tmp_path / "a/part.json") == part
    with pytest.raises(ValueError, match=r"part\.json: factor: no such entry, expected one of days, hazard"):
        read_json(Baseline, tmp_path / "a/part.json")


def test_too_few_patients_and_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 9 patients, got 5"):
        fit_interval(np.zeros(5), np.zeros(5), confidence=0.9)
    with pytest.raises(ValueError, match="share between 0 and 1"):
        fit_interval(np.zeros(5), np.zeros(5), confidence=1.0)
    with pytest.raises(ValueError, match="above 0"):
        fit_interval(np.zeros(50), np.zeros(50), spread=np.zeros(50))
    with pytest.raises(ValueError, match="one length"):
        fit_interval(np.zeros(50), np.zeros(51))
    with pytest.raises(ValueError, match="expected patients who were seen for 99 days"):
        fit_lower_bound(np.ones(3), np.array([[1.0, 1], [2, 0], [3, 1]]), horizon=99)
    with pytest.raises(ValueError, match="predictions that differ"):
        fit_recalibration(np.ones(3), np.arange(3.0))


def test_beyond_the_follow_up_nothing_is_known() -> None:
    curve = fit_baseline(np.array([1.0, 0.0, 0.5]), np.array([[10.0, 1], [20, 1], [30, 0]]))
    assert curve.last_day == 30
    known = curve.survival(np.array([0.0]), np.array([20.0, 30.0, 30.1, 365.0]))[0]
    assert known[0] == known[1] > 0 and np.isnan(known[2:]).all()
    before = Baseline(curve.days, curve.hazard, curve.slope, curve.centre)
    assert before.survival(np.array([0.0]), np.array([365.0]))[0, 0] == known[1]  # a file of an earlier version

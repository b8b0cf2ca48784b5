"""Judged risk: as scikit-survival computes it on published cohorts, and what must hold for any cohort."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sksurv.datasets import load_gbsg2, load_veterans_lung_cancer, load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.preprocessing import OneHotEncoder
from sksurv.util import Surv

from monai_mvreg.metrics import bootstrap
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.metrics.survival import (
    Forecast,
    concordance,
    d_calibration,
    event_curve,
    kaplan_meier,
    survival_differences,
    survival_metrics,
)

COHORTS = {"gbsg2": load_gbsg2, "whas500": load_whas500, "veterans": load_veterans_lung_cancer}
UNITS = pytest.mark.parametrize("unit", [1.0, 30.0], ids=["days", "months"])
NAMES = pytest.mark.parametrize("name", COHORTS)


@cache
def cohort(name: str, unit: float) -> tuple[Array, Array, Array, Array]:
    """Risk and chances of a Cox model of a published cohort, its label in whole units, and three horizons."""
    table, outcome = COHORTS[name]()
    event, days = (np.array([row[column] for row in outcome], dtype=np.float64) for column in (0, 1))
    label = np.stack([np.ceil(days / unit), event], 1)
    if name == "gbsg2":
        table["tgrade"] = table["tgrade"].map(len).astype(int)
    model = CoxPHSurvivalAnalysis(ties="efron", alpha=1e-3).fit(OneHotEncoder().fit_transform(table), surv(label))
    features = OneHotEncoder().fit_transform(table)
    horizons = np.unique(np.quantile(label[label[:, 1] > 0, 0], [0.25, 0.5, 0.75]).round())
    chances = np.stack([curve(horizons) for curve in model.predict_survival_function(features)])
    return model.predict(features), label, horizons, chances


def surv(label: Array) -> np.ndarray:
    return Surv.from_arrays(label[:, 1] > 0, label[:, 0])


def values(forecast: Forecast, label: Array) -> dict[str, float]:
    return {name: found.value for name, found in survival_metrics(forecast, label, resamples=1).items()}


@UNITS
@NAMES
@pytest.mark.parametrize("decimals", [9, 0], ids=["no tied risks", "tied risks"])
def test_every_metric_equals_scikit_survival_on_published_cohorts(name: str, unit: float, decimals: int) -> None:
    risk, label, days, chances = cohort(name, unit)
    risk, theirs = risk.round(decimals), surv(label)
    found = values(Forecast(risk, days.tolist(), chances), label)
    expected = {
        "harrell": concordance_index_censored(label[:, 1] > 0, label[:, 0], risk)[0],
        "uno": concordance_index_ipcw(theirs, theirs, risk, tau=days[-1])[0],
        "ibs": integrated_brier_score(theirs, theirs, chances, days),
    }
    aucs, briers = cumulative_dynamic_auc(theirs, theirs, risk, days)[0], brier_score(theirs, theirs, chances, days)[1]
    for day, auc, brier in zip(days, aucs, briers, strict=True):
        expected |= {f"auc_{day:g}": auc, f"brier_{day:g}": brier}
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-9)


@NAMES
def test_small_batches_with_coarse_times_equal_scikit_survival_too(name: str) -> None:
    _, label, _, _ = cohort(name, 365.0) if name != "veterans" else cohort(name, 30.0)
    generator = np.random.default_rng(0)
    for size in range(2, 33):
        rows, risk = generator.permutation(len(label))[:size], generator.normal(size=size).round(1)
        event, days = label[rows, 1] > 0, label[rows, 0]
        if not any((days > t).any() or ((days == t) & ~event).any() for t in days[event]):
            assert np.isnan(concordance(risk, label[rows]))
        else:
            theirs = concordance_index_censored(event, days, risk)[0]
            assert concordance(risk, label[rows]) == pytest.approx(theirs, abs=1e-12)


@UNITS
@NAMES
def test_kaplan_meier_equals_scikit_survival(name: str, unit: float) -> None:
    _, label, _, _ = cohort(name, unit)
    days, chance = kaplan_meier_estimator(label[:, 1] > 0, label[:, 0])
    found = kaplan_meier(label)
    np.testing.assert_array_equal(found[0], days)
    np.testing.assert_allclose(found[1], chance, atol=1e-12)


@NAMES
def test_the_slope_is_the_coefficient_of_a_cox_model_of_the_risk_alone(name: str) -> None:
    risk, label, days, _ = cohort(name, 1.0)
    for scale in (1.0, 0.2, 7.0):
        theirs = CoxPHSurvivalAnalysis(ties="breslow", tol=1e-12).fit(scale * risk[:, None], surv(label)).coef_[0]
        assert values(Forecast(scale * risk, days.tolist()), label)["slope"] == pytest.approx(theirs, rel=1e-6)


def test_resamples_estimate_the_weights_against_censoring_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * 500)
    risk, label, days, chances = cohort("whas500", 30.0)
    found = survival_metrics(Forecast(risk, days.tolist(), chances), label, resamples=30, confidence=0.9, seed=3)
    draws = [d.astype(int) for counts in bootstrap._draws(len(risk), 30, 0.9, 3) for d in counts]
    uno, brier, auc = [], [], []
    for drawn in draws:
        again, drawn_risk = surv(np.repeat(label, drawn, 0)), np.repeat(risk, drawn)
        uno.append(concordance_index_ipcw(again, again, drawn_risk, tau=days[-1])[0])
        auc.append(cumulative_dynamic_auc(again, again, drawn_risk, days[:1])[0][0])
        brier.append(brier_score(again, again, np.repeat(chances[:, 1], drawn), days[1])[1][0])
    for name, theirs in (("uno", uno), (f"auc_{days[0]:g}", auc), (f"brier_{days[1]:g}", brier)):
        assert [found[name].low, found[name].high] == pytest.approx(np.quantile(theirs, [0.05, 0.95]), rel=1e-9)


def test_a_difference_is_paired_and_turns_its_sign_with_the_order() -> None:
    risk, label, days, chances = cohort("gbsg2", 1.0)
    worse = risk + np.random.default_rng(0).normal(size=len(risk))
    a, b = Forecast(risk, days.tolist(), chances), Forecast(worse, days.tolist())
    found, turned = survival_differences(a, b, label, resamples=300), survival_differences(b, a, label, resamples=300)
    assert set(found) == {"harrell", "uno", "slope", *(f"auc_{day:g}" for day in days)}
    expected = concordance(risk, label) - concordance(worse, label)
    assert found["harrell"].value == pytest.approx(expected, rel=1e-12) and found["harrell"].low > 0
    assert survival_differences(a, b, label, names=["uno"], resamples=300) == {"uno": found["uno"]}
    assert [turned["uno"].low, turned["uno"].high] == pytest.approx([-found["uno"].high, -found["uno"].low])
    nearly = Forecast(risk + np.random.default_rng(0).normal(size=len(risk)) * 0.05, days.tolist())
    paired, alone = survival_differences(a, nearly, label, resamples=300), survival_metrics(a, label, resamples=300)
    assert paired["uno"].high - paired["uno"].low < (alone["uno"].high - alone["uno"].low) / 3


label_of = st.integers(2, 30).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.integers(-50, 50).map(float)),
        arrays(np.float64, n, elements=st.integers(0, 12).map(float)),
        arrays(np.float64, n, elements=st.integers(0, 1).map(float)),
        st.permutations(range(n)),
    )
)


@given(label_of)
@settings(max_examples=300, deadline=None)
def test_concordance_knows_nothing_but_the_order_of_risks_and_of_times(
    drawn: tuple[Array, Array, Array, list[int]],
) -> None:
    risk, days, event, turned = drawn
    label, exact = np.stack([days, event], 1), pytest.approx
    found = concordance(risk, label)
    same: list[Callable[[], float]] = [
        lambda: concordance(np.exp(risk / 10), label),
        lambda: concordance(7 + 0.01 * risk**3, label),
        lambda: concordance(risk, np.stack([days**2 + days, event], 1)),
        lambda: concordance(risk[turned], label[turned]),
        lambda: 1 - concordance(-risk, label),
    ]
    assert [again() for again in same] == [exact(found, abs=1e-12, nan_ok=True)] * len(same)


@given(label_of)
@settings(max_examples=200, deadline=None)
def test_kaplan_meier_falls_from_one_and_without_censoring_is_the_share_left(
    drawn: tuple[Array, Array, Array, list[int]],
) -> None:
    _, days, event, _ = drawn
    times, chance = kaplan_meier(np.stack([days, event], 1))
    assert (np.diff(np.concatenate([[1.0], chance])) <= 1e-12).all() and (chance >= -1e-12).all()
    _, alone = kaplan_meier(np.stack([days, np.ones_like(days)], 1))
    np.testing.assert_allclose(alone, [(days > t).mean() for t in times], atol=1e-12)


def test_the_sign_of_risk_is_higher_is_sooner_everywhere() -> None:
    label = np.array([[float(day), 1.0] for day in range(1, 41)])
    found = values(Forecast(-label[:, 0], [10.0, 20.0]), label)
    assert (found["harrell"], found["uno"], found["auc_10"], found["auc_20"]) == (1, 1, 1, 1)


def test_what_does_not_exist_is_nan_not_an_error() -> None:
    label = np.array([[5.0, 0.0], [6.0, 0.0], [9.0, 0.0]])
    found = survival_metrics(Forecast(np.arange(3.0), [7.0]), label, resamples=20)
    assert all(np.isnan([found[key].value, found[key].low]).all() for key in ("harrell", "uno", "auc_7", "slope"))
    assert np.isnan(concordance(np.zeros(1), np.array([[1.0, 1.0]])))


def weibull_cohort(patients: int, seed: int, *, spread: float = 1.0) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Log risk, label and the true chance of survival through given days; ``spread`` distorts what is predicted."""
    generator = np.random.default_rng(seed)
    log_risk = generator.normal(size=patients)
    event_day = 1000 * (-np.log(generator.uniform(size=patients)) * np.exp(-log_risk)) ** (1 / 1.5)
    censored_day = generator.uniform(200, 3000, size=patients)
    label = np.stack([np.minimum(event_day, censored_day), event_day <= censored_day], 1).astype(np.float64)
    return log_risk, label, lambda days: np.exp(-((days / 1000) ** 1.5) * np.exp(spread * log_risk))


def test_true_chances_are_calibrated_and_distorted_ones_are_not() -> None:
    p_values = []
    for seed in range(200):
        _, label, truth = weibull_cohort(300, seed)
        p_values.append(d_calibration(truth(label[:, 0]), label))
    # Under the null the p-value is uniform or, for the parts of the censored, a little larger.
    assert np.mean(np.array(p_values) < 0.05) <= 0.08
    _, label, wide = weibull_cohort(1000, 0, spread=2.5)
    assert d_calibration(wide(label[:, 0]), label) < 1e-3
    _, label, truth = weibull_cohort(1000, 0)
    assert d_calibration(truth(label[:, 0]) ** 2, label) < 1e-3


def test_slope_and_observed_to_expected_tell_true_chances_from_distorted_ones() -> None:
    log_risk, label, truth = weibull_cohort(4000, 1)
    days = [300.0, 900.0]
    chances = np.stack([truth(np.full(4000, day)) for day in days], 1)
    right = survival_metrics(Forecast(log_risk, days, chances), label, resamples=200)
    wrong = survival_metrics(Forecast(2 * log_risk, days, chances**2), label, resamples=200)
    assert right["slope"].low < 1 < right["slope"].high and wrong["slope"].value == pytest.approx(0.5, abs=0.05)
    for day in days:
        interval = right[f"observed_to_expected_{day:g}"]
        assert interval.low < 1 < interval.high and wrong[f"observed_to_expected_{day:g}"].high < 0.9
        assert right[f"brier_{day:g}"].high < wrong[f"brier_{day:g}"].high
        chance = chances[:, days.index(day)]
        assert right[f"ici_{day:g}"].value < 0.02
        assert wrong[f"ici_{day:g}"].value == pytest.approx(np.abs(chance - chance**2).mean(), abs=0.02)
    assert right["ibs"].value < wrong["ibs"].value


def test_the_calibration_curve_is_the_kaplan_meier_share_around_a_chance() -> None:
    log_risk, label, truth = weibull_cohort(6000, 2)
    chance = truth(np.full(6000, 600.0))
    forecast = Forecast(log_risk, [600.0], chance[:, None])
    chances, shares = event_curve(forecast, label, 600.0)
    np.testing.assert_allclose(shares, chances, atol=0.05)
    # One chance for all: the curve is one point, and there Kaplan-Meier by the definition of the weights.
    days, free = kaplan_meier(label)
    point, share = event_curve(Forecast(log_risk, [600.0], np.full((6000, 1), 0.7)), label, 600.0)
    assert point == pytest.approx([0.3]) and share == pytest.approx(
        [1 - free[np.searchsorted(days, 600.0, "right") - 1]]
    )
    with pytest.raises(ValueError, match="a forecast with chances"):
        event_curve(Forecast(log_risk, [600.0]), label, 600.0)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([[1.0, 1.0], [2.0, 2.0]], "event 0 or 1, got 2.0 and 2.0 at index 1"),
        ([[1.0, 1.0], [-2.0, 0.0]], "days >= 0 and an event 0 or 1, got -2.0"),
        ([[1.0, 1.0], [np.nan, 0.0]], "got nan"),
        ([[1.0], [2.0]], r"label \(P, 2\)"),
        (np.zeros((0, 2)), "at least one patient"),
        ([[1.0, 1.0]], r"a risk for each of 1 patients, got shape \(2,\)"),
    ],
)
def test_a_wrong_label_is_refused(label: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concordance(np.zeros(2), np.asarray(label))


def test_wrong_horizons_risks_and_chances_are_refused() -> None:
    label = np.array([[1.0, 1.0], [2.0, 0.0]])
    for forecast, message in (
        (Forecast(np.zeros(2), []), "horizons in days"),
        (Forecast(np.zeros(2), [2.0, 1.0]), "horizons in days"),
        (Forecast(np.array([0.0, np.inf]), [1.0]), "got risk inf at index 1"),
        (Forecast(np.zeros(2), [1.0], np.zeros((2, 2))), r"shape \(2, 1\), got \(2, 2\)"),
        (Forecast(np.zeros(2), [1.0], np.full((2, 1), 1.5)), "between 0 and 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            survival_metrics(forecast, label)


def test_a_hundred_thousand_patients_are_ranked_in_seconds() -> None:
    generator = np.random.default_rng(0)
    label = np.stack([generator.integers(0, 3000, 100_000), generator.integers(0, 2, 100_000)], 1).astype(np.float64)
    start = time.process_time()
    assert concordance(generator.normal(size=100_000), label) == pytest.approx(0.5, abs=0.01)
    assert time.process_time() - start < 5

import time
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from monai_mvreg.metrics import bootstrap, regression

REFERENCE = [
    lambda p, y: sklearn.metrics.mean_absolute_error(y, p),
    lambda p, y: sklearn.metrics.root_mean_squared_error(y, p),
    lambda p, y: sklearn.metrics.r2_score(y, p),
    lambda p, y: scipy.stats.pearsonr(p, y).statistic,
    lambda p, y: scipy.stats.spearmanr(p, y).statistic,
    lambda p, y: (p - y).mean(),
    lambda p, y: scipy.stats.linregress(p, y).slope,
]
KEYS = ["mae", "rmse", "r2", "pearson", "spearman", "bias", "slope"]


def cohort(patients: int, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    target = 50 + 10 * generator.normal(size=patients)
    return target + noise * generator.normal(size=patients), target


def single(key: str, pred: np.ndarray, target: np.ndarray) -> float:
    return regression.cohort_metrics(pred, target, resamples=1)[key].value


@pytest.mark.parametrize(("key", "theirs"), zip(KEYS, REFERENCE, strict=True), ids=KEYS)
@pytest.mark.parametrize("decimals", [12, 0, -1], ids=["no ties", "some ties", "many ties"])
def test_each_measure_equals_its_outside_reference(key, theirs, decimals):
    pred, target = cohort(57, noise=8)
    pred, target = pred.round(decimals), target.round(decimals)
    assert single(key, pred, target) == pytest.approx(theirs(pred, target), rel=1e-12, abs=1e-12)


def test_the_calibration_index_is_the_shift_of_good_predictions_and_near_none_of_true_ones():
    truth = np.random.default_rng(0).normal(50, 10, 4000)
    target = truth + np.random.default_rng(1).normal(size=4000)
    assert single("ici", truth, target) < 0.1
    assert single("ici", truth + 3, target) == pytest.approx(3, abs=0.1)
    half = 50 + 0.5 * (truth - 50)  # too narrow: off by as much again, 10 sqrt(2 / pi) / 2 on average
    assert single("ici", half, target) == pytest.approx(5 * np.sqrt(2 / np.pi), rel=0.02)
    assert single("slope", half, target) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("key", [*KEYS, "ici"])
def test_the_order_of_patients_never_changes_a_measure(key):
    pred, target = cohort(40)
    turned = np.random.default_rng(1).permutation(40)
    assert single(key, pred[turned], target[turned]) == pytest.approx(single(key, pred, target), rel=1e-12)


@pytest.mark.parametrize("level", [0.1, 1e6])
def test_a_constant_target_has_no_correlation_and_no_r2(level):
    pred, target = np.arange(7.0), np.full(7, level)
    assert np.isnan([single(key, pred, target) for key in ("r2", "pearson", "spearman")]).all()


def test_a_constant_prediction_has_no_correlation_but_an_r2():
    pred, target = np.full(7, 0.1), np.arange(7.0)
    assert np.isnan([single(key, pred, target) for key in ("pearson", "spearman")]).all()
    assert single("r2", pred, target) == pytest.approx(sklearn.metrics.r2_score(target, pred), rel=1e-12)


def test_the_resamples_change_no_estimate_and_the_error_is_that_of_the_single_function():
    pred, target = cohort(30)
    few, many = (regression.cohort_metrics(pred, target, resamples=n) for n in (1, 10))
    assert [few[key].value for key in KEYS] == [many[key].value for key in KEYS]
    assert few["mae"].value == regression.mean_absolute_error(pred, target)


def test_the_interval_equals_a_bootstrap_by_hand(monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * 23)  # several chunks, the last one not full
    pred, target = cohort(23, noise=8)
    pred = pred.round(-1)
    draws = [d for counts in bootstrap._draws(23, 40, 0.9, 5) for d in counts.astype(int)]
    assert len(draws) == 40 and all(d.sum() == 23 for d in draws)
    found = regression.cohort_metrics(pred, target, resamples=40, confidence=0.9, seed=5)
    for key, theirs in zip(KEYS, REFERENCE, strict=True):
        values = [theirs(np.repeat(pred, d), np.repeat(target, d)) for d in draws]
        assert [found[key].low, found[key].high] == pytest.approx(np.quantile(values, [0.05, 0.95]), rel=1e-12)


def test_resamples_without_a_correlation_are_left_out_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = regression.cohort_metrics(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
        constant = regression.cohort_metrics(np.array([1.0, 2.0]), np.array([3.0, 3.0]))
    assert found["pearson"] == bootstrap.Estimate(1.0, 1.0, 1.0)
    assert np.isnan([constant["r2"].value, constant["r2"].low, constant["r2"].high]).all()
    assert np.isfinite(constant["mae"].low)


def test_500_patients_and_2000_resamples_take_less_than_three_seconds():
    pred, target = cohort(500)
    start = time.process_time()
    regression.cohort_metrics(pred, target)
    assert time.process_time() - start < 3


def test_the_difference_is_that_of_the_two_errors_and_turns_its_sign_with_the_order():
    (a, target), b = cohort(40), cohort(40, noise=3)[0]
    found, turned = regression.difference(a, b, target), regression.difference(b, a, target)
    expected = regression.mean_absolute_error(a, target) - regression.mean_absolute_error(b, target)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert [turned.value, turned.low, turned.high] == pytest.approx([-found.value, -found.high, -found.low])


def test_a_paired_interval_is_narrower_than_an_unpaired_one_for_correlated_errors():
    generator = np.random.default_rng(0)
    target, shared = generator.normal(size=(2, 200))
    a, b = (target + 3 * shared + 0.3 * generator.normal(size=200) for _ in "ab")
    paired = regression.difference(a, b, target)
    alone = [regression.cohort_metrics(p, target, seed=seed)["mae"] for seed, p in enumerate((a, b))]
    unpaired = np.hypot(*(e.high - e.low for e in alone))
    assert paired.high - paired.low < unpaired / 3


def test_limits_of_agreement_equal_mean_and_standard_deviation_of_the_differences():
    pred, target = cohort(25)
    bias, low, high = regression.limits_of_agreement(pred, target)
    described = scipy.stats.describe(pred - target)
    assert bias == pytest.approx(described.mean, rel=1e-12)
    assert (high - low) / 2 == pytest.approx(1.96 * described.variance**0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], r"one length, got shapes \(2,\) and \(3,\)"),
        ([[1.0], [2.0]], [[1.0], [2.0]], r"two \(P,\) arrays"),
        ([1.0], [1.0], "at least 2 patients, got 1"),
        ([1.0, np.nan], [1.0, 2.0], "got prediction nan at index 1"),
        ([1.0, 2.0], [np.inf, 2.0], "got target inf at index 0"),
    ],
)
def test_wrong_input_is_refused_with_one_clear_error(pred, target, message):
    pred, target = np.array(pred), np.array(target)
    with pytest.raises(ValueError, match=message):
        regression.cohort_metrics(pred, target)
    with pytest.raises(ValueError, match=message):
        regression.difference(pred, pred, target)


def test_an_empty_cohort_has_no_error():
    with pytest.raises(ValueError, match="at least 1 patient, got 0"):
        regression.mean_absolute_error(np.array([]), np.array([]))

"""Groups of patients: the errors of each are those of the metrics, and many looks at chance find nothing."""

import numpy as np
import pytest
import scipy.stats

from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.metrics.groups import Members, group_means, groups_apart
from monai_mvreg.metrics.regression import cohort_metrics


def halves(patients: int) -> Members:
    first = np.arange(patients) < patients // 2
    return np.stack([first, ~first])


def dealt(patients: int, *, factors: int, levels: int, seed: int) -> Members:
    """Every factor deals all patients to its levels by chance."""
    level = np.random.default_rng(seed).integers(0, levels, (factors, patients))
    return np.concatenate([level == one for one in range(levels)])


def test_the_mean_of_a_group_and_its_interval_are_those_of_the_metrics_of_its_patients() -> None:
    draw = np.random.default_rng(0)
    pred, target = draw.normal(size=(2, 60))
    members = dealt(60, factors=2, levels=2, seed=0)
    found = group_means({"mae": np.abs(pred - target), "bias": pred - target}, members)
    for mine, estimates in zip(members, found, strict=True):
        expected = cohort_metrics(pred[mine], target[mine])
        for name in ("mae", "bias"):
            for end in ("value", "low", "high"):
                assert getattr(estimates[name], end) == pytest.approx(getattr(expected[name], end), rel=1e-12)


def test_a_ratio_is_that_of_the_sums_and_nan_over_nothing() -> None:
    above, over = np.array([1.0, 0, 1, 1]), np.array([0.5, 1.5, 0, 0])
    one, other = group_means({"ratio": above}, halves(4), over=over, resamples=50)
    assert one["ratio"].value == 0.5 and np.isnan(other["ratio"].value)


def test_where_no_group_matters_any_of_many_looks_finds_something_as_rarely_as_it_says() -> None:
    found = 0
    for seed in range(200):
        errors = np.random.default_rng(1000 + seed).standard_t(3, size=(80, 1))  # long tails, as errors have
        members = dealt(80, factors=4, levels=3, seed=seed)
        values = np.concatenate([errors, np.abs(errors)], 1)
        found += groups_apart(values, members, permutations=199, seed=seed).min() <= 0.05
    assert 0.01 <= found / 200 <= 0.10


def test_a_group_that_is_worse_is_found_among_many_that_are_not() -> None:
    members = dealt(200, factors=5, levels=3, seed=0)
    errors = np.abs(np.random.default_rng(1).normal(size=200)) + 1.5 * members[7]
    p = groups_apart(errors[:, None], members)[:, 0]
    assert p[7] == pytest.approx(1 / 2001)
    same_factor = {2, 7, 12}  # the other levels of the same factor are better than the mean of all
    assert all(p[group] > 0.05 for group in range(15) if group not in same_factor)


def test_one_look_has_the_p_value_of_the_permutation_test_of_scipy() -> None:
    values, members = np.random.default_rng(3).normal(size=24) + 0.5 * (np.arange(24) < 12), halves(24)

    def gap(one: Array, other: Array, axis: int) -> Array:
        found: Array = one.mean(axis) - other.mean(axis)
        return found

    sides = (values[:12], values[12:])
    theirs = scipy.stats.permutation_test(sides, gap, n_resamples=20_000, vectorized=True, rng=0).pvalue
    ours = groups_apart(values[:, None], members, permutations=20_000)
    assert ours[:, 0] == pytest.approx([theirs, theirs], abs=0.015)


def test_a_constant_value_and_a_group_of_all_patients_have_no_p_value() -> None:
    everybody = np.stack([np.ones(8, bool), np.arange(8) < 4])
    p = groups_apart(np.stack([np.ones(8), np.arange(8.0)], 1), everybody, permutations=20)
    assert np.isnan(p[:, 0]).all() and np.isnan(p[0, 1]) and p[1, 1] < 1


@pytest.mark.parametrize(
    ("values", "members", "message"),
    [
        (np.zeros((3, 1)), halves(4), r"got shapes \[\(3,\)\] and \(2, 4\)"),
        (np.full((4, 1), np.nan), halves(4), "expected finite values"),
        (np.zeros((4, 1)), np.zeros((1, 4), bool), "got none in group 0"),
    ],
)
def test_wrong_values_and_groups_are_refused(values: Array, members: Members, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_apart(values, members)
    with pytest.raises(ValueError, match=message.replace(r"\[\(3,\)\]", r"\[\(3,\), \(4,\)\]")):
        group_means({"value": values[:, 0]}, members)

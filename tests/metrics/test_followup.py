"""Follow-up: sums over risk sets and pairs, the same as in plain loops over all patients."""

from __future__ import annotations

import numpy as np
import pytest

from monai_mvreg.metrics.followup import ConcordantPairs, FollowUp, from_here


@pytest.mark.parametrize("seed", range(20))
def test_sums_over_pairs_are_those_of_two_loops(seed: int) -> None:
    generator = np.random.default_rng(seed)
    patients = int(generator.integers(1, 40))
    label = np.stack([generator.integers(0, 8, patients), generator.integers(0, 2, patients)], 1).astype(np.float64)
    risk, counts = generator.integers(0, 5, patients).astype(np.float64), generator.integers(0, 4, (3, patients)) * 1.0
    lower, later = ConcordantPairs(risk, FollowUp(label)).sums(counts)
    for i in range(patients):
        after = (label[:, 0] > label[i, 0]) | ((label[:, 0] == label[i, 0]) & (label[:, 1] == 0) & (label[i, 1] == 1))
        below = np.where(risk < risk[i], 1.0, np.where(risk == risk[i], 0.5, 0.0))
        np.testing.assert_allclose(later[:, i], counts @ after, atol=1e-12)
        np.testing.assert_allclose(lower[:, i], counts @ (after * below), atol=1e-12)


def test_risk_sets_are_all_who_are_not_gone() -> None:
    label = np.array([[3.0, 1], [1, 0], [3, 0], [2, 1]])
    followed = FollowUp(label)
    assert followed.days.tolist() == [1, 2, 3]
    assert from_here(followed.sums(np.array([[1.0, 2, 3, 4]]))).tolist() == [[10, 8, 4]]

"""Groups of patients: the errors of each, and whether they differ from those of the others, for all groups at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from monai_mvreg.metrics.bootstrap import Array, Estimate, Measure, estimates

Members = npt.NDArray[np.bool_]


def group_means(
    values: Mapping[str, Array],
    members: Members,
    *,
    over: Array | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Estimate]]:
    """The mean of values in each group, with a percentile bootstrap interval over the patients of the group.

    Args:
        values: name -> one value for each patient ``(P,)``.
        members: ``(G, P)``, true where a patient belongs to a group of at least one patient.
        over: ``(P,)``, what sums are divided by instead of the number of patients: the ratio of both sums.
        resamples: how often the patients of a group are drawn anew, with replacement.
        confidence: share of the resamples inside the interval, between 0 and 1.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        One dictionary for each group; nan where a ratio has nothing below.

    Raises:
        ValueError: if shapes differ, a value is not finite, a group is empty, or an option is out of range.

    Example:
        >>> members = np.array([[True, True, False]])
        >>> group_means({"error": np.array([1.0, 2.0, 9.0])}, members)[0]["error"].value
        1.5
    """
    below = np.ones(members.shape[1]) if over is None else over
    _check([*values.values(), below], members)
    found = []
    for mine in members:
        measures: dict[str, Measure] = {
            name: partial(_ratio, above=column[mine], below=below[mine]) for name, column in values.items()
        }
        found.append(estimates(measures, int(mine.sum()), resamples=resamples, confidence=confidence, seed=seed))
    return found


def groups_apart(values: Array, members: Members, *, permutations: int = 2000, seed: int = 0) -> Array:
    """P-values for "the mean of the group is that of all", corrected for every group and every value looked at.

    Patients are dealt to the groups anew, again and again. A difference counts by its standard error under this, and
    is held against the largest one among all groups and values of each deal: the chance that any of them all would
    look so large if no group mattered is at most the p-value (Westfall and Young's single step).

    Args:
        values: ``(P, K)``, such as errors and absolute errors.
        members: ``(G, P)``, true where a patient belongs to a group.
        permutations: how often patients are dealt anew.
        seed: of the deals.

    Returns:
        ``(G, K)``, between ``1 / (permutations + 1)`` and 1; nan for a group of all patients, or a constant value.

    Raises:
        ValueError: if shapes differ, a value is not finite, or a group is empty.

    Source: Westfall, Young, Resampling-Based Multiple Testing, 1993, chapter 2.
    """
    patients = members.shape[1]
    _check(list(values.T), members)
    share = members / members.sum(1, keepdims=True)
    centred = values - values.mean(0)
    variance = (centred**2).sum(0) / max(patients - 1, 1) * (1 / members.sum(1) - 1 / patients)[:, None]
    error = np.sqrt(np.where(variance > 1e-24 * np.abs(values).max(), variance, np.nan))
    seen = np.abs(share @ centred) / error
    generator, most = np.random.default_rng(seed), np.empty(permutations)
    for deal in range(permutations):
        dealt = np.abs(share @ centred[generator.permutation(patients)]) / error
        most[deal] = np.nanmax(dealt, initial=0.0)
    beyond = (most >= seen[..., None] * (1 - 1e-9)).sum(-1)
    p: Array = np.where(np.isnan(seen), np.nan, (1 + beyond) / (1 + permutations))
    return p


def _ratio(counts: Array, above: Array, below: Array) -> Array:
    total = counts @ below
    ratio: Array = counts @ above / np.where(total > 0, total, np.nan)
    return ratio


def _check(columns: list[Array], members: Members) -> None:
    if members.ndim != 2 or any(column.shape != members.shape[1:] for column in columns):
        shapes = [column.shape for column in columns]
        raise ValueError(f"expected values (P,) and members (G, P), got shapes {shapes} and {members.shape}")
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError("expected finite values, got another one")
    if not members.any(1).all():
        raise ValueError(f"expected patients in every group, got none in group {int(np.argmin(members.any(1)))}")

"""Time and event of a cohort, in an order in which sums over risk sets and over pairs of patients are fast."""

from __future__ import annotations

import numpy as np

from monai_mvreg.metrics.bootstrap import Array


class FollowUp:
    """The label, sorted once, and sums over patients of equal time for many resamples ``counts (R, P)`` at once.

    Args:
        label: ``(P, 2)``, time in days and event.

    Raises:
        ValueError: if a number is not finite, a time is negative, or an event is not 0 or 1.
    """

    def __init__(self, label: Array) -> None:
        label = np.asarray(label, dtype=np.float64)
        if label.ndim != 2 or label.shape[1] != 2 or len(label) < 1:
            raise ValueError(f"expected a label (P, 2) of at least one patient, got shape {label.shape}")
        wrong = np.flatnonzero(~np.isfinite(label).all(1) | (label[:, 0] < 0) | ~np.isin(label[:, 1], (0, 1)))
        if len(wrong):
            time, event = label[wrong[0]]
            raise ValueError(f"expected days >= 0 and an event 0 or 1, got {time} and {event} at index {wrong[0]}")
        self.time, self.event = label[:, 0], label[:, 1] > 0
        self.days, self.index = np.unique(self.time, return_inverse=True)
        self.order = np.argsort(self.index, kind="stable")
        self.first = np.searchsorted(self.index[self.order], np.arange(len(self.days)))

    def sums(self, counts: Array) -> Array:
        """Sum ``(R, P)`` over the patients of each time: ``(R, U)``."""
        return np.asarray(np.add.reduceat(counts[:, self.order], self.first, axis=1), dtype=np.float64)

    def survival(self, counts: Array) -> Array:
        """Kaplan-Meier chance ``(R, U)`` of no event through each time."""
        return _product(self.sums(counts * self.event), from_here(self.sums(counts)))

    def censoring_survival(self, counts: Array) -> Array:
        """Kaplan-Meier chance ``(R, U)`` of no censoring through each time; events of that time are gone before."""
        events = self.sums(counts * self.event)
        return _product(self.sums(counts * ~self.event), from_here(self.sums(counts)) - events)

    def at(self, chances: Array, day: float) -> Array:
        """The value ``(R,)`` of a step function over the times ``(R, U)`` on a day; 1 before the first time."""
        step = int(np.searchsorted(self.days, day, side="right")) - 1
        return chances[:, step] if step >= 0 else np.ones(len(chances))


def _product(gone: Array, at_risk: Array) -> Array:
    with np.errstate(invalid="ignore"):
        stay = np.where(at_risk > 0, 1 - gone / at_risk, 1)
    return np.asarray(np.cumprod(stay, axis=1), dtype=np.float64)


def from_here(sums: Array) -> Array:
    """Sum ``(R, U)`` over each time and all later ones: who is at risk."""
    later: Array = np.cumsum(sums[:, ::-1], axis=1)[:, ::-1]
    return later


class ConcordantPairs:
    """For each patient, the sum over those of later time and lower risk, equal risk counting half.

    Two patients of different time first part ways at one bit of its rank. For each bit, those alike above it are sorted
    by risk once; a running sum over those with the bit set then answers all without it. O(P log^2 P) once, O(P log P)
    for each resample.
    """

    def __init__(self, risk: Array, followed: FollowUp) -> None:
        # An event comes before a censoring of the same time.
        self.rank = (2 * followed.index + ~followed.event).astype(np.int64)
        _, level = np.unique(risk, return_inverse=True)
        self.bits = []
        for bit in range(int(self.rank.max()).bit_length()):
            alike, late = self.rank >> (bit + 1), (self.rank >> bit) & 1
            key = alike * (level.max() + 1) + level
            order = np.argsort(key, kind="stable")
            ends = [np.searchsorted(key[order], key, side=side) for side in ("left", "right")]
            start = np.searchsorted(alike[order], alike)
            self.bits.append((order, late[order].astype(np.float64), *ends, start, late == 0))

    def sums(self, counts: Array) -> tuple[Array, Array]:
        """Of ``counts (R, P)``: the sum over the later of lower risk, and over all that are later, both ``(R, P)``."""
        lower = np.zeros_like(counts)
        for order, late, first, last, start, early in self.bits:
            running = np.zeros((len(counts), counts.shape[1] + 1))
            np.cumsum(counts[:, order] * late, axis=1, out=running[:, 1:])
            lower += early * (0.5 * (running[:, first] + running[:, last]) - running[:, start])
        by_rank = np.argsort(self.rank, kind="stable")
        running = np.zeros((len(counts), counts.shape[1] + 1))
        np.cumsum(counts[:, by_rank][:, ::-1], axis=1, out=running[:, 1:])
        later: Array = running[:, len(self.rank) - np.searchsorted(self.rank[by_rank], self.rank, side="right")]
        return lower, later

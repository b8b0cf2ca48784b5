"""Cohort -> folds: every patient in one fold, which depends only on the patient's key."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from monai_mvreg.cohort.table import Cohort, Patient

Folds: TypeAlias = Sequence[str | int] | str | int


def fold_of(key: str, folds: int, *, seed: int) -> str:
    """Find a patient's fold from a hash of seed and key, so that adding patients moves no other.

    Args:
        key: key of the patient.
        folds: number of folds.
        seed: of the split.

    Returns:
        ``"0"`` to ``str(folds - 1)``.

    Example:
        >>> fold_of("patient 7", 5, seed=0)
        '2'
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return str(int.from_bytes(digest[:8], "big") % folds)


def split_cohort(cohort: Cohort, folds: int = 5, *, seed: int = 0) -> Cohort:
    """Assign every patient to one of the folds ``"0"`` to ``str(folds - 1)`` by a hash of its key.

    Args:
        cohort: without folds.
        folds: number of folds.
        seed: of the split; :func:`balanced_seed` finds one with folds of similar targets.

    Returns:
        The cohort with folds. Patients who are added later do not move the others.

    Raises:
        ValueError: if some patients have a fold already, or a fold stays empty.

    Example:
        >>> from monai_mvreg.cohort.table import Columns, read_cohort
        >>> cohort = split_cohort(read_cohort("cohort.csv", Columns(day="day"), images="."), 2)
        >>> [patient.fold for patient in cohort.patients]
        ['1', '1', '1', '0', '1', '1']
    """
    if any(patient.fold is not None for patient in cohort.patients):
        raise ValueError("expected patients without folds, the table has a column of folds already")
    patients = tuple(replace(p, fold=fold_of(p.key, folds, seed=seed)) for p in cohort.patients)
    used = {p.fold for p in patients}
    if len(used) < folds:
        raise ValueError(f"expected patients in all {folds} folds, {len(patients)} patients fill {len(used)}")
    return replace(cohort, patients=patients)


def balanced_seed(cohort: Cohort, folds: int = 5, *, tries: int = 200) -> int:
    """Find the seed whose folds are best stratified on every target, including the event indicator.

    The split stays a hash of the key, so adding a patient moves no other; only the seed is chosen. Note it and keep it.

    Args:
        cohort: with targets.
        folds: number of folds.
        tries: number of seeds to compare.

    Returns:
        The best of the seeds ``0`` to ``tries - 1``.

    Source: rerandomisation, Morgan and Rubin, Annals of Statistics 2012. https://doi.org/10.1214/12-AOS1008
    """
    targets = np.array([p.target or (0.0,) for p in cohort.patients])
    strata = [_strata(column) for column in targets.T]

    def imbalance(seed: int) -> float:
        fold = np.array([int(fold_of(p.key, folds, seed=seed)) for p in cohort.patients])
        if len(np.unique(fold)) < folds:
            return np.inf
        total = 0.0
        for stratum in strata:
            counts = np.zeros((folds, int(stratum.max()) + 1))
            np.add.at(counts, (fold, stratum), 1)
            expected = counts.mean(0)
            total += float(((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
        return total

    return min(range(tries), key=imbalance)


def _strata(target: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Number the stratum of each patient: the values of a target if they are few, else its quarters."""
    values = np.unique(target)
    return np.searchsorted(values if len(values) <= 4 else np.unique(np.quantile(target, [0.25, 0.5, 0.75])), target)


def select(cohort: Cohort, folds: Folds) -> tuple[Patient, ...]:
    """Select the patients of some folds.

    Args:
        cohort: with folds.
        folds: names of folds, or one name.

    Returns:
        The patients, in the order of the cohort.

    Raises:
        ValueError: if a name is no fold of the cohort, or ``folds`` is neither a name nor a list.

    Example:
        >>> from monai_mvreg.cohort.table import Columns, read_cohort
        >>> cohort = read_cohort("cohort.csv", Columns(day="day", fold="fold"), images=".")
        >>> [patient.key for patient in select(cohort, ["4"])]
        ['DEMO-000']
    """
    wanted = _known(cohort, folds)
    return tuple(p for p in cohort.patients if p.fold in wanted)


def leave_out(cohort: Cohort, *folds: Folds) -> tuple[Patient, ...]:
    """Select the patients of all other folds.

    Args:
        cohort: with folds.
        folds: lists of names, such as ``validation_folds`` and ``test_folds``.

    Returns:
        The patients, in the order of the cohort.

    Raises:
        ValueError: if a name is no fold of the cohort, or one of ``folds`` is neither a name nor a list.
    """
    left_out = {name for part in folds for name in _known(cohort, part)}
    return tuple(p for p in cohort.patients if p.fold not in left_out)


def held_out(folds: Folds, *left_out: Folds) -> Folds:
    """Check that training left these folds out, and return them.

    Args:
        folds: folds to evaluate.
        left_out: the ``validation_folds`` and ``test_folds`` of the training.

    Returns:
        The folds to evaluate.

    Raises:
        ValueError: if the model has learned from one of the folds, or an argument is neither a name nor a list.
    """
    known = {name for part in left_out for name in _names(part)}
    seen = _names(folds) - known
    if seen:
        raise ValueError(
            f"expected folds that training left out, {sorted(known)}, got {sorted(seen)}: the model has "
            "learned from them (give validation_folds and test_folds as in training)"
        )
    return folds


def fold_names(folds: Folds) -> list[str]:
    """The names of folds in order, from a list of them or one.

    Args:
        folds: names of folds, or one name.

    Raises:
        ValueError: if ``folds`` is neither a name nor a list.

    Example:
        >>> fold_names("10"), fold_names([1, 0])
        (['10'], ['0', '1'])
    """
    return sorted(_names(folds))


def _known(cohort: Cohort, folds: Folds) -> set[str]:
    known = {p.fold for p in cohort.patients if p.fold is not None}
    wanted = _names(folds)
    if not wanted <= known:
        raise ValueError(f"expected folds among {sorted(known)}, got {sorted(wanted)}")
    return wanted


def _names(folds: Folds) -> set[str]:
    # One value is a list of one: the text "10" is no list of the folds 1 and 0.
    if isinstance(folds, (str, int)) and not isinstance(folds, bool):
        folds = [folds]
    if not isinstance(folds, Sequence):
        raise ValueError(f"expected a list of folds, such as ['0'], got {folds!r}")
    return {str(fold) for fold in folds}

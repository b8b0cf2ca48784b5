"""Cohort -> findings: what would make a result look better than it is, before anything is trained.

A finding is a sentence with the rows of the table it is about (the header is row 1); it names no patient.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cohort.table import TableRows
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import read_scan

Array = npt.NDArray[Any]

_EDGE = 16  # voxels of the small picture that scans are compared by
_ALIKE = 0.995  # correlation of two small pictures; heads of two people on one grid reach 0.98
_DIRECTIONS = 64  # of independent noise, one pair in 20,000 is then left to be compared in full
_TELLS = 0.95  # rank correlation of a covariate with the target


@dataclass(frozen=True)
class Finding:
    """One thing to look at: ``what`` it is, in a sentence, and the ``rows`` of the table that it is about."""

    what: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Audited:
    """The columns of the table to audit; None where there is none.

    ``index_day`` is the day that the prediction is made on, and ``event_day`` that of the event, both on the scale of
    ``day``.
    """

    patient: str = "patient"
    path: str = "path"
    day: str | None = "day"
    fold: str | None = "fold"
    target: str | None = None
    covariates: tuple[str, ...] = ()
    index_day: str | None = None
    event_day: str | None = None


def audit(table: str | Path, images: str | Path, columns: Audited) -> list[Finding]:
    """Check a cohort for data leakage.

    It looks for a patient in two folds; duplicate images under two patients (the same bytes, or the same picture after
    resizing, recoding or a change of brightness); scans after the day of the prediction or of the event; and
    covariates that reveal the target.

    Args:
        table: CSV or TSV with one row per scan.
        images: folder that the paths in the table are relative to.
        columns: the columns to look at.

    Returns:
        The findings; none if nothing was found.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it lacks a column, or a cell that should be a number is none.

    Example:
        >>> [finding] = audit("cohort.csv", ".", Audited(target="growth", covariates=("growth",)))
        >>> finding.what.partition(":")[0]
        "the column 'growth' orders patients as the target does (rank correlation 1.00)"
    """
    rows, images = TableRows(Path(table)), Path(images)
    rows.need(columns.patient, columns.path, columns.day, columns.fold, columns.target, *columns.covariates)
    rows.need(columns.index_day, columns.event_day)
    patients = [rows.text(row, columns.patient) for row in range(len(rows.frame))]
    found = _two_folds(rows, patients, columns.fold)
    found += _late_scans(rows, columns)
    found += _telling(rows, patients, columns)
    found += _same_pictures(rows, patients, images, columns.path)
    return found


def _two_folds(rows: TableRows, patients: Sequence[str], fold: str | None) -> list[Finding]:
    if fold is None:
        return []
    folds: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, patient in enumerate(patients):
        folds[patient][rows.text(row, fold)].append(row + 2)
    return [
        Finding(
            f"one patient is in the folds {', '.join(sorted(own))}",
            tuple(sorted(row for some in own.values() for row in some)),
        )
        for own in folds.values()
        if len(own) > 1
    ]


def _late_scans(rows: TableRows, columns: Audited) -> list[Finding]:
    found = []
    for limit, what in ((columns.index_day, "the day from which it is predicted"), (columns.event_day, "the event")):
        if limit is None or columns.day is None:
            continue
        late = [
            row + 2
            for row in range(len(rows.frame))
            if rows.cell(row, limit) and rows.number(row, columns.day) > rows.number(row, limit)
        ]
        if late:
            found.append(Finding(f"{len(late)} scans are later than {what}", tuple(late)))
    return found


def _telling(rows: TableRows, patients: Sequence[str], columns: Audited) -> list[Finding]:
    if columns.target is None:
        return []
    first = {patient: row for row, patient in reversed(list(enumerate(patients)))}
    target = pd.Series([rows.number(row, columns.target, missing=np.nan) for row in first.values()])
    found = []
    for name in columns.covariates:
        values = pd.to_numeric(pd.Series([rows.cell(row, name) for row in first.values()]), errors="coerce")
        known = values.notna() & target.notna()
        # Ranks by hand: pandas asks scipy for them, which is not among what we install.
        correlation = float(values[known].rank().corr(target[known].rank()))
        if known.sum() > 2 and abs(correlation) >= _TELLS:
            said = f"the column {name!r} orders patients as the target does (rank correlation {correlation:.2f})"
            found.append(Finding(f"{said}: would it be known at the time of the prediction?", ()))
    return found


def _same_pictures(rows: TableRows, patients: Sequence[str], images: Path, path: str) -> list[Finding]:
    exact: dict[str, list[int]] = defaultdict(list)
    small: dict[int, tuple[list[int], Array]] = {}
    found = []
    addresses: dict[str, list[int]] = defaultdict(list)
    for row in tqdm(range(len(patients)), "scans", unit="scan", disable=None):
        addresses[address := rows.text(row, path)].append(row)
        try:
            array = read_scan(images / address).array
        except ScanError as error:
            found.append(Finding(f"a scan cannot be read: {error}", (row + 2,)))
            continue
        exact[hashlib.sha256(np.ascontiguousarray(array).tobytes() + str(array.shape).encode()).hexdigest()].append(row)
        axes = min(array.ndim, 3)
        if axes not in small:  # memory is taken as rows are written, half precision is exact to 1e-5 in a correlation
            small[axes] = [], np.empty((len(patients), _EDGE**axes), np.float16)
        numbers, pictures = small[axes]
        pictures[len(numbers)] = _small(array)
        numbers.append(row)
    told = set()
    for same, what in ((addresses, "the same file"), (exact, "the same picture")):
        for some in same.values():
            if len({patients[row] for row in some}) > 1 and tuple(some) not in told:
                told.add(tuple(some))
                found.append(Finding(f"{what} under two patients", tuple(row + 2 for row in some)))
    pairs = {pair for group in told for pair in ((a, b) for a in group for b in group)}
    people = np.unique(patients, return_inverse=True)[1]
    alike = [
        (numbers[one], numbers[other])
        for numbers, pictures in small.values()
        for one, other in _alike(pictures[: len(numbers)], people[numbers])
    ]
    for one, other in sorted(alike):
        if (one, other) not in pairs:
            found.append(Finding("nearly the same picture under two patients", (one + 2, other + 2)))
    return found


def _small(array: Array) -> Array:
    """A scan as a few hundred or thousand numbers with mean 0 and length 1: its blocks averaged."""
    while array.ndim > 3:
        array = array.mean(-1)
    for axis in range(array.ndim):
        edges, lengths = _blocks(array.shape[axis])
        shape = [1] * array.ndim
        shape[axis] = -1
        array = np.add.reduceat(array, edges, axis=axis) / lengths.reshape(shape)
        if array.shape[axis] < _EDGE:
            array = np.repeat(array, -(-_EDGE // array.shape[axis]), axis=axis).take(range(_EDGE), axis=axis)
    flat = array.ravel().astype(np.float32)
    flat = flat - flat.mean()
    return np.asarray(flat / max(float(np.linalg.norm(flat)), 1e-12))


@lru_cache(maxsize=64)
def _blocks(size: int) -> tuple[Array, Array]:
    """Where the blocks along an axis start, and their lengths."""
    edges = np.linspace(0, size, min(_EDGE, size) + 1).round().astype(int)
    return edges[:-1], np.diff(edges)


def _alike(pictures: Array, people: Array) -> Iterator[tuple[int, int]]:
    """Pairs of rows, the smaller first, of small pictures ``(P, V)`` that correlate and are of two people ``(P,)``.

    Two pictures are at least as far apart as their shadows on a few directions, here those in which a sample of them
    differs most. So nearly all pairs are told apart by few numbers, and along the first of them by sorting.
    """
    rows = np.flatnonzero(pictures.any(1))  # a blank picture is like no other
    if len(rows) < 2:
        return
    sample = pictures[np.random.default_rng(0).choice(rows, min(len(rows), 256), replace=False)].astype(np.float32)
    mean = sample.mean(0)
    sample -= mean
    _, parts = np.linalg.eigh(sample @ sample.T)  # of the few pictures, not of their many numbers
    directions = np.linalg.qr(sample.T @ parts[:, : -_DIRECTIONS - 1 : -1])[0]
    blocks = [rows[start : start + 1024] for start in range(0, len(rows), 1024)]
    shadows = np.concatenate([(pictures[block].astype(np.float32) - mean) @ directions for block in blocks])
    order = shadows[:, 0].argsort(kind="stable")
    rows, shadows = rows[order], shadows[order]
    # Of vectors of length 1, the squared distance is twice what the correlation lacks of 1; some more for rounding.
    reach = 2 * (1 - _ALIKE) + 1e-4
    half = (shadows**2).sum(1) / 2 - reach / 4
    ends = np.searchsorted(shadows[:, 0], shadows[:, 0] + reach**0.5, side="right")
    for start in range(0, len(rows), 256):
        stop, end = min(start + 256, len(rows)), ends[min(start + 256, len(rows)) - 1]
        near = shadows[start:stop] @ shadows[start:end].T > half[start:stop, None] + half[start:end]
        near &= people[rows[start:stop], None] != people[rows[start:end]]
        ones, others = np.nonzero(np.triu(near, 1))
        for at in range(0, len(ones), 1024):
            pair = rows[start + ones[at : at + 1024]], rows[start + others[at : at + 1024]]
            correlation = np.einsum("pv,pv->p", *(pictures[some].astype(np.float32) for some in pair))
            for one, other in zip(*(some[correlation > _ALIKE].tolist() for some in pair), strict=True):
                yield min(one, other), max(one, other)

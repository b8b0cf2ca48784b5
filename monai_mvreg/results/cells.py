"""Convert the cells of ``predictions.csv`` to numbers and texts, and back without loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_mvreg.metrics.bootstrap import Array

Texts = npt.NDArray[np.object_]
_UNKNOWN = {"", "na", "n/a", "nan"}  # in a column of numbers, as in the table of the cohort


def as_text(number: float) -> str:
    """Write the shortest text that reads as the same float64; empty for NaN.

    Args:
        number: in any unit.

    Returns:
        The text.

    Example:
        >>> [as_text(number) for number in (0.1, 100.0, 1e-310, math.nan)]
        ['0.1', '100', '1e-310', '']
    """
    return "" if math.isnan(number) else repr(float(number)).removesuffix(".0")


def as_numbers(cells: Iterable[Any], column: str) -> Array:
    """Read a column of numbers.

    Args:
        cells: numbers or their texts; None, and the texts "", "NA", "n/a" and "nan" in any case, are unknown.
        column: its name, for errors.

    Returns:
        ``(P,)`` float64, NaN where unknown.

    Raises:
        ValueError: if a cell holds something else, with its row, counted from 1 below the header.

    Example:
        >>> as_numbers(["0.1", "", 3], "age").tolist()
        [0.1, nan, 3.0]
    """
    found = []
    for place, cell in enumerate(cells, start=1):
        unknown = cell is None or (isinstance(cell, str) and cell.strip().lower() in _UNKNOWN)
        try:
            found.append(math.nan if unknown else _number(cell))
        except (TypeError, ValueError):
            raise ValueError(f"predictions row {place}, column {column}: expected a number, got {cell!r}") from None
    return np.array(found, dtype=np.float64)


def as_texts(cells: Iterable[Any], column: str) -> Texts:
    """Check a column of texts.

    Args:
        cells: texts of any kind, also "", "NA" and "007".
        column: its name, for errors.

    Returns:
        The same texts, ``(P,)``.

    Raises:
        ValueError: if a cell is no text, with its row.

    Example:
        >>> as_texts(["007", "NA"], "patient").tolist()
        ['007', 'NA']
    """
    found = list(cells)
    for place, cell in enumerate(found, start=1):
        if cell is None or cell != cell:
            raise ValueError(f"predictions row {place}: expected a {column}, got none")
        if not isinstance(cell, str):
            raise ValueError(f"predictions row {place}, column {column}: expected text, got {cell!r}")
    texts = np.empty(len(found), dtype=object)
    texts[:] = found
    return texts


def as_lists(cells: Iterable[str], column: str) -> tuple[tuple[float, ...], ...]:
    """Read a column whose cells hold a number for each scan.

    Args:
        cells: numbers joined by ``;``.
        column: its name, for errors.

    Returns:
        The numbers of each patient.

    Raises:
        ValueError: if a cell holds something else, with its row.

    Example:
        >>> as_lists(["0", "0;30.5"], "days")
        ((0.0,), (0.0, 30.5))
    """
    found = []
    for place, cell in enumerate(cells, start=1):
        try:
            found.append(tuple(_number(entry) for entry in cell.split(";")))
        except ValueError:
            raise ValueError(
                f"predictions row {place}, column {column}: expected numbers joined by ;, got {cell!r}"
            ) from None
    return tuple(found)


def _number(cell: Any) -> float:
    if isinstance(cell, str) and ("_" in cell or not cell.isascii()):  # float() takes 1_000, and digits of all scripts
        raise ValueError
    return float(cell)

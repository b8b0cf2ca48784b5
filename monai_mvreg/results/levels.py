"""A column of a table -> groups of patients by its levels: one for each value, or thirds of many numbers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

LEAST = 5  # patients of a group that is shown
_LEVELS = 6  # numbers that stand for themselves; more are cut into thirds
UNKNOWN, _OTHERS = "unknown", "others"


def levels_of(column: pd.Series[Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """Sort patients by value, at least 5 of each; the rest are together, and so are those without a value.

    Args:
        column: texts or numbers ``(P,)``. A text is a level as it stands: "007" is not "7", and "NA" is known.

    Returns:
        Level -> ``(P,)``, true for its patients: texts in their order, numbers in theirs, then ``others`` and
        ``unknown``. Of more than 6 numbers the levels are thirds.

    Example:
        >>> {level: int(rows.sum()) for level, rows in levels_of(pd.Series(["NA"] * 5 + ["EU"] * 6 + [""] * 5)).items()}
        {'EU': 6, 'NA': 5, 'unknown': 5}
    """
    numbers = pd.to_numeric(column, errors="coerce")
    known = column.notna() & (column.astype(str).str.strip() != "")
    numeric = bool(numbers[known].notna().all())
    if numeric and numbers.nunique() > _LEVELS:
        named = _thirds(numbers)
    else:
        texts = column.map("{:g}".format) if pd.api.types.is_numeric_dtype(column) else column.astype(str)
        order = sorted(texts[known].unique(), key=lambda text: (float(text) if numeric else 0.0, text))
        named = {text: (texts == text).to_numpy() & known.to_numpy() for text in order}
    found = {text: mine for text, mine in named.items() if mine.sum() >= LEAST}
    others = known.to_numpy() & ~np.any([np.zeros(len(column), bool), *found.values()], axis=0)
    for text, mine in ((_OTHERS, others), (UNKNOWN, ~known.to_numpy())):
        if mine.sum() >= LEAST:
            found[text] = found.get(text, np.zeros(len(column), bool)) | mine  # it may be a value of the column too
    return found


def _thirds(numbers: pd.Series[float]) -> dict[str, npt.NDArray[np.bool_]]:
    """Thirds of a column; ends are rounded first, so that the words say exactly who is in."""
    edges = [float(f"{edge:.4g}") for edge in np.unique(np.quantile(numbers.dropna(), [1 / 3, 2 / 3]))]
    named = {f"up to {edges[0]:g}": (numbers <= edges[0]).to_numpy()}
    for low, high in itertools.pairwise(edges):
        named[f"over {low:g}, up to {high:g}"] = ((numbers > low) & (numbers <= high)).to_numpy()
    return named | {f"over {edges[-1]:g}": (numbers > edges[-1]).to_numpy()}

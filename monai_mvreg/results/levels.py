"""A column of a table -> groups of patients by its levels: one for each value, or thirds of many numbers."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pandas as pd

LEAST = 5  # patients of a group that is shown
_LEVELS = 6  # numbers that stand for themselves; more are cut into thirds
UNKNOWN, _OTHERS = "unknown", "others"


def levels_of(column: pd.Series[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Patients by value, where there are at least 5 of each; the rest together."""
    numbers = pd.to_numeric(column, errors="coerce")
    known = column.notna() & (column.astype(str).str.strip() != "")
    if numbers[known].notna().all() and numbers.nunique() > _LEVELS:
        named = _thirds(numbers)
    else:
        # A column of whole numbers with gaps is read as decimals.
        texts = numbers.map("{:g}".format) if numbers[known].notna().all() else column.astype(str)
        named = {text: (texts == text).to_numpy() for text in texts[known].unique()}
        order = sorted(named, key=lambda text: (float(text) if numbers[known].notna().all() else 0.0, text))
        named = {text: named[text] & known.to_numpy() for text in order}
    found = {text: mine for text, mine in named.items() if mine.sum() >= LEAST}
    others = known.to_numpy() & ~np.any([np.zeros(len(column), bool), *found.values()], axis=0)
    for text, mine in ((_OTHERS, others), (UNKNOWN, ~known.to_numpy())):
        if mine.sum() >= LEAST:
            found[text] = mine
    return found


def _thirds(numbers: pd.Series[float]) -> dict[str, npt.NDArray[np.bool_]]:
    """Thirds of a column; ends are rounded first, so that the words say exactly who is in."""
    edges = [float(f"{edge:.4g}") for edge in np.unique(np.quantile(numbers.dropna(), [1 / 3, 2 / 3]))]
    named = {f"up to {edges[0]:g}": (numbers <= edges[0]).to_numpy()}
    for low, high in itertools.pairwise(edges):
        named[f"over {low:g}, up to {high:g}"] = ((numbers > low) & (numbers <= high)).to_numpy()
    return named | {f"over {edges[-1]:g}": (numbers > edges[-1]).to_numpy()}


def days_spanned(days: object) -> float:
    """Days from the first scan to the last, of a cell of the column ``days``."""
    numbers = [float(day) for day in str(days).split(";")]
    return max(numbers) - min(numbers)

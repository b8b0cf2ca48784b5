"""Cells of a table of results: numbers and texts survive, and what is neither is named with its row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_mvreg.results.cells import as_lists, as_numbers, as_text, as_texts


@given(st.floats(allow_nan=False))
def test_the_text_of_a_number_reads_as_the_same_number(number: float) -> None:
    [found] = as_numbers([as_text(number)], "volume")
    assert found == number and math.copysign(1, found) == math.copysign(1, number)


@given(st.integers(-(2**53), 2**53))
def test_whole_numbers_are_written_as_such(number: int) -> None:
    assert as_text(float(number)) == str(number) or abs(number) >= 10**16


@pytest.mark.parametrize("cell", ["", "NA", "nan", "N/A", " ", None, math.nan])
def test_unknown_numbers_are_nan_and_written_as_nothing(cell: Any) -> None:
    [found] = as_numbers([cell], "volume")
    assert math.isnan(found) and as_text(found) == ""


@pytest.mark.parametrize("cell", ["high", "1,5", "1_000", "\N{ARABIC-INDIC DIGIT ONE}", "0x10", [1.0], object()])
def test_what_is_no_number_is_named_with_its_row(cell: Any) -> None:
    with pytest.raises(ValueError, match="predictions row 2, column volume: expected a number, got "):
        as_numbers(["1", cell], "volume")


@pytest.mark.parametrize("cell", ["NA", "None", "nan", "1e5", "007", ""])
def test_texts_are_taken_as_they_are(cell: str) -> None:
    assert as_texts([cell, cell], "fold").tolist() == [cell, cell]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (7, "row 2, column fold: expected text, got 7"),
        (None, "row 2: expected a fold, got none"),
        (np.nan, "row 2: expected a fold, got none"),
    ],
)
def test_what_is_no_text_is_named_with_its_row(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"predictions {message}"):
        as_texts(["0", cell], "fold")


def test_lists_have_a_number_for_each_scan() -> None:
    assert as_lists(["0", "-5;30.5;1e2"], "days") == ((0.0,), (-5.0, 30.5, 100.0))
    with pytest.raises(ValueError, match="predictions row 1, column days: expected numbers joined by ;, got '0;'"):
        as_lists(["0;"], "days")

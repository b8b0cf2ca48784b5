"""An error a user can mend is found among its causes, and no other."""

from pathlib import Path

import pytest
import torch
from mistakes import cause, failing

from monai_mvreg.cohort.table import Columns, read_cohort
from monai_mvreg.errors import user_error


def test_our_error_is_found_under_the_nesting_of_a_config() -> None:
    error = failing("$table.read_cohort('nowhere.csv', table.Columns(), images='.')")
    assert isinstance(user_error(error), FileNotFoundError)
    assert "found no file nowhere.csv" in cause(error)


def test_our_error_raised_in_place_of_a_foreign_one_is_found(tmp_path: Path) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text("patient,path,date\na,cohort.csv,31 Brumaire\n")
    error = failing(f"$table.read_cohort({str(table)!r}, table.Columns(date='date'), images={str(tmp_path)!r})")
    assert "expected a date such as 2026-03-31, got '31 Brumaire'" in cause(error)


@pytest.mark.parametrize("expression", ["$1 / 0", "$int('x')", "$[1][2]"])
def test_foreign_errors_are_not_taken_for_ours(expression: str) -> None:
    assert user_error(failing(expression)) is None


def test_an_error_of_a_library_inside_our_call_is_not_taken_for_ours() -> None:
    assert user_error(failing("$table.write_cohort(None, '.')")) is None


def test_a_foreign_error_put_in_place_of_ours_is_not_taken_for_ours() -> None:
    with pytest.raises(KeyError) as caught:
        try:
            read_cohort("nowhere.csv", Columns(), images=".")
        except FileNotFoundError:
            raise KeyError("theirs") from None
    assert user_error(caught.value) is None


@pytest.mark.parametrize(
    ("error", "where", "size"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."),
            "the GPU",
            "2.50 GiB",
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), "computer", ""),
    ],
)
def test_memory_that_runs_out_is_said_in_one_sentence_with_the_settings_to_lower(
    error: Exception, where: str, size: str
) -> None:
    try:
        raise RuntimeError("Failed to evaluate the config") from error  # as MONAI wraps it
    except RuntimeError as wrapped:
        text = cause(wrapped)
    assert "not enough memory on" in text and where in text and size in text and "\n" not in text
    assert all(name in text for name in ("chunk_size", "max_scans", "batch_size", "--device cpu"))


def test_memory_that_really_runs_out_is_recognised() -> None:
    assert isinstance(user_error(failing("$torch.empty(2**50)")), MemoryError)

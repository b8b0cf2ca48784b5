"""The benchmark for a GPU on a CPU: every row is in the file, at any moment and in time."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docs_tables
import pytest
import torch
from gpu import measure
from gpu_clock import Budget
from gpu_epochs import kernel_seconds
from gpu_rows import Bench, Row
from gpu_table import GROUPS, table

SCRIPT = Path(__file__).with_name("gpu.py")
MINUTES = 3
CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def command(out: Path, minutes: float) -> list[str]:
    return [sys.executable, str(SCRIPT), "--minutes", str(minutes), "--out", str(out)]


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if "skipped" not in row and "error" not in row]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of the smallest sizes, with the seconds that it took; most of its minutes are for a busy machine."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    began = time.monotonic()
    done = subprocess.run(command(out, MINUTES), env=CPU, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {**read(out), "took": time.monotonic() - began, "printed": done.stdout}


@pytest.fixture(scope="module")
def without_time(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that has no time for a single row."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    done = subprocess.run(command(out, 0), env=CPU, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return read(out)


def test_a_run_ends_in_time_without_an_error(finished: dict[str, Any]) -> None:
    assert finished["finished"] and finished["seconds"] <= 60 * MINUTES
    assert finished["took"] <= 60 * MINUTES + 30  # with the start and the end of Python
    assert [row for row in finished["rows"] if "error" in row] == []


def test_rows_of_all_groups_are_measured(finished: dict[str, Any]) -> None:
    assert {row["group"] for row in measured(finished)} == set(GROUPS)


def test_figures_are_finite_and_positive(finished: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in measured(finished)}
    assert all(row["milliseconds"] > 0 for row in rows.values() if row["group"] != "epochs")
    ratios = [value for row in rows.values() for key, value in row.items() if key.startswith(("ratio", "times"))]
    assert len(ratios) > 5 and all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)
    ceilings = [row for row in rows.values() if row["group"] == "ceilings"]
    assert len(ceilings) == 3 and all(row.get("tflops", row.get("gb_per_second")) > 0 for row in ceilings)


def test_both_sides_of_a_step_are_the_same_network(finished: dict[str, Any]) -> None:
    steps = [row for row in measured(finished) if row["group"] == "steps" and "float32" in row["name"]]
    assert steps and all(row["first_losses_differ"] < 1e-4 for row in steps if "compiled" not in row["name"])


def test_kernels_that_run_at_once_count_once_and_copies_do_not(tmp_path: Path) -> None:
    spans = [("kernel", 0.0, 2.0), ("kernel", 1.5, 0.1), ("kernel", 1.0, 2.0), ("kernel", 5.0, 1.0)]
    events = [{"cat": kind, "ts": at, "dur": long} for kind, at, long in [*spans, ("gpu_memcpy", 8.0, 9.0)]]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": [*events, {"ph": "M", "name": "process_name"}]}))
    assert kernel_seconds(trace) == pytest.approx(4e-6)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(torch.device("cpu"), False, tmp_path, Budget(time.perf_counter() + 1.0))


def test_a_row_that_fails_says_why_in_one_line(bench: Bench) -> None:
    def fail(bench: Bench) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    found = measure(bench, Row("steps", "fails", 0.0, fail))
    assert found == {"error": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."}


def test_a_row_that_goes_on_for_too_long_is_cut_off(bench: Bench) -> None:
    def wait(bench: Bench) -> dict[str, Any]:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)

    assert measure(bench, Row("steps", "waits", 0.0, wait)) == {"skipped": "no time left"}
    assert bench.budget.left() > -20.0  # it would have waited for ever


def test_without_time_every_row_is_there_and_marked(finished: dict[str, Any], without_time: dict[str, Any]) -> None:
    assert without_time["finished"]
    assert [row["name"] for row in without_time["rows"]] == [row["name"] for row in finished["rows"]]
    assert {row["skipped"] for row in without_time["rows"]} == {"no time left", "needs a GPU"}


def test_a_killed_run_leaves_what_it_printed(tmp_path: Path, without_time: dict[str, Any]) -> None:
    out = tmp_path / "gpu.json"
    process = subprocess.Popen(command(out, MINUTES), env=CPU, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    printed = process.stdout.readline()
    process.kill()
    process.wait()
    result = read(out)
    assert not result["finished"]
    assert [row["name"] for row in result["rows"]] == [row["name"] for row in without_time["rows"]]
    assert measured(result)[0]["name"] in printed


def test_tables_go_between_the_markers_of_the_page(
    finished: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- gpu -->\nnot run yet\n<!-- end of gpu -->\nafter\n")
    monkeypatch.setattr(docs_tables, "DOCS", page)
    docs_tables.into_docs("gpu", table(finished))
    text = page.read_text()
    assert text.startswith("before\n<!-- gpu -->\n") and text.endswith("\n<!-- end of gpu -->\nafter\n")
    assert all(title in text for title in GROUPS.values()) and "not run yet" not in text
    assert all(row["name"] in text for row in finished["rows"])


def test_a_page_without_the_markers_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("no markers\n")
    monkeypatch.setattr(docs_tables, "DOCS", page)
    with pytest.raises(ValueError, match="expected the markers"):
        docs_tables.into_docs("gpu", "text")
    assert page.read_text() == "no markers\n"


def test_it_imports_where_only_the_packages_of_a_gpu_machine_are() -> None:
    missing = "scipy sklearn sksurv highdicom itk einops pylibjpeg gdcm openjpeg dicom2nifti hypothesis pydantic"
    code = f"import sys; sys.modules.update(dict.fromkeys({missing.split()!r})); import gpu; gpu.rows_of(True)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, env=CPU, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

"""Hostile files: whatever is in a file, an array or our own error comes out, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("hostile.py")


def survive(folder: Path, first: int, last: int) -> dict[str, float]:
    """Read mutated files in a process of its own: a codec that crashes takes only that with it."""
    command = [sys.executable, str(PROGRAM), str(folder), str(first), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + (last - first) / 10, check=False)
    left = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert done.returncode == 0, f"it ended with {done.returncode} at {left}: {done.stderr[-500:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["slowest"] < 10 and told["megabytes"] < 1024
    return dict(told)


def test_two_thousand_mutated_files_give_an_array_or_our_own_error(tmp_path: Path) -> None:
    told = survive(tmp_path, 0, 2000)
    assert told["read"] + told["refused"] == 2000 and told["read"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_hundred_thousand_mutated_files_give_an_array_or_our_own_error(part: int, tmp_path: Path) -> None:
    survive(tmp_path, (part + 1) * 10_000, (part + 2) * 10_000)

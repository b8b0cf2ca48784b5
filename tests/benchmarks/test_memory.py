"""The memory of a training step does not grow with scans: ``pytest -m slow tests/benchmarks/test_memory.py``."""

import statistics

import pytest
from memory import run

pytestmark = pytest.mark.slow


def test_64_scans_take_the_memory_of_4_and_at_most_half_as_much_time_again() -> None:
    few, many = run(4, 2), run(64, 2)
    assert many["mb"] <= 1.15 * few["mb"]
    assert run(16, None)["mb"] > 3 * few["mb"]
    times = [run(16, 2)["seconds"] / run(16, None)["seconds"] for _ in range(3)]
    assert statistics.median(times) <= 1.5

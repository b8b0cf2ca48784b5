"""What a row of gpu.py is, sides that take turns, and the two ceilings of a device."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_clock import Budget

Measurement = dict[str, Any]
Run = Callable[[int], float]  # runs a number of steps and returns the seconds of one


@dataclass(frozen=True)
class Bench:
    """What all rows share.

    Args:
        device: where the networks run.
        full: sizes for a GPU; otherwise tiny ones, to try the script on a CPU.
        folder: for files, removed at the end.
        budget: when measuring ends.
        measured: the rows so far, by name.
    """

    device: torch.device
    full: bool
    folder: Path
    budget: Budget
    measured: dict[str, Measurement] = field(default_factory=dict)

    def clock(self) -> float:
        """Seconds: of the wall once the device has done what it was given, of this process on a CPU."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Seconds of some work on the clock."""
        began = self.clock()
        work()
        return self.clock() - began


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        group: ceilings, steps, peers, chunks or epochs.
        name: unique.
        needs: seconds that must be left for it to begin.
        measure: returns its figures.
        cuda: whether it means nothing on a CPU.
    """

    group: str
    name: str
    needs: float
    measure: Callable[[Bench], Measurement]
    cuda: bool = False


@dataclass(frozen=True)
class Turns:
    """Seconds of one step by side, a list of rounds, and the steps of a round."""

    seconds: dict[str, list[float]]
    steps: int

    @property
    def rounds(self) -> int:
        return len(next(iter(self.seconds.values())))

    def milliseconds(self, side: str) -> float:
        """The median over the rounds."""
        return 1000 * statistics.median(self.seconds[side])

    def ratio(self, side: str, other: str) -> float:
        """How many times the time of the other side this one takes: the median over the rounds."""
        pairs = zip(self.seconds[side], self.seconds[other], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def take_turns(bench: Bench, sides: Mapping[str, Run]) -> Turns:
    """Time the sides round after round, in turned order every second round, after a warm-up that is not counted."""
    rounds, fewest, span = (5, 3, 0.2) if bench.full else (3, 1, 0.02)
    for run in sides.values():
        run(fewest)
    slowest = max(run(fewest) for run in sides.values())
    steps = min(max(round(span / slowest), fewest), 200)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            seconds[name].append(sides[name](steps))
    return Turns(seconds, steps)


def repeated(bench: Bench, step: Callable[[], Any]) -> Run:
    """A side of a step that is simply repeated."""

    def run(steps: int) -> float:
        return bench.seconds(lambda: [step() for _ in range(steps)]) / steps

    return run


def megabytes(bench: Bench, step: Callable[[], Any]) -> float | None:
    """Peak memory of a step above what the device held before; None on a CPU, whose allocator does not count."""
    if bench.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def synchronisations(bench: Bench, step: Callable[[], Any]) -> int | None:
    """How often a step makes the processor wait for the GPU; None on a CPU."""
    if bench.device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


# ---- Ceilings --------------------------------------------------------------------------------------------------------

HALF, SINGLE, COPY = "bfloat16 matrix product", "float32 matrix product, TF32 allowed", "copy on the device"


def matrix_product(bench: Bench, precision: torch.dtype) -> Measurement:
    """TFLOP/s of a square matrix product."""
    edge = 8192 if bench.full else 512
    left, right = (torch.randn(edge, edge, device=bench.device, dtype=precision) for _ in range(2))
    turns = take_turns(bench, {"product": repeated(bench, lambda: left @ right)})
    milliseconds = turns.milliseconds("product")
    return {"tflops": 2 * edge**3 / milliseconds / 1e9, "milliseconds": milliseconds, "rounds": turns.rounds}


def device_copy(bench: Bench) -> Measurement:
    """GB/s of a copy, what is read and what is written added up."""
    size = (2 if bench.full else 0.05) * 1e9
    source = torch.randint(-128, 127, (int(size),), dtype=torch.int8, device=bench.device)
    target = torch.empty_like(source)
    turns = take_turns(bench, {"copy": repeated(bench, lambda: target.copy_(source))})
    milliseconds = turns.milliseconds("copy")
    return {"gb_per_second": 2 * size / milliseconds / 1e6, "milliseconds": milliseconds, "rounds": turns.rounds}


def ceilings(full: bool) -> list[Row]:
    """The rows that others are related to."""
    needs = 4.0 if full else 1.0
    return [
        Row("ceilings", HALF, needs, lambda bench: matrix_product(bench, torch.bfloat16)),
        Row("ceilings", SINGLE, needs, lambda bench: matrix_product(bench, torch.float32)),
        Row("ceilings", COPY, needs, device_copy),
    ]

"""Memory and time with ``chunk_size`` for gpu.py, on the network of memory.py."""

from __future__ import annotations

from functools import partial

import torch
from gpu_rows import Bench, Measurement, Row, megabytes, repeated, take_turns
from memory import EDGE, network, step

CHUNK = 4  # scans
TINY_EDGE = 8  # voxels
VOLUMES = (4, 16, 64)  # of one patient
TIME, MEMORY = 1.5, 1.15  # times a plain step; times the memory of a patient with the fewest volumes


def name(volumes: int, full: bool) -> str:
    edge = EDGE if full else TINY_EDGE
    return f"chunk_size {CHUNK} and none, {volumes} volumes of {edge}x{edge}x{edge}"


def chunked(bench: Bench, volumes: int) -> Measurement:
    """A training step with and without chunks, the volumes on the device."""
    edge = EDGE if bench.full else TINY_EDGE
    image = torch.rand(1, volumes, 1, edge, edge, edge, device=bench.device)
    nets = {side: network(size, edge=edge).to(bench.device) for side, size in (("chunks", CHUNK), ("plain", None))}
    steps = {side: partial(step, net, image) for side, net in nets.items()}
    turns = take_turns(bench, {side: repeated(bench, one) for side, one in steps.items()})
    memory = {side: megabytes(bench, one) for side, one in steps.items()}
    first = bench.measured.get(name(VOLUMES[0], bench.full), {}).get("peak_mb")
    ratio = turns.ratio("chunks", "plain")
    growth = memory["chunks"] / first if first and memory["chunks"] else None
    return {
        "milliseconds": turns.milliseconds("chunks"),
        "plain_milliseconds": turns.milliseconds("plain"),
        "ratio_to_plain": ratio,
        "peak_mb": memory["chunks"],
        "plain_peak_mb": memory["plain"],
        "memory_ratio_to_4_volumes": growth,
        **({} if bench.device.type == "cuda" else {"memory_reason": "the allocator of a CPU does not count"}),
        "aim": f"at most {TIME} times the time of a plain step, and {MEMORY} times the memory of 4 volumes",
        "met": ratio <= TIME and (growth is None or growth <= MEMORY),
        "rounds": turns.rounds,
        "steps_per_round": turns.steps,
    }


def chunk_rows(full: bool) -> list[Row]:
    return [
        Row("chunks", name(volumes, full), 6.0 if full else 1.0, partial(chunked, volumes=volumes))
        for volumes in VOLUMES
    ]

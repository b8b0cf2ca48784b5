"""Memory and time of one training step by the number of scans: ``python tests/benchmarks/memory.py``.

A residual 3D network with group normalisation and dropout, volumes of 48 x 48 x 48, one patient. Each step runs in a
process of its own; memory is the peak above what the process held before the step, with the volumes already there. The
processes hand freed memory back at once (MALLOC_MMAP_THRESHOLD_), which the allocator of glibc else keeps, in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from monai.networks.nets import Regressor

from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.pools import GatedAttentionPool

EDGE = 48  # voxels
NORM = ("group", {"num_groups": 8})


def network(chunk_size: int | None, *, edge: int = EDGE) -> MultiScanNet:
    torch.manual_seed(0)
    encoder = Regressor((1, edge, edge, edge), (64,), (16, 32, 64, 128), (1, 2, 2, 2), norm=NORM, dropout=0.1)
    return MultiScanNet(encoder, GatedAttentionPool(64), chunk_size=chunk_size)


def step(net: MultiScanNet, image: torch.Tensor) -> None:
    net(image).square().sum().backward()


def resident() -> float:
    """MB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(scans: int, chunk_size: int | None) -> dict[str, float]:
    """Peak MB above the start and CPU seconds of a step, in this process."""
    torch.set_num_threads(1)
    net, image = network(chunk_size), torch.rand(1, scans, 1, EDGE, EDGE, EDGE)
    step(net, image[:, :1])  # gradients and the workspace of the convolutions are there from now on
    before, began = resident(), time.process_time()
    step(net, image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"mb": peak - before, "seconds": time.process_time() - began}


def run(scans: int, chunk_size: int | None) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--scans", str(scans), "--chunk_size", str(chunk_size or 0)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, help="measure one step in this process")
    parser.add_argument("--chunk_size", type=int, default=0)
    options = parser.parse_args()
    if options.scans:
        print(json.dumps(measure(options.scans, options.chunk_size or None)))
        return
    print("| scans | all at once: MB, CPU s | chunk_size=2: MB, CPU s | times |\n|---|---|---|---|")
    for scans in (4, 16, 64):
        whole, chunked = run(scans, None), run(scans, 2)
        told = [f"{found['mb']:.0f}, {found['seconds']:.1f}" for found in (whole, chunked)]
        print(f"| {scans} | {' | '.join(told)} | {chunked['seconds'] / whole['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()

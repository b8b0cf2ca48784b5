"""Epochs of the bundle's 3D training for gpu.py: from files, from cache_dir and from memory, augmented here and there.

The training is the bundle's own, run as ``monai.bundle run`` does, cuDNN as it sets it. The second epoch counts: its
wall time from the first batch being asked for to the end of the last step, without the validation. The GPU computes
while any of its kernels runs, by torch.profiler in a third epoch; the share is of the wall time of the second, which
nothing slows down. The share of the step is that of the wall time between the start and the end of the iterations.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from gpu_rows import Bench, Measurement, Row
from gpu_steps import BUNDLE, quiet
from ignite.engine import Events
from torch.profiler import ProfilerActivity, profile

from monai_mvreg.experiments.crossval import Plan

AIM = 0.9  # of the wall time, from cache_dir
SCANS = 4  # of each patient
TINY = {"spatial_size": [16, 16, 16], "encoder#widen_factor": 0.25, "batch_size": 2}


@dataclass(frozen=True)
class Source:
    """Where the scans of an epoch come from.

    Args:
        name: what it is called in the table.
        patients: how many train.
        settings: of the bundle.
        kept: prepared scans are kept in cache_dir.
    """

    name: str
    patients: int
    settings: dict[str, Any] = field(default_factory=dict)
    kept: bool = False

    @property
    def scans(self) -> int:
        return SCANS * self.patients


def write_volumes(folder: Path, full: bool) -> list[str]:
    """Compressed NIfTI volumes of noise on a slope, twice as fine as the grid of the training."""
    edge, spacing, number = (128, 1.5, 16) if full else (32, 1.5, 4)
    names = [f"{index}.nii.gz" for index in range(number)]
    if folder.is_dir():
        return names
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index, name in enumerate(names):
        voxels = draw.normal(300, 40, (edge, edge, edge)) + np.linspace(0, 50 * index, edge)
        image = nib.Nifti1Image(voxels.astype(np.int16), np.diag([spacing] * 3 + [1.0]))
        nib.save(image, folder / name)
    return names


def write_cohort(bench: Bench, source: Source) -> Path:
    """A table of patients with the same number of scans each, of which many share the files; two patients validate."""
    folder = bench.folder / "volumes"
    names = write_volumes(folder, bench.full)
    rows = ["patient,path,day,target,fold"]
    for patient in range(source.patients + 2):
        for scan in range(SCANS):
            path = names[(patient + scan) % len(names)]
            rows.append(f"p{patient},{path},{100 * scan},{patient},{int(patient >= 2)}")
    path = folder / f"{source.patients}.csv"
    path.write_text("\n".join(rows))
    return path


class Watch:
    """The clock and the profiler of a training, whose handlers stand first and last of each event."""

    def __init__(self, bench: Bench, trainer: Any) -> None:
        self.bench, self.trace = bench, bench.folder / "trace.json"
        self.epochs: list[tuple[float, float]] = []  # wall seconds, and those within iterations
        self.began = self.iteration = self.inside = 0.0
        self.profiler: Any = None
        trainer.add_event_handler(Events.EPOCH_STARTED, self._epoch)
        trainer.add_event_handler(Events.ITERATION_STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _epoch(self, engine: Any) -> None:
        if self.bench.device.type == "cuda" and engine.state.epoch == 3:
            self.profiler = profile(activities=[ProfilerActivity.CUDA])
            self.profiler.start()
        self.bench.clock()  # waits for the device
        self.began, self.inside = time.perf_counter(), 0.0

    def _start(self, engine: Any) -> None:
        self.iteration = time.perf_counter()

    def _end(self, engine: Any) -> None:
        last = engine.state.iteration % engine.state.epoch_length == 0
        if last:
            self.bench.clock()
        now = time.perf_counter()
        self.inside += now - self.iteration
        if last:
            self.epochs.append((now - self.began, self.inside))
        if last and self.profiler is not None:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.trace))
            self.profiler = None


def kernel_seconds(trace: Path) -> float | None:
    """Seconds in which at least one kernel ran, from a trace of torch.profiler; None without a trace or a kernel."""
    if not trace.exists():
        return None
    events = json.loads(trace.read_text())["traceEvents"]
    trace.unlink()
    covered, end = 0.0, float("-inf")
    for start, duration in sorted((event["ts"], event["dur"]) for event in events if event.get("cat") == "kernel"):
        covered += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
    return covered / 1e6 or None


@contextlib.contextmanager
def settings_restored() -> Iterator[None]:
    """What a bundle sets for the whole process is as before afterwards."""
    cudnn, hook = torch.backends.cudnn, sys.excepthook
    before = cudnn.benchmark, cudnn.deterministic
    try:
        yield
    finally:
        (cudnn.benchmark, cudnn.deterministic), sys.excepthook = before, hook


def epoch(bench: Bench, source: Source) -> Measurement:
    """Run the bundle's training, and time its second epoch."""
    on_gpu = bench.device.type == "cuda"
    cohort, epochs = write_cohort(bench, source), 3 if on_gpu else 2
    own = {"cohort_file": str(cohort), "device": f"$torch.device('{bench.device}')", "epochs": epochs}
    own |= {"output_dir": str(bench.folder / "eval"), "model_dir": str(bench.folder / "models")}
    own["val_interval"] = epochs
    own |= {"cache_dir": str(bench.folder / "cache") if source.kept else None}
    parser = Plan(BUNDLE, (), cohort.parent, {**({} if bench.full else TINY), **own, **source.settings}).parser()
    with settings_restored(), quiet():
        parser.get_parsed_content("initialize")
        trainer = parser.get_parsed_content("train#trainer")
        watch = Watch(bench, trainer)
        for number in range(len(parser["run"])):
            parser.get_parsed_content(f"run#{number}")
            if trainer.state.iteration:
                break  # what follows, as the report, is not part of an epoch
    if (loading := trainer.data_loader._iterator) is not None:
        loading._shutdown_workers()  # a garbage collection of the whole training waits 5 s for them
    wall, inside = watch.epochs[1]
    computing = kernel_seconds(watch.trace)
    share = computing / wall if computing else None
    return {
        "scans_per_second": source.scans / wall,
        "epoch_seconds": wall,
        "first_epoch_seconds": watch.epochs[0][0],
        "share_in_step": inside / wall,
        "share_gpu_computes": share,
        **({} if share else {"share_reason": "the profiler saw no kernel" if on_gpu else "no GPU"}),
        "workers": parser.get_parsed_content("workers"),
        "scans": source.scans,
        **({"aim": f"GPU computes {AIM:.0%} of the time", "met": share and share >= AIM} if source.kept else {}),
    }


def epoch_rows(full: bool) -> list[Row]:
    """The sources, those with an aim first."""
    workers = min(8, max((os.cpu_count() or 2) - 2, 1)) if full else 1
    many, some, few = (128, 48, 12) if full else (4, 4, 4)
    kept, loaded = {"cache_rate": 0.0}, {"cache_rate": 0.0, "workers": workers}
    on_device, plain = {"augment_on_device": True}, {"augmentation": []}
    sources = [
        Source("cache_dir, workers, augmented on the device", many, {**loaded, **on_device}, kept=True),
        Source("cache_dir, workers, augmented by them", many, loaded, kept=True),
        Source("cache_dir, workers, not augmented", many, {**loaded, **plain}, kept=True),
        Source("cache_dir, no workers, augmented on the device", many, {**kept, **on_device}, kept=True),
        Source("memory, augmented on the device", some, on_device),
        Source("memory, augmented on the CPU", some),
        Source("files, workers", some, loaded),
        Source("files, no workers", few, kept),
    ]
    needs = 20.0 if full else 1.0
    return [Row("epochs", source.name, needs, partial(epoch, source=source)) for source in sources]

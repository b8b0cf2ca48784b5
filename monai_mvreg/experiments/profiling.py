"""Where the time of one epoch goes: the bundle's own training, measured part by part, with advice.

Every moment of an epoch belongs to exactly one part: a part that runs inside another one (a transform inside the
loader, the encoder inside the forward pass) is taken off the outer one, and what no part claims is "everything else".
On a GPU each part is waited for, so an epoch takes somewhat longer than it does in training.
"""

# MONAI's WorkflowProfiler traces every call of the process, which slows down what it measures, and counts a transform
# inside another one twice; Ignite's profilers count the validation among the handlers and do not wait for a GPU.

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import IterationEvents
from monai.transforms import LoadImaged, MultiSampleTrait, RandomizableTrait, ReduceTrait
from torch.utils.data import get_worker_info

from monai_mvreg.cache.prepared_scans import CachedScand
from monai_mvreg.experiments.crossval import Plan
from monai_mvreg.experiments.timing import (
    AUGMENT,
    BACKWARD,
    COLLATE,
    COPY,
    ENCODER,
    HANDLERS,
    HEAD,
    KEPT,
    LOADER,
    LOSS,
    OPTIMIZER,
    PACK,
    PREPARE,
    READ,
    REST,
    STEP,
    STEPS,
    VALIDATION,
    WAIT,
    Profile,
    Times,
)


class Stopwatch:
    """Seconds by part, each moment counted once, in this process and in the workers of its loader.

    Args:
        kinds: the parts, with what each belongs to.
        workers: processes that load.
        device: waited for at both ends of every part.
    """

    def __init__(self, kinds: dict[str, str], workers: int, device: torch.device) -> None:
        self.names = list(kinds)
        # One row for this process and one for each worker, in memory that they share.
        self.table = torch.zeros(1 + workers, len(self.names), dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
        self.waits = device.type != "cpu"
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names, "table": self.table, "waits": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.open, self.lock, self.threads = threading.local(), threading.Lock(), True

    def start(self, name: str) -> None:
        """Begin a part, inside the one that runs."""
        stack = self._stack()
        # Validation loads, encodes and handles too, but as a whole it is one part.
        name = VALIDATION if stack and stack[-1][0] == VALIDATION else name
        stack.append([name, self._now(), 0.0])

    def stop(self) -> None:
        """End the part that began last."""
        stack = self._stack()
        name, began, inner = stack.pop()
        took = self._now() - began
        if stack:
            stack[-1][2] += took
        worker = get_worker_info()
        if worker is None and not self.threads and threading.current_thread() is not threading.main_thread():
            return  # it runs beside the main thread, whose time is already counted
        with self.lock:
            self.table[0 if worker is None else 1 + worker.id, self.names.index(name)] += took - inner

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def take(self, seconds: float) -> Times:
        """Hand over what was counted, and begin at zero."""
        rows = self.table.clone()
        self.table.zero_()
        main, workers = rows[0].tolist(), rows[1:].sum(0).tolist()
        return Times(seconds, dict(zip(self.names, main, strict=True)), dict(zip(self.names, workers, strict=True)))

    def _stack(self) -> list[Any]:
        if not hasattr(self.open, "stack"):
            self.open.stack = []
        stack: list[Any] = self.open.stack
        return stack

    def _now(self) -> float:
        if self.waits and get_worker_info() is None:
            torch.accelerator.synchronize()
        return time.perf_counter()


class _TimedCall:
    """A function that is a part."""

    def __init__(self, function: Callable[..., Any], name: str, watch: Stopwatch) -> None:
        self.function, self.name, self.watch = function, name, watch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.watch.part(self.name):
            return self.function(*args, **kwargs)


def _time_transform(transform: Any, name: str, watch: Stopwatch) -> None:
    """Count the calls of a transform, which stays what it is for MONAI (random, reducing, ...) and for pickle."""
    kind = type(transform)

    class Timed(kind):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with watch.part(name):
                return kind.__call__(self, *args, **kwargs)

        def __reduce__(self) -> Any:
            return _timed_again, (kind, self.__dict__, name, watch)

    Timed.__name__ = kind.__name__
    transform.__class__ = Timed


def _timed_again(kind: type[Any], state: dict[str, Any], name: str, watch: Stopwatch) -> Any:
    transform = object.__new__(kind)
    transform.__dict__ |= state
    _time_transform(transform, name, watch)
    return transform


def _time_loader(loader: Any, watch: Stopwatch) -> None:
    """Count the time until each batch is there."""
    kind = type(loader)

    class Timed(kind):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[Any]:
            with watch.part(WAIT):
                batches = kind.__iter__(self)
            while True:
                with watch.part(WAIT):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    loader.__class__ = Timed
    loader.collate_fn = _TimedCall(loader.collate_fn, COLLATE, watch)


def _kinds(transforms: Sequence[Any]) -> list[tuple[Any, str, str]]:
    """Each transform with a name of its own and what it belongs to."""
    found: list[tuple[Any, str, str]] = []
    random = False
    for transform in transforms:
        # A folder of prepared scans has the transforms that fill it inside.
        nested = transform.transforms.transforms if isinstance(transform, CachedScand) else ()
        random = random or isinstance(transform, RandomizableTrait)
        for one in (transform, *nested):
            packs = isinstance(one, (MultiSampleTrait, ReduceTrait))
            special = READ if isinstance(one, LoadImaged) else KEPT if isinstance(one, CachedScand) else PACK
            kind = special if special != PACK or packs else AUGMENT if random else PREPARE
            found.append((one, type(one).__name__, kind))
    names = [name for _, name, _ in found]
    return [
        (one, f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name, kind)
        for i, (one, name, kind) in enumerate(found)
    ]


def profile_training(plan: Plan, out: Path, *, epochs: int = 2) -> Profile:
    """Run the bundle's training for some epochs, with a validation after each, and measure where the time goes.

    Nothing is written to the bundle: its results go to a folder in ``out`` that is removed.

    Args:
        plan: what is run.
        out: the folder for the results; made if there is none.
        epochs: 1, or 2 to see a warm one.

    Raises:
        ValueError: for less than one epoch, or what the training refuses.
    """
    if epochs < 1:
        raise ValueError(f"expected at least one epoch to measure, got {epochs}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        own = {"epochs": epochs, "val_interval": 1, "output_dir": f"{folder}/eval", "model_dir": f"{folder}/models"}
        parser = replace(plan, settings={**plan.settings, **own}).parser()
        parser.get_parsed_content("initialize")
        return _measure(parser)


def _measure(parser: Any) -> Profile:
    """Put a stopwatch into the parts of a training, and run it."""
    began = time.perf_counter()
    transforms = _kinds(parser.get_parsed_content("train#preprocessing").transforms)
    device, workers = parser.get_parsed_content("device"), int(parser.get_parsed_content("workers"))
    kinds = {name: kind for _, name, kind in transforms} | {COLLATE: PACK, WAIT: LOADER}
    kinds |= {name: STEP for name in STEPS} | {name: name for name in (VALIDATION, HANDLERS, REST)}
    watch = Stopwatch(kinds, workers, device)
    for transform, name, _ in transforms:
        _time_transform(transform, name, watch)
    trainer = parser.get_parsed_content("train#trainer")  # what is kept in memory is prepared here
    _time_loader(trainer.data_loader, watch)
    trainer.prepare_batch = _TimedCall(trainer.prepare_batch, COPY, watch)
    trainer.inferer = _TimedCall(trainer.inferer, HEAD, watch)
    trainer.loss_function = _TimedCall(trainer.loss_function, LOSS, watch)
    encoder = parser.get_parsed_content("network_def").encoder
    encoder.register_forward_pre_hook(lambda *_: watch.start(ENCODER))
    encoder.register_forward_hook(lambda *_: watch.stop())
    trainer.optimizer.register_step_pre_hook(lambda *_: watch.start(OPTIMIZER))
    trainer.optimizer.register_step_post_hook(lambda *_: watch.stop())
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run = _TimedCall(evaluator.run, VALIDATION, watch)
    times: list[Times] = []
    _time_events(trainer, watch, times, began)
    for number in range(len(parser["run"])):
        parser.get_parsed_content(f"run#{number}")
        if trainer.state.iteration:
            break  # what follows, as the report, is not part of an epoch
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Profile(str(device), workers, cores, kinds, times[0], tuple(times[1:]))


def _time_events(trainer: Any, watch: Stopwatch, times: list[Times], began: float) -> None:
    """Count the handlers and the backward pass, which lies between two events, and the epoch as a whole.

    The handlers of an event run in the order in which they were added, so no handler can stand before all others of
    one event and behind all of another one: the call that runs them is replaced.
    """
    fire = trainer._fire_event
    now = [began]

    def timed(event: Any, *args: Any, **kwargs: Any) -> None:
        if event == Events.EPOCH_STARTED:
            if not times:
                times.append(watch.take(time.perf_counter() - now[0]))
            watch.threads = False
            now[0] = time.perf_counter()
            watch.start(REST)
        if event == IterationEvents.BACKWARD_COMPLETED:
            watch.stop()
        with watch.part(HANDLERS):
            fire(event, *args, **kwargs)
        if event == IterationEvents.LOSS_COMPLETED:
            watch.start(BACKWARD)
        if event == Events.EPOCH_COMPLETED:
            watch.stop()
            times.append(watch.take(time.perf_counter() - now[0]))

    trainer._fire_event = timed

"""A training that may be killed at any time: its whole state in one file, the best model in another."""

import math
import random
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.training.run_folder import expect_same_run


class Stateful(Protocol):
    """What has a state to keep: a network, an optimizer, a schedule, a handler."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take over a state."""


class BestModelSaver:
    """Save the weights whenever the validation metric is better than ever before, and finite.

    The file is replaced in one step, and what is best is kept over an interruption, so that a worse model never stands
    in it.

    Args:
        path: the file.
        network: the network that is validated.
        write: false on all processes but one.
    """

    def __init__(self, path: str, network: nn.Module, *, write: bool = True) -> None:
        self.path, self.network, self.write = Path(path), network, write
        self.engine: Any = None

    def attach(self, engine: Engine) -> None:
        """Register the handler with an evaluator."""
        self.engine = engine
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Save, if this epoch is the best one."""
        best = engine.state.best_metric_epoch == engine.state.epoch and math.isfinite(engine.state.best_metric)
        if self.write and best:
            with atomic_write(self.path) as unfinished:
                torch.save(self.network.state_dict(), unfinished)

    def state_dict(self) -> dict[str, Any]:
        """The best metric and its epoch."""
        return {"metric": float(self.engine.state.best_metric), "epoch": self.engine.state.best_metric_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the best metric so far."""
        self.engine.state.best_metric, self.engine.state.best_metric_epoch = state_dict["metric"], state_dict["epoch"]


class Checkpoint:
    """Write the whole state of a training after every epoch, and go on from it to the same numbers.

    The file holds the states handed over, those of the trainer and of its gradient scaling, and the random states of
    every process. SIGTERM, with which clusters announce that they take a machine away, writes it within the epoch, or
    within the validation, and ends the process with exit status 143. Batches must be drawn by
    :class:`~monai_mvreg.training.batches.PatientBatches`, which goes on behind those that were done.

    Attach it last, so that all other handlers have done their part.

    Args:
        path: the file; replaced in one step.
        states: by name, what has a state.
        run: what the training depends on, from :func:`monai_mvreg.training.workflow.describe_run`; it must be the same
            when it goes on.
        evaluator: the validation evaluator.
        resume: go on from the file, if there is one.
        write: false on all processes but one.

    Raises:
        ValueError: when the training starts, if the file is of another run, naming what differs.
    """

    def __init__(
        self,
        path: str,
        states: Mapping[str, Stateful],
        *,
        run: Mapping[str, Any],
        evaluator: Engine,
        resume: bool = False,
        write: bool = True,
    ) -> None:
        self.path, self.states, self.run = Path(path), dict(states), dict(run)
        self.evaluator, self.resume, self.write = evaluator, resume, write
        self.asked = False
        self.before: Any = None

    def attach(self, engine: Engine) -> None:
        """Register the handler with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self._validation(engine))

    def _start(self, engine: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._ask)
        if not self.resume:
            return
        if not self.path.exists():
            self._tell(f"no checkpoint in {self.path}: the training starts from its beginning")
            return
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        expect_same_run(self.path, state["run"], self.run)
        for name, part in self.states.items():
            part.load_state_dict(state["states"][name])
        engine.load_state_dict(state["trainer"])
        if engine.scaler is not None:
            engine.scaler.load_state_dict(state["scaler"])
        _set_random_state(state["random"][_rank()], engine.state.device)
        self._tell(f"goes on from {self.path}, behind epoch {engine.state.epoch}, iteration {engine.state.iteration}")
        if state["to_validate"]:
            engine.fire_event(Events.EPOCH_COMPLETED)
        if state["finished"]:
            engine.terminate()

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def _iteration(self, engine: Any) -> None:
        if self._all_asked(engine):
            self._leave(engine)

    def _validation(self, engine: Any) -> None:
        # Several processes do not validate in step: they leave together behind the validation.
        if self.asked and self.before is not None and _processes() == 1:
            self._leave(engine)

    def _epoch(self, engine: Any) -> None:
        self._write(engine, finished=bool(engine.should_terminate))
        if self._all_asked(engine):
            self._exit()

    def _finish(self, engine: Any) -> None:
        self._write(engine, finished=True)
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
            self.before = None

    def _all_asked(self, engine: Any) -> bool:
        """Whether any process was asked to stop: then all do, behind the same batch."""
        if _processes() == 1:
            return self.asked
        asked = torch.tensor([float(self.asked)], device=engine.state.device)
        dist.all_reduce(asked)
        return bool(asked > 0)

    def _leave(self, engine: Any) -> None:
        # Behind the last batch of an epoch its end is still to come: validation, history and this handler's part.
        self._write(engine, to_validate=engine.state.iteration % engine.state.epoch_length == 0)
        self._exit()

    def _exit(self) -> None:
        self._tell(f"stopped by SIGTERM, all of it is in {self.path}: go on with --resume True")
        sys.exit(128 + signal.SIGTERM)

    def _write(self, engine: Any, *, to_validate: bool = False, finished: bool = False) -> None:
        own = _random_state(engine.state.device)
        drawn: list[Any] = [own]
        if _processes() > 1:
            drawn = [None] * _processes()
            dist.all_gather_object(drawn, own)
        if not self.write:
            return
        state = {
            "run": self.run,
            "states": {name: part.state_dict() for name, part in self.states.items()},
            "trainer": dict(engine.state_dict()),
            "scaler": None if engine.scaler is None else engine.scaler.state_dict(),
            "random": drawn,
            "to_validate": to_validate,
            "finished": finished,
        }
        with atomic_write(self.path) as unfinished:
            torch.save(state, unfinished)

    def _tell(self, sentence: str) -> None:
        if self.write:
            print(f"\n{sentence}", file=sys.stderr, flush=True)


def _random_state(device: torch.device) -> dict[str, Any]:
    """The random states of this process, as what torch loads without running code."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _processes() > 1 else 0

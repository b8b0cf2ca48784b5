"""A training that is killed, stopped or asked to stop goes on to the numbers of one that was not."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.metrics import MeanAbsoluteError
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from monai.transforms import Compose, EnsureTyped, RandGaussianNoised
from torch import Tensor, nn

from monai_mvreg.training.batches import PatientBatches, SeededScans
from monai_mvreg.training.checkpoint import BestModelSaver, Checkpoint
from monai_mvreg.training.handlers import HistorySaver
from tests.experiments.test_crossval import BUNDLE, study

# Everything that draws: augmentation, dropout, the order of patients, averaging; and slow enough to be caught.
SETTINGS: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 3,
    "dropout": 0.3,
    "weight_averaging": 0.05,
    "seed": 3,
    "augmentation": [
        {"_target_": "monai.transforms.RandGaussianNoised", "keys": "image", "prob": 0.9},
        {"_target_": "monai.transforms.Lambdad", "keys": "image"}
        | {"func": "$lambda image: image + 0 * (__import__('time').sleep(0.05) or 0)"},
    ],
}


def command(data: Path, out: Path, **settings: Any) -> list[str]:
    files = [str(BUNDLE / "configs/train.yaml"), str(data / "tiny.yaml")]
    own = {"bundle_root": BUNDLE, "dataset_dir": data, "output_dir": out, "model_dir": out / "models"}
    program = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    return program + [part for k, v in (SETTINGS | own | settings).items() for part in (f"--{k}", str(v))]


def run(data: Path, out: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command(data, out, **settings), env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("study") / "data")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    done = run(data, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def expect_same(out: Path, undisturbed: Path) -> None:
    """All numbers, bit by bit, and nothing half written."""
    for name in ("history.csv", "predictions.csv", "metrics.json"):
        assert (out / name).read_text() == (undisturbed / name).read_text(), name
    for name in ("models/model.pt", "checkpoint.pt"):
        found, expected = (torch.load(folder / name, weights_only=True) for folder in (out, undisturbed))
        torch.testing.assert_close(flat(found), flat(expected), rtol=0, atol=0)
    assert not list(out.rglob("*.part"))


def flat(content: Any, name: str = "") -> dict[str, Any]:
    """Each number of a nested state by its path, so that a difference is told by name."""
    if isinstance(content, dict):
        return {k: v for key, part in content.items() for k, v in flat(part, f"{name}/{key}").items()}
    if isinstance(content, (list, tuple)):
        return {k: v for key, part in enumerate(content) for k, v in flat(part, f"{name}/{key}").items()}
    return {name: content if isinstance(content, torch.Tensor) else torch.tensor(hash(str(content)))}


def interrupt(out: Path, when: Callable[[], bool], how: int, command: list[str]) -> tuple[int, str]:
    """Start a training, and send it a signal at a moment."""
    with (out / "log").open("w+") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(command, stderr=log, stdout=log, env=environment, start_new_session=True)
        while process.poll() is None and not when():
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):  # it was done before
            os.killpg(process.pid, how)  # as a cluster does: workers that load scans get it too
        code = process.wait(60)
        log.seek(0)
        return code, log.read()


def after(delay: float, path: Path) -> Callable[[], bool]:
    """So many seconds after a file was written first."""
    return lambda: path.exists() and time.time() - path.stat().st_mtime >= delay


def in_seconds(delay: float) -> Callable[[], bool]:
    """So many seconds from now."""
    began = time.monotonic()
    return lambda: time.monotonic() - began > delay


def test_asked_to_stop_within_an_epoch_it_goes_on_to_the_same_numbers(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    asked = command(data, tmp_path, workers=2)  # those go on without: the number of workers changes nothing
    code, told = interrupt(tmp_path, after(0.1, tmp_path / "history.csv"), signal.SIGTERM, asked)
    assert code == 128 + signal.SIGTERM, told[-3000:]
    assert "stopped by SIGTERM" in told and "Traceback" not in told
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 4 <= state["trainer"]["iteration"] <= 20 and not state["finished"]
    done = run(data, tmp_path, resume=True)
    assert done.returncode == 0 and "goes on from" in done.stderr, done.stderr[-3000:]
    expect_same(tmp_path, undisturbed)


def test_augmented_on_the_device_and_stopped_it_goes_on_to_the_numbers_of_the_loader(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    asked = command(data, tmp_path, augment_on_device=True, workers=2)
    code, told = interrupt(tmp_path, after(0.1, tmp_path / "history.csv"), signal.SIGTERM, asked)
    assert code == 128 + signal.SIGTERM, told[-3000:]
    done = run(data, tmp_path, augment_on_device=True, resume=True)
    assert done.returncode == 0 and "goes on from" in done.stderr, done.stderr[-3000:]
    for name in ("history.csv", "predictions.csv"):
        assert (tmp_path / name).read_text() == (undisturbed / name).read_text(), name
    found, expected = (torch.load(folder / "models/model.pt", weights_only=True) for folder in (tmp_path, undisturbed))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_killed_it_goes_on_to_the_same_numbers(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    code, _ = interrupt(tmp_path, after(0.1, tmp_path / "history.csv"), signal.SIGKILL, command(data, tmp_path))
    assert code == -signal.SIGKILL and not (tmp_path / "metrics.json").exists()
    done = run(data, tmp_path, resume=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expect_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_numbers(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    draw, killed = np.random.default_rng(0), 0
    while killed < 20:
        moment = in_seconds(draw.uniform(0, 12))
        code, told = interrupt(tmp_path, moment, signal.SIGKILL, command(data, tmp_path, resume=True))
        assert code in (0, -signal.SIGKILL), told[-3000:]
        killed += code != 0
        for file in tmp_path.rglob("*.pt"):
            torch.load(file, weights_only=True)
        if code == 0 or (tmp_path / "metrics.json").exists():  # it was done before it was killed often enough
            expect_same(tmp_path, undisturbed)
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
    done = run(data, tmp_path, resume=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expect_same(tmp_path, undisturbed)


def test_a_finished_training_is_not_trained_on(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "again")
    done = run(data, tmp_path / "again", resume=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expect_same(tmp_path / "again", undisturbed)


def test_another_run_is_refused_by_what_differs(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "again")
    pd.read_csv(data / "cohort.csv").query("patient != 'p01'").to_csv(tmp_path / "fewer.csv", index=False)
    changed = {"batch_size": 4, "loss#_target_": "torch.nn.MSELoss", "cohort_file": tmp_path / "fewer.csv"}
    before = {path: path.read_bytes() for path in (tmp_path / "again").rglob("*.pt")}
    done = run(data, tmp_path / "again", resume=True, **changed)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "belongs to a different run; these settings changed: batch_size (trained: 3, now: 4), cohort (tr" in line
    assert "loss#_target_ (trained: torch.nn.HuberLoss, now: torch.nn.MSELoss)" in line and "p01" not in line
    assert done.returncode == 1
    assert {path: path.read_bytes() for path in (tmp_path / "again").rglob("*.pt")} == before


# ---- One training at every moment ------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """A network of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([5.0]))

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(image * self.weight, 0.5, self.training)


def small(out: Path, *, resume: bool = False, step: float = 0.3, patience: int = 3) -> tuple[Any, Checkpoint]:
    """A training of MONAI that takes milliseconds, and every part that has a state."""
    data = [{"image": torch.tensor([float(n)]), "label": torch.tensor([2.0 * n])} for n in range(1, 7)]
    network = Quadratic()
    optimizer = torch.optim.AdamW(network.parameters(), lr=step)
    dataset = Dataset(data, Compose([RandGaussianNoised("image", prob=1.0), EnsureTyped("image", track_meta=False)]))
    batches = PatientBatches([1] * 6, 2, seed=1)
    train_loader = DataLoader(SeededScans(dataset), batch_sampler=batches, generator=torch.Generator())
    loader = DataLoader(data, batch_size=2, generator=torch.Generator())
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        loader,
        network,
        key_val_metric={"mae": MeanAbsoluteError(lambda output: (output["pred"], output["label"]))},
        metric_cmp_fn=lambda current, best: current < best,
        decollate=False,
    )
    evaluator.logger.setLevel("ERROR")
    trainer = SupervisedTrainer(
        torch.device("cpu"),
        4,
        train_loader,
        network,
        optimizer,
        nn.MSELoss(),
        decollate=False,
        train_handlers=[batches, ValidationHandler(1, evaluator)],
    )
    best = BestModelSaver(str(out / "model.pt"), network)
    best.attach(evaluator)
    early = EarlyStopping(patience, lambda engine: -engine.state.metrics["mae"], trainer)
    evaluator.add_event_handler(Events.COMPLETED, early)
    history = HistorySaver(str(out / "history.csv"), evaluator, "mae")
    history.attach(trainer)
    states = {"network": network, "optimizer": optimizer, "best": best, "early": early, "history": history}
    checkpoint = Checkpoint(
        str(out / "checkpoint.pt"), states, run={"batch_size": 2}, evaluator=evaluator, resume=resume
    )
    checkpoint.attach(trainer)
    return trainer, checkpoint


def files(out: Path) -> dict[str, Any]:
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    model = flat(torch.load(out / "model.pt", weights_only=True), "model")
    return {**flat((out / "history.csv").read_text(), "history"), **flat(state), **model}


MOMENTS = [
    *(("trainer", Events.ITERATION_STARTED, count) for count in range(1, 13)),
    *(("evaluator", Events.ITERATION_STARTED, count) for count in (1, 3, 5, 12)),
    *(("trainer", Events.EPOCH_STARTED, count) for count in (1, 4)),
]


@pytest.mark.parametrize(("engine", "event", "count"), MOMENTS)
def test_asked_at_any_moment_it_goes_on_to_the_same_numbers(
    engine: str, event: Any, count: int, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    torch.manual_seed(0)
    trainer, _ = small(tmp_path / "whole")
    trainer.run()
    torch.manual_seed(0)
    trainer, checkpoint = small(tmp_path / "cut")
    seen = iter(range(1, 1000))

    def ask(_: Any) -> None:
        if next(seen) == count:
            signal.raise_signal(signal.SIGTERM)

    {"trainer": trainer, "evaluator": checkpoint.evaluator}[engine].add_event_handler(event, ask)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as told:
        trainer.run()
    assert told.value.code == 143
    torch.manual_seed(99)
    trainer, _ = small(tmp_path / "cut", resume=True)
    trainer.run()
    torch.testing.assert_close(files(tmp_path / "cut"), files(tmp_path / "whole"), rtol=0, atol=0)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "draw",
    [random.random, np.random.random, lambda: torch.rand(()).item()],
    ids=["python", "numpy", "torch"],
)
def test_a_resumed_training_goes_on_drawing_the_random_numbers_of_a_whole_one(
    draw: Callable[[], float], tmp_path: Path
) -> None:
    def drawn(name: str, *, seed: int, resume: bool = False, stop: int = 0) -> list[float]:
        """What is drawn in a training, once in each step, up to the step in which it is asked to stop."""
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)
        (tmp_path / name).mkdir(exist_ok=True)
        trainer, _ = small(tmp_path / name, resume=resume)
        numbers: list[float] = []
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: numbers.append(draw()))
        if stop:
            asked = Events.ITERATION_STARTED(once=stop)
            trainer.add_event_handler(asked, lambda _: signal.raise_signal(signal.SIGTERM))
        with contextlib.suppress(SystemExit):
            trainer.run()
        return numbers

    before = signal.getsignal(signal.SIGTERM)
    whole = drawn("whole", seed=0)
    cut = drawn("cut", seed=0, stop=5)
    resumed = drawn("cut", seed=99, resume=True)
    signal.signal(signal.SIGTERM, before)
    assert len(cut) == 5 and cut + resumed == whole


def test_a_worse_model_never_replaces_the_best_one_after_an_interruption(tmp_path: Path) -> None:
    """With such steps the first epoch is the best: what follows it must not be saved."""
    (tmp_path / "whole").mkdir()
    torch.manual_seed(0)
    trainer, checkpoint = small(tmp_path / "whole", step=2.0)
    trainer.run()
    best = checkpoint.evaluator.state.best_metric_epoch
    assert best == 1
    torch.manual_seed(0)
    trainer, _ = small(tmp_path / "cut", step=2.0)
    trainer.add_event_handler(Events.EPOCH_STARTED(once=best + 1), lambda _: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        trainer.run()
    trainer, _ = small(tmp_path / "cut", step=2.0, resume=True)
    trainer.run()
    torch.testing.assert_close(files(tmp_path / "cut"), files(tmp_path / "whole"), rtol=0, atol=0)
    signal.signal(signal.SIGTERM, before)


def test_a_training_that_had_stopped_early_is_not_trained_on(tmp_path: Path) -> None:
    """It is killed when its last epoch is written and before its end is."""

    def die(_: Any) -> None:
        raise InterruptedError

    (tmp_path / "cut").mkdir()
    trainer, _ = small(tmp_path / "cut", step=4.0, patience=1)
    trainer.add_event_handler(Events.TERMINATE, die)
    with pytest.raises(InterruptedError):
        trainer.run()
    assert trainer.state.epoch < 4
    again, _ = small(tmp_path / "cut", step=4.0, patience=1, resume=True)
    again.run()
    assert again.state.epoch == trainer.state.epoch
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

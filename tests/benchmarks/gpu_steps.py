"""Training steps for gpu.py: the bundle's trainer, and the same network in a bare loop of PyTorch.

Both sides get the same batches from the same pinned host memory, already collated. Ours is the SupervisedTrainer of the
config with all its handlers of an iteration; left out are the validation and the checkpoint, which come once an epoch.
The bare loop does the same work as someone would write it: encoder, pool, head, loss, clipping, optimizer, schedule.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_rows import HALF, SINGLE, Bench, Measurement, Row, megabytes, repeated, synchronisations, take_turns
from ignite.engine import Events
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from monai_mvreg.networks.encoders import compile_encoder, lay_out
from monai_mvreg.networks.pools import AttentionPool
from monai_mvreg.training.batches import collate_scans

BUNDLE = Path(__file__).parents[2] / "bundle"
AIM = 1.05  # times a bare step
MEAN = {"_target_": "monai_mvreg.networks.pools.MeanPool", "size": "@embedding_size"}
FLOAT32, AMP, BFLOAT16 = "float32", "AMP float16", "bfloat16"


@dataclass(frozen=True)
class Case:
    """A network of the bundle and the scans of a batch.

    Args:
        name: what it is called in the table.
        configs: config files of the bundle on top of train.yaml.
        spatial: size of a scan.
        counts: scans of each patient.
        frozen: keep the encoder frozen; otherwise it is trained end to end, without PretrainedEncoder.
        settings: further settings.
    """

    name: str
    configs: tuple[str, ...]
    spatial: tuple[int, ...]
    counts: tuple[int, ...]
    frozen: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mode:
    """How a step is computed."""

    precision: str
    channels_last: bool
    compiled: bool = False

    def settings(self, axes: int) -> dict[str, Any]:
        """The settings of the bundle for scans with this number of axes."""
        last = "torch.channels_last" if axes == 2 else "torch.channels_last_3d"
        memory_format = f"${last if self.channels_last else 'torch.preserve_format'}"
        precision = {"amp": self.precision == AMP, "bfloat16": self.precision == BFLOAT16}
        return {**precision, "memory_format": memory_format}

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        return f"{self.precision}, {layout}" + (", compiled" if self.compiled else "")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The progress bar of a training runs as ever, but to nowhere."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


# ---- Both sides ------------------------------------------------------------------------------------------------------


def write_nothing(folder: Path) -> Path:
    """A table of patients whose scans nobody reads: the configs want one."""
    folder.mkdir(exist_ok=True)
    (folder / "scan.nii").touch()
    rows = [f"p{number},scan.nii,0,{number},{int(number < 2)}" for number in range(6)]
    (folder / "cohort.csv").write_text("\n".join(["patient,path,day,target,fold", *rows]))
    return folder


def make_batches(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Two random batches as the loader hands them over: collated, for a GPU in pinned memory."""
    channels = 3 if len(case.spatial) == 2 else 1
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(2):
        patients = [
            {
                "image": torch.randn(count, channels, *case.spatial, generator=draw),
                "time": [30.0 * number for number in range(count)],
                "view": [0] * count,
                "label": [float(torch.randn((), generator=draw))],
                "patient": f"p{number}",
            }
            for number, count in enumerate(case.counts)
        ]
        batch = collate_scans(patients)
        if device.type == "cuda":
            batch = {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in batch.items()}
        batches.append(batch)
    return batches


class Ours:
    """The trainer of the bundle over batches in memory."""

    def __init__(self, case: Case, mode: Mode, bench: Bench) -> None:
        files = [str(BUNDLE / f"configs/{name}.yaml") for name in ("train", *case.configs)]
        parser = ConfigParser()
        parser.read_config(files)
        if not case.frozen and "encoder" in parser["encoder"]:
            parser["encoder"] = parser["encoder"]["encoder"]
        folder = write_nothing(bench.folder / "steps")
        own = {"bundle_root": str(BUNDLE), "dataset_dir": str(folder), "output_dir": str(folder / "eval")}
        own |= {"model_dir": str(folder / "models"), "device": bench.device, "cache_rate": 0.0, "pretrained": False}
        own |= {"channels": 3 if len(case.spatial) == 2 else 1, "spatial_size": list(case.spatial), "dropout": 0.0}
        # A round is an epoch; the schedule is as long as all of them, and no validation is due.
        own |= {"epochs": 100_000, "train#trainer#max_epochs": 1, "val_interval": 100_000}
        parser.update({**own, **mode.settings(len(case.spatial)), **case.settings})
        torch.manual_seed(0)
        with quiet():
            self.network = parser.get_parsed_content("network")
            lay_out(self.network, parser.get_parsed_content("memory_format"))
            if mode.compiled:
                compile_encoder(self.network.encoder)
            self.trainer = parser.get_parsed_content("train#trainer")
        self.loss = parser.get_parsed_content("loss")
        self.rates = [parser.get_parsed_content(f"{name}learning_rate") for name in ("encoder_", "")]
        self.weight_decay = parser.get_parsed_content("weight_decay")
        self.total_steps = parser.get_parsed_content("schedule").total_steps
        self.max_norm = parser.get_parsed_content("max_gradient_norm")
        self.bench, self.batches = bench, make_batches(case, bench.device)
        self.began = self.seconds = 0.0
        self.first_loss: float | None = None
        # Added last, so that they run after all other handlers of the event.
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self._start)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _start(self, engine: Any) -> None:
        self.began = self.bench.clock()

    def _end(self, engine: Any) -> None:
        if self.first_loss is None:
            self.first_loss = float(engine.state.output["loss"])
        if engine.state.iteration % engine.state.epoch_length == 0:
            self.seconds = self.bench.clock() - self.began

    def run(self, steps: int) -> float:
        """Seconds of one step, from the first batch of an epoch with that number of steps to the end of the last."""
        self.trainer.data_loader = [self.batches[number % 2] for number in range(steps)]
        self.trainer.state.epoch_length = steps
        with quiet():
            self.trainer.run()
        return self.seconds / steps


class Bare:
    """The network of :class:`Ours` in a loop of PyTorch, with the same optimizer, schedule and clipping."""

    def __init__(self, ours: Ours, case: Case, mode: Mode) -> None:
        network, self.device, self.batches = ours.network, ours.bench.device, ours.batches
        self.frozen, self.amp, self.max_norm = case.frozen, mode.precision == AMP, ours.max_norm
        self.autocast = {AMP: torch.float16, BFLOAT16: torch.bfloat16}.get(mode.precision)
        encoder = network.encoder.encoder if case.frozen else network.encoder
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(network.head)
        self.attention: nn.Module | None = None
        if isinstance(network.pool, AttentionPool):
            self.attention = copy.deepcopy(nn.Sequential(network.pool.project, nn.Tanh(), network.pool.score))
        learned = [module for module in (self.attention, self.head) if module is not None]
        others = [parameter for module in learned for parameter in module.parameters()]
        groups = [list(self.encoder.parameters()), others]
        self.parameters = [parameter for group in groups for parameter in group]
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate} for group, rate in zip(groups, ours.rates, strict=True)],
            weight_decay=ours.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=ours.rates, total_steps=ours.total_steps
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp)
        self.loss, self.number = ours.loss, 0

    def forward(self, image: Tensor) -> Tensor:
        """Predict ``(B, 1)`` from patients with equally many scans ``(B, N, C, *spatial)``."""
        with torch.set_grad_enabled(not self.frozen):
            embeddings = self.encoder(image.flatten(0, 1)).unflatten(0, image.shape[:2])
        if self.attention is None:
            pooled = embeddings.mean(1)
        else:
            pooled = (self.attention(embeddings).softmax(1) * embeddings).sum(1)
        return self.head(pooled).float()

    def step(self) -> Tensor:
        """One step; returns the loss, on the device."""
        batch = self.batches[self.number % 2]
        self.number += 1
        image, label = (batch[key].to(self.device, non_blocking=True) for key in ("image", "label"))
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            prediction = self.forward(image)
        loss = self.loss(prediction, label)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach()


# ---- Rows ------------------------------------------------------------------------------------------------------------


def figures(bench: Bench, case: Case, mode: Mode, milliseconds: float, flop: int) -> Measurement:
    """Scans per second, and the share of what the device reaches in a matrix product."""
    reached = flop / milliseconds / 1e9
    ceiling = bench.measured.get(SINGLE if mode.precision == FLOAT32 else HALF, {}).get("tflops")
    return {
        "scans_per_second": 1000 * sum(case.counts) / milliseconds,
        "milliseconds": milliseconds,
        "tflops": reached,
        "share_of_ceiling": reached / ceiling if ceiling else None,
    }


def step(bench: Bench, case: Case, mode: Mode) -> Measurement:
    """Our step and the bare one."""
    ours = Ours(case, mode, bench)
    bare = Bare(ours, case, mode)
    with FlopCounterMode(display=False) as counter:
        bare_loss = float(bare.step())
    turns = take_turns(bench, {"ours": ours.run, "bare": repeated(bench, bare.step)})
    ratio = turns.ratio("ours", "bare")
    assert ours.first_loss is not None
    return {
        **figures(bench, case, mode, turns.milliseconds("ours"), counter.get_total_flops()),
        "bare_milliseconds": turns.milliseconds("bare"),
        "ratio_to_bare": ratio,
        "peak_mb": megabytes(bench, partial(ours.run, 1)),
        "synchronisations": synchronisations(bench, partial(ours.run, 1)),
        "bare_synchronisations": synchronisations(bench, bare.step),
        "first_losses_differ": abs(ours.first_loss - bare_loss) / abs(bare_loss),
        "aim": f"at most {AIM} times a bare step",
        "met": ratio <= AIM,
        "rounds": turns.rounds,
        "steps_per_round": turns.steps,
    }


def compiled_step(bench: Bench, case: Case, mode: Mode) -> Measurement:
    """Our step compiled, and not."""
    plain, ours = Ours(case, replace(mode, compiled=False), bench), Ours(case, mode, bench)
    with FlopCounterMode(display=False) as counter:
        Bare(plain, case, mode).step()
    seconds = bench.seconds(partial(ours.run, 1))
    turns = take_turns(bench, {"compiled": ours.run, "plain": plain.run})
    return {
        **figures(bench, case, mode, turns.milliseconds("compiled"), counter.get_total_flops()),
        "plain_milliseconds": turns.milliseconds("plain"),
        "ratio_to_plain": turns.ratio("compiled", "plain"),
        "first_step_seconds": seconds,
        "rounds": turns.rounds,
        "steps_per_round": turns.steps,
    }


def cudnn_step(bench: Bench, case: Case, mode: Mode) -> Measurement:
    """Our step with cuDNN choosing its algorithms by measuring, and as MONAI's set_determinism leaves it."""
    ours = Ours(case, mode, bench)

    def deterministic(steps: int) -> float:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            return ours.run(steps)

    turns = take_turns(bench, {"benchmark": ours.run, "deterministic": deterministic})
    return {
        "milliseconds": turns.milliseconds("benchmark"),
        "deterministic_milliseconds": turns.milliseconds("deterministic"),
        "ratio_to_deterministic": turns.ratio("benchmark", "deterministic"),
        "rounds": turns.rounds,
        "steps_per_round": turns.steps,
    }


def cases(full: bool) -> list[Case]:
    """The networks that are measured, smaller ones where there is no GPU."""
    flat, attention = ("radiograph", "resnet50_mean"), ("radiograph", "mobilenetv2_attention")
    if not full:
        few = (2, 2)
        small = {"encoder#encoder#model_name": "resnet10t"}
        mobile = {"encoder#encoder#model_name": "mobilenetv2_035"}
        volume = {"pool": MEAN, "encoder#widen_factor": 0.25}
        return [
            Case("ResNet10 2D frozen, mean, 64x64", flat, (64, 64), few, frozen=True, settings=small),
            Case(
                "ResNet10 2D end to end, mean, 64x64", flat, (64, 64), few, settings={"encoder#model_name": "resnet10t"}
            ),
            Case("MobileNetV2 frozen, attention, 64x64", attention, (64, 64), few, frozen=True, settings=mobile),
            Case("3D ResNet10, mean, 16x16x16", (), (16, 16, 16), few, settings=volume),
        ]
    pictures, small_volumes, large_volumes = (4,) * 16, (4,) * 8, (2,) * 8
    ten, fifty = {"pool": MEAN}, {"pool": MEAN, "encoder#_target_": "monai.networks.nets.resnet50"}
    return [
        Case("ResNet50 frozen, mean, 224x224", flat, (224, 224), pictures, frozen=True),
        Case("ResNet50 end to end, mean, 224x224", flat, (224, 224), pictures),
        Case("3D ResNet10, mean, 64x64x64", (), (64, 64, 64), small_volumes, settings=ten),
        Case("MobileNetV2 frozen, attention, 224x224", attention, (224, 224), pictures, frozen=True),
        Case("3D ResNet50, mean, 96x96x96", (), (96, 96, 96), large_volumes, settings=fifty),
        Case("3D ResNet10, mean, 96x96x96", (), (96, 96, 96), large_volumes, settings=ten),
        Case("3D ResNet50, mean, 64x64x64", (), (64, 64, 64), small_volumes, settings=fifty),
    ]


def step_rows(full: bool, *, usual_layout: bool) -> list[Row]:
    """A row for each network and precision, in the memory layout of its preset or in the other one."""
    needs = 7.0 if full else 1.0
    rows = []
    for case in cases(full):
        channels_last = (len(case.spatial) == 2) == usual_layout
        for precision in (BFLOAT16, AMP, FLOAT32):
            mode = Mode(precision, channels_last)
            measure = partial(step, case=case, mode=mode)
            # The bundle refuses bfloat16 of volumes on a CPU: checks.expect_bfloat16 says why.
            cuda = precision == AMP or (precision == BFLOAT16 and len(case.spatial) == 3)
            rows.append(Row("steps", f"{case.name}: {mode}", needs, measure, cuda=cuda))
    return rows


def compiled_rows(full: bool) -> list[Row]:
    """Networks compiled: a frozen one, one that learns, and one of volumes."""
    needs = 45.0 if full else 25.0
    rows = []
    for case in cases(full)[:3] if full else cases(full)[:1]:
        mode = Mode(BFLOAT16 if full else FLOAT32, len(case.spatial) == 2, compiled=True)
        rows.append(Row("steps", f"{case.name}: {mode}", needs, partial(compiled_step, case=case, mode=mode)))
    return rows


def cudnn_rows(full: bool) -> list[Row]:
    """What it costs that the bundle asks cuDNN for deterministic algorithms."""
    rows = []
    for case in cases(full)[1:3]:
        mode = Mode(AMP, len(case.spatial) == 2)
        measure = partial(cudnn_step, case=case, mode=mode)
        rows.append(Row("steps", f"{case.name}: {mode}, cuDNN's choice", 8.0, measure, cuda=True))
    return rows

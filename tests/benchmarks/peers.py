"""Training steps beside those of padded peers, into docs/benchmarks.md: ``python tests/benchmarks/peers.py``.

Peers are written as their users write them: MONAI's MILModel and, in Keras, TimeDistributed with the pool of the
textbook, on patients padded to one number of scans. Ours are the configs of the bundle: its network, inferer, loss and
optimizer, fed by collate_scans inside the step that is timed. A step is forward, loss, backward and optimizer. Weights
are random, which costs the same. All sides take turns in one run; figures are medians of CPU seconds, on a
GPU of wall seconds. Keras may live in an environment of its own: ``--keras-python PATH``.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from docs_tables import into_docs
from monai.bundle import ConfigParser
from monai.networks.nets import MILModel
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from monai_mvreg.networks.encoders import compile_encoder
from monai_mvreg.training.batches import collate_scans

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
SIZE = 224
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Step = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Work:
    """One comparison: a config of the bundle, what Keras users write for it, and the scans of each patient."""

    config: str
    encoder: str
    pool: str
    counts: tuple[int, ...]
    frozen: bool = True
    size: int = SIZE


@dataclass(frozen=True)
class Row:
    """One side: median seconds of a step, and how far its embeddings are from those in float32."""

    name: str
    cpu: float
    wall: float
    difference: float | None

    @property
    def seconds(self) -> float:
        return self.wall if DEVICE.type == "cuda" else self.cpu


def ragged_counts(*, patients: int = 16, most: int = 12, mean: float = 3.2) -> tuple[int, ...]:
    """A batch of a cohort with 1 to 12 scans, 3.2 on average: of 1001 batches the one with the median padding."""
    number = np.arange(1, most + 1)
    # Geometric, cut off; the rate that gives the mean is found by halving.
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        weight = rate**number / (rate**number).sum()
        low, high = (rate, high) if (weight * number).sum() < mean else (low, rate)
    batches = np.random.default_rng(0).choice(number, p=weight, size=(1001, patients))
    padding = batches.max(1) * patients / batches.sum(1)
    return tuple(batches[np.argsort(padding)[len(padding) // 2]].tolist())


WORKS = {
    "ResNet50 frozen, mean": Work("resnet50_mean", "ResNet50", "mean", (4,) * 4),
    "VGG16 frozen, LSTM": Work("vgg16_lstm", "VGG16", "LSTM", (4,) * 4),
    "MobileNetV2 frozen, attention": Work("mobilenetv2_attention", "MobileNetV2", "attention", (4,) * 4),
    "ResNet50 end to end, mean": Work("resnet50_mean", "ResNet50", "mean", (4,) * 4, frozen=False),
    "ResNet50 frozen, mean, ragged": Work("resnet50_mean", "ResNet50", "mean", ragged_counts()),
}


def bfloat16_is_built_in() -> bool:
    """Whether the processor computes in bfloat16 itself; one that emulates it gains nothing."""
    if DEVICE.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and any(name in flags.read_text() for name in ("avx512_bf16", "amx_bf16"))


def timed(step: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds of this process and wall seconds, to the end of what the GPU was given."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


# ---- Ours ------------------------------------------------------------------------------------------------------------


class Ours:
    """The network, inferer, loss and optimizer of the bundle's configs, and a cohort of one batch."""

    def __init__(self, work: Work, **settings: Any) -> None:
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", "radiograph", work.config)])
        encoder = parser["encoder"]
        if not work.frozen:
            # Without the frozen statistics of a pretrained encoder: the peers estimate theirs too.
            parser["encoder"] = encoder["encoder"]
        parser.update({"pretrained": False, "channels": 3, "dropout": 0.0, **settings})
        torch.manual_seed(0)
        self.net = parser.get_parsed_content("network_def").to(DEVICE)
        self.net.to(memory_format=parser.get_parsed_content("memory_format"))
        if parser.get_parsed_content("compile"):
            compile_encoder(self.net.encoder)
        self.inferer = parser.get_parsed_content("train#inferer")
        self.loss = parser.get_parsed_content("loss_function").to(DEVICE)
        self.optimizer = parser.get_parsed_content("optimizer")
        random = torch.Generator().manual_seed(0)
        self.patients = [
            {
                "image": torch.randn(n, 3, work.size, work.size, generator=random),
                "time": range(n),
                "view": [0] * n,
                "label": [0.0],
            }
            for n in work.counts
        ]
        self.net.train()

    def keep_embeddings(self) -> None:
        """From now on patients hold what the frozen encoder made of their scans, as from the second epoch on."""
        with torch.no_grad():
            for patient in self.patients:
                patient["image"] = self.net.encoder(patient["image"].to(DEVICE)).cpu()
        self.net.encoder = nn.Identity()

    def pad(self) -> None:
        """Make every patient as long as the longest by empty scans that count as scans, as the peers do."""
        longest = max(len(patient["image"]) for patient in self.patients)
        for patient in self.patients:
            empty = patient["image"].new_zeros(longest - len(patient["image"]), *patient["image"].shape[1:])
            patient |= {"image": torch.cat([patient["image"], empty]), "time": range(longest), "view": [0] * longest}

    def batch(self) -> dict[str, Tensor]:
        batch = collate_scans(self.patients)
        return {key: batch[key].to(DEVICE) for key in ("image", "mask", "time", "label")}

    def embeddings(self) -> Tensor:
        batch = self.batch()
        with torch.no_grad():
            return self.inferer(batch["image"], lambda image: self.net.eval().embed(image, batch["mask"])).float()

    def step(self) -> None:
        self.net.train()
        batch = self.batch()
        self.optimizer.zero_grad()
        prediction = self.inferer(batch["image"], self.net, mask=batch["mask"], time=batch["time"])
        self.loss(prediction, batch["label"]).backward()
        self.optimizer.step()


def ours(work: Work, *, compiled: bool) -> tuple[dict[str, Step], dict[str, float]]:
    """Steps of our settings, and how far their embeddings are from the first; bfloat16 where it is built in."""
    ragged = len(set(work.counts)) > 1
    rounded = {"bfloat16": bfloat16_is_built_in()}
    settings: dict[str, dict[str, Any]] = {"float32": {"memory_format": torch.preserve_format}, "+ channels-last": {}}
    if rounded["bfloat16"]:
        settings["+ channels-last, bfloat16"] = rounded
    if compiled and work.frozen and not ragged:
        settings |= {f"{name}, compile": {**own, "compile": True} for name, own in settings.items() if name[0] == "+"}
    made = {f"monai_mvreg, {name}": Ours(work, **setting) for name, setting in settings.items()}
    first = next(iter(made.values())).embeddings()
    differences = {name: ((side.embeddings() - first).norm() / first.norm()).item() for name, side in made.items()}
    if ragged:
        made["the same, padded"] = Ours(work, **rounded)
        made["the same, padded"].pad()
    elif work.frozen:
        made["monai_mvreg, embeddings kept"] = Ours(work)
        made["monai_mvreg, embeddings kept"].keep_embeddings()
    return {name: lambda side=side: timed(side.step) for name, side in made.items()}, differences


# ---- Peers -----------------------------------------------------------------------------------------------------------


def milmodel(work: Work, *, gradients: bool, precision: torch.dtype = torch.float32) -> Callable[[], None]:
    """A step of MILModel with its ResNet50, or around MobileNetV2; a frozen one has an optimizer of the head only."""
    torch.manual_seed(0)
    if work.encoder == "MobileNetV2":
        backbone = mobilenet_v2(weights=None)
        backbone.classifier = nn.Identity()
        net = MILModel(1, mil_mode="att", pretrained=False, backbone=backbone, backbone_num_features=1280)
    else:
        net = MILModel(1, mil_mode="mean", pretrained=False)
    net.to(DEVICE).train()
    net.net.requires_grad_(gradients)
    learn = [p for name, p in net.named_parameters() if not (work.frozen and name.startswith("net."))]
    optimizer = torch.optim.AdamW(learn)
    host = torch.randn(len(work.counts), max(work.counts), 3, work.size, work.size)
    host = host.pin_memory() if DEVICE.type == "cuda" else host
    label, loss = torch.zeros(len(work.counts), 1, device=DEVICE), nn.MSELoss()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, precision, enabled=precision != torch.float32):
            prediction = net(host.to(DEVICE, non_blocking=True))
        loss(prediction.float(), label).backward()
        optimizer.step()

    return step


def monai_peers(work: Work) -> dict[str, Step]:
    """MILModel as its users run it; it has no LSTM, and gradients of a long padded batch do not fit the memory."""
    if work.pool == "LSTM":
        return {}
    if not work.frozen:
        sides = {"MONAI MILModel": milmodel(work, gradients=True)}
    else:
        sides = {"MONAI MILModel, frozen parameters": milmodel(work, gradients=False)}
        if len(set(work.counts)) == 1:
            sides["MONAI MILModel, as it comes"] = milmodel(work, gradients=True)
    return {name: lambda step=step: timed(step) for name, step in sides.items()}


class Keras:
    """The worker keras_peers.py in its own interpreter."""

    def __init__(self, python: str, *, threads: int) -> None:
        script = Path(__file__).with_name("keras_peers.py")
        self.process = subprocess.Popen(
            [python, str(script), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"expected an answer of Keras, its process ended with code {self.process.wait()}")

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def make(self, name: str, work: Work) -> Step:
        shape = {"patients": len(work.counts), "scans": max(work.counts), "size": work.size}
        self.ask(make=name, encoder=work.encoder, pool=work.pool, frozen=work.frozen, **shape)

        def step() -> tuple[float, float]:
            seconds = self.ask(step=name)
            return seconds["cpu"], seconds["wall"]

        return step

    def close(self) -> None:
        self.process.communicate()


def start_keras(python: str | None, *, threads: int) -> Keras | None:
    """Keras in the named interpreter, or in this one if it is installed here, and on the device that torch uses."""
    if python is None and importlib.util.find_spec("keras") and importlib.util.find_spec("tensorflow"):
        python = sys.executable
    if python is None:
        print("Keras with TensorFlow is not installed here and --keras-python not given: its rows are left out.")
        return None
    keras = Keras(python, threads=threads)
    if (keras.versions["device"] == "GPU") != (DEVICE.type == "cuda"):
        print(f"torch computes on {DEVICE.type}, Keras on {keras.versions['device']}: its rows are left out.")
        keras.close()
        return None
    return keras


# ---- The run ---------------------------------------------------------------------------------------------------------


def measure(name: str, keras: Keras | None, *, runs: int, compiled: bool) -> list[Row]:
    """Medians of the steps of all sides, which take turns after one step each that is not counted."""
    work = WORKS[name]
    sides, differences = ours(work, compiled=compiled)
    sides |= monai_peers(work)
    if keras:
        sides["Keras TimeDistributed"] = keras.make(name, work)
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for run in range(runs + 1):
        for side, step in sides.items():
            seconds = step()
            if run:
                found[side].append(seconds)
    if keras:
        keras.ask(drop=name)
    del sides
    gc.collect()
    return [
        Row(side, *(statistics.median(column) for column in zip(*seconds, strict=True)), differences.get(side))
        for side, seconds in found.items()
    ]


def report(found: dict[str, list[Row]], keras: Keras | None) -> str:
    """The figures as Markdown: real images per second, and how many times the peers' each is."""
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    versions = {"torch": torch.__version__, "MONAI": monai.__version__}
    versions |= {"Keras": keras.versions["keras"], "TensorFlow": keras.versions["tensorflow"]} if keras else {}
    lines = [f"{platform.machine()}, {where}, {', '.join(f'{k} {v}' for k, v in versions.items())}, {SIZE} x {SIZE}."]
    for name, rows in found.items():
        counts = WORKS[name].counts
        peers = [row for row in rows if row.name.startswith(("Keras", "MONAI"))]
        lines += ["", f"| {name}: {sum(counts)} images of {len(counts)} patients | CPU s | wall s | images / s |"]
        lines[-1] += "".join(f" times {peer.name} |" for peer in peers) + " embeddings differ |"
        lines += ["|" + "---|" * (5 + len(peers))]
        for row in rows:
            ratios = "".join(f" {peer.seconds / row.seconds:.2f} |" for peer in peers)
            rate = f"{sum(counts) / row.seconds:.1f}"
            differ = "" if row.difference is None else f"{row.difference:.1e}"
            lines.append(f"| {row.name} | {row.cpu:.4f} | {row.wall:.4f} | {rate} |{ratios} {differ} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training steps beside those of padded peers.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave the row of torch.compile out")
    parser.add_argument("--keras-python", help="a Python in which Keras and TensorFlow are installed")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/benchmarks.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    keras = start_keras(options.keras_python, threads=options.threads)
    found = {}
    for name in options.only:
        found[name] = measure(name, keras, runs=options.runs, compiled=not options.no_compile)
        print(report({name: found[name]}, keras), flush=True)
    if options.docs:
        into_docs("peers", report(found, keras))
    if keras:
        keras.close()


if __name__ == "__main__":
    main()

"""The GPU that these tests run on, and cohorts small enough to train on in seconds.

Without a GPU each test is skipped. ``MVREG_GPU_STAND_IN=cpu pytest -m gpu tests/gpu`` runs every body on a CPU instead;
what stands in for the GPU then computes without oneDNN and with two threads, so that rounding differs there too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from PIL import Image

from monai_mvreg.experiments import demo
from monai_mvreg.experiments.crossval import Plan

BUNDLE = Path(__file__).parents[2] / "bundle"
STAND_IN = os.environ.get("MVREG_GPU_STAND_IN")
# In its first steps Adam makes whole steps of gradients that are nothing but rounding, unless epsilon is larger.
SETTINGS = {"epochs": 1, "patience": 1, "optimizer#eps": 0.01}
OnDevice = Callable[[], contextlib.AbstractContextManager[None]]


class Run(Protocol):
    """Run a config of the bundle in this process, on the CPU if no device is given; returns the folder ``out``."""

    def __call__(
        self, plan: Plan, out: Path, device: torch.device | None = None, *, kind: str = "train", **settings: Any
    ) -> Path: ...


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, computing in float32 and not in TF32, or what stands in for it."""
    if STAND_IN is not None:
        return torch.device(STAND_IN)
    if not torch.cuda.is_available():
        pytest.skip("no GPU here; MVREG_GPU_STAND_IN=cpu runs the test on a CPU")
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # for the processes that a test starts
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda:0")


@pytest.fixture(scope="session")
def on_device(device: torch.device) -> OnDevice:
    """A context for everything that is computed on the device."""

    @contextlib.contextmanager
    def stand_in() -> Iterator[None]:
        torch._C._set_mkldnn_enabled(False)
        torch.set_num_threads(2)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(True)
            torch.set_num_threads(1)

    return contextlib.nullcontext if device.type == "cuda" else stand_in


@pytest.fixture(scope="session")
def run(on_device: OnDevice) -> Run:
    """Run as ``monai.bundle run`` does, in float32: on a GPU mixed precision is the default."""

    def in_this_process(
        plan: Plan, out: Path, device: torch.device | None = None, *, kind: str = "train", **settings: Any
    ) -> Path:
        parser = ConfigParser()
        parser.read_config([str(file) for file in (BUNDLE / f"configs/{kind}.yaml", *plan.configs)])
        own = {"bundle_root": str(BUNDLE), "dataset_dir": str(plan.dataset), "amp": False}
        own |= {"output_dir": str(out), "model_dir": f"{out}/models", "device": f"$torch.device('{device or 'cpu'}')"}
        known = plan.settings if kind == "train" else {}
        parser.update({**own, **known, **settings})
        with on_device() if device else contextlib.nullcontext():
            parser.get_parsed_content("initialize")
            parser.get_parsed_content("run")
        return out

    return in_this_process


@pytest.fixture(scope="session")
def volumes(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The demo, 3D: its cohort, half DICOM and half NIfTI, and its network."""
    folder = tmp_path_factory.mktemp("volumes")
    demo.write_demo_cohort(folder, patients=20)
    return Plan(BUNDLE, (Path(demo.__file__).with_suffix(".yaml"),), folder, SETTINGS)


@pytest.fixture(scope="session")
def radiographs(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """PNG files of both sides, 1 to 4 of a patient, with ages, and a small ResNet of timm; brightness is the target."""
    folder, draw, rows = tmp_path_factory.mktemp("radiographs"), np.random.default_rng(0), []
    for patient in range(24):
        level = draw.uniform(40, 200)
        for scan in range(1 + patient % 4):
            path = folder / f"{patient}_{scan}.png"
            Image.fromarray(draw.normal(level, 20, (72, 64)).clip(0, 255).astype(np.uint8)).save(path)
            row = {"patient": f"p{patient}", "path": path.name, "day": 100 * scan, "view": "LR"[scan % 2]}
            row |= {"target": round(level, 2), "age": patient if patient % 5 else None, "fold": patient // 8}
            rows.append({**row, "time_to_event": round(1e5 / level), "event": int(patient % 3 > 0)})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    scale = {"_target_": "monai.transforms.ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255}
    columns = {"columns#view": "view", "columns#views": ["L", "R"], "columns#covariates": {"age": "number"}}
    settings = {"spatial_size": [64, 64], "intensity": [{**scale, "b_min": -1, "b_max": 1}], "pretrained": False}
    settings |= {"encoder#encoder#model_name": "resnet10t", "batch_size": 4, **columns}
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))
    return Plan(BUNDLE, (BUNDLE / "configs/radiograph.yaml", folder / "small.yaml"), folder, SETTINGS)


@pytest.fixture(scope="session")
def survival(radiographs: Plan) -> Plan:
    """Times to an event of the radiographs' patients, some censored."""
    preset, small = radiographs.configs
    settings = {**SETTINGS, "horizons": [600, 1500], "batch_size": 8}
    return replace(radiographs, configs=(preset, BUNDLE / "configs/survival.yaml", small), settings=settings)


@pytest.fixture(scope="session")
def spread(radiographs: Plan) -> Plan:
    """The radiographs with a spread of every prediction."""
    preset, small = radiographs.configs
    return replace(radiographs, configs=(preset, BUNDLE / "configs/spread.yaml", small))


@pytest.fixture(scope="session")
def reads_models() -> None:
    """What reads the files of a model needs pydantic, which a bare machine may lack."""
    pytest.importorskip("pydantic", reason="the files of a model are read with pydantic, which is not installed")


@pytest.fixture(scope="session")
def trained(run: Run, volumes: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo trained on the CPU in float32."""
    return run(volumes, tmp_path_factory.mktemp("trained"))

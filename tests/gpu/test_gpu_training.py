"""Training on a GPU: the losses and predictions of a CPU whatever the switches, and the same bits after ``kill -9``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.networks.nets import DenseNet
from numpy.testing import assert_allclose

from monai_mvreg.cli.main import main
from monai_mvreg.errors import user_error
from monai_mvreg.experiments.crossval import Plan

pytestmark = pytest.mark.gpu
HALF = 0.1  # relative: 8 or 11 bits in every layer, and a gradient scaler that may skip the first steps
RESULTS = ("history.csv", "predictions.csv")


@pytest.fixture(scope="module", params=["volumes", "radiographs", "survival", "spread"])
def plan(request: pytest.FixtureRequest) -> Plan:
    found: Plan = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def expected(run: Any, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort trained on the CPU in float32."""
    out: Path = run(plan, tmp_path_factory.mktemp("cpu"))
    return out


def numbers(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / name).select_dtypes("number")


def expect_equal(out: Path, expected: Path, *, tolerance: float = 1e-4) -> None:
    """Each column agrees, relative to its values or, for predictions, to how much the targets of patients differ."""
    for name in RESULTS:
        found, wanted = numbers(out, name), numbers(expected, name)
        assert list(found) == list(wanted) and len(found) == len(wanted)
        for column in wanted:
            target = column.rpartition("_")[0]
            spread = np.nan_to_num(wanted[target if target in wanted else column].std())
            assert_allclose(found[column], wanted[column], tolerance, tolerance * spread, err_msg=f"{name}: {column}")


def test_an_epoch_in_float32_has_the_losses_and_predictions_of_a_cpu(
    run: Any, plan: Plan, expected: Path, device: torch.device, tmp_path: Path
) -> None:
    expect_equal(run(plan, tmp_path, device), expected)


def test_augmented_on_the_device_scans_are_those_of_the_loader(
    run: Any, plan: Plan, expected: Path, device: torch.device, tmp_path: Path
) -> None:
    expect_equal(run(plan, tmp_path, device, augment_on_device=True), expected)


@pytest.mark.parametrize("precision", ["amp", "bfloat16"])
def test_half_precision_trains_to_finite_losses_near_those_of_float32(
    run: Any,
    plan: Plan,
    expected: Path,
    device: torch.device,
    tmp_path: Path,
    precision: str,
    request: pytest.FixtureRequest,
) -> None:
    if precision == "bfloat16" and device.type == "cpu" and plan is request.getfixturevalue("volumes"):
        with pytest.raises(RuntimeError) as error:
            run(plan, tmp_path, device, bfloat16=True)
        assert "3D convolutions on a CPU" in str(user_error(error.value))
        return
    out = run(plan, tmp_path, device, **{precision: True})
    loss, wanted = numbers(out, "history.csv")["train_loss"], numbers(expected, "history.csv")["train_loss"]
    assert np.isfinite(loss).all()
    assert_allclose(loss, wanted, HALF, HALF)
    predictions = numbers(out, "predictions.csv")
    assert np.isfinite(predictions.filter(regex="predicted|log_risk")).to_numpy().all()


def test_a_head_is_trained_from_embeddings_that_a_gpu_made(
    run: Any, radiographs: Plan, device: torch.device, tmp_path: Path
) -> None:
    frozen = replace(radiographs, configs=(*radiographs.configs, radiographs.bundle / "configs/frozen.yaml"))
    outs = []
    for name, where in (("cpu", None), ("gpu", device)):
        kept = {"embedding_cache": str(tmp_path / f"kept-{name}"), "encoder#learn": []}
        outs.append(run(frozen, tmp_path / name, where, **kept))
    expect_equal(outs[1], outs[0])


@pytest.mark.usefixtures("reads_models")
def test_evaluation_and_inference_give_the_predictions_of_a_cpu(
    run: Any, volumes: Plan, trained: Path, device: torch.device, tmp_path: Path
) -> None:
    for kind in ("evaluate", "inference"):
        outs = [tmp_path / f"{kind}-{where}" for where in ("cpu", "gpu")]
        for out, where in zip(outs, (None, device), strict=True):
            run(volumes, out, where, kind=kind, model_dir=str(trained / "models"))
        found, wanted = (numbers(out, "predictions.csv") for out in outs[::-1])
        assert list(found) == list(wanted)
        assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_profile_finds_the_device_and_the_time_of_every_part(
    volumes: Plan, device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for name, value in volumes.settings.items() for part in ("--set", f"{name}={value}")]
    files = [*map(str, volumes.configs), "--dataset_dir", str(volumes.dataset), "--bundle", str(volumes.bundle)]
    assert main(["profile", *files, "--out", str(tmp_path), *settings]) == 0
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["device"] == str(device)
    assert "forward: encoder" in capsys.readouterr().out


# ---- Memory ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_ends_with_a_sentence_that_names_the_settings_to_lower(
    run: Any, volumes: Plan, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = DenseNet.forward

    def forward(net: DenseNet, image: torch.Tensor) -> torch.Tensor:
        return image.new_empty(2**48) if net.training else embed(net, image)  # more than any device has

    monkeypatch.setattr(DenseNet, "forward", forward)
    with pytest.raises(RuntimeError) as caught:
        run(volumes, tmp_path, device)
    text = str(user_error(caught.value))
    assert all(name in text for name in ("not enough memory", "chunk_size", "max_scans", "batch_size"))


# ---- Processes -------------------------------------------------------------------------------------------------------


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def end(command: list[str], log: Path) -> None:
    process = start(command, log)
    assert process.wait(timeout=120) == 0, log.read_text()[-3000:]


def test_killed_it_goes_on_to_the_same_bits_by_deterministic_algorithms(
    volumes: Plan, device: torch.device, tmp_path: Path
) -> None:
    encoder = {"_target_": "monai.networks.nets.Regressor", "in_shape": [1, 24, 24, 16], "out_shape": [8]}
    encoder |= {"channels": [4, 8], "strides": [4, 2], "norm": "batch", "num_res_units": 1, "dropout": 0.3}
    slow = {"_target_": "monai.transforms.Lambdad", "keys": "image"}
    slow |= {"func": "$lambda image: image + 0 * (__import__('time').sleep(0.05) or 0)"}
    settings = {"epochs": 6, "patience": 9, "encoder": encoder, "augmentation": [slow], "weight_averaging": 0.05}
    settings |= {"dropout": 0.3, "deterministic": True, "amp": False, "device": f"$torch.device('{device}')"}

    def command(name: str, *more: str) -> list[str]:
        own = {"output_dir": tmp_path / name, "model_dir": tmp_path / name / "models"}
        return replace(volumes, settings={**settings, **own}).arguments("train") + list(more)

    end(command("whole"), tmp_path / "log")
    process, checkpoint = start(command("killed"), tmp_path / "log"), tmp_path / "killed/checkpoint.pt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL and not (tmp_path / "killed/metrics.json").exists()
    end(command("killed", "--resume", "True"), tmp_path / "log")
    for name in (*RESULTS, "metrics.json"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    one, two = (torch.load(tmp_path / name / "models/model.pt", weights_only=True) for name in ("killed", "whole"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_one_process_of_several_with_nccl_gives_the_numbers_of_training_without(
    run: Any, volumes: Plan, device: torch.device, tmp_path: Path
) -> None:
    settings = {**volumes.settings, "amp": False, "output_dir": tmp_path / "one", "model_dir": tmp_path / "one/models"}
    configs = (volumes.bundle / "configs/multi_gpu_train.yaml", *volumes.configs)
    _, *program = replace(volumes, configs=configs, settings=settings).arguments("train")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", f"--master_port={port}"]
    end([*launcher, *program], tmp_path / "log")
    expect_equal(tmp_path / "one", run(volumes, tmp_path / "plain", device))

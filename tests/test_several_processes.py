"""Several processes as docs/several_processes.md starts them: on two machines, and by SLURM."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from numpy.testing import assert_allclose

from tests.experiments.test_crossval import study
from tests.training.test_checkpoint import expect_same

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"


def commands_of_the_docs() -> list[str]:
    text = (ROOT / "docs" / "several_processes.md").read_text(encoding="utf-8")
    return re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)


def test_every_command_of_the_docs_is_valid_bash() -> None:
    commands = commands_of_the_docs()
    assert len(commands) == 3
    for command in commands:
        done = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == "", done.stderr


def batch_script(folder: Path, left: str, code: int) -> tuple[str, int]:
    """Run the SLURM script of the docs with stand-ins for SLURM's commands; what they were asked, and its exit code."""
    stand_ins = {
        "scontrol": 'if [[ $1 == show ]]; then printf "node01\\nnode02\\n"; else echo "scontrol $*" >> asked; fi',
        "squeue": f"echo {left}",
        "srun": f'echo "srun $*" >> asked; exit {code}',
    }
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "node[01-02]", "SLURM_JOB_ID": "45678", "SLURM_JOB_NAME": "mvreg", "DATA": "/data"}
    given |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    environment = {**os.environ, **given, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash"], input=commands_of_the_docs()[2], cwd=folder, env=environment, text=True, check=False
    )
    return (folder / "asked").read_text(), done.returncode


def test_the_batch_script_starts_one_launcher_per_machine_that_meet_at_the_first(tmp_path: Path) -> None:
    asked, code = batch_script(tmp_path, left="7:00:00", code=0)
    assert code == 0 and "requeue" not in asked
    assert "torchrun --nnodes=2 --nproc_per_node=4 --rdzv_backend=c10d --rdzv_endpoint=node01:25678" in asked
    assert "--rdzv_id=45678" in asked and "--resume True" in asked


@pytest.mark.parametrize(("left", "again"), [("2:50", True), ("0:59", True), ("INVALID", True), ("5:30:00", False)])
def test_a_job_out_of_time_is_queued_again_and_a_broken_one_is_not(tmp_path: Path, left: str, again: bool) -> None:
    asked, code = batch_script(tmp_path, left=left, code=1)
    assert code == 1 and ("scontrol requeue 45678" in asked) == again


@pytest.mark.slow
def test_two_launchers_find_each_other_and_train_one_model(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = []
    for patient in range(24):
        level = draw.uniform(20, 80)
        voxels = draw.normal(level, 5, (8, 8, 8)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / f"{patient}.nii")
        rows.append({"patient": patient, "path": f"{patient}.nii", "day": 0, "target": level, "fold": patient % 3})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    flat = {"_target_": "torch.nn.Flatten"}
    settings = {"spatial_size": [8, 8, 8], "encoder": flat, "batch_size": 4, "epochs": 2, "augmentation": []}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    files = [*(str(CONFIGS / f"{name}.yaml") for name in ("train", "multi_gpu_train")), "mine.yaml"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"]
    command += [f"--rdzv_endpoint=localhost:{port}", "--rdzv_id=two", "--local_addr=127.0.0.1", "-m"]
    command += ["monai.bundle", "run", "--config_file", str(files), "--bundle_root", str(ROOT / "bundle")]
    command += ["--dataset_dir", str(tmp_path), "--output_dir", "results", "--model_dir", "models"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    logs = [tmp_path / name for name in ("first", "second")]
    launchers = []
    for log in logs:
        with log.open("w") as file:
            launchers.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file))
    try:
        codes = [launcher.wait(timeout=300) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
    # Eight validation patients, four at each launcher, written once.
    assert len(pd.read_csv(tmp_path / "results/predictions.csv")) == 8
    # One process logged the epochs and reported.
    assert sum("epoch 2 of 2: loss" in log.read_text() for log in logs) == 1
    assert sum("report:" in log.read_text() for log in logs) == 1
    assert len(torch.load(tmp_path / "models/model.pt", weights_only=True)["scaling.mean"]) == 1


# ---- The same numbers as one process ---------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def command(data: Path, out: Path, *more: str, processes: int = 1, **settings: object) -> list[str]:
    """Train with so many processes; ``batch_size`` is that of all of them."""
    settings = {"epochs": 3, "batch_size": 4, "dropout": 0.0, "cohort_file": data / "uneven.csv"} | settings
    settings["batch_size"] = int(str(settings["batch_size"])) // processes
    settings |= {"bundle_root": ROOT / "bundle", "dataset_dir": data, "output_dir": out, "model_dir": out / "models"}
    names = ["train", *more, *(["multi_gpu_train"] if processes > 1 else [])]
    files = [*(str(CONFIGS / f"{name}.yaml") for name in names), str(data / "tiny.yaml")]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    program = [sys.executable, *(launcher if processes > 1 else []), "-m", "monai.bundle", "run"]
    return [*program, "--config_file", str(files), *(part for k, v in settings.items() for part in (f"--{k}", str(v)))]


ALONE = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(command: list[str]) -> None:
    done = subprocess.run(command, env=ALONE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 patients, 5 of which validate: neither they nor the others can be shared out evenly to two processes."""
    folder = study(tmp_path_factory.mktemp("study") / "data")
    table = pd.read_csv(folder / "cohort.csv")
    table["fold"] = (np.arange(18) >= 5).astype(int)
    table.to_csv(folder / "uneven.csv", index=False)
    return folder


@pytest.mark.parametrize("more", [(), ("survival",)])
def test_two_processes_give_the_numbers_of_one(data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    # A network with weights, for two processes in chunks: what each does on its way must not matter.
    encoder = "$torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(512, 8), torch.nn.Tanh())"
    own = {"encoder": encoder, "embedding_size": 8} | ({"horizons": [150, 300]} if more else {})
    for processes, chunk_size in ((1, "$None"), (2, 1)):
        out = tmp_path / str(processes)
        train(command(data, out, *more, processes=processes, chunk_size=chunk_size, **own))
    for name in ("history.csv", "predictions.csv"):
        one, two = (pd.read_csv(tmp_path / str(processes) / name) for processes in (1, 2))
        assert list(one) == list(two) and len(one) == len(two)
        numbers = one.select_dtypes("number").columns
        if "log_risk" in numbers:  # Cox's loss does not know where zero is, so rounding alone moves the bias
            one["log_risk"], two["log_risk"] = (table["log_risk"] - table["log_risk"].mean() for table in (one, two))
        assert_allclose(two[numbers], one[numbers], rtol=1e-5, atol=1e-7)
    one, two = (torch.load(tmp_path / f"{processes}/models/model.pt", weights_only=True) for processes in (1, 2))
    moved = {"head.bias"} if more else set()
    one, two = ({name: weight for name, weight in model.items() if name not in moved} for model in (one, two))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_each_process_drops_out_by_itself(data: Path, tmp_path: Path) -> None:
    draw = "$torch.save(torch.rand(3), @output_dir + '/' + str(@rank))"
    (data / "draw.yaml").write_text(yaml.safe_dump({"+run": [draw]}))
    table = pd.read_csv(data / "cohort.csv")
    table["fold"] = (np.arange(18) >= 6).astype(int)  # so even that both draw equally often
    table.to_csv(data / "even.csv", index=False)
    started = command(data, tmp_path, processes=2, epochs=1, dropout=0.5, cohort_file=data / "even.csv")
    files = started.index("--config_file") + 1
    started[files] = started[files].replace("]", f", '{data / 'draw.yaml'}']")
    train(started)
    one, two = (torch.load(tmp_path / rank) for rank in "01")
    assert not torch.equal(one, two)


def children(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False).stdout.split()
    return [int(child) for child in found]


def test_when_a_process_is_killed_all_end_with_an_error_and_go_on_later(data: Path, tmp_path: Path) -> None:
    func = "$lambda image: image + 0 * (__import__('time').sleep(0.05) or 0)"
    noise = {"_target_": "monai.transforms.RandGaussianNoised", "keys": "image", "prob": 0.9}
    slow = [noise, {"_target_": "monai.transforms.Lambdad", "keys": "image", "func": func}]
    run = command(data, tmp_path / "cut", processes=2, augmentation=slow, dropout=0.3)
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(run, env=ALONE, stdout=log, stderr=log)
        while launcher.poll() is None and not (tmp_path / "cut/checkpoint.pt").exists():
            time.sleep(0.01)
        os.kill(children(launcher.pid)[1], signal.SIGKILL)
        began = time.monotonic()
        assert launcher.wait(timeout=60) != 0 and time.monotonic() - began < 60
    assert "SIGKILL" in (tmp_path / "log").read_text()
    fewer = command(data, tmp_path / "cut", augmentation=slow, dropout=0.3, resume=True)
    done = subprocess.run(fewer, env=ALONE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "processes (trained: 2, now: 1)" in done.stderr
    train(command(data, tmp_path / "cut", processes=2, augmentation=slow, dropout=0.3, resume=True))
    train(command(data, tmp_path / "whole", processes=2, augmentation=slow, dropout=0.3))
    expect_same(tmp_path / "cut", tmp_path / "whole")

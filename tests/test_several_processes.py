"""Several processes as docs/several_processes.md starts them: on two machines, and by SLURM."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

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
    # Both trained, one reported.
    assert all("SupervisedTrainer: Engine run finished" in log.read_text() for log in logs)
    assert sum("report:" in log.read_text() for log in logs) == 1
    assert len(torch.load(tmp_path / "models/model.pt", weights_only=True)["scaling.mean"]) == 1

"""A training that is stopped leaves the earlier model as it was; one that ends leaves the new one and nothing else."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import BUNDLE, SETTINGS

from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.trained.model_files import UNFINISHED, check_files, current_folder, read_whole
from monai_mvreg.trained.model_settings import read_settings
from monai_mvreg.trained.trained_model import read_trained
from monai_mvreg.trained.weights import read_weights, weights_hash
from monai_mvreg.training.run_folder import begin_training, finish_training
from tests.training.test_checkpoint import after, command, data, in_seconds, interrupt, run

__all__ = ["data"]  # a fixture
AGAIN: dict[str, Any] = {"seed": 4, "learning_rate": 0.01}
NAMES = {"domain.json", "intervals.json", "model.pt", "patients.json", "settings.json", "training.json"}


@pytest.fixture(scope="module")
def earlier(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("earlier")
    done = run(data, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def expect_whole(folder: Path) -> None:
    """The files are of one training."""
    files = read_settings(folder / "settings.json").files
    assert set(files) == {"weights", *NAMES} - {"model.pt", "settings.json"}
    check_files(folder, files, weights=weights_hash(read_weights(folder)))
    [member] = read_trained(BUNDLE, folder, torch.device("cpu")).members
    assert json.loads((folder / "training.json").read_text())["weights"] == member.weights


@pytest.mark.parametrize(
    ("how", "moment"),
    [(signal.SIGTERM, "history.csv"), (signal.SIGKILL, f"models/{UNFINISHED}/domain.json")],
    ids=["asked to stop after the first epoch", "killed when the last files are written"],
)
def test_a_training_that_was_stopped_leaves_the_earlier_model_and_goes_on(
    how: int, moment: str, data: Path, earlier: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(earlier, out)
    (out / "history.csv").unlink()
    (out / "models/model.ts").write_text("an export")
    before = bytes_of(out / "models")
    code, told = interrupt(out, after(0, out / moment), how, command(data, out, **AGAIN))
    assert code in (143, -how), told[-3000:]
    assert bytes_of(out / "models") == before
    Predictor.from_bundle(BUNDLE, models=out / "models")
    done = run(data, out, **AGAIN, resume=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {file.name for file in (out / "models").iterdir()} == {*NAMES, "model.ts"}
    expect_whole(out / "models")
    assert (out / "models/model.pt").read_bytes() != before["model.pt"]
    assert json.loads((out / "models/training.json").read_text())["seed"] == 4


@pytest.mark.slow
def test_killed_at_twenty_random_moments_one_of_the_two_models_is_there_complete(
    data: Path, earlier: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(1)
    models = tmp_path / "models"
    shutil.copytree(earlier / "models", models)
    hashes = []
    for seed in range(20):
        shutil.copytree(earlier / "models", models, dirs_exist_ok=True)
        moment = in_seconds(draw.uniform(4, 14))
        interrupt(tmp_path, moment, signal.SIGKILL, command(data, tmp_path, epochs=2, seed=seed, resume=bool(seed % 2)))
        read_whole(models, expect_whole)
        hashes.append(weights_hash(read_weights(current_folder(models))))
    assert len(set(hashes)) > 1


# ---- The folder, without a training ----------------------------------------------------------------------------------

RUN = {"epochs": 3, "cohort": "abc"}


def begin(out: Path, *, resume: bool = False, **run: Any) -> Path:
    begin_training(str(out), run={**RUN, **run}, checkpoint=str(out / "checkpoint.pt"), resume=resume)
    return out / UNFINISHED


def write_model(folder: Path, number: int) -> None:
    torch.save({"weight": torch.full((2,), float(number))}, folder / "model.pt")
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    (folder / "training.json").write_text(json.dumps({"settings": RUN}))


def test_a_training_from_the_beginning_takes_up_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    (begin(tmp_path) / "model.pt").write_text("of a training that was stopped")
    (tmp_path / "checkpoint.pt").write_text("its state")
    folder = begin(tmp_path)
    assert [file.name for file in folder.iterdir()] == ["run.json"] and not (tmp_path / "checkpoint.pt").exists()


def test_a_training_goes_on_in_its_folder_and_another_one_is_refused(tmp_path: Path) -> None:
    (begin(tmp_path) / "model.pt").write_text("the best so far")
    (tmp_path / "checkpoint.pt").write_text("its state")
    assert (begin(tmp_path, resume=True) / "model.pt").read_text() == "the best so far"
    with pytest.raises(ValueError, match=r"these settings changed: epochs \(trained: 3, now: 4\): give the same"):
        begin(tmp_path, resume=True, epochs=4)


def test_a_finished_training_goes_on_from_the_model_in_place_if_it_is_its_own(tmp_path: Path) -> None:
    write_model(begin(tmp_path), 5)
    (tmp_path / "checkpoint.pt").write_text("its state")
    finish_training(str(tmp_path))
    assert not (tmp_path / UNFINISHED).exists()
    folder = begin(tmp_path, resume=True)
    assert read_weights(folder)["weight"].tolist() == [5.0, 5.0]
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"training\.json: it belongs to a different run; .* cohort \(trained: abc, n"):
        begin(tmp_path, resume=True, cohort="xyz")


def test_a_checkpoint_whose_model_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_text("its state")
    with pytest.raises(ValueError, match=r"expected the unfinished files of its training in .*training, found none"):
        begin(tmp_path, resume=True)


def test_a_training_without_a_model_replaces_nothing(tmp_path: Path) -> None:
    write_model(begin(tmp_path), 5)
    finish_training(str(tmp_path))
    before = bytes_of(tmp_path)
    (begin(tmp_path) / "settings.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(FileNotFoundError, match="expected trained weights"):
        finish_training(str(tmp_path))
    assert bytes_of(tmp_path) == before

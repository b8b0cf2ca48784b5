"""The files of one training stay together, whenever the switch from one model to the next is killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_model import BUNDLE, SETTINGS, write_model

from monai_mvreg.share.packing import pack_bundle, unpack_bundle
from monai_mvreg.trained.model_files import (
    FINISHED,
    UNFINISHED,
    check_files,
    current_folder,
    has_model,
    put_in_place,
    read_whole,
    seal_files,
)
from monai_mvreg.trained.model_settings import read_settings
from monai_mvreg.trained.trained_model import read_trained
from monai_mvreg.trained.weights import read_weights, weights_hash
from monai_mvreg.training.run_folder import finish_training

TOUCHING = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile", "shutil.rmtree"}


def write_files(folder: Path, number: int, *, names: tuple[str, ...] = ("intervals.json",)) -> Path:
    """The files of a training, each with its number in it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.full((3,), float(number))}, folder / "model.pt")
    (folder / "settings.json").write_text(json.dumps({**SETTINGS, "channels": number}))
    for name in ("domain.json", "training.json", "patients.json", *names):
        (folder / name).write_text(str(number))
    return folder


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file, and a proof that they belong together."""
    check_files(folder, read_settings(folder / "settings.json").files, weights=weights_hash(read_weights(folder)))
    names = [file for file in folder.iterdir() if file.suffix in (".json", ".pt") and file.name != "run.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in names}


def killed_at(count: int, models: Path) -> bool:
    """Finish a training in a process that is killed before it touches a file for so many times; false if it ended."""
    process = os.fork()
    if process == 0:  # pragma: no cover
        left = iter(range(count, -1, -1))

        def hook(event: str, _: Any) -> None:
            if event in TOUCHING and next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        finish_training(str(models))
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return not os.WIFEXITED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_of_the_switch_the_earlier_or_the_new_model_is_there_complete(tmp_path: Path) -> None:
    write_files(tmp_path / "old", 1, names=("survival.json",))
    write_files(tmp_path / "new", 2)
    for name in ("old", "new"):
        seal_files(tmp_path / name)
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    seen, count, going = [], 0, True
    while going:
        models = tmp_path / "models"
        shutil.rmtree(models, ignore_errors=True)
        shutil.copytree(tmp_path / "old", models)
        (models / "model.ts").write_text("an export")
        write_files(models / UNFINISHED, 2)
        going = killed_at(count, models)
        found = read_whole(models, contents)
        assert found in (old, new), f"after {count} steps"
        seen.append(found == new)
        put_in_place(models)
        assert read_whole(models, contents) == found
        if found == new:
            assert {file.name for file in models.iterdir()} == {*new, "model.ts"}  # and no rubbish
        count += 1
    assert seen == sorted(seen) and not seen[0] and seen[-1] and len(seen) > 20


def test_while_a_new_model_takes_the_place_it_is_read_from_where_it_is_whole(tmp_path: Path) -> None:
    assert not has_model(tmp_path) and current_folder(tmp_path) == tmp_path
    write_files(tmp_path / FINISHED, 2)
    assert has_model(tmp_path) and current_folder(str(tmp_path)) == tmp_path / FINISHED
    put_in_place(tmp_path)
    assert has_model(tmp_path) and current_folder(tmp_path) == tmp_path and not (tmp_path / FINISHED).exists()


def test_a_read_that_a_switch_ran_into_is_done_again(tmp_path: Path) -> None:
    write_files(tmp_path, 1)
    reads = []

    def read(folder: Path) -> str:
        first = (folder / "domain.json").read_text()
        if not reads:
            write_files(tmp_path / UNFINISHED, 2)
            finish_training(str(tmp_path))
        reads.append(first + (folder / "training.json").read_text())
        return reads[-1]

    assert read_whole(tmp_path, read) == "22" and reads == ["12", "22"]


def test_what_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    write_files(tmp_path, 1)
    (tmp_path / "domain.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"domain\.json"):
        read_whole(tmp_path, lambda folder: (folder / "domain.json").read_text())


@pytest.mark.parametrize("name", ["domain.json", "intervals.json", "model.pt"])
def test_a_file_of_another_training_is_refused(name: str, tmp_path: Path) -> None:
    one, other = (write_model(tmp_path / part / "models", seed=seed) for seed, part in enumerate(("one", "other")))
    (other / "intervals.json").write_text((one / "intervals.json").read_text().replace("3.0", "4.0"))
    (other / "domain.json").write_text((one / "domain.json").read_text().replace('"patients": 13', '"patients": 14'))
    seal_files(one)
    read_trained(BUNDLE, one, torch.device("cpu"))
    shutil.copy(other / name, one / name)
    wrong = "weights" if name == "model.pt" else name
    with pytest.raises(ValueError, match=f"expected files of one training, got {wrong} of another one than settings"):
        read_trained(BUNDLE, one, torch.device("cpu"))
    with pytest.raises(ValueError, match=f"got {wrong} of another one than settings"):
        pack_bundle(BUNDLE, one, tmp_path / "pack.zip")


def test_a_pack_holds_a_model_whose_files_belong_together_and_no_hash_of_a_patient(tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")
    (models / "patients.json").write_text('{"key": "00", "training": [], "validation": []}')
    seal_files(models)
    pack_bundle(BUNDLE, models, tmp_path / "pack.zip")
    unpack_bundle(tmp_path / "pack.zip", tmp_path / "bundle")
    assert not (tmp_path / "bundle/models/patients.json").exists()
    before, after = (read_trained(BUNDLE, place, torch.device("cpu")) for place in (models, tmp_path / "bundle/models"))
    assert before.settings == after.settings and before.members[0].weights == after.members[0].weights
    weights = safetensors.torch.load_file(tmp_path / "bundle/models/model.safetensors")
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in weights.items()},
                                tmp_path / "bundle/models/model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="got weights of another one"):
        read_trained(BUNDLE, tmp_path / "bundle/models", torch.device("cpu"))


def test_files_of_version_0_1_are_read_without_hashes(tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")
    assert read_settings(models / "settings.json").files == {}
    check_files(models, {}, weights="any")

"""The files of one training in ``model_dir``: which folder holds them, and whether they belong together.

A training writes its files in ``.training`` and, when all are there, renames it to ``.trained``: from that moment on
the new model is the one that is read. Then its files replace those of the earlier model one by one, and ``.trained``
is removed. So a reader finds either the earlier model or the new one complete, whenever a training is killed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.trained.model_settings import read_settings, with_files, write_settings
from monai_mvreg.trained.weights import WEIGHTS_FILES, read_weights, weights_hash

UNFINISHED, FINISHED = ".training", ".trained"
PATIENTS_FILE = "patients.json"
_FITTED = ("intervals.json", "survival.json", "domain.json", "training.json", PATIENTS_FILE)
MODEL_FILES = (*WEIGHTS_FILES, "settings.json", *_FITTED)
_WEIGHTS = "weights"
_REMOVED = ".removed"
_TRIES = 5
Read = TypeVar("Read")


def current_folder(models: str | Path) -> Path:
    """The folder that holds the model of ``model_dir``: that folder, or within it while a new model takes its place."""
    finished = Path(models) / FINISHED
    return finished if finished.is_dir() else Path(models)


def has_model(models: Path) -> bool:
    """Whether there is a trained model."""
    return (current_folder(models) / "settings.json").is_file()


def read_whole(models: Path, read: Callable[[Path], Read]) -> Read:
    """Read several files of a model, all of one training even if a training ends meanwhile.

    Args:
        models: ``model_dir`` of a training.
        read: reads them from the folder that it is given; what it raises is raised.
    """
    for _ in range(_TRIES - 1):
        before = _state(models)
        try:
            found = read(current_folder(models))
        except (OSError, ValueError):
            if before == _state(models):
                raise
            continue
        if before == _state(models):
            return found
    return read(current_folder(models))


def seal_files(folder: Path) -> None:
    """Write a hash of each file of a training into its ``settings.json``."""
    hashes = {_WEIGHTS: weights_hash(read_weights(folder)), **_hashes(folder)}
    write_settings(with_files(read_settings(folder / "settings.json"), hashes), folder / "settings.json")


def check_files(folder: Path, files: Mapping[str, str], *, weights: str) -> None:
    """Refuse files of different trainings in one folder; a missing file is left to its reader.

    Args:
        folder: holds the files.
        files: ``files`` of its settings; empty: not known, so not compared.
        weights: hash of the tensors in it.

    Raises:
        ValueError: naming the files that are not of the training that wrote ``settings.json``.
    """
    found = {_WEIGHTS: weights, **_hashes(folder)} if files else {}
    if wrong := [name for name, digest in found.items() if files.get(name) != digest]:
        raise ValueError(
            f"{folder}: expected files of one training, got {', '.join(wrong)} of another one than settings.json: copy "
            "all files of a model together"
        )


def put_in_place(models: Path) -> None:
    """Let the files of a finished training take the place of the earlier model's; goes on where it was interrupted.

    Args:
        models: ``model_dir`` of the training; without a finished training in it nothing is done.
    """
    finished, removed = models / FINISHED, models / _REMOVED
    shutil.rmtree(removed, ignore_errors=True)
    if not finished.is_dir():
        return
    for name in MODEL_FILES:
        if (finished / name).is_file():
            with atomic_write(models / name) as unfinished:
                shutil.copyfile(finished / name, unfinished)
        else:
            (models / name).unlink(missing_ok=True)
            (models / f"{name}.part").unlink(missing_ok=True)  # of a training that was killed
    finished.rename(removed)  # in one step: a part of it must not be taken for the model
    shutil.rmtree(removed)


def _hashes(folder: Path) -> dict[str, str]:
    files = {name: folder / name for name in _FITTED}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()}


def _state(models: Path) -> tuple[Path, int, int]:
    """What changes when another model takes the place."""
    folder = current_folder(models)
    try:
        found = (folder / "settings.json").stat()
    except FileNotFoundError:
        return folder, 0, 0
    return folder, found.st_ino, found.st_mtime_ns

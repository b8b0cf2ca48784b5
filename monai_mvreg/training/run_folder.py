"""Where a training writes its model until it is finished: beside the earlier model, which stays complete meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_mvreg.cache.atomic import atomic_write, atomic_write_text, sync_folder
from monai_mvreg.trained.model_files import FINISHED, UNFINISHED, put_in_place, seal_files
from monai_mvreg.trained.model_settings import differences

_RUN = "run.json"


def begin_training(models: str, *, run: Mapping[str, Any], checkpoint: str, resume: bool = False) -> None:
    """Make the folder for the files of a training, or take up that of the training to go on with.

    Args:
        models: ``model_dir``; the files go to ``.training`` within it until :func:`finish_training`.
        run: what the training depends on, from :func:`~monai_mvreg.training.workflow.describe_run`.
        checkpoint: the file that the training goes on from; that of an earlier one is removed.
        resume: go on from the checkpoint, if there is one.

    Raises:
        ValueError: if the files there are of a different run, naming what differs, or there are none.
    """
    put_in_place(Path(models))
    folder = Path(models) / UNFINISHED
    if not (resume and Path(checkpoint).exists()):
        Path(checkpoint).unlink(missing_ok=True)  # its best model is about to go
        (folder / _RUN).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        atomic_write_text(folder / _RUN, json.dumps(dict(run)))
        return
    if (folder / _RUN).is_file():
        expect_same_run(folder, json.loads((folder / _RUN).read_text(encoding="utf-8")), run)
        return
    # It was finished: its best model is already in place.
    record = Path(models) / "training.json"
    if not record.is_file():
        raise ValueError(
            f"{checkpoint}: expected the unfinished files of its training in {folder}, found none: "
            "give resume False to start from the beginning"
        )
    expect_same_run(record, json.loads(record.read_text(encoding="utf-8"))["settings"], run)
    with atomic_write(folder / "model.pt") as unfinished:
        shutil.copyfile(Path(models) / "model.pt", unfinished)
    atomic_write_text(folder / _RUN, json.dumps(dict(run)))


def finish_training(models: str) -> None:
    """Put the files of a training in the place of the earlier model; for the end of the list ``run`` of training.

    Args:
        models: ``model_dir``.

    Raises:
        FileNotFoundError: if the training left no weights or settings.
    """
    folder = Path(models) / UNFINISHED
    seal_files(folder)
    sync_folder(folder)
    folder.rename(folder.with_name(FINISHED))
    sync_folder(Path(models))
    put_in_place(Path(models))


def expect_same_run(file: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a training under other settings or with another cohort.

    Args:
        file: what goes on, for the error.
        before: what its training depended on.
        now: what this one depends on.

    Raises:
        ValueError: naming what differs, with both values.
    """
    if found := differences(dict(sorted(before.items())), dict(sorted(now.items()))):
        raise ValueError(
            f"{file}: it belongs to a different run; these settings changed: {', '.join(found)}: give the same "
            "settings, or resume False to start from the beginning"
        )

"""The folder that examples in docstrings run in: a cohort, the scans of one patient, and a trained bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

from tiny_model import BUNDLE, write_model

from monai_mvreg.experiments.demo import UNIT, write_demo_cohort

_BUNDLE_PARTS = ("configs", "LICENSE")


def write_example_files(folder: Path) -> Path:
    """Write ``cohort.csv`` with its scans, ``patient/`` and ``study/``; the examples may read but not change them."""
    write_demo_cohort(folder, patients=6)
    shutil.copytree(folder / "dicom" / "DEMO-000", folder / "patient")
    scratch = folder / "scratch"
    models = write_model(scratch / "models", target=["growth"], unit=UNIT)
    (folder / "study").mkdir()
    models.rename(folder / "study" / "models")
    shutil.rmtree(scratch)
    for name in _BUNDLE_PARTS:
        copy = shutil.copytree if (BUNDLE / name).is_dir() else shutil.copy
        copy(BUNDLE / name, folder / "study" / name)
    return folder


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and the time of its last change."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size if path.is_file() else 0, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }

"""Predictions without a model, of the scans that lie in a folder, and what the DICOM validator says of results."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from make_dicom import write_series
from pydicom.dataset import Dataset

from monai_mvreg.dicom_results.evidence import write_object
from monai_mvreg.predict.prediction import ModelIdentity, PredictedNumber, Prediction, UsedScan
from monai_mvreg.predict.selection import inside
from monai_mvreg.scans.content_hash import scan_content
from monai_mvreg.scans.find import Scan, find_scans

needs_validator = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (package dicom3tools of Debian)"
)
NUMBER = PredictedNumber("volume", "mL", 12.345678901234567, 9.1, 15.2, 0.9, 1.25)
MODEL = ModelIdentity("a model", "1.2", "monai-mvreg 0", ("a" * 64, "b" * 64), "c" * 64)
# What the validator does not know yet, and what DICOMDIRs alone need.
_KNOWN = ("99MVREG", "<QUANTITY>", "DICOMDIR", "permitted to be empty when actually unknown")


def scans_in(home: Path) -> list[Scan]:
    found, left = find_scans(home)
    return sorted([*found, *(item.scan for item in left if item.scan is not None)], key=lambda scan: scan.address)


def predicted(home: Path, scans: list[Scan] | None = None, **changes: Any) -> Prediction:
    """A prediction of all scans in a folder, or of some of them."""
    used = scans_in(home) if scans is None else scans
    share = tuple(
        UsedScan(
            address=inside(scan.address, home),
            day=30.5 * at,
            view=None,
            modality=scan.modality,
            weight=1 / len(used),
            contributions=(0.1 * at - 0.05,) if len(used) > 1 else None,
            content=scan_content(scan),
        )
        for at, scan in enumerate(used)
    )
    return replace(Prediction("1", (NUMBER,), None, share, None, (), (), MODEL), **changes)


def write_study(folder: Path, *, uid: str, date: str = "20200131", **tags: Any) -> Path:
    """A series with what a scanner writes, and patients who must not be told."""
    usual = {"SeriesInstanceUID": uid, "StudyInstanceUID": f"{uid}.9", "StudyDate": date, "StudyTime": "101112"}
    usual |= {"FrameOfReferenceUID": f"{uid}.8", "StudyID": "7", "SeriesNumber": 1, "InstanceNumber": 1}
    usual |= {"PatientBirthDate": "19700101", "PatientSex": "O", "AccessionNumber": "A1", "BodyPartExamined": "BRAIN"}
    return write_series(folder, **{**usual, **tags})


def complaints(made: Dataset, path: Path) -> tuple[list[str], list[str]]:
    """Errors and warnings of dciodvfy, each once; warnings without those that are known."""
    write_object(made, path)
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, check=False)
    told = sorted(set(done.stderr.decode("latin-1").splitlines()))
    warnings = [line for line in told if line.startswith("Warning") and not any(known in line for known in _KNOWN)]
    return [line for line in told if line.startswith("Error")], warnings

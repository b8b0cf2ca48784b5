"""Folders to rows: one row per scan of a BIDS data set, of NIfTI files by patient, or of DICOM files.

Every table has at least ``patient, path, day, modality``: ``path`` is the address of the scan relative to the folder,
``day`` counts from the patient's first dated scan (NaN if unknown). Rows are sorted by patient, day and path.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from monai_mvreg.scans import LeftOut, find_scans

logger = logging.getLogger(__name__)

_COLUMNS = ["patient", "path", "day", "modality"]
_DATE = re.compile(r"(?<!\d)(\d{4})(-?)(\d{2})\2(\d{2})(?!\d)")


def rows_from_bids(folder: Path) -> pd.DataFrame:
    """List the images of a BIDS data set.

    Images are ``sub-*/[ses-*/]<datatype>/*_<suffix>.nii[.gz]`` and their modality is the suffix. The columns of
    ``participants.tsv`` are joined (``n/a`` is missing); ``acq_time`` of ``sub-*/sub-*_sessions.tsv`` gives the day.

    Args:
        folder: the root of the data set.

    Raises:
        ValueError: without ``participants.tsv``, for a participant without a folder, or if there is no image.
    """
    folder = Path(folder)
    people = _read_tsv(folder / "participants.tsv", "participant_id")
    if clash := sorted(set(people.columns) & set(_COLUMNS)):
        raise ValueError(f"participants.tsv: expected no column of the cohort's own names, got {clash}")
    # Row numbers are those of a spreadsheet, the header being row 1: names may identify.
    if lost := [i + 2 for i, name in enumerate(people["participant_id"]) if not (folder / str(name)).is_dir()]:
        raise ValueError(f"participants.tsv: expected a folder for each participant, got none for rows {_short(lost)}")
    found: list[tuple[str, Path, datetime.date | None, str]] = []
    empty = []
    for row, name in enumerate(people["participant_id"], start=2):
        patient = folder / str(name)
        dates = _session_dates(patient / f"{name}_sessions.tsv", row)
        files = [path for depth in ("*/*", "ses-*/*/*") for path in patient.glob(depth) if _is_nifti(path)]
        if not files:
            empty.append(row)
        for path in files:
            session = path.parent.parent.name if path.parent.parent != patient else ""
            found.append((str(name), path, dates.get(session), path.name.split(".")[0].rpartition("_")[2]))
    if empty:
        logger.warning("participants.tsv: no image of the participants in rows %s", _short(empty))
    if not found:
        raise ValueError("expected BIDS images sub-*/[ses-*/]<datatype>/*_<suffix>.nii[.gz], found none")
    rows = _table(folder, found)
    return rows.merge(people.rename(columns={"participant_id": "patient"}), on="patient", how="left", validate="m:1")


def rows_from_nifti(folder: Path) -> pd.DataFrame:
    """List NIfTI files that lie in one sub-folder per patient.

    A date (YYYY-MM-DD or YYYYMMDD) in the name of a file, or else of the nearest folder below the patient's, gives the
    day if every scan of the patient has one.

    Args:
        folder: holds ``<patient>/.../*.nii[.gz]``.

    Raises:
        ValueError: if there is no such file, or if NIfTI files lie outside the patients' folders.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _is_nifti(path))
    if not files:
        raise ValueError("expected NIfTI files <patient>/.../*.nii[.gz] in one folder per patient, found none")
    if loose := sum(path.parent == folder for path in files):
        raise ValueError(f"expected one folder per patient, got {loose} NIfTI files beside the patients' folders")
    found = []
    for path in files:
        parts = path.relative_to(folder).parts
        dates = [date for part in reversed(parts[1:]) if (date := _date_in(part))]
        found.append((parts[0], path, dates[0] if dates else None, ""))
    undated = {patient for patient, _, date, _ in found if date is None}
    return _table(folder, [(p, path, None if p in undated else date, m) for p, path, date, m in found])


def rows_from_dicom(folder: Path) -> tuple[pd.DataFrame, list[LeftOut]]:
    """List the DICOM scans below a folder; the patient is the PatientID.

    Args:
        folder: searched to any depth, headers only.

    Returns:
        The rows, and what gave no row with the reason.

    Raises:
        ValueError: if there is no readable DICOM scan.
    """
    folder = Path(folder)
    scans, left_out = find_scans(folder)
    left_out += [LeftOut(s.files[0], "no DICOM image with a PatientID") for s in scans if not s.patient]
    found = [(s.patient, Path(s.address), s.date, s.modality) for s in scans if s.patient]
    if not found:
        raise ValueError(f"expected DICOM images with a PatientID, found none in {len(left_out)} files and series")
    return _table(folder, found), left_out


def _table(folder: Path, found: Sequence[tuple[str, Path, datetime.date | None, str]]) -> pd.DataFrame:
    """Rows from (patient, path, date, modality), with dates counted in days from each patient's first."""
    first: dict[str, datetime.date] = {}
    for patient, _, date, _ in found:
        if date:
            first[patient] = min(date, first.get(patient, date))
    rows = [
        (patient, path.relative_to(folder).as_posix(), float((date - first[patient]).days) if date else None, modality)
        for patient, path, date, modality in found
    ]
    table = pd.DataFrame(rows, columns=_COLUMNS).astype({"day": "float64"})
    return table.sort_values(["patient", "day", "path"], ignore_index=True)


def _read_tsv(path: Path, key: str) -> pd.DataFrame:
    """Read a BIDS table whose key column holds each text once."""
    if not path.is_file():
        raise ValueError(f"expected a BIDS data set with {path.name}, there is none")
    table = pd.read_csv(path, sep="\t", dtype={key: str}, na_values=["n/a", ""], keep_default_na=False)
    if key not in table.columns:
        raise ValueError(f"{path.name}: expected a column {key}, got {list(table.columns)}")
    bad = table[key].isna() | table[key].duplicated()
    if bad.any():
        rows = [i + 2 for i, is_bad in enumerate(bad) if is_bad]
        raise ValueError(
            f"{path.name}: expected one {key} a row and each once, got none or a repeat in rows {_short(rows)}"
        )
    return table


def _session_dates(path: Path, participant: int) -> dict[str, datetime.date]:
    """Dates by session; the file is optional, as is its ``acq_time``, but what it says must be a date."""
    if not path.is_file():
        return {}
    try:
        table = _read_tsv(path, "session_id")
        times = table["acq_time"] if "acq_time" in table.columns else pd.Series(dtype=str)
        known = {str(name): str(time) for name, time in zip(table["session_id"], times, strict=False) if pd.notna(time)}
        return {name: datetime.date.fromisoformat(time[:10]) for name, time in known.items()}
    except ValueError:
        raise ValueError(
            f"sessions.tsv of row {participant}: expected each session_id once, and ISO dates in acq_time"
        ) from None


def _date_in(name: str) -> datetime.date | None:
    """The first real date in a name, between 1901 and 2099: other digits are numbers."""
    for match in _DATE.finditer(name):
        try:
            date = datetime.date(int(match[1]), int(match[3]), int(match[4]))
        except ValueError:
            continue
        if 1900 < date.year < 2100:
            return date
    return None


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def _short(rows: Sequence[Any]) -> str:
    return ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")

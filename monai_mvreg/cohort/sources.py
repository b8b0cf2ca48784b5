"""Folders to rows: one row per scan of a BIDS data set, or of whatever scans a folder holds.

Every table has at least ``patient, path, day, modality``: ``path`` is the address of the scan relative to the folder,
``day`` counts from the patient's first dated scan (NaN if unknown). Rows are sorted by patient, day and path.
"""

from __future__ import annotations

import datetime
import hmac
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from monai_mvreg.cohort.table import TableRows
from monai_mvreg.scans.addresses import ScanAddress
from monai_mvreg.scans.dicom.acquisition_date import Moment, in_order
from monai_mvreg.scans.dicom.volumes import Stack
from monai_mvreg.scans.find import LeftOut, Scan

logger = logging.getLogger(__name__)

_COLUMNS = ["patient", "path", "day", "modality"]
_DATE = re.compile(r"(?<!\d)(\d{4})(-?)(\d{2})\2(\d{2})(?!\d)")


SCAN_COLUMNS = ("patient", "path", "day", "modality", "body_part", "size", "spacing", "frames")
"""Columns of a table of scans that was made here."""


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
    found: list[tuple[str, str, datetime.date | None, str]] = []
    empty = []
    for row, name in enumerate(people["participant_id"], start=2):
        patient = folder / str(name)
        dates = _session_dates(patient / f"{name}_sessions.tsv", row)
        files = [path for depth in ("*/*", "ses-*/*/*") for path in patient.glob(depth) if _is_nifti(path)]
        if not files:
            empty.append(row)
        for path in files:
            session = path.parent.parent.name if path.parent.parent != patient else ""
            inside = path.relative_to(folder).as_posix()
            found.append((str(name), inside, dates.get(session), path.name.split(".")[0].rpartition("_")[2]))
    known = set(people["participant_id"])
    if strangers := sum(path.is_dir() and path.name not in known for path in folder.glob("sub-*")):
        logger.warning("participants.tsv: %d folders sub-* belong to no participant and are left out", strangers)
    if empty:
        logger.warning("participants.tsv: no image of the participants in rows %s", _short(empty))
    if not found:
        raise ValueError("expected BIDS images sub-*/[ses-*/]<datatype>/*_<suffix>.nii[.gz], found none")
    rows = _table(found)
    return rows.merge(people.rename(columns={"participant_id": "patient"}), on="patient", how="left", validate="m:1")


def rows_from_scans(source: Path, scans: Sequence[Scan]) -> tuple[pd.DataFrame, list[LeftOut]]:
    """List scans that :func:`~monai_mvreg.scans.find.find_scans` found.

    The patient of a DICOM scan is its PatientID, and that of any other file the folder it lies in directly below
    ``source``. DICOM scans have their date; for other files a date (YYYY-MM-DD or YYYYMMDD) in the name of the file, or
    else of the nearest folder below the patient's, counts if every such file of the patient has one.

    Args:
        source: what was searched; addresses in the table are relative to it, or to its folder if it is a file.
        scans: the scans.

    Returns:
        The rows, with ``body_part``, ``size`` (voxels), ``spacing`` (mm) and ``frames`` behind the usual columns, and
        the scans that belong to no patient with the reason.
    """
    home = Path(source) if Path(source).is_dir() else Path(source).parent
    found: list[tuple[str, str, Moment | None, str, Scan]] = []
    left_out = []
    undated = set()
    for scan in scans:
        address = ScanAddress.parse(scan.address)
        # Of a zip that was searched, the name is nobody's.
        inside = address.place.relative_to(Path(source) if address.place.is_relative_to(source) else home).parts
        patient, date = scan.patient, scan.date
        if not isinstance(scan.content, Stack):
            patient = inside[0] if len(inside) > 1 else ""
            date = next((day for part in reversed(inside[1:]) if (day := date_in(part))), None)
            if date is None:
                undated.add(patient)
        if patient:
            found.append((patient, str(address.relative_to(home)), date, scan.modality, scan))
        else:
            reason = "no patient: a DICOM scan without PatientID, or another file beside the patients' folders"
            left_out.append(LeftOut(scan.files[0], reason, scan))
    dates = [None if not isinstance(s.content, Stack) and p in undated else date for p, _, date, _, s in found]
    rows = _table([(p, path, date, m) for (p, path, _, m, _), date in zip(found, dates, strict=True)])
    facts = pd.DataFrame(
        [
            (
                path,
                scan.body_part,
                "x".join(map(str, scan.shape)),
                "x".join(f"{distance:.4g}" for distance in scan.spacing),
                scan.frames,
            )
            for _, path, *_, scan in found
        ],
        columns=["path", "body_part", "size", "spacing", "frames"],
    )
    return rows.merge(facts, on="path", how="left", validate="1:1"), left_out


def pseudonym(patient: str, secret: bytes) -> str:
    """Stand-in for a patient's key that nobody can turn back, or make anew, without the secret (HMAC-SHA256).

    Example:
        >>> pseudonym("a", b"0123456789abcdef")
        '0c806ca38a87cad9'
    """
    return hmac.new(secret, patient.encode(), "sha256").hexdigest()[:16]


def join_outcomes(rows: pd.DataFrame, outcomes: Path, *, patient: str = "patient") -> tuple[pd.DataFrame, list[str]]:
    """Add the columns of a table with one row per patient.

    Args:
        rows: one row per scan, with the column ``patient``.
        outcomes: CSV or TSV.
        patient: the column of ``outcomes`` with the patient's key.

    Returns:
        The rows with the outcomes, empty where there is none, and one sentence for each kind of row that has no match.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it has no such column, a patient twice, or a column of the cohort's own names.
    """
    table = TableRows(outcomes)
    table.need(patient)
    if clash := sorted((set(table.frame.columns) - {patient}) & set(rows.columns)):
        raise ValueError(f"{outcomes.name}: expected no column of the cohort's own names, got {clash}")
    keys = [table.text(row, patient) for row in range(len(table.frame))]
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        if first.setdefault(key, row) != row:
            raise table.error(row, patient, f"expected each patient once, row {first[key] + 2} has the same")
    known = set(rows["patient"])
    joined = rows.merge(
        table.frame.assign(**{patient: keys}).rename(columns={patient: "patient"}),
        on="patient",
        how="left",
        validate="m:1",
    )
    sentences = []
    if lost := [row + 2 for key, row in first.items() if key not in known]:
        sentences.append(f"{outcomes.name}: no scan of the patients in rows {_short(lost, most=len(lost))}")
    if lost := [row + 2 for row, key in enumerate(joined["patient"]) if key not in first]:
        where = f"rows {_short(lost, most=len(lost))} of the table"
        sentences.append(f"no outcome in {outcomes.name} for the scans in {where}: fill it in or delete these rows")
    return joined, sentences


def _table(found: Sequence[tuple[str, str, Moment | None, str]]) -> pd.DataFrame:
    """Rows from (patient, relative path, date, modality), with dates counted in days from each patient's first."""
    first: dict[str, int] = {}
    for patient, _, date, _ in found:
        if date:
            first[patient] = min(date.toordinal(), first.get(patient, date.toordinal()))
    rows = [
        (
            patient,
            path,
            float(date.toordinal() - first[patient]) if date else None,
            modality,
            in_order(date)[1] if date else 0,
        )
        for patient, path, date, modality in found
    ]
    # Scans of one day stand in the order of the clock, which is not written: the day is what time is counted in.
    table = pd.DataFrame(rows, columns=[*_COLUMNS, "clock"]).astype({"day": "float64"})
    return table.sort_values(["patient", "day", "clock", "path"], ignore_index=True).drop(columns="clock")


def _read_tsv(path: Path, key: str) -> pd.DataFrame:
    """Read a BIDS table whose key column holds each text once."""
    if not path.is_file():
        raise ValueError(f"expected a BIDS data set with {path.name}, there is none")
    # All as texts: a site called 007 or TRUE stays that.
    table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a", ""], keep_default_na=False)
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


def date_in(name: str) -> datetime.date | None:
    """The first real date in the name of a file or folder, between 1901 and 2099: other digits are numbers."""
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


def _short(rows: Sequence[Any], *, most: int = 10) -> str:
    return ", ".join(map(str, rows[:most])) + (f" and {len(rows) - most} more" if len(rows) > most else "")

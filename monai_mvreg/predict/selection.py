"""Folder -> the scans of one patient that a model can take, in order of time, and why the others are left out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_mvreg.cohort.sources import date_in
from monai_mvreg.cohort.table import Patient
from monai_mvreg.predict.prediction import PredictionWarning, UnusedScan
from monai_mvreg.scans.addresses import ScanAddress
from monai_mvreg.scans.dicom.volumes import Stack
from monai_mvreg.scans.find import Scan, find_scans
from monai_mvreg.trained.trained_model import Trained

# How the reasons begin for what is no scan at all, and so no loss.
_NO_SCAN = ("no scan", "a DICOMDIR", "a zip", "the header of", "a DICOM file without pixels")


@dataclass(frozen=True)
class FoundPatient:
    """The scans of one patient as they were found: ``headers`` by address, what is not used, and warnings."""

    patient: Patient
    headers: Mapping[str, Scan]
    left_out: tuple[UnusedScan, ...]
    warnings: tuple[PredictionWarning, ...] = ()


def find_patient(
    folder: str | Path, trained: Trained, *, covariates: Mapping[str, float | str] | None = None
) -> FoundPatient:
    """Find the scans of one patient in a folder, zip, DICOMDIR or file, and choose those that a model can take.

    Dates are those of DICOM, or for other formats those in the name of the file or a folder. Left out with a reason
    are files that are no scan, modalities that the training never saw, images of other dimensions, and, if the model
    reads dates, scans without a date if others have one.

    Args:
        folder: where the scans are.
        trained: the model.
        covariates: by their columns in the training's table, a number or one of the levels; those not given are
            missing.

    Returns:
        The patient with the chosen scans in order of time, and what was left out.

    Raises:
        ScanError: if there is no such place.
        ValueError: if the scans are of several patients, no scan is left, the model needs the view of each scan, or a
            covariate is none of the model's.
    """
    folder = Path(folder)
    if trained.views:
        views = ", ".join(trained.views)
        raise ValueError(f"expected a table with the view of each scan, one of {views}, got the folder {folder}")
    known = _encoded(covariates or {}, trained)
    found, refused = find_scans(folder)
    left_out = [UnusedScan(inside(item.path.as_posix(), folder), item.reason) for item in refused]
    if (people := len({scan.patient for scan in found if scan.patient})) > 1:
        raise ValueError(
            f"expected the scans of one patient in {folder}, got those of {people}: give the folder of one, a table, "
            "or mvreg predict --each where every patient has a folder"
        )
    if (homes := _possible_patients(found, folder)) > 1:
        raise ValueError(
            f"expected the scans of one patient in {folder}, got files in {homes} folders that may be patients: give "
            "mvreg predict --each if they are, a table, or names with a date (2024-03-31) if they are visits"
        )
    dates = {scan.address: date_of(scan, folder) for scan in found}
    dated = trained.settings.dated and any(dates.values())
    modalities = sorted({name for member in trained.members for name in member.domain.modalities})
    axes = len(trained.settings.spatial_size)
    taken: dict[str, Scan] = {}
    for scan in found:
        reason = ""
        if scan.modality and modalities and scan.modality not in modalities:
            reason = f"modality {scan.modality}, the model was trained on {', '.join(modalities)}"
        elif len(scan.shape) != axes:
            reason = f"{len(scan.shape)} dimensions, the model takes {axes}"
        elif dated and dates[scan.address] is None:
            reason = "no date beside scans with one: give a table with the day of each"
        if reason:
            left_out.append(UnusedScan(inside(scan.address, folder), reason))
        else:
            taken[scan.address] = scan
    if not taken:
        reasons = "; ".join(dict.fromkeys(item.reason for item in left_out))
        raise ValueError(f"expected a scan that the model can take in {folder}, got none: {reasons or 'no files'}")
    days = {address: float(dates[address] or 0) for address in taken}
    order = sorted(taken, key=lambda address: (days[address], address))
    patient = Patient(
        key="1",
        scans=tuple(order),
        days=tuple(days[address] - days[order[0]] for address in order),
        views=(0,) * len(order),
        target=(),
        covariates=tuple(known.get(name, math.nan) for name in trained.covariates),
    )
    damaged = sum(item.scan is None and not item.reason.startswith(_NO_SCAN) for item in refused)
    warnings = [PredictionWarning("left_out", f"files or series that could not be read: {damaged}")] if damaged else []
    nobodys = [scan for scan in taken.values() if not scan.patient]
    if nobodys and len(nobodys) < len(taken):
        sentence = f"{len(nobodys)} of {len(taken)} scans do not say whose they are: check that all are of one patient"
        warnings.append(PredictionWarning("patient", sentence))
    return FoundPatient(patient, taken, tuple(left_out), tuple(warnings))


def _encoded(covariates: Mapping[str, float | str], trained: Trained) -> dict[str, float]:
    """Turn covariates into the numbers that the network reads: for levels one for each but the first."""
    columns = trained.settings.covariates
    found: dict[str, float] = {}
    for name, value in covariates.items():
        levels = columns.get(name)
        if isinstance(levels, list):
            if str(value) not in map(str, levels):
                raise ValueError(f"covariate {name}: expected one of {', '.join(map(str, levels))}, got {value!r}")
            found |= {f"{name}={level}": float(str(level) == str(value)) for level in levels[1:]}
            continue
        if name not in trained.covariates:
            known = f"covariates of {list(columns)}" if columns else "no covariates for this model"
            raise ValueError(f"expected {known}, got {name!r}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"covariate {name}: expected a number, got {value!r}") from None
    return found


def _possible_patients(scans: Sequence[Scan], home: Path) -> int:
    """How many patients scans may be of that do not name one: by BIDS names, or the folders right below ``home``.

    Folders and files with a date, or of a session in BIDS, are visits; files right in ``home`` are of one patient.
    """
    patients = set()
    for scan in scans:
        parts = _below(scan.address, home).place.parts
        subject = next((match[0] for part in parts if (match := re.match(r"sub-[A-Za-z0-9]+", part))), None)
        if scan.patient or isinstance(scan.content, Stack):
            continue
        if subject is not None:
            patients.add(subject)
        elif len(parts) > 1 and date_in(parts[0]) is None and not parts[0].startswith("ses-"):
            patients.add(parts[0])
    return len(patients)


def date_of(scan: Scan, home: Path) -> int | None:
    """The day of a scan from its header, or for a file that is not DICOM from its name or that of a folder in home."""
    if isinstance(scan.content, Stack):
        return scan.date.toordinal() if scan.date else None
    place = ScanAddress.parse(scan.address).place
    parts = place.relative_to(home).parts if place.is_relative_to(home) else (place.name,)
    date = next((day for part in reversed(parts) if (day := date_in(part))), None)
    return date.toordinal() if date else None


def inside(address: str, home: Path) -> str:
    """An address from the folder, zip or folder of the file that was given."""
    return str(_below(address, home))


def _below(address: str, home: Path) -> ScanAddress:
    return ScanAddress.parse(address).relative_to(home if home.is_dir() else home.parent)

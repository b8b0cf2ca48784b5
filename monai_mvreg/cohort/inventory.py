"""What scans a folder holds, per patient and visit: as a table, as JSON, and as one page with a picture of each.

Patients are numbers here, days count from a patient's first scan, and pictures that may have a name burned into them
are not shown, unless the user asks to identify. File names are shown: keep patients out of them.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.cohort.sources import rows_from_scans
from monai_mvreg.cohort.thumbnails import ScanPicture, as_jpeg, square_pixels
from monai_mvreg.scans.addresses import ScanAddress
from monai_mvreg.scans.burned_in import may_name_patient
from monai_mvreg.scans.dicom.pixels import read_values
from monai_mvreg.scans.dicom.volumes import Stack
from monai_mvreg.scans.find import LeftOut, Scan, find_scans
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import read_scan

Array = npt.NDArray[Any]

_EDGE = 160  # pixels of the longer side of a picture


@dataclass(frozen=True)
class Inventory:
    """The scans of a folder, and ``rows`` with one for each in the same order; ``left_out`` gave none.

    ``home`` is the folder that addresses in the rows are relative to.
    """

    home: Path
    rows: pd.DataFrame
    scans: tuple[Scan, ...]
    left_out: tuple[LeftOut, ...]


def take_inventory(source: Path, *, everything: bool = False, resample: bool = False) -> Inventory:
    """Find the scans of a folder, of a zip, or that a DICOMDIR names.

    Args:
        source: where to search.
        everything: count localizers, derived images, secondary captures and segmentations as scans.
        resample: accept volumes whose slices lie at uneven distances.

    Raises:
        ScanError: if there is no such place, or no scan in it; the reasons are named.
    """
    scans, left_out = find_scans(source, resample=resample)
    if everything:
        scans += [item.scan for item in left_out if item.scan is not None]
        left_out = [item for item in left_out if item.scan is None]
    rows, nobodys = rows_from_scans(source, scans)
    left_out += nobodys
    if rows.empty:
        reasons = sorted({item.reason for item in left_out})
        told = f": {'; '.join(reasons[:5])}" if reasons else ""
        told += f" and {len(reasons) - 5} more reasons" if len(reasons) > 5 else ""
        raise ScanError(f"expected scans in {source}, found none in {len(left_out)} files and series{told}")
    home = Path(source) if Path(source).is_dir() else Path(source).parent
    at = {str(ScanAddress.parse(scan.address).relative_to(home)): scan for scan in scans}
    return Inventory(home, rows, tuple(at[path] for path in rows["path"]), tuple(left_out))


def _named(found: Inventory, identify: bool) -> list[str]:
    """The patient of each row: a number in the order of the rows, or the key."""
    keys = list(found.rows["patient"])
    number = {key: str(at) for at, key in enumerate(dict.fromkeys(keys), start=1)}
    return [key if identify else number[key] for key in keys]


def visits(found: Inventory, *, identify: bool = False) -> str:
    """Write the scans as a table of text, per patient and visit (a day)."""
    rows = found.rows
    shown = pd.DataFrame(
        {
            "patient": _named(found, identify),
            "day": [f"{day:.0f}" if day == day else "?" for day in rows["day"]],
            **{name: rows[name].replace("", "-") for name in ("modality", "body_part", "size", "spacing")},
            "frames": rows["frames"],
            "scan": [ScanAddress.parse(path).short for path in rows["path"]],
        }
    )
    repeated = shown[["patient", "day"]].duplicated()
    shown.loc[repeated, "day"] = ""
    shown.loc[shown["patient"].duplicated(), "patient"] = ""
    return shown.rename(columns={"body_part": "body part", "spacing": "spacing (mm)"}).to_string(index=False)


def as_json(found: Inventory, *, identify: bool = False) -> dict[str, Any]:
    """Everything that is known of the scans, ready for ``json.dumps``; unknown is null or empty."""
    scans = [
        {
            "patient": patient,
            "path": row["path"],
            "day": row["day"] if row["day"] == row["day"] else None,
            "date": scan.date.isoformat() if identify and scan.date else None,
            "date_from": scan.date_from,
            "modality": scan.modality,
            "body_part": scan.body_part,
            "shape": list(scan.shape),
            "spacing": list(scan.spacing),
            "frames": scan.frames,
            "colour": scan.colour,
            "transfer_syntax": scan.transfer_syntax,
            "files": len(scan.files),
        }
        for patient, scan, (_, row) in zip(_named(found, identify), found.scans, found.rows.iterrows(), strict=True)
    ]
    left_out = [{"path": _relative(item.path, found.home), "reason": item.reason} for item in found.left_out]
    return {"scans": scans, "left_out": left_out}


def _relative(path: Path, home: Path) -> str:
    return (path.relative_to(home) if path.is_relative_to(home) else path).as_posix()


def contact_sheet(page: Path, found: Inventory, *, identify: bool = False) -> None:
    """Write one HTML file that needs nothing else: the middle slice of each scan, per patient and visit.

    Args:
        page: the file.
        found: the scans.
        identify: name the patients, and show pictures that may have a name burned into them.
    """
    patients: dict[str, dict[str, list[dict[str, str]]]] = {}
    named = _named(found, identify)
    bar = tqdm(found.scans, "pictures", unit="scan", disable=None)
    for patient, scan, (_, row) in zip(named, bar, found.rows.iterrows(), strict=True):
        day = f"day {row['day']:.0f}" if row["day"] == row["day"] else "no date"
        picture, reason = _picture(scan, identify)
        about = [scan.modality, scan.body_part, row["size"], f"{row['spacing']} mm" * bool(row["spacing"])]
        about += [f"{scan.frames} {scan.frames_are}"] if scan.frames > 1 else []
        entry = {
            "picture": picture,
            "reason": reason,
            "about": ", ".join(filter(None, about)),
            "path": ScanAddress.parse(row["path"]).short,
        }
        patients.setdefault(patient, {}).setdefault(day, []).append(entry)
    places: dict[str, list[str]] = {}
    for item in found.left_out:
        places.setdefault(item.reason, []).append(_relative(item.path, found.home))
    left_out = [(some[0] + (f" and {len(some) - 1} more" * (len(some) > 1)), why) for why, some in places.items()]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("monai_mvreg.cohort", "."), autoescape=True)
    template = environment.get_template("contact_sheet.html.j2")
    html = template.render(patients=patients, scans=len(found.scans), left_out=left_out, files=len(found.left_out))
    atomic_write_text(page, html)


def _picture(scan: Scan, identify: bool) -> tuple[str, str]:
    """A picture as a data URI, or else the reason why there is none."""
    if not identify and may_name_patient(scan):
        return "", "not shown: text may be burned in"
    try:
        picture = _middle(scan)
    except ScanError as error:
        return "", str(error)
    # True to the distances in the patient where they are known (DICOM).
    across, down = scan.spacing[:2] if isinstance(scan.content, Stack) and scan.spacing else (1.0, 1.0)
    shown = ScanPicture(square_pixels(picture, across=across, down=down), None, "")
    return f"data:image/jpeg;base64,{base64.b64encode(as_jpeg(shown, _EDGE)).decode()}", ""


def _middle(scan: Scan) -> Array:
    """The middle slice ``(rows, columns[, 3])`` of the first time point, as a person would see it."""
    content = scan.content
    if isinstance(content, Stack):  # as its scanner shows it, and without reading the other slices
        stack = content.slices[0]
        return np.asarray(read_values([stack[len(stack) // 2]])[0])
    data = read_scan(scan, frame=0 if scan.frames > 1 else None)
    array = data.array
    if data.affine is not None and not scan.colour and array.ndim == 3:
        # Axial, the patient's front above and right on the left.
        canonical = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(array, data.affine)).dataobj)
        return np.asarray(canonical[::-1, ::-1, canonical.shape[2] // 2].T)
    flat = array[:, :, array.shape[2] // 2] if array.ndim - scan.colour == 3 else array
    return np.asarray(np.swapaxes(flat, 0, 1))

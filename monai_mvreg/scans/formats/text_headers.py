"""The text of an NRRD or MetaImage header -> its fields, its units of length, and whether it says where the scan lies.

ITK reads these headers too, but it passes over units, over what is said of the patient, and over scales of the values.
"""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt

from monai_mvreg.scans.formats.byte_ranges import ScanError

Array = npt.NDArray[np.float64]
Fields = dict[str, str]

TEXT_BYTES = 2**20  # of a header; what follows is voxels
_ENCODINGS = {"raw", "gz", "gzip", "hex", "txt", "text", "ascii"}

# Millimetres in a unit of length; a unit that is not stated is taken for millimetres, as ITK and 3D Slicer do.
_UNITS = {
    **dict.fromkeys(("", "mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre"), 1e-6),
}
# Spaces of NRRD whose axes are directions in the patient; the others are those of a scanner or of nothing.
_PATIENT = {"right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps"}
# Where an axis of a MetaImage begins, and the direction in LPS that it then runs.
_LETTERS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "I": (0, 0, 1), "S": (0, 0, -1)}
_PLACE = ("transformmatrix", "rotation", "orientation", "position", "offset", "origin")  # MetaImage has all these names


def meta_fields(start: bytes) -> Fields:
    """The lines ``Key = value`` of a MetaImage, of which ElementDataFile is the last.

    ITK reads them more loosely than this, so whatever it could take for another name of the data file is refused.
    """
    fields: Fields = {}
    for line in start.split(b"\n"):
        found = re.fullmatch(rb"(\w+) *= *(.*?)\s*", line, re.S)
        if found is None:
            break
        key, value = found[1].decode().lower(), found[2].decode("utf-8", "replace")
        if key == "elementdatafile":
            packed = fields.get("compresseddata", "False").lower() == "true"
            return {**fields, "datafile": value, "encoding": "gzip" if packed else "raw"}
        fields[key] = value
    raise ScanError("expected the lines 'Key = value' of a MetaImage up to its ElementDataFile")


def nrrd_fields(start: bytes) -> Fields:
    """The lines ``field: value`` of an NRRD header, up to its empty line."""
    fields: Fields = {}
    lines = start.split(b"\n")
    if len(start) == TEXT_BYTES:
        lines.pop()  # it may go on
    for line in lines[1:]:
        line = line.rstrip(b"\r")
        if not line:
            break
        if line.startswith(b"#") or b":=" in line:
            continue
        field, colon, value = line.decode("utf-8", "replace").partition(":")
        key = "".join(field.split()).lower()
        if not colon or field != field.strip() or key in fields:
            raise ScanError("expected the lines 'field: value' of an NRRD header, each field once")
        fields[key] = value.strip()
    else:
        if len(start) == TEXT_BYTES:
            raise ScanError(f"expected an NRRD header of at most {TEXT_BYTES} bytes")
    if (encoding := fields.get("encoding", "raw").lower()) not in _ENCODINGS:
        raise ScanError(f"expected an NRRD in raw, gzip, hex or ascii, got the encoding {encoding!r}")
    return fields


def intensity(fields: Fields) -> tuple[float, float]:
    """Slope and offset from stored values to intensities, which ITK does not apply.

    Raises:
        ScanError: if they are no numbers, or if the values were quantised from others.
    """
    found = []
    for key, usual in (("elementtointensityfunctionslope", "1"), ("elementtointensityfunctionoffset", "0")):
        written = fields.get(key, usual)
        try:
            found.append(float(written))
        except ValueError:
            found.append(math.nan)
        if not math.isfinite(found[-1]) or (usual == "1" and found[-1] == 0):
            raise ScanError(f"expected a finite number in {key}, other than 0 for a slope, got {written!r}")
    for key in ("oldmin", "oldmax"):
        if key in fields:
            raise ScanError(f"expected values as they were measured, got values quantised from {key} {fields[key]!r}")
    return found[0], found[1]


def in_millimetres(fields: Fields, affine: Array, *, colour: bool) -> Array:
    """Bring an affine to mm, by the units of the axes of space (NRRD, MetaImage) or of the image (NRRD without space).

    Args:
        fields: of the header.
        affine: ``(4, 4)`` in the units of the file.
        colour: whether the first axis of the file is that of the colours.

    Raises:
        ScanError: if a unit is not one of length.
    """
    affine = affine.copy()
    if "distanceunits" in fields:
        affine[:3] *= _factor(fields["distanceunits"].strip('"?'))
    for axis, unit in enumerate(_quoted(fields.get("spaceunits", ""))[:3]):
        affine[axis] *= _factor(unit)
    if "spacedirections" not in fields:
        units = _quoted(fields.get("units", ""))
        for axis, unit in enumerate(units[colour : 3 + colour]):
            factor = _factor(unit)
            affine[:3, axis] *= factor
            affine[axis, 3] *= factor
    return affine


def _quoted(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text) or text.split()


def _factor(unit: str) -> float:
    if (named := unit.strip().lower()) not in _UNITS:
        raise ScanError(f"expected a unit of length, got {unit!r}")
    return _UNITS[named]


def lies_in_patient(fields: Fields, direction: Array, *, nrrd: bool) -> bool:
    """Whether a header says how its space lies in the patient.

    Args:
        fields: of the header.
        direction: of its axes in LPS, in columns.
        nrrd: whether it is an NRRD header, which names its space; a MetaImage that has a place has it in LPS.
    """
    if nrrd:
        named = fields.get("space", "").lower()
        return (named.removesuffix("-time") in _PATIENT or named in ("rast", "last", "lpst")) and (
            "spacedirections" in fields
        )
    letters = fields.get("anatomicalorientation", "").upper()
    if not letters or set(letters) - set(_LETTERS):
        return any(key in fields for key in _PLACE)
    ways = [_LETTERS[letter] for letter in letters[: len(direction)]]
    return all(float(np.dot(direction[: len(way), at], way[: len(direction)])) > 0 for at, way in enumerate(ways))

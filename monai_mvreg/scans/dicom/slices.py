"""An image of DICOM to slices: two-dimensional pictures that know where they lie, and the ordinary one among them."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.acquisition_date import in_order, moment_of
from monai_mvreg.scans.dicom.elements import Values
from monai_mvreg.scans.dicom.headers import PET, ImageFile, binary, name_of, number, numbers, text
from monai_mvreg.scans.formats.byte_ranges import ScanError

# How an image was made, as far as images at one place may differ in it. The last four are no reason to part them.
MADE = (
    tags.CONVOLUTION_KERNEL,
    tags.FILTER_TYPE,
    tags.KVP,
    tags.RECEIVE_COIL_NAME,
    tags.CONTRAST_BOLUS_AGENT,
    tags.SERIES_DESCRIPTION,
    tags.PROTOCOL_NAME,
    tags.SCANNING_SEQUENCE,
    tags.SEQUENCE_VARIANT,
    tags.SCAN_OPTIONS,
    tags.REPETITION_TIME,
    tags.SLICE_THICKNESS,
    tags.RECONSTRUCTION_DIAMETER,
    tags.CORRECTED_IMAGE,
    tags.ATTENUATION_CORRECTION_METHOD,
    tags.RECONSTRUCTION_METHOD,
    tags.SCATTER_CORRECTION_METHOD,
    tags.FLIP_ANGLE,
    tags.INVERSION_TIME,
    tags.FRAME_REFERENCE_TIME,
    tags.MANUFACTURER,
)

# What may tell time points apart, the most telling first.
ORDER = (
    "temporal position",
    "trigger time",
    "acquisition number",
    "b-value",
    "flip angle",
    "inversion time",
    "dimension index",
    "frame reference time",
    "acquisition time",
    "content time",
    "instance number",
)
COMPONENTS = {
    "magnitude": {"M", "MAGNITUDE"},
    "phase": {"P", "PHASE", "PHASE MAP"},
    "real": {"R", "REAL"},
    "imaginary": {"I", "IMAGINARY"},
}


# What kind of picture an image is, by words of its Image Type: two kinds are never one volume.
_CONTRASTS = {
    "W",
    "WATER",
    "F",
    "FAT",
    "IP",
    "IN",
    "IN_PHASE",
    "OP",
    "OUT",
    "OPP_PHASE",
    "OUT_PHASE",
    "FF",
    "FAT_FRACTION",
    "ADC",
    "FA",
    "EADC",
    "TRACE",
    "TRACEW",
    "TENSOR",
    "T1",
    "T2",
    "T2_STAR",
    "R2",
    "R2_STAR",
    "PROTON_DENSITY",
    "CBF",
    "CBV",
    "MTT",
    "TTP",
    "TMAX",
    "PBP",
    "RELCBF",
    "RELCBV",
    "RELMTT",
    "RELCCBV",
    "DIFFUSION_ANISO",
    "VELOCITY",
    "FLOW_ENCODED",
    "PHASE_CONTRAST",
    "B0",
    "B1",
    "SUBTRACTION",
    "SUB",
}


@dataclass(frozen=True, slots=True)
class Slice:
    """One picture of a file: where it lies in the patient (LPS, mm), and what tells it from others at its place.

    ``axes`` are the directions of a row and of a column, 3 numbers each; ``position`` is the first pixel; both are
    empty if unknown, as is ``spacing`` (x, y). ``thickness`` stands for the distance of slices where there is only one.
    ``made`` holds the values of :data:`MADE`; ``location`` is where the header says again
    that it lies, along a line, as it is written.
    ``scaled`` is whether the header states slope and intercept.
    ``order`` holds what :data:`ORDER` names, None where unknown.
    """

    file: ImageFile
    frame: int
    position: tuple[float, ...] = ()
    axes: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    thickness: float = 0.0
    slope: float = 1.0
    intercept: float = 0.0
    scaled: bool = True
    echo: float | None = None
    echo_number: float | None = None
    component: str = ""
    contrast: str = ""
    stack: str = ""
    made: tuple[bytes | None, ...] = ()
    location: float | bytes | None = None
    order: tuple[Any, ...] = (None,) * len(ORDER)


def plain(file: ImageFile, values: Values, order: str) -> list[Slice]:
    """An ordinary image, or frames that nothing but their number tells apart: 2D and time."""
    instance = number(values, tags.INSTANCE_NUMBER)
    single = file.frames == 1
    slope, intercept = number(values, tags.RESCALE_SLOPE), number(values, tags.RESCALE_INTERCEPT)
    first = Slice(
        file=file,
        frame=0,
        position=numbers(values, tags.IMAGE_POSITION_PATIENT, 3) if single else (),
        axes=unit_axes(numbers(values, tags.IMAGE_ORIENTATION_PATIENT, 6)) if single else (),
        spacing=pixel_spacing(values, order),
        thickness=thickness(values),
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
        scaled=tags.MODALITY_LUT_SEQUENCE in values or is_scaled(file, slope, intercept),
        echo=number(values, tags.ECHO_TIME),
        echo_number=next(iter(numbers(values, tags.ECHO_NUMBERS, 0)), None),
        component=component_of(file.image_type, text(values, tags.COMPLEX_IMAGE_COMPONENT))
        if file.modality == "MR"
        else "",
        contrast=contrast_of(file.image_type),
        stack="",
        made=making(tuple(map(values.get, MADE))) if single else (),
        location=values.get(tags.SLICE_LOCATION) if single else None,
        order=(
            number(values, tags.TEMPORAL_POSITION_IDENTIFIER),
            number(values, tags.TRIGGER_TIME),
            number(values, tags.ACQUISITION_NUMBER),
            b_value_of(values, order),
            *(None,) * 6,  # see in_detail of same_place
            instance,
        ),
    )
    if tags.GE_CREATOR in values:
        first = replace(first, **_of_ge(first, values, order))
    if single:
        return [first]
    parts = _parts_of(file, values, order)
    return [
        replace(first, frame=at, stack=parts[at], order=(*first.order[:-1], numbered(instance, at)))
        for at in range(file.frames)
    ]


def _parts_of(file: ImageFile, values: Values, order: str) -> list[str]:
    """Which detector and energy window of nuclear medicine each frame is of; they are no time points of each other."""
    parts = [""] * file.frames
    for tag, what in ((tags.DETECTOR_VECTOR, "detector"), (tags.ENERGY_WINDOW_VECTOR, "window")):
        found = binary(values, tag, "H", order)
        if len(found) == file.frames and len(set(found)) > 1:
            parts = [f"{part} {what} {number}".strip() for part, number in zip(parts, found, strict=True)]
    return parts


def is_scaled(file: ImageFile, slope: float | None, intercept: float | None) -> bool:
    """Whether slope and intercept are stated; in PET the intercept is 0 by definition (PS3.3 C.8.9.1)."""
    return slope is not None and (intercept is not None or file.kind in PET)


@lru_cache(maxsize=4096)
def making(made: tuple[bytes | None, ...]) -> tuple[bytes | None, ...]:
    """How an image was made, as one object for all images that were made in the same way."""
    return made


def _of_ge(s: Slice, values: Values, order: str) -> dict[str, Any]:
    """What GE says of an MR image in private: which component it is, and whether it is a map made from others."""
    component, collapsed = binary(values, tags.GE_COMPONENT, "h", order), binary(values, tags.GE_COLLAPSED, "h", order)
    names = tuple(COMPONENTS)
    return {
        "component": names[component[0]] if component and component[0] in range(4) else s.component,
        "stack": "map" if collapsed == (2,) else s.stack,
    }


@lru_cache(maxsize=1024)
def unit_axes(axes: tuple[float, ...]) -> tuple[float, ...]:
    """Directions of a row and of a column, made exactly of length 1; refused if they are no such pair."""
    if not axes:
        return ()
    pair = np.reshape(axes, (2, 3))
    if not np.allclose(pair @ pair.T, np.eye(2), atol=1e-2):
        raise ScanError("expected ImageOrientationPatient to be two perpendicular unit vectors")
    return tuple((pair / np.linalg.norm(pair, axis=1, keepdims=True)).ravel().tolist())


def pixel_spacing(values: Values, order: str) -> tuple[float, ...]:
    """Distance of columns and of rows in mm; that of the patient before that of the detector or of the film."""
    for tag in (tags.PIXEL_SPACING, tags.IMAGER_PIXEL_SPACING, tags.NOMINAL_SCANNED_PIXEL_SPACING):
        found = numbers(values, tag, 2)
        if any(found):  # zeros stand for "unknown"
            if min(found) <= 0:
                raise ScanError(f"expected a positive distance of pixels in mm in {name_of(tag)}, got {list(found)}")
            return found[::-1]
    regions = values.get(tags.SEQUENCE_OF_ULTRASOUND_REGIONS) or []
    units = (tags.PHYSICAL_UNITS_X_DIRECTION, tags.PHYSICAL_UNITS_Y_DIRECTION)
    if len(regions) == 1 and all(binary(regions[0], unit, "H", order) == (3,) for unit in units):  # in cm
        x, y = (
            binary(regions[0], tags.PHYSICAL_DELTA_X, "d", order),
            binary(regions[0], tags.PHYSICAL_DELTA_Y, "d", order),
        )
        if x and y and x[0] and y[0]:
            return (abs(x[0]) * 10, abs(y[0]) * 10)
    return ()


def thickness(values: Values) -> float:
    """What stands for the distance of slices where there is one alone; 0 if unknown."""
    return abs(number(values, tags.SPACING_BETWEEN_SLICES) or number(values, tags.SLICE_THICKNESS) or 0.0)


def b_value_of(values: Values, order: str) -> float | None:
    """The b-value of a diffusion image in s/mm2, as the standard or a maker writes it; None if it is not said."""
    found = binary(values, tags.DIFFUSION_B_VALUE, "d", order)
    if found:
        return float(found[0])
    if tags.SIEMENS_CREATOR in values:
        return number(values, tags.SIEMENS_B_VALUE)
    if tags.GE_CREATOR in values:
        ge = numbers(values, tags.GE_B_VALUE, 0)
        return ge[0] % 100_000 if ge else None  # some versions add 10^9
    if tags.PHILIPS_IMAGING_CREATOR in values:
        philips = binary(values, tags.PHILIPS_B_VALUE, "f", order)
        return float(philips[0]) if philips else None
    return None


def clock(date: bytes, time: bytes, *, together: bool = False) -> float | None:
    """Seconds on the clock of a date and a time, or of both in one; None without a time of day."""
    moment = moment_of(date or b"19700101", time, together)
    if not isinstance(moment, datetime.datetime):
        return None
    day, microseconds = in_order(moment)
    return day * 86400 + microseconds / 1e6


@lru_cache(maxsize=1024)
def contrast_of(image_type: tuple[str, ...]) -> str:
    """The words of an Image Type that say what kind of picture it is, such as water or fat."""
    return "-".join(sorted(set(image_type[2:]) & _CONTRASTS)).lower()


@lru_cache(maxsize=1024)
def component_of(image_type: tuple[str, ...], complex_component: str) -> str:
    """Magnitude, phase, real or imaginary part of an MR image; empty if it is not said."""
    for word in (complex_component, *image_type[2:]):
        for name, words in COMPONENTS.items():
            if word in words or word.startswith(f"{name[0].upper()}_"):
                return name
    return ""


def numbered(instance: float | None, frame: int) -> float:
    """One number in the order of instances and, within each, of frames."""
    return (instance or 0.0) * 1e6 + frame

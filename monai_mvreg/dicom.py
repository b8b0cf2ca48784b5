"""One DICOM image series: its headers, its order in space, its values (what ``scans`` needs of DICOM)."""

from __future__ import annotations

import datetime
import filecmp
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.pixels import get_decoder

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_DATES = ("AcquisitionDateTime", "AcquisitionDate", "SeriesDate", "ContentDate", "StudyDate")
_PLANE = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames")
_TAGS = (
    *("Rows", "Columns", "BitsAllocated", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "Modality", "ImageType"),
    *("ImagePositionPatient", "ImageOrientationPatient", "SpacingBetweenSlices", "SliceThickness"),
    *("PhotometricInterpretation", "ModalityLUTSequence", *_DATES, *_PLANE, *_GROUPS),
)
_NATIVE = (pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian)
_SLICED = ("CT", "MR", "PT", "NM")  # images that are slices of a volume: useless without a position


@dataclass(frozen=True)
class Header:
    """One DICOM image without its pixels.

    ``axes`` ``(2, 3)`` are the directions of its row and its column, ``position`` ``(3,)`` is its first pixel, in mm of
    the patient (LPS); both are empty if unknown, as is ``spacing`` (x, y). ``refusal`` says why it is not read.
    """

    path: Path
    series: str
    image: str
    modality: str
    date: datetime.date | None
    shape: tuple[int, int]
    spacing: tuple[float, ...]
    thickness: float
    axes: Array
    position: Array
    refusal: str
    patient: str = field(repr=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom: its warnings may quote values, and it distrusts numbers longer than 16 characters."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@_quiet()
def read_header(path: Path) -> Header | str:
    """Read what a DICOM file says of its image, without pixels.

    Returns:
        The header, or one sentence if the file is no image.

    Raises:
        ValueError: if the file is an image and damaged; the message holds no value of it that could identify.
    """
    try:
        with path.open("rb") as file:
            tags = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
            rest = path.stat().st_size - file.tell()
        syntax, kind = tags.file_meta.TransferSyntaxUID, tags.file_meta.MediaStorageSOPClassUID.name
        if "Rows" not in tags and "Image Storage" not in kind:
            return f"a DICOM file without pixels ({kind})"
        shape, series = (int(tags.Columns), int(tags.Rows)), str(tags.SeriesInstanceUID)
        needed = shape[0] * shape[1] * int(tags.BitsAllocated) // 8
        photometric, frames = str(tags.PhotometricInterpretation), int(tags.get("NumberOfFrames") or 1)
        dates = [str(tags.get(name) or "").replace(".", "")[:8] for name in _DATES]
        text = {name: str(tags.get(name) or "").strip() for name in ("SOPInstanceUID", "Modality", "PatientID")}
        kinds = str(tags.get("ImageType") or "")
    except Exception as error:
        raise ValueError(f"damaged or incomplete DICOM header ({type(error).__name__})") from None
    rest = max(rest - (8 if syntax == pydicom.uid.ImplicitVRLittleEndian else 12), 0)  # tag and length of the pixels
    if syntax in _NATIVE and rest < needed:
        raise ValueError(f"truncated: expected {needed} bytes of pixels, got {rest}")
    spacing = next((s for s in (_numbers(tags, name, 2) for name in _PLANE) if s.size), np.zeros(0))
    axes, position = _numbers(tags, "ImageOrientationPatient", 6), _numbers(tags, "ImagePositionPatient", 3)
    depths = (_numbers(tags, name, 1) for name in ("SpacingBetweenSlices", "SliceThickness"))
    thickness = next((abs(float(depth[0])) for depth in depths if depth.any()), 1.0)
    axes = axes.reshape(-1, 3)
    if axes.size:
        if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2):
            raise ValueError("expected ImageOrientationPatient to be two perpendicular unit vectors")
        axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    if (spacing <= 0).any():
        raise ValueError(f"expected a positive pixel spacing in mm, got {spacing.tolist()}")
    refusal = ""
    if frames > 1 or any(name in tags for name in _GROUPS[:2]):
        refusal = f"multi-frame object of {frames} frames, which is not read: convert it to NIfTI"
    elif "MOSAIC" in kinds or "VFRAME" in kinds:
        refusal = "mosaic of many slices in one image, which is not read: convert it to NIfTI"
    elif photometric not in ("MONOCHROME1", "MONOCHROME2"):
        refusal = f"expected grey values, got {photometric}"
    elif "ModalityLUTSequence" in tags:
        refusal = "pixel values through a Modality LUT, which is not read"
    return Header(
        path=path,
        series=series,
        image=text["SOPInstanceUID"],
        modality=text["Modality"],
        date=next((day for day in map(_date, dates) if day), None),
        shape=shape,
        spacing=tuple(spacing.tolist()[::-1]),
        thickness=thickness,
        axes=axes,
        position=position,
        refusal=refusal,
        patient=text["PatientID"],
    )


def _date(text: str) -> datetime.date | None:
    """A real date from YYYYMMDD; de-identification writes 1900 or nothing."""
    try:
        day = datetime.datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None
    return day if day.year > 1900 else None


def _numbers(tags: Any, name: str, count: int) -> Array:
    """The numbers of a tag: ``(count,)``, or ``(0,)`` if it is absent or empty."""
    try:
        value = tags.get(name)
        numbers = np.zeros(0) if value is None else np.atleast_1d(np.asarray(value, dtype=np.float64))
    except Exception:
        numbers = np.full(1, np.nan)
    if numbers.shape not in ((0,), (count,)) or not np.isfinite(numbers).all():
        raise ValueError(f"expected {count} finite numbers in {name}")
    return numbers


def stack_slices(headers: Sequence[Header]) -> tuple[list[Header], Array | None]:
    """Order the images of one series along their normal.

    Returns:
        The images, without exact copies, and the affine ``(4, 4)`` from voxel to RAS in mm. It is None for images
        without any position, which are no stack: radiographs and photographs.

    Raises:
        ValueError: if the images are not one regular stack, with the files where it breaks.
    """
    for header in headers:
        if header.refusal:
            raise ValueError(f"{header.path.name}: {header.refusal}")
    images: dict[str, Header] = {}
    for header in headers:
        twin = images.setdefault(header.image or header.path.name, header)
        if twin is not header and not filecmp.cmp(twin.path, header.path, shallow=False):
            raise ValueError(f"{twin.path.name} and {header.path.name} differ but have the same SOPInstanceUID")
        if twin is not header:
            logger.warning("%s is a copy of %s and is not used", header.path.name, twin.path.name)
    stack = list(images.values())
    lost = [h for h in stack if not (h.position.size and h.axes.size)]
    if len(lost) == len(stack) and (len(stack) == 1 or stack[0].modality not in _SLICED):
        return stack, None
    if lost:
        raise ValueError(f"expected a position and orientation of every image, none in {_names(lost)}")
    if len(stack) > 1:
        stack = _regular(stack)
    return stack, _affine(stack)


def _regular(stack: list[Header]) -> list[Header]:
    """Sort two or more slices by position; refuse what is mixed, doubled, missing or uneven."""
    for what, values, tolerance in (
        ("matrix", [h.shape for h in stack], 0.0),
        ("orientation", [np.ravel(h.axes) for h in stack], 1e-3),
        ("pixel spacing", [h.spacing or (0.0, 0.0) for h in stack], 1e-3),
    ):
        table = np.asarray(values, dtype=np.float64)
        odd = np.abs(table - np.median(table, axis=0)).max(axis=1) > tolerance
        if odd.any():
            others = [stack[at] for at in np.flatnonzero(odd)]
            raise ValueError(f"expected one {what}, got another in {_names(others)}")
    if not stack[0].spacing:
        raise ValueError("expected PixelSpacing, got none")
    normal = np.cross(*stack[0].axes)
    stack = sorted(stack, key=lambda h: float(np.dot(h.position, normal)))
    origins = np.stack([h.position for h in stack])
    starts = np.flatnonzero(np.diff(origins @ normal, prepend=-np.inf) > 1e-3)
    counts = np.diff(starts, append=len(stack))
    if counts.max() > 1 and counts.min() == counts.max():
        raise ValueError(
            f"expected one image at each position, got {counts[0]}: several time points, echoes or b-values"
        )
    if counts.max() > 1:
        at = starts[counts.argmax()]
        raise ValueError(
            f"expected one image at each position, got {_names(stack[at : at + counts.max()])} at the same"
        )
    # Scanners that write one decimal have uneven gaps yet lie on a straight line of even steps.
    gaps = np.linalg.norm(np.diff(origins, axis=0), axis=1)
    index = np.arange(len(stack))
    slope, offset = np.polyfit(index, origins, 1)
    step = float(np.linalg.norm(slope))
    residual = np.linalg.norm(origins - np.outer(index, slope) - offset, axis=1)
    if residual.max() > max(0.02 * step, 0.06) or np.abs(gaps - step).max() > 0.35 * step:
        usual = float(np.median(gaps))
        unusual = np.abs(gaps - usual)
        at = int((unusual > 0.5 * unusual.max()).argmax())
        times = gaps[at] / usual
        missing = f": {times - 1:.0f} missing" if times > 1.5 and abs(times - round(times)) < 0.1 else ""
        where = " and ".join(f"{h.path.name} (at {np.dot(h.position, normal):.2f} mm)" for h in stack[at : at + 2])
        raise ValueError(f"expected slices every {usual:.3f} mm, got {gaps[at]:.3f} mm between {where}{missing}")
    return stack


def _affine(stack: Sequence[Header]) -> Array:
    """Voxel to RAS in mm; the step between slices is that of the positions, never a tag about thickness."""
    first, last = stack[0], stack[-1]
    row, column = first.axes
    step = np.cross(row, column) * first.thickness
    if len(stack) > 1:
        step = (last.position - first.position) / (len(stack) - 1)
    width, height = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * width, column * height, step, first.position])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@_quiet()
def read_pixels(header: Header) -> Array:
    """Values ``(rows, columns)`` of one DICOM image, rescaled by its own header, larger is brighter."""
    path, syntax = header.path, "unknown"
    try:
        image = pydicom.dcmread(path)
        syntax = image.file_meta.TransferSyntaxUID
        twelve_bit = syntax == pydicom.uid.JPEGExtended12Bit and image.BitsAllocated > 8
        if get_decoder(syntax).is_available and not twelve_bit:
            array = image.pixel_array.astype(np.float32)
            if image.PhotometricInterpretation == "MONOCHROME1":
                array = (-1.0 if image.PixelRepresentation else 2.0**image.BitsStored - 1) - array
            slope, intercept = image.get("RescaleSlope"), image.get("RescaleIntercept")
            array = array * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
        else:  # SimpleITK decodes JPEG lossless, JPEG-LS and 12 bit JPEG; it inverts and rescales by itself
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0].astype(np.float32)
    except Exception as error:
        raise ValueError(
            f"{path.name}: cannot decode its pixels, transfer syntax {syntax} ({type(error).__name__})"
        ) from None
    if array.shape != header.shape[::-1]:
        raise ValueError(f"{path.name}: expected {header.shape[::-1]} rows and columns, got {array.shape}")
    return np.asarray(array)


def _names(headers: Sequence[Header]) -> str:
    more = f" and {len(headers) - 5} more" if len(headers) > 5 else ""
    return ", ".join(header.path.name for header in headers[:5]) + more

"""One scan to an array in mm: it is read correctly, or refused with a sentence."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from monai_mvreg.scans.addresses import ScanAddress
from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.headers import PET, RT_DOSE, text
from monai_mvreg.scans.dicom.pixels import read_values
from monai_mvreg.scans.dicom.quantities import brightness, philips_precise, suv
from monai_mvreg.scans.dicom.slices import Slice
from monai_mvreg.scans.dicom.volumes import Stack, even_count
from monai_mvreg.scans.discovery import list_files
from monai_mvreg.scans.find import LeftOut, Scan, damaged_of, scans_of, sort_files
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_range
from monai_mvreg.scans.formats.nifti import Nifti, read_nifti
from monai_mvreg.scans.formats.raster import read_picture, read_volume

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Frame = int | Literal["mean"] | None


@dataclass(frozen=True)
class Choices:
    """How to read what a file leaves open; by default values stay as stored.

    Args:
        resample: interpolate unevenly spaced slices linearly to the smallest distance between two of them. A missing
            slice is still refused.
        padding: the value for pixels that the header calls padding (PixelPaddingValue), such as -1024 in CT.
        nonfinite: the value for NaN and infinity, which are otherwise refused.
        suv: PET as standardised uptake value by body weight, g/ml.
        philips_precise: Philips MR in its precise values instead of the displayed ones.
        brightness: what a display would show, 0 to 1, by the window or VOI LUT of the header.

    Raises:
        ScanError: if more than one of ``suv``, ``philips_precise`` and ``brightness`` is set.

    Example:
        >>> import tempfile, nibabel as nib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nib.save(nib.Nifti1Image(np.full((2, 2, 2), np.nan, np.float32), np.eye(4)), f"{folder}/a.nii")
        ...     float(read_scan(f"{folder}/a.nii", choices=Choices(nonfinite=0.0)).array.max())
        0.0
    """

    resample: bool = False
    padding: float | None = None
    nonfinite: float | None = None
    suv: bool = False
    philips_precise: bool = False
    brightness: bool = False

    def __post_init__(self) -> None:
        if self.suv + self.philips_precise + self.brightness > 1:
            raise ScanError("expected one of suv, philips_precise and brightness, got several")


AS_STORED = Choices()


@dataclass(frozen=True)
class ScanData:
    """A scan in memory.

    ``array`` is float32, ``(x, y[, z][, frames][, 3])``: columns, rows, slices, time points, colours; larger is
    brighter. ``affine`` ``(4, 4)`` maps voxels to RAS in mm and is None if the position in the patient is unknown.
    ``facts`` are what else is known: ``modality``, ``unit`` of the values, ``spacing`` in mm, ``tilt_degrees`` of the
    gantry (the affine is then sheared, and exact), ``inverted`` (it was MONOCHROME1), ``frames`` (labels of the time
    points), ``resampled``.

    Example:
        >>> data = read_scan("nifti/DEMO-001/2016-12-04.nii.gz")
        >>> data.array.shape, data.affine.diagonal().tolist()
        ((24, 24, 16), [4.0, 4.0, 4.0, 1.0])
    """

    array: Array
    affine: Array | None
    facts: dict[str, Any]


def read_scan(scan: Scan | str | Path, *, frame: Frame = None, choices: Choices = AS_STORED) -> ScanData:
    """Read a scan.

    Args:
        scan: one that :func:`~monai_mvreg.scans.find.find_scans` found, or the address of one.
        frame: the number of one time point, from 0, or ``"mean"`` over all; None keeps several time points on an axis
            after the spatial ones.
        choices: how to read what a file leaves open.

    Returns:
        The scan; its array is a view, not a copy: slices stay contiguous, as in the file.

    Raises:
        ScanError: if there is not exactly one scan at the address, or it cannot be read correctly.

    Example:
        >>> data = read_scan("patient/2015-03-23")
        >>> data.array.shape, data.facts["spacing"]
        ((24, 24, 16), (4.0, 4.0, 4.0))
    """
    return _read(scan, frame, choices, turned=False)


def read_turned(scan: Scan | str | Path, *, frame: Frame = None, choices: Choices = AS_STORED) -> ScanData:
    """Read a scan as :func:`read_scan` does, but into an array that is contiguous in the order of its axes."""
    data = _read(scan, frame, choices, turned=True)
    return replace(data, array=np.ascontiguousarray(data.array))


@np.errstate(over="ignore", invalid="ignore")  # what float32 cannot hold is refused with all that is not finite
def _read(scan: Scan | str | Path, frame: Frame, choices: Choices, *, turned: bool) -> ScanData:
    check_frame(frame)
    found = scan if isinstance(scan, Scan) else scan_at(str(scan), resample=choices.resample)
    name = Path(found.address).name
    if isinstance(frame, int) and not 0 <= frame < found.frames:
        raise ScanError(f"{name}: expected a time point from 0 to {found.frames - 1}, got {frame}")
    _refuse_bomb(found, frame, name)
    turned = turned and not found.colour and (found.frames == 1 or isinstance(frame, int))
    try:
        if isinstance(found.content, Stack):
            return _stack_data(found, found.content, frame, choices, turned)
        return _file_data(found, frame, choices, turned)
    except ScanError as error:
        message = str(error)
        raise ScanError(message if message.startswith(f"{name}: ") else f"{name}: {message}") from None


def check_frame(frame: Frame) -> None:
    """Refuse what is neither the number of a time point nor the mean of all.

    Raises:
        ScanError: if it is anything else.
    """
    if frame is not None and frame != "mean" and (not isinstance(frame, int) or isinstance(frame, bool)):
        raise ScanError(f"expected frame to be the number of a time point or 'mean', got {frame!r}")


def _refuse_bomb(scan: Scan, frame: Frame, name: str) -> None:
    """Refuse a small file that would unpack to fill the memory; a mask of bytes compresses 500 to 1."""
    values = math.prod(scan.shape) * (1 if isinstance(frame, int) else scan.frames) * (3 if scan.colour else 1)
    try:
        packed = sum(read_range(path, 0, 0)[1] for path in scan.files)
    except ScanError:
        return  # reading it will say which file is missing
    if 4 * values > max(2**30, 400 * packed):
        raise ScanError(f"{name}: {packed} bytes claim to unpack to {values} values: refused as a decompression bomb")


def scan_at(address: str, *, resample: bool = False) -> Scan:
    """Find the one scan at an address by reading only headers.

    Raises:
        ScanError: if there is none, more than one, or one that cannot be read right; all are named.
    """
    wanted = ScanAddress.parse(address)
    path, series = wanted.place, wanted.series
    files, refused_files = list_files(path)
    left_out = [LeftOut(where, reason) for where, reason in refused_files]
    alone = files == [str(path)]
    found = sort_files(files, series=series)
    if not alone:
        found.single.clear()  # files of other formats next to a DICOM series do not count
    scans, left = scans_of(found, left_out, resample=resample)
    scans += [item.scan for item in left if item.scan is not None]
    company = [*found.others, *found.ruins]
    refused = [item for item in left if item.scan is None and item not in company and item not in left_out]
    if wanted.key:
        scans = [scan for scan in scans if scan.series == series and wanted.volume in ("", scan.volume)]
        hurt = damaged_of(found, [file for scan in scans for file in scan.files])
        refused = [item for item in refused if not scans or item in hurt]
    if len(scans) == 1 and not refused:
        return scans[0]
    told = [_told(item, path) for item in (*found.damaged, *(item for item in refused if item not in found.damaged))]
    if len(scans) > 1 or (scans and refused):
        names = ", ".join(_within(scan, path) for scan in sorted(scans, key=lambda scan: scan.address))
        told.insert(0, f"expected one scan, got {len(scans) + len(refused)}: {names}; name one of them by its address")
    elif not told and not alone:
        told.append(f"expected {'series ...' + series[-12:] if series else 'a DICOM image series'}, found none")
    beside = [_told(item, path) for item in company]
    if alone:
        told += beside
    elif beside:
        more = f" and {len(beside) - 5} more" if len(beside) > 5 else ""
        told.append(f"no DICOM image: {', '.join(beside[:5])}{more}")
    raise ScanError(f"{path.name}: {'; '.join(told)}")


def _within(scan: Scan, place: Path) -> str:
    """The address of a scan below a place, with the end of its UID alone."""
    address = ScanAddress.parse(scan.address)
    if address.place == place and not address.key:
        return f"...{scan.key[-12:]}"
    home = place if address.place.is_relative_to(place) else place.parent  # a DICOMDIR names files next to it
    return address.relative_to(home).short


def _told(item: LeftOut, place: Path) -> str:
    return (
        item.reason if item.path == place or item.reason.startswith("series") else f"{item.path.name} ({item.reason})"
    )


def _stack_data(scan: Scan, stack: Stack, frame: Frame, choices: Choices, turned: bool) -> ScanData:
    first = stack.slices[0][0]
    kept = [stack.slices[frame]] if isinstance(frame, int) else list(stack.slices)
    if frame == "mean" and len(kept) > 1:
        total = np.zeros(0)
        for place in kept:
            values = _values(place, stack, choices, False)
            total = total + values if total.size else values.astype(np.float64)
        values = (total / len(kept)).astype(np.float32)[None]
    else:
        values = _values([s for place in kept for s in place], stack, choices, turned)
        values = values.reshape(len(kept), -1, *values.shape[1:]) if len(kept) > 1 else values[None]
    affine, spacing = stack.affine, scan.spacing
    if first.file.pixels.tag != tags.PIXEL_DATA:
        _fill_nonfinite(values, choices)
    if affine is not None and stack.heights:
        values, affine = _evened(values, np.array(stack.heights), affine)
        spacing = (*spacing[:2], float(np.linalg.norm(affine[:3, 2])))
    facts: dict[str, Any] = {
        **{"modality": scan.modality, "unit": _unit(first, choices), "spacing": spacing},
        **{"tilt_degrees": round(stack.tilt, 3), "inverted": first.file.pixels.photometric == "MONOCHROME1"},
        **{"frames": stack.labels, "resampled": bool(stack.heights)},
    }
    return ScanData(_arranged(values), affine, facts)


def _values(slices: Sequence[Slice], stack: Stack, choices: Choices, turned: bool) -> Array:
    if choices.philips_precise:
        slices = philips_precise(slices)
    if choices.suv:
        slices = suv(slices, [s for place in stack.slices for s in place])
    if not choices.brightness:
        return read_values(slices, padding=choices.padding, turned=turned)
    shown = []
    for s in slices:
        inverted = s.file.pixels.photometric == "MONOCHROME1"
        (value,) = read_values([s], padding=choices.padding, invert=False)
        shown.append(brightness(s, value, inverted=inverted))
    return np.stack(shown)


def _unit(s: Slice, choices: Choices) -> str:
    """Unit of the values as the header names it; empty if it does not."""
    if choices.brightness:
        return "1"
    if choices.suv:
        return "g/ml"
    if s.file.kind == RT_DOSE:
        return text(s.file.values, tags.DOSE_UNITS)
    if not s.scaled:  # the units of a header are those of the scaled values
        return text(s.file.values, tags.UNITS) if s.file.kind not in PET else ""
    named = text(s.file.values, tags.UNITS) or text(s.file.values, tags.RESCALE_TYPE)
    plain_ct = s.file.modality == "CT" and s.file.kind.endswith(".1.1.2")
    return named or ("HU" if plain_ct and not s.file.values.get(tags.MODALITY_LUT_SEQUENCE) else "")


def _evened(values: Array, heights: Array, affine: Array) -> tuple[Array, Array]:
    """Interpolate slices ``(t, z, y, x)`` at uneven heights to even ones, from the first to the last."""
    count = even_count(heights)
    wanted = np.linspace(heights[0], heights[-1], count)
    below = np.clip(np.searchsorted(heights, wanted, side="right") - 1, 0, len(heights) - 2)
    share = ((wanted - heights[below]) / (heights[below + 1] - heights[below])).astype(np.float32)
    share = share.reshape(1, -1, *(1,) * (values.ndim - 2))
    even = values[:, below] * (1 - share) + values[:, below + 1] * share
    affine = affine.copy()
    affine[:3, 2] *= (len(heights) - 1) / (count - 1)
    return even, affine


def _file_data(scan: Scan, frame: Frame, choices: Choices, turned: bool) -> ScanData:
    content = scan.content
    if choices.suv or choices.philips_precise or choices.brightness:
        raise ScanError(
            "expected a DICOM scan for suv, philips_precise or brightness: this file does not say what they need"
        )
    frames = [frame] if isinstance(frame, int) else list(range(scan.frames))
    if isinstance(content, Nifti):
        if not content.oriented:
            logger.warning(
                "%s: neither qform nor sform, x is taken to run to the left as in Analyze", content.path.name
            )
        values, affine = read_nifti(content, frames, turned=turned), content.affine
    elif isinstance(content, Stack):
        raise TypeError("expected a file that is no DICOM file")
    elif not content.spacing:  # a picture
        values, affine = np.stack([read_picture(content.path, at) for at in frames])[:, None], None
    else:
        if content.affine is None:
            logger.warning("%s: it does not say how it lies in the patient, so it has no affine", content.path.name)
        values, affine = read_volume(content.path)[frames], content.affine
    if values.ndim == (5 if scan.colour else 4) - 1:
        values = values[:, None]  # a picture: one slice
    if not (isinstance(content, Nifti) and content.kind.kind in "iu" and content.scale == (1.0, 0.0)):
        _fill_nonfinite(values, choices)
    if frame == "mean" and scan.frames > 1:
        values = values.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    facts: dict[str, Any] = {
        "modality": "",
        "unit": "",
        "spacing": scan.spacing,
        "tilt_degrees": 0.0,
        "inverted": False,
    }
    return ScanData(_arranged(values), affine, {**facts, "frames": (), "resampled": False})


def _fill_nonfinite(values: Array, choices: Choices) -> None:
    if bad := values.size - np.count_nonzero(np.isfinite(values)):
        if choices.nonfinite is None:
            raise ScanError(f"expected finite values, got {bad} that are NaN or infinite")
        values[~np.isfinite(values)] = choices.nonfinite


def _arranged(values: Array) -> Array:
    """``(t, z, y, x[, 3])`` to ``(x, y[, z][, t][, 3])``, as a view."""
    order = (3, 2, 1, 0, 4)[: values.ndim]
    array = values.transpose(order)
    dropped = tuple(axis for axis in (2, 3) if array.shape[axis] == 1)
    return array.squeeze(dropped) if dropped else array

"""A DICOM file to its slices: one of an ordinary image, many of a multi-frame object or of a mosaic."""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.elements import PIXEL_DATA, Values, read_elements, walk_on
from monai_mvreg.scans.dicom.headers import (
    NATIVE,
    NUCLEAR,
    PARAMETRIC_MAP,
    RT_DOSE,
    ImageFile,
    binary,
    image_file,
    number,
    numbers,
    pixel_format,
    text,
    words,
)
from monai_mvreg.scans.dicom.private_blocks import in_any_block
from monai_mvreg.scans.dicom.slices import (
    MADE,
    ORDER,
    Slice,
    clock,
    component_of,
    contrast_of,
    is_scaled,
    making,
    numbered,
    pixel_spacing,
    plain,
    thickness,
    unit_axes,
)
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_range

# A file is asked for everything that is named, but for what a quantity needs on demand.
_ON_DEMAND = {
    tags.PATIENT_WEIGHT,
    tags.VOI_LUT_SEQUENCE,
    tags.FRAME_VOI_LUT_SEQUENCE,
    tags.RADIOPHARMACEUTICAL_INFORMATION_SEQUENCE,
    *PIXEL_DATA,
}
_WANTED = in_any_block({tag: tag in tags.SEQUENCES for tag in tags.ALL if tag not in _ON_DEMAND})
_FRAME_TYPES = (
    tags.MR_IMAGE_FRAME_TYPE_SEQUENCE,
    tags.CT_IMAGE_FRAME_TYPE_SEQUENCE,
    tags.PARAMETRIC_MAP_FRAME_TYPE_SEQUENCE,
)
_NOTHING: Values = {}
_MADE_IN = {
    tags.CONVOLUTION_KERNEL: tags.CT_RECONSTRUCTION_SEQUENCE,
    tags.KVP: tags.CT_X_RAY_DETAILS_SEQUENCE,
    tags.RECEIVE_COIL_NAME: tags.MR_RECEIVE_COIL_SEQUENCE,
}

# Images of which group 0028 is the last that matters, unless they are mosaics or have several frames.
_ORDINARY = {
    f"1.2.840.10008.5.1.4.1.1.{tail}".encode()
    for tail in ("1", "1.1", "1.1.1", "1.2", "1.2.1", "2", "4", "6", "6.1", "7")
}


def _enough(values: Values) -> bool:
    """Whether the header may be left behind group 0028."""
    if tags.ROWS not in values:
        return True
    kind = values.get(tags.SOP_CLASS_UID, b"").rstrip(b"\0 ")
    return (
        kind in _ORDINARY
        and values.get(tags.NUMBER_OF_FRAMES, b"1").strip(b"\0 ") in (b"", b"1")
        and not any(word in values.get(tags.IMAGE_TYPE, b"") for word in (b"MOSAIC", b"VFRAME"))
        # What GE's MR images are stands in a private group further back.
        and not (kind.endswith(b".1.4") and values.get(tags.MANUFACTURER, b"").startswith(b"GE"))
    )


def read_slices(path: str, head: tuple[bytes, int]) -> list[Slice]:
    """Read the slices of a DICOM file from its header alone.

    Args:
        path: the file.
        head: its first bytes and its size, from :func:`~monai_mvreg.scans.dicom.elements.read_head`.

    Returns:
        At least one. Where they cannot be read, one whose ``file.refusal`` says why: its series is known all the same.

    Raises:
        NoImageError: if the file holds no image.
        ScanError: if it is damaged.
    """
    elements = read_elements(path, head, _WANTED, _enough)
    if elements.pixels < 0 and elements.values.get(tags.BITS_ALLOCATED, b"").strip(b"\0") == b"@":
        elements = walk_on(path, head, elements, _WANTED)  # 64 bits: only the element itself says that they are doubles
    form, start, length = pixel_format(elements), elements.pixels, elements.length
    if start < 0 and form.syntax in NATIVE:
        # The pixels of most files are their end. That they are is seen from the bytes before them.
        length = form.frame_bytes + form.frame_bytes % 2
        start = elements.size - length
        if start < 144 or not _is_pixel_head(
            head[0][start - 12 : start] or read_range(path, start - 12, 12)[0], length
        ):
            elements = walk_on(path, head, elements, _WANTED)
            form, start, length = pixel_format(elements), elements.pixels, elements.length
    file = image_file(path, elements, form, start, length)
    if not file.refusal:
        try:
            return _layout(file, elements.values)(file, elements.values, elements.order)
        except ScanError as error:
            file = replace(file, refusal=str(error))
    return [Slice(file, 0)]


def _is_pixel_head(head: bytes, length: int) -> bool:
    """Whether these 12 bytes end with the head of PixelData of that length, explicit or implicit."""
    sized = struct.pack("<I", length)
    return head in (b"\xe0\x7f\x10\x00OW\0\0" + sized, b"\xe0\x7f\x10\x00OB\0\0" + sized) or (
        head[4:] == b"\xe0\x7f\x10\x00" + sized
    )


def _layout(file: ImageFile, values: Values) -> Callable[[ImageFile, Values, str], list[Slice]]:
    if tags.PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE in values:
        return _functional_groups
    if file.kind == RT_DOSE:
        return _dose
    if file.kind == NUCLEAR and file.frames > 1 and any("RECON" in word for word in file.image_type):
        return _reconstructed
    if file.frames == 1 and "MOSAIC" in file.image_type:
        return _mosaic
    if file.frames == 1 and "VFRAME" in file.image_type and values.get(tags.UIH_CREATOR):
        return _uih_mosaic
    return plain


def _functional_groups(file: ImageFile, values: Values, order: str) -> list[Slice]:
    """An enhanced multi-frame object: what holds for a frame stands in its own groups, else in the shared ones."""
    frames = values[tags.PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE]
    shared = (values.get(tags.SHARED_FUNCTIONAL_GROUPS_SEQUENCE) or [{}])[0]
    if len(frames) != file.frames:
        raise ScanError(f"expected functional groups for {file.frames} frames, got {len(frames)}")
    units = {
        text((groups.get(tags.PIXEL_VALUE_TRANSFORMATION_SEQUENCE) or [_NOTHING])[0], tags.RESCALE_TYPE)
        for groups in (shared, *frames)
    } - {""}
    if len(units) == 1:
        file = replace(file, values={**file.values, tags.RESCALE_TYPE: units.pop().encode()})
    instance = number(values, tags.INSTANCE_NUMBER)
    slices = []
    for at, frame in enumerate(frames):

        def group(tag: int, frame: Values = frame) -> Values:
            items: list[Values] = frame.get(tag) or shared.get(tag) or [_NOTHING]
            return items[0]

        content, measures, rescale = (
            group(tags.FRAME_CONTENT_SEQUENCE),
            group(tags.PIXEL_MEASURES_SEQUENCE),
            group(tags.PIXEL_VALUE_TRANSFORMATION_SEQUENCE),
        )
        rescale = rescale or values  # some write it where ordinary images have it
        slope, intercept = number(rescale, tags.RESCALE_SLOPE), number(rescale, tags.RESCALE_INTERCEPT)
        if file.kind == PARAMETRIC_MAP and tags.REAL_WORLD_VALUE_MAPPING_SEQUENCE in {**shared, **frame}:
            real = group(tags.REAL_WORLD_VALUE_MAPPING_SEQUENCE)
            if tags.REAL_WORLD_VALUE_SLOPE not in real:
                raise ScanError("expected RealWorldValueSlope of a parametric map, got none (a table is not read)")
            slope = (binary(real, tags.REAL_WORLD_VALUE_SLOPE, "d", order) or (None,))[0]
            intercept = (binary(real, tags.REAL_WORLD_VALUE_INTERCEPT, "d", order) or (None,))[0]
        echo = binary(group(tags.MR_ECHO_SEQUENCE), tags.EFFECTIVE_ECHO_TIME, "d", order)
        frame_type = next((group(tag) for tag in _FRAME_TYPES if group(tag)), _NOTHING)
        segment = binary(group(tags.SEGMENT_IDENTIFICATION_SEQUENCE), tags.REFERENCED_SEGMENT_NUMBER, "H", order)
        time = binary(content, tags.TEMPORAL_POSITION_INDEX, "I", order)
        trigger = binary(
            group(tags.CARDIAC_SYNCHRONIZATION_SEQUENCE), tags.NOMINAL_CARDIAC_TRIGGER_DELAY_TIME, "d", order
        )
        place = binary(content, tags.IN_STACK_POSITION_NUMBER, "I", order)
        b_value = binary(group(tags.MR_DIFFUSION_SEQUENCE), tags.DIFFUSION_B_VALUE, "d", order)
        slices.append(
            Slice(
                file=file,
                frame=at,
                position=numbers(group(tags.PLANE_POSITION_SEQUENCE), tags.IMAGE_POSITION_PATIENT, 3),
                axes=unit_axes(numbers(group(tags.PLANE_ORIENTATION_SEQUENCE), tags.IMAGE_ORIENTATION_PATIENT, 6)),
                spacing=pixel_spacing(measures or values, order),
                thickness=thickness(measures),
                slope=1.0 if slope is None else slope,
                intercept=intercept or 0.0,
                scaled=is_scaled(file, slope, intercept),
                echo=echo[0] if echo else None,
                component=component_of(
                    words(frame_type, tags.FRAME_TYPE), text(frame_type, tags.COMPLEX_IMAGE_COMPONENT)
                ),
                contrast=contrast_of(words(frame_type, tags.FRAME_TYPE) or file.image_type),
                stack=f"segment {segment[0]}" if segment else text(content, tags.STACK_ID),
                made=making(tuple((group(_MADE_IN[tag]) if tag in _MADE_IN else _NOTHING).get(tag) for tag in MADE)),
                location=float(place[0]) if place else None,
                order=(
                    float(time[0]) if time else None,
                    trigger[0] if trigger else None,
                    None,
                    b_value[0] if b_value else None,
                    None,
                    None,
                    binary(content, tags.DIMENSION_INDEX_VALUES, "I", order) or None,
                    None,
                    clock(content.get(tags.FRAME_ACQUISITION_DATE_TIME, b""), b"", together=True),
                    None,
                    numbered(instance, at),
                ),
            )
        )
    _refuse_planes_without_place(slices, {**shared, **frames[0]}, values)
    return slices


def _refuse_planes_without_place(slices: list[Slice], groups: Values, values: Values) -> None:
    """Refuse several frames that lie nowhere, unless a clock says that they are time points."""
    if len(slices) < 2 or any(s.position for s in slices):
        return
    clocks = [ORDER.index(name) for name in ("temporal position", "trigger time", "acquisition time")]
    timed = any(None not in (kinds := {s.order[at] for s in slices}) and len(kinds) == len(slices) for at in clocks)
    cine = any(tag in values for tag in (tags.FRAME_TIME, tags.FRAME_TIME_VECTOR))
    if tags.PLANE_POSITION_VOLUME_SEQUENCE in groups:
        raise ScanError(f"expected positions in the patient, got {len(slices)} planes in coordinates of a transducer")
    if not timed and (slices[0].file.sliced or not cine):
        raise ScanError(f"expected a position or a time of each frame, got {len(slices)} frames with neither")


def _dose(file: ImageFile, values: Values, order: str) -> list[Slice]:
    """A dose grid: its planes lie where Grid Frame Offset Vector says, its values are scaled to Gy (PS3.3 C.8.8.3)."""
    scale = number(values, tags.DOSE_GRID_SCALING)
    if scale is None:
        raise ScanError("expected DoseGridScaling of a dose grid, got none")
    (first,) = plain(replace(file, frames=1), values, order)
    first = replace(first, file=file, slope=scale, intercept=0.0)
    offsets = numbers(values, tags.GRID_FRAME_OFFSET_VECTOR, 0)
    if file.frames == 1 and not offsets:
        return [first]
    if len(offsets) != file.frames or not (first.position and first.axes):
        raise ScanError(f"expected GridFrameOffsetVector and a position for {file.frames} planes, got {len(offsets)}")
    origin, normal = np.array(first.position), np.cross(first.axes[:3], first.axes[3:])
    # Offsets are from the first plane, or (an older form, for transverse planes alone) heights in the patient.
    steps = np.array(offsets)
    if steps[0] != 0 and abs(steps[0] - origin[2]) < 1e-3 and abs(normal[2]) > 0.999:
        steps, normal = steps - steps[0], np.array([0.0, 0.0, 1.0])
    if steps[0] != 0:
        raise ScanError("expected GridFrameOffsetVector to begin with 0 or with the height of the first plane")
    return [
        replace(first, frame=at, position=tuple((origin + step * normal).tolist())) for at, step in enumerate(steps)
    ]


def _reconstructed(file: ImageFile, values: Values, order: str) -> list[Slice]:
    """A reconstructed tomogram of nuclear medicine: its slices follow each other from the detector's position."""
    detector, step = (
        (values.get(tags.DETECTOR_INFORMATION_SEQUENCE) or [_NOTHING])[0],
        number(values, tags.SPACING_BETWEEN_SLICES),
    )
    place = {
        tag: detector.get(tag, values.get(tag)) for tag in (tags.IMAGE_POSITION_PATIENT, tags.IMAGE_ORIENTATION_PATIENT)
    }
    origin, axes = (
        numbers(place, tags.IMAGE_POSITION_PATIENT, 3),
        unit_axes(numbers(place, tags.IMAGE_ORIENTATION_PATIENT, 6)),
    )
    slots = binary(values, tags.SLICE_VECTOR, "H", order)
    slices = plain(file, values, order)
    if not (origin and axes and step) or sorted(slots) != list(range(1, file.frames + 1)):
        raise ScanError(
            "expected a reconstructed tomogram of one time and energy, with the position of its detector, "
            "SpacingBetweenSlices and a SliceVector that counts its frames"
        )
    normal = np.cross(axes[:3], axes[3:]) * step
    places = [tuple((np.array(origin) + (slot - 1) * normal).tolist()) for slot in slots]
    return [replace(s, position=place, axes=axes) for s, place in zip(slices, places, strict=True)]


@cache
def _csa_reader() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its DICOM part experimental; the parser of this header is not
        from nibabel.nicom import csareader
    return csareader


def _mosaic(file: ImageFile, values: Values, order: str) -> list[Slice]:
    """A Siemens mosaic: the slices of a volume as tiles of one picture, described in a private header."""
    csareader = _csa_reader()
    try:
        header = csareader.read(values.get(tags.SIEMENS_IMAGE_HEADER) or b"")
        count = int(csareader.get_n_mosaic(header) or number(values, tags.SIEMENS_MOSAIC_COUNT) or 0)
        normal = csareader.get_slice_normal(header)
    except Exception:  # the parser trusts the header, and fails in many ways where that is damaged
        count, normal = 0, None
    ((first,), step) = plain(file, values, order), number(values, tags.SPACING_BETWEEN_SLICES)
    if count < 1 or normal is None or not (first.position and first.axes and first.spacing) or not step:
        raise ScanError("a mosaic of many slices in one image without the private header that says which is where")
    beside = math.isqrt(count - 1) + 1
    file = _tiled(file, beside, beside)
    (width, height), (rows, columns) = file.shape, (file.pixels.rows, file.pixels.columns)
    # The position is that of a slice as large as the mosaic, around the same centre.
    row, column = np.array(first.axes[:3]) * first.spacing[0], np.array(first.axes[3:]) * first.spacing[1]
    corner = np.array(first.position) + row * (columns - width) / 2 + column * (rows - height) / 2
    steps = np.asarray(normal, dtype=float) * abs(step)
    return [replace(first, file=file, frame=at, position=tuple((corner + at * steps).tolist())) for at in range(count)]


def _uih_mosaic(file: ImageFile, values: Values, order: str) -> list[Slice]:
    """A mosaic of United Imaging, which states the position of each slice."""
    items = values.get(tags.UIH_MOSAIC_SEQUENCE) or []
    count = int(number(values, tags.UIH_MOSAIC_COUNT) or 0)
    (first,) = plain(file, values, order)
    places = [numbers(item, tags.IMAGE_POSITION_PATIENT, 3) for item in items]
    if count < 1 or len(items) != count or not all(places) or not (first.axes and first.spacing):
        raise ScanError("a mosaic of many slices in one image without the private header that says which is where")
    beside = math.isqrt(count - 1) + 1
    file = _tiled(file, beside, -(-count // beside))
    return [replace(first, file=file, frame=at, position=place) for at, place in enumerate(places)]


def _tiled(file: ImageFile, beside: int, below: int) -> ImageFile:
    rows, columns = file.pixels.rows, file.pixels.columns
    if rows % below or columns % beside:
        raise ScanError(f"expected a mosaic of {beside} x {below} equal tiles, got {columns} x {rows} pixels")
    return replace(file, tiles=(beside, below))

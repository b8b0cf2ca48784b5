"""Slices of one series to stacks: which of them form one volume, in what order, and whether they fill it evenly.

Nothing is merged that differs, nothing is dropped, nothing is averaged: a stack is regular or refused with the place
where it is not. The limits stand far from both sides: of 162 real stacks, the gaps between slices agree to 0.1 % in 158
and differ by 75 % or more in the four that are truly broken.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.headers import RT_DOSE, ImageFile, text
from monai_mvreg.scans.dicom.same_place import (
    TIMES,
    by_making,
    clusters,
    fill_places,
    in_order_of,
    listed,
    location_of,
    name_of_slice,
)
from monai_mvreg.scans.dicom.slices import Slice
from monai_mvreg.scans.formats.byte_ranges import ScanError

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_SAME = 2e-4  # directions, relative pixel distances: what is nearer than this differs by how it was written


@dataclass(frozen=True)
class Stack:
    """One volume, or one image: ``slices[t][z]``, along the normal of the slices and in time.

    ``affine`` maps voxels to RAS in mm, and is None if the place in the patient is unknown; ``tilt`` is the angle in
    degrees between the step from slice to slice and the normal. ``heights`` of the slices along the normal in mm are
    given for a stack that is not even, and has to be resampled. ``name`` tells it from other stacks of its series.
    """

    name: str
    slices: tuple[tuple[Slice, ...], ...]
    affine: Array | None
    tilt: float
    heights: tuple[float, ...]
    labels: tuple[str, ...]

    @property
    def timed(self) -> bool:
        """Whether its frames are time points by a clock, or by an order of acquisition."""
        return self.labels[0].startswith(TIMES) if self.labels else self.slices[0][0].file.cine


def find_stacks(slices: Sequence[Slice], *, resample: bool = False) -> list[Stack | ScanError]:
    """Find the stacks of one series.

    Args:
        slices: every slice with one SeriesInstanceUID, each once.
        resample: accept slices at uneven distances (not a missing one): they are to be interpolated.

    Returns:
        The stacks, each with a name of its own if there are several, and in place of one that is refused the reason.

    Raises:
        ScanError: if an image of the series cannot be read, or belongs to no stack: then none of them can be trusted.
    """
    groups: list[Sequence[Slice]] = []
    alone: dict[str, list[Slice]] = defaultdict(list)
    rest: list[Slice] = []
    for s in slices:
        if s.file.flat or not (s.position or s.file.sliced):
            alone[f"{s.file.path} {s.stack}"].append(s)
        elif s.file.refusal:
            raise ScanError(f"{name_of_slice(s)}: {s.file.refusal}")
        else:
            rest.append(s)
    if rest:
        groups += _grouped(rest)
    groups += alone.values()
    stacks: list[Stack | ScanError] = []
    for name, group in zip(_stack_names(groups), groups, strict=True):
        try:
            if group[0].file.refusal:
                raise ScanError(f"{name_of_slice(group[0])}: {group[0].file.refusal}")
            stacks.append(_arranged(name, group, resample))
        except ScanError as error:
            stacks.append(ScanError(f"{name}: {error}" if name else str(error)))
    return stacks


def _grouped(slices: list[Slice]) -> list[Sequence[Slice]]:
    """Part the slices of a series by what no volume may mix."""
    lost = [s for s in slices if not (s.position and s.axes)]
    if lost:
        if len(lost) == len(slices) and len({s.file.path for s in slices}) == 1:
            return [slices]
        raise ScanError(f"expected a position and orientation of every image, none in {listed(lost)}")
    near_axes, near_spacing = _nearest(s.axes for s in slices), _nearest(s.spacing for s in slices)
    near_echo = clusters((s.echo for s in slices), 1e-3)
    parts: dict[tuple[Any, ...], list[Slice]] = defaultdict(list)
    for s in slices:
        made = (s.file.shape, near_axes[s.axes], near_spacing[s.spacing], s.file.pixels.photometric)
        seen = (
            s.file.modality,
            s.file.kind,
            s.file.space,
            _unit_of(s.file),
            s.file.path if s.file.kind == RT_DOSE else "",
        )
        differs = (_number(s.file.series_number), near_echo[s.echo], s.echo_number, s.component, s.contrast, s.stack)
        parts[(*made, *seen, *differs)].append(s)
    _warn_of_spaces(list(parts.values()))
    _refuse_odd_ones(list(parts.values()))
    return [part for group in parts.values() for same in by_making(group) for part in _by_image_type(same)]


def _number(text: str) -> float | str:
    """A number that may be written in several ways."""
    try:
        return float(text)
    except ValueError:
        return text


def _warn_of_spaces(parts: list[list[Slice]]) -> None:
    """Say once that images that look like slices of one volume have one frame of reference each."""
    single = [part[0] for part in parts if len(part) == 1]
    spaces = {s.file.space for s in single}
    if len(spaces) > 1 and len(spaces) == len(single) and len({s.position for s in single}) > 1:
        logger.warning(
            "%s: %d images of one series have a FrameOfReferenceUID each, so they are separate scans",
            name_of_slice(single[0]),
            len(single),
        )


def _unit_of(file: ImageFile) -> str:
    return text(file.values, tags.UNITS) or text(file.values, tags.RESCALE_TYPE)


def _nearest(found: Iterable[tuple[float, ...]]) -> dict[tuple[float, ...], tuple[float, ...]]:
    """Map each tuple of numbers to the first one that it equals but for rounding."""
    first: dict[tuple[float, ...], tuple[float, ...]] = {}
    for numbers in found:
        if numbers not in first:
            if len(first) > 1000:
                raise ScanError("expected slices of a few orientations and pixel spacings, got more than 1000 of them")
            first[numbers] = next((other for other in set(first.values()) if _alike(other, numbers)), numbers)
    return first


def _refuse_odd_ones(parts: list[list[Slice]]) -> None:
    """Refuse a few slices that lie among the others of a volume and differ in how they are made, by name."""
    main = max(parts, key=len)
    if len(main) < 3:
        return
    normal, heights = _heights(main)
    margin = 1.5 * float(np.median(np.diff(np.unique(heights.round(3))))) if np.ptp(heights) > 0 else 0.0
    for part in parts:
        first = part[0]
        if part is main or len(part) > max(1, 0.1 * len(main)):
            continue
        differs = [
            what
            for what, one, other in (
                ("matrix", main[0].file.shape, first.file.shape),
                ("orientation", main[0].axes, first.axes),
                ("pixel spacing", main[0].spacing, first.spacing),
                ("photometric interpretation", main[0].file.pixels.photometric, first.file.pixels.photometric),
            )
            if not _alike(one, other)
        ]
        parallel = abs(float(np.dot(normal, _normal(first)))) > 0.9
        places = np.array([s.position for s in part]) @ normal
        among = ((places > heights.min() - margin) & (places < heights.max() + margin)).all()
        if differs and parallel and among:
            raise ScanError(f"expected one {' and '.join(differs)}, got another in {listed(part)}")


def _alike(one: Any, other: Any) -> bool:
    """Whether two texts are equal, or two tuples of numbers but for rounding."""
    if isinstance(one, str):
        return bool(one == other)
    return len(one) == len(other) and all(abs(a - b) < _SAME for a, b in zip(one, other, strict=True))


def _by_image_type(slices: list[Slice]) -> list[Sequence[Slice]]:
    """Part images that share their places and differ in type, such as water and fat, if each type fills all places."""
    types: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    for s in slices:
        types[s.file.image_type].append(s)
    if len(types) == 1:
        return [slices]
    return list(types.values()) if fill_places(list(types.values())) else [slices]


def _stack_names(groups: Sequence[Sequence[Slice]]) -> list[str]:
    """Name each stack by what tells it from the others; nothing if it is alone."""
    if len(groups) == 1:
        return [""]
    tellers: tuple[Callable[[Slice], str], ...] = (
        _plane,
        lambda s: s.component,
        lambda s: s.contrast,
        lambda s: "" if s.echo is None else f"echo-{s.echo:g}",
        lambda s: "" if s.echo_number is None else f"echo-number-{s.echo_number:g}",
        lambda s: f"stack-{s.stack}" if s.stack.isdigit() else s.stack,
        lambda s: f"{s.file.shape[0]}x{s.file.shape[1]}",
        lambda s: "-".join(f"{distance:g}mm" for distance in s.spacing[:1]),
        lambda s: f"number-{s.file.series_number}",
        lambda s: s.file.modality,
        lambda s: _unit_of(s.file),
    )
    firsts = [group[0] for group in groups]
    words = [[tell(first) for first in firsts] for tell in tellers]
    types = [set(first.file.image_type) for first in firsts]
    common = set.intersection(*types)
    words.append(["-".join(w for w in first.file.image_type if w not in common) for first in firsts])
    rows: list[tuple[str, ...]] = [()] * len(groups)
    for column in words:  # as few words as tell them apart
        longer = [(*row, word) for row, word in zip(rows, column, strict=True)]
        if len(set(longer)) > len(set(rows)):
            rows = longer
    names = [re.sub(r"[^a-z0-9.]+", "-", "-".join(filter(None, row)).lower()) or "image" for row in rows]
    counted: Counter[str] = Counter()
    unique = []
    for name in names:
        counted[name] += 1
        unique.append(f"{name}-{counted[name]}" if names.count(name) > 1 else name)
    return unique


def _arranged(name: str, slices: Sequence[Slice], resample: bool) -> Stack:
    """Order the slices of one stack in space and time, and check that they fill it evenly."""
    first = slices[0]
    if not (first.position and first.axes and first.spacing):
        if len(slices) > 1 and first.position:
            raise ScanError("expected PixelSpacing, got none")
        return Stack(name, tuple((s,) for s in slices), None, 0.0, (), ())
    normal, heights = _heights(slices)
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[at] for at in order], heights[order]
    gaps = np.diff(heights)
    apart = gaps[gaps > 1e-3]
    same = max(1e-3, 0.02 * float(np.median(apart))) if apart.size else np.inf
    starts = np.flatnonzero(np.concatenate([[True], gaps > same]))
    places = [slices[start:stop] for start, stop in zip(starts, [*starts[1:], len(slices)], strict=True)]
    for place in filter(lambda place: len(place) > 1, places):
        spread = np.ptp([s.position for s in place], axis=0).max()
        if spread > max(same if np.isfinite(same) else 0.0, 0.1):
            raise ScanError(f"expected one slice at each height, got {listed(place)} beside each other")
        said = [location for s in place if (location := location_of(s)) is not None]
        if len(said) > 1 and max(said) - min(said) > 0.1:
            raise ScanError(
                f"expected one position of images with one SliceLocation, got {min(said):g} to {max(said):g} at "
                f"{_height(place[0], normal)}: {listed(place)}"
            )
    counts = [len(place) for place in places]
    usual = max(set(counts), key=counts.count)
    for place, count in zip(places, counts, strict=True):
        if count != usual:
            raise ScanError(
                f"expected {usual} image{'s' * (usual > 1)} at each position, got {count} at "
                f"{_height(place[0], normal)}: {listed(place)}"
            )
    _refuse_mixed_scales(slices)
    labels: tuple[str, ...] = ()
    if usual > 1:
        places, labels = in_order_of(places)
    line = [place[0] for place in places]
    even = _regular(line, normal, resample)
    affine, tilt = _affine(line, normal)
    level = tuple((np.array([s.position for s in line]) @ normal).tolist())
    return Stack(name, tuple(zip(*places, strict=True)), affine, tilt, () if even else level, labels)


def _refuse_mixed_scales(slices: Sequence[Slice]) -> None:
    """Refuse a volume in which some images state a scale other than 1 and others state none."""
    bare = [s for s in slices if not s.scaled]
    if bare and any(s.scaled and (s.slope, s.intercept) != (1.0, 0.0) for s in slices):
        raise ScanError(f"expected RescaleSlope and RescaleIntercept of every image, lacking in {listed(bare)}")


def _regular(line: list[Slice], normal: Array, resample: bool) -> bool:
    """Whether slices are even; refuse those that are not, unless they are to be resampled and none is missing."""
    if len(line) < 3:
        return True
    # Scanners that write one decimal have uneven gaps, yet their slices lie on a straight line of even steps.
    origins = np.array([s.position for s in line])
    index = np.arange(len(line))
    slope, offset = np.polyfit(index, origins, 1)
    step = float(np.linalg.norm(slope))
    gaps = np.linalg.norm(np.diff(origins, axis=0), axis=1)
    residual = np.linalg.norm(origins - np.outer(index, slope) - offset, axis=1)
    if residual.max() <= max(0.02 * step, min(0.06, 0.2 * step)) and np.abs(gaps - step).max() <= 0.35 * step:
        return True
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    unusual = np.abs(gaps - usual)
    at = int((unusual > 0.5 * unusual.max()).argmax())
    narrow = gaps[gaps < 1.5 * gaps.min()]  # where more than half of the slices are lost, most gaps are wide
    times = gaps / (float(np.median(narrow)) if len(narrow) >= 0.25 * len(gaps) else usual)
    whole = (np.abs(times - times.round()) < 0.1) & (times > 1.5)
    missing = int((times.round() - 1)[whole].sum())
    # A scanner's plan has two distances in two or three blocks, the wider one in more than a few gaps. Other gaps of
    # whole steps are slices that got lost.
    borders = np.flatnonzero(np.diff(times.round())) + 1
    blocks = np.diff([0, *borders, len(gaps)])
    planned = len(blocks) <= 3 and blocks.min() > 1 and whole.sum() > max(1, 0.1 * len(gaps))
    lost = bool(missing) and not planned and bool((whole | (np.abs(times - 1) < 0.1)).all())
    if resample and not lost:
        even_count(origins @ normal)
        straight = np.linalg.norm(np.cross(origins - origins[0], _unit(origins[-1] - origins[0])), axis=1).max()
        if straight <= max(0.02 * usual, 0.06):
            return False
    where = " and ".join(f"{name_of_slice(s)} (at {_height(s, normal)})" for s in line[at : at + 2])
    raise ScanError(
        f"expected slices every {usual:.3f} mm, got {gaps[at]:.3f} mm between {where}"
        + (f": {missing} missing" if lost else " (resample interpolates)")
    )


def even_count(heights: Sequence[float] | Array) -> int:
    """How many slices at even distances replace those at uneven heights: the smallest distance is kept.

    Raises:
        ScanError: if they are more than ten times as many.
    """
    gaps = np.diff(heights)
    count = round(float(gaps.sum() / gaps.min())) + 1
    if count > 10 * len(heights):
        raise ScanError(f"expected slices that some more can even out, got {len(heights)} that would need {count}")
    return count


def _affine(line: Sequence[Slice], normal: Array) -> tuple[Array, float]:
    """Voxel to RAS in mm, and the angle of the step; the step is that of the positions, never a thickness."""
    first, last = line[0], line[-1]
    step = normal * (first.thickness or 1.0)
    if len(line) > 1:
        step = (np.array(last.position) - first.position) / (len(line) - 1)
    cosine = float(np.dot(_unit(step), normal))
    row, column = np.array(first.axes[:3]), np.array(first.axes[3:])
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * first.spacing[0], column * first.spacing[1], step, first.position])
    angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, angle if angle > 0.1 else 0.0


def _normal(s: Slice) -> Array:
    return _unit(np.cross(s.axes[:3], s.axes[3:]))


def _heights(slices: Sequence[Slice]) -> tuple[Array, Array]:
    """The normal of the first slice, and how far along it each slice lies, in mm."""
    normal = _normal(slices[0])
    return normal, np.array([s.position for s in slices]) @ normal


def _unit(vector: Array) -> Array:
    return np.asarray(vector / np.linalg.norm(vector))


def _plane(s: Slice) -> str:
    return ("sagittal", "coronal", "axial")[int(np.abs(_normal(s)).argmax())] if s.axes else ""


def _height(s: Slice, normal: Array) -> str:
    return f"{float(np.dot(s.position, normal)):.2f} mm"

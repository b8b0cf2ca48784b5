"""Several images at each position of a stack -> separate volumes by how they were made, or frames in an order.

Two reconstructions of one acquisition are no time points. What differs in how it was made is parted; what is left is
put in order by the first attribute that tells images apart in the same way at all positions.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.elements import read_elements, read_head
from monai_mvreg.scans.dicom.headers import name_of, number, text
from monai_mvreg.scans.dicom.private_blocks import in_any_block
from monai_mvreg.scans.dicom.slices import MADE, ORDER, Slice, b_value_of, clock
from monai_mvreg.scans.formats.byte_ranges import ScanError

logger = logging.getLogger(__name__)

TIMES = ("temporal position", "trigger time", "acquisition number", "frame reference time", "acquisition time")
# Clocks and numbers that may differ from position to position: only their order counts.
_AT_EACH = ("trigger time", *ORDER[-4:])
_NEVER_MIXED = MADE[:4]
_PARTING = MADE[:-4]
_MR = "1.2.840.10008.5.1.4.1.1.4"
# Makers whose b-values stand where the first look at a header finds them.
_IN_FRONT = ("siemens", "toshiba", "canon", "hitachi", "uih", "united")
_BEHIND = in_any_block(
    dict.fromkeys((tags.GE_B_VALUE, tags.PHILIPS_B_VALUE, tags.PHILIPS_DIRECTION, tags.FRAME_REFERENCE_TIME), False)
)


def clusters(found: Iterable[float | None], tolerance: float) -> dict[float | None, float | None]:
    """Map each number to the least of those that it equals but for how it was written.

    Args:
        found: the numbers; None stays None.
        tolerance: how far apart two neighbours may lie that are one, absolutely and relatively.

    Example:
        >>> clusters([2.4125001, 2.4124999, 4.9], 1e-3)
        {None: None, 2.4124999: 2.4124999, 2.4125001: 2.4124999, 4.9: 4.9}
    """
    same: dict[float | None, float | None] = {None: None}
    least = last = None
    for value in sorted({value for value in found if value is not None}):
        if least is None or last is None or value - last > tolerance * max(1.0, abs(last)):
            least = value
        same[value], last = least, value
    return same


def by_making(slices: list[Slice]) -> list[list[Slice]]:
    """Part images that share their places by how they were made.

    Raises:
        ScanError: if they differ at a place in a kernel, filter, voltage or coil, and not in the same way everywhere.
    """
    if not _share_places(slices):
        return [slices]
    parts: dict[str, list[Slice]] = defaultdict(list)
    for s in map(in_detail, slices):
        parts[s.contrast].append(s)
    done = list(parts.values())
    for at, tag in enumerate(_PARTING):
        done = [part for group in done for part in _parted(group, at, tag)]
    return done


def _share_places(slices: Sequence[Slice]) -> bool:
    """Whether two images lie at one place, but for rounding."""
    positions = np.array([s.position for s in slices])
    if len(slices) < 2 or len({s.position for s in slices}) < len(slices):
        return len(slices) > 1
    spread = positions[:, int(np.ptp(positions, axis=0).argmax())]
    gaps = np.diff(np.sort(spread))
    return bool((gaps <= max(1e-3, 0.02 * float(np.median(gaps)))).any())


def _parted(slices: list[Slice], at: int, tag: int) -> list[list[Slice]]:
    """Part images by one attribute, if each of its values fills all places."""
    written = {s.made[at] if at < len(s.made) else None for s in slices}
    if len(written) == 1:
        return [slices]
    shown = {value: _words_of(value) for value in written}
    numeric = clusters((value for value in shown.values() if isinstance(value, float)), 1e-3)
    key = {raw: numeric[value] if isinstance(value, float) else value for raw, value in shown.items()}
    parts: dict[Any, list[Slice]] = defaultdict(list)
    for s in slices:
        parts[key[s.made[at] if at < len(s.made) else None]].append(s)
    if len(parts) == 1:
        return [slices]
    if fill_places(list(parts.values())):
        named = tag not in (tags.SERIES_DESCRIPTION, tags.PROTOCOL_NAME)  # which people write
        return [
            [replace(s, contrast=f"{s.contrast} {_label(value)}".strip()) for s in part] if named else part
            for value, part in parts.items()
        ]
    if tag in _NEVER_MIXED and any(_share_places([*one, *other]) for one, other in _pairs(list(parts.values()))):
        values = " and ".join(sorted(_label(value) or "none" for value in parts))
        raise ScanError(f"expected one {name_of(tag)} at each position, got {values} in {listed(slices)}")
    return [slices]


def _pairs(parts: list[list[Slice]]) -> Iterable[tuple[list[Slice], list[Slice]]]:
    """Parts of which some images may lie at one place, each made of images at different places."""
    for number_of, one in enumerate(parts):
        for other in parts[number_of + 1 :]:
            if {s.position for s in one} & {s.position for s in other}:
                yield one, other


def _words_of(value: bytes | None) -> float | str:
    written = text({0: value or b""}, 0)
    try:
        return float(written)
    except ValueError:
        return written


def _label(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else value.lower()


def fill_places(parts: Sequence[Sequence[Slice]]) -> bool:
    """Whether parts of a stack lie at the same places, each with one number of images at all of them."""
    positions = np.array([s.position for part in parts for s in part])
    axis = int(np.ptp(positions, axis=0).argmax())
    same = clusters((float(s.position[axis]) for part in parts for s in part), 1e-2)
    counted = [Counter(same[float(s.position[axis])] for s in part) for part in parts]
    return all(set(part) == set(counted[0]) and len(set(part.values())) == 1 for part in counted)


def location_of(s: Slice) -> float | None:
    """Where the header says again that a slice lies; None if it does not say so in a number."""
    if isinstance(s.location, bytes):
        try:
            return number({tags.SLICE_LOCATION: s.location}, tags.SLICE_LOCATION)
        except ScanError:
            return None
    return s.location


def in_detail(s: Slice) -> Slice:
    """Add what else tells apart images at one place, where there are several; a file is read again only for MR."""
    if s.file.frames > 1 or s.file.tiles != (1, 1):
        return s
    known = dict(zip(ORDER, s.order, strict=True))
    made, dates = dict(zip(MADE, s.made, strict=True)), s.file.values
    for name, tag in (
        ("flip angle", tags.FLIP_ANGLE),
        ("inversion time", tags.INVERSION_TIME),
        ("frame reference time", tags.FRAME_REFERENCE_TIME),
    ):
        known[name] = number(made, tag)
    known["acquisition time"] = clock(dates.get(tags.ACQUISITION_DATE, b""), dates.get(tags.ACQUISITION_TIME, b""))
    known["content time"] = clock(dates.get(tags.CONTENT_DATE, b""), dates.get(tags.CONTENT_TIME, b""))
    mean = False
    if s.file.kind == _MR and not text(made, tags.MANUFACTURER).lower().startswith(_IN_FRONT):
        elements = read_elements(s.file.path, read_head(s.file.path), _BEHIND)
        values = elements.values
        if known["b-value"] is None:
            known["b-value"] = b_value_of(values, elements.order)
        if known["frame reference time"] is None:
            known["frame reference time"] = number(values, tags.FRAME_REFERENCE_TIME)
        mean = (
            tags.PHILIPS_IMAGING_CREATOR in values and values.get(tags.PHILIPS_DIRECTION, b"").strip() == b"I"
        )  # over all directions
    return replace(s, order=tuple(known.values()), contrast="isotropic" if mean else s.contrast)


def in_order_of(places: list[list[Slice]]) -> tuple[list[list[Slice]], tuple[str, ...]]:
    """Order the images at each position by the first attribute that tells them apart in the same way everywhere.

    Raises:
        ScanError: if nothing does.
    """
    count = len(places[0])
    doubt = ""
    # First what is the same at all positions, then what at least comes one after the other at each of them.
    for what, each in [*((name, False) for name in ORDER[:-4]), *((name, True) for name in _AT_EACH)]:
        at = ORDER.index(what)
        keys = [[s.order[at] for s in place] for place in places]
        if any(key is None for row in keys for key in row):
            continue
        if what == "dimension index":  # the indices of the position are the same for all images at it
            varying = [i for i, column in enumerate(zip(*keys[0], strict=False)) if len(set(column)) > 1]
            keys = [[tuple(key[i] for i in varying if i < len(key)) for key in row] for row in keys]
        elif what not in ORDER[-3:]:
            same = clusters((key for row in keys for key in row), 1e-6)
            keys = [[same[key] for key in row] for row in keys]
        wanted = sorted(set(keys[0]))
        if len(wanted) < count or not all(len(set(row)) == count if each else sorted(row) == wanted for row in keys):
            continue
        if each and what == "trigger time" and not _beats(keys, places):
            doubt = what
            continue
        if doubt and what in ORDER[-2:]:
            raise ScanError(
                f"got {count} images at each position whose {doubt}s differ from position to position without an "
                f"order: {listed(places[0])}"
            )
        if what == ORDER[-1]:
            first = name_of_slice(places[0][0])
            logger.warning("%s: %d images at each position are distinguished only by their numbers", first, count)
        ordered = [
            [s for _, s in sorted(zip(row, place, strict=True), key=lambda pair: pair[0])]
            for row, place in zip(keys, places, strict=True)
        ]
        return ordered, tuple(f"{what} {place + 1 if each else _shown(key)}" for place, key in enumerate(wanted))
    raise ScanError(f"got {count} images at each position, and nothing that tells them apart: {listed(places[0])}")


def _beats(keys: list[list[Any]], places: list[list[Slice]]) -> bool:
    """Whether trigger times are phases of a heartbeat: the same shares of it everywhere, or in the order of images."""
    rows = np.sort(np.array(keys, dtype=float), axis=1)
    spans = rows[:, -1:] - rows[:, :1]
    shares = (rows - rows[:, :1]) / spans
    if (np.abs(shares - np.median(shares, axis=0)) < 0.25 / max(rows.shape[1] - 1, 1)).all():
        return True
    numbers = [[s.order[-1] for s in place] for place in places]
    if any(one is None for row in numbers for one in row):
        return False
    return all(np.array_equal(np.argsort(row), np.argsort(key)) for row, key in zip(numbers, keys, strict=True))


def _shown(key: Any) -> str:
    return ".".join(map(str, key)) if isinstance(key, tuple) else f"{key:g}"


def name_of_slice(s: Slice) -> str:
    """The name of its file, and the number of its frame if there are several."""
    several = s.file.frames > 1 or s.file.tiles != (1, 1)
    return PurePath(s.file.path).name + (f" frame {s.frame + 1}" if several else "")


def listed(slices: Sequence[Slice]) -> str:
    """The first five by name, for a message."""
    more = f" and {len(slices) - 5} more" if len(slices) > 5 else ""
    return ", ".join(map(name_of_slice, slices[:5])) + more

"""Bytes of a DICOM file to its data elements (PS3.5 chapter 7), as few of them as a scan needs.

A general parser spends its time on elements that nobody asks for. This one walks over the top level, keeps the bytes of
the elements asked for, steps over everything else, and ends before the pixels. Bytes stay bytes: a value is
decoded by whoever needs it. All four encodings of PS3.5 are read: implicit and explicit, big endian, deflated.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.private_blocks import in_block_10
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_range, refuse_bomb

IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = (tags.PIXEL_DATA, tags.FLOAT_PIXEL_DATA, tags.DOUBLE_FLOAT_PIXEL_DATA)  # integers, floats, doubles

_FIRST_READ = 16_384  # holds what stands before the pixels of most images
_HEADER_BYTES = 2**28  # the functional groups of 100,000 frames take a tenth of it
_DEPTH = 32  # of sequences in sequences; real ones end at 8
_SHORT = {
    v.encode()
    for v in [
        "AE",
        "AS",
        "AT",
        "CS",
        "DA",
        "DS",
        "DT",
        "FL",
        "FD",
        "IS",
        "LO",
        "LT",
        "PN",
        "SH",
        "SL",
        "SS",
        "ST",
        "TM",
        "UI",
        "UL",
        "US",
    ]
}
_LONG = {v.encode() for v in ["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]}

Values = dict[int, Any]  # tag -> bytes, or a list of Values for a sequence


@dataclass(frozen=True)
class Elements:
    """The wanted data elements of one file.

    ``values`` maps a tag such as ``tags.ROWS`` to its bytes, or to a list with one such mapping per item of a
    sequence. ``pixels`` is where the value of the pixel data begins and ``length`` how long it says to be,
    ``UNDEFINED`` if it is in fragments; both are -1 if the walk ended before. ``end`` is where it ended and ``size``
    the size of the file, in bytes of the inflated file for a deflated one.
    """

    values: Values
    syntax: str
    pixel_tag: int
    pixels: int
    length: int
    end: int
    size: int

    @property
    def order(self) -> str:
        """Byte order of the numbers, as ``struct`` and numpy write it."""
        return ">" if self.syntax == BIG_ENDIAN else "<"


class _MoreError(Exception):
    """The walk needs bytes that were not read yet."""


Wanted = Mapping[int, bool]  # tag -> whether it is a sequence
Enough = Callable[[Values], bool]


def read_head(path: str | Path) -> tuple[bytes, int]:
    """Read the first bytes of a file of any kind, and its size."""
    return read_range(path, 0, _FIRST_READ)


def read_elements(path: str | Path, head: tuple[bytes, int], wanted: Wanted, enough: Enough | None = None) -> Elements:
    """Read the wanted elements of a DICOM file.

    Args:
        path: the file; it must have the mark ``DICM`` at byte 128.
        head: its first bytes and its size, from :func:`read_head`.
        wanted: tags to keep, at any depth, and whether each is a sequence.
        enough: asked once, with the values so far, at the first element behind group 0028: whether to end there. None
            walks on to the pixels.

    Raises:
        ScanError: if the file is no DICOM file, damaged, or cut off.
    """
    data, size = head
    if data[128:132] != b"DICM":
        raise ScanError("no DICOM file: no mark DICM at byte 128")
    at, meta = _meta(data, size)
    syntax = meta[tags.TRANSFER_SYNTAX_UID].rstrip(b"\0 ").decode("ascii", "replace")
    if syntax == DEFLATED:
        return _inflated_elements(path, at, size, wanted, enough)
    return _walked(path, _Walk(data, size, syntax, wanted, enough), at, size)


def walk_on(path: str | Path, head: tuple[bytes, int], before: Elements, wanted: Wanted) -> Elements:
    """Go on to the pixels where :func:`read_elements` had enough."""
    data, size = head
    walk = _Walk(data, before.size, before.syntax, wanted, None)
    walk.values |= before.values
    if before.syntax == DEFLATED:
        return _inflated_elements(path, data_set_start(path), size, wanted, None)
    return _walked(path, walk, before.end, size)


def _walked(path: str | Path, walk: _Walk, at: int, size: int) -> Elements:
    """Walk, and read more of the file whenever the walk comes to the end of what was read."""
    while True:
        try:
            return walk.elements(at)
        except (_MoreError, struct.error):
            at, have = walk.reached, len(walk.data)
            walk.data, _ = read_range(path, 0, _longer(have, size, cut_off=have >= size))


def inflate(path: str | Path, start: int, most: int) -> bytes:
    """Inflate a deflated data set from byte ``start`` of its file, up to ``most`` bytes.

    Raises:
        ScanError: if the stream is damaged, or if ``most`` is more than such a file can honestly hold.
    """
    data, size = read_range(path, start, 2**31)
    refuse_bomb(size, most)
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most)
    except zlib.error:
        raise ScanError("damaged: its deflated part cannot be inflated") from None


def data_set_start(path: str | Path) -> int:
    """Find the byte where the data set begins, behind the file meta information."""
    return _meta(*read_range(path, 0, _FIRST_READ))[0]


def _inflated_elements(path: str | Path, at: int, size: int, wanted: Wanted, enough: Enough | None) -> Elements:
    most = _FIRST_READ
    while True:
        data = inflate(path, at, min(most, size * 1032))  # deflate packs at most 1032 to 1
        try:
            return _Walk(data, max(len(data), size * 1032), DEFLATED, wanted, enough).elements(0)
        except (_MoreError, struct.error):
            most = _longer(most, size, cut_off=len(data) < most)


def _longer(length: int, size: int, *, cut_off: bool) -> int:
    if cut_off:
        raise ScanError(f"cut off: it ends within its header, at byte {size}")
    if length >= _HEADER_BYTES:
        raise ScanError(f"its header has more than {_HEADER_BYTES} bytes")
    return min(length * 8, _HEADER_BYTES)


def _meta(data: bytes, size: int) -> tuple[int, Values]:
    """Group 0002, always explicit little endian; where it ends is told by the group, never by the length it claims."""
    at = 132
    # The usual case without a walk: the group states its length, and all that is wanted of it is the transfer syntax.
    if len(data) > 144 and data[132:140] == b"\x02\0\0\0UL\x04\0":
        end = 144 + struct.unpack_from("<I", data, 140)[0]
        syntax = data.find(b"\x02\0\x10\0UI", 144, end)
        if syntax > 0 and end + 8 <= len(data) and data[end : end + 2] != b"\x02\0":
            stop = syntax + 8 + data[syntax + 6]
            if stop == end or data[stop : stop + 2] == b"\x02\0":
                return end, {tags.TRANSFER_SYNTAX_UID: data[syntax + 8 : stop]}
    values: Values = {}
    while (head := data[at : at + 8])[:2] == b"\x02\x00" and len(head) == 8:
        _, element, vr, length = struct.unpack("<HH2sH", head)
        start = at + 8
        if vr in _LONG:
            length, start = int.from_bytes(data[start : start + 4], "little"), start + 4
        elif vr not in _SHORT:
            raise ScanError("damaged file meta information")
        at = start + length
        if at > len(data):
            raise ScanError(f"cut off or damaged: its file meta information ends at byte {at} of {size}")
        values[0x00020000 | element] = data[start:at]
    if not values.get(tags.TRANSFER_SYNTAX_UID):
        raise ScanError("damaged or incomplete DICOM file: it names no transfer syntax")
    return at, values


class _Walk:
    """A walk over the elements of one data set."""

    def __init__(self, data: bytes, size: int, syntax: str, wanted: Wanted, enough: Enough | None) -> None:
        order = ">" if syntax == BIG_ENDIAN else "<"
        self.data, self.size, self.syntax, self.wanted, self.enough = data, size, syntax, wanted, enough
        self.explicit_head = struct.Struct(order + "HH2sH").unpack_from
        self.implicit_head = struct.Struct(order + "HHI").unpack_from
        self.long = struct.Struct(order + "I").unpack_from
        self.pixels = (-1, -1, -1)
        self.values: Values = {}
        self.reached = 0

    def elements(self, at: int) -> Elements:
        """Walk over the top level, up to the pixels or until it is enough; ``reached`` is where to go on."""
        values, end = self.level(at, self.size, self.syntax != IMPLICIT, True, 0)
        in_block_10(values)
        return Elements(values, self.syntax, *self.pixels, end, self.size)

    def level(self, at: int, end: int, explicit: bool, keep: bool, depth: int) -> tuple[Values, int]:
        """Read the elements from ``at`` to ``end`` or to the end of their item, or step over them; where that is."""
        # This loop is where the time goes: what is true of most elements is asked first.
        data, have, values = self.data, len(self.data), {} if depth else self.values
        head = self.explicit_head if explicit else self.implicit_head
        wanted = (self.wanted if keep else {}).get
        asked = depth > 0 or self.enough is None
        vr = b""
        while at < end:
            if depth == 0:
                self.reached = at
            if explicit:
                group, element, vr, length = head(data, at)
            else:
                group, element, length = head(data, at)
            tag = group << 16 | element
            if group > 0x0028:
                if tag == 0xFFFEE00D and depth:
                    return values, at + 8
                if not asked:
                    asked, enough, self.enough = True, self.enough, None
                    if enough is not None and enough(values):
                        return values, at
            if vr in _SHORT:
                start, at = at + 8, at + 8 + length
                if wanted(tag) is False:
                    if at > have:
                        raise _MoreError
                    values[tag] = data[start:at]
                continue
            start = at + 8
            if explicit:
                if vr not in _LONG:
                    if depth == 0 and have == self.size and not any(data[at:]):
                        break  # zeros up to the end of the file
                    raise self.odd(tag)
                length, start = self.long(data, start)[0], start + 4
            if depth == 0 and tag in PIXEL_DATA:
                self.pixels = (tag, start, length)
                break
            sequence = wanted(tag)
            if sequence or length == UNDEFINED:
                items, at = self.items(start, length, explicit and vr != b"UN", sequence is not None, depth + 1)
                if sequence:
                    values[tag] = items
                continue
            at = start + length
            if sequence is not None:
                if at > min(have, end):
                    raise _MoreError if at <= end else self.odd(tag)
                values[tag] = data[start:at]
        if at > end:
            raise self.odd(tag)
        return values, at

    def odd(self, tag: int) -> ScanError:
        """Say where the walk ended; the number of an element identifies nobody."""
        return ScanError(f"cut off or damaged at element ({tag >> 16:04X},{tag & 0xFFFF:04X})")

    def items(self, at: int, length: int, explicit: bool, keep: bool, depth: int) -> tuple[list[Values], int]:
        """Read the items of a sequence, or step over them; where it ends."""
        end = self.size if length == UNDEFINED else at + length
        if end > self.size or depth > _DEPTH:
            raise ScanError(f"cut off or damaged: a sequence of {length} bytes at byte {at} of {self.size}")
        found: list[Values] = []
        if not keep and length != UNDEFINED:
            return found, end
        while at < end:
            group, element, size = self.implicit_head(self.data, at)
            start = at + 8
            if group == 0xFFFE and element == 0xE0DD:
                return found, start
            if group != 0xFFFE or element != 0xE000:
                raise ScanError(f"damaged: expected an item of a sequence, got element ({group:04X},{element:04X})")
            stop = end if size == UNDEFINED else start + size
            if stop > end:
                raise ScanError(f"cut off or damaged: an item of {size} bytes at byte {at} of {self.size}")
            if size == UNDEFINED or keep:
                values, at = self.level(start, stop, explicit, keep, depth)
                found.append(values)
            else:
                at = stop
        return found, at

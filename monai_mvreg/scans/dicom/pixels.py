"""Slices to values: stored pixels, straight into one array, rescaled image by image (PS3.3 C.7.6.3 and C.11.1).

The usual image, native and grey, is read into one small buffer that stays in the processor's cache and is converted
from there, so that memory is written once. The rest is unpacked by the codec that ``headers.CODECS`` names.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.uid import UID

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.codecs import inflated, unpack, value_bits
from monai_mvreg.scans.dicom.elements import BIG_ENDIAN, DEFLATED, Values
from monai_mvreg.scans.dicom.headers import COLOUR, NATIVE, ImageFile
from monai_mvreg.scans.dicom.slices import Slice
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_whole
from monai_mvreg.scans.formats.slice_buffer import SliceWriter

Array = npt.NDArray[Any]


def read_values(
    slices: Sequence[Slice], *, padding: float | None = None, invert: bool = True, turned: bool = False
) -> Array:
    """Read slices of one shape.

    Args:
        slices: in the order wanted; frames of one file are read together.
        padding: put this value where a pixel has the PixelPaddingValue of its file; None leaves it.
        invert: whether MONOCHROME1, in which the smallest value is white, is inverted over the range of stored values.
        turned: lay grey values out in memory with columns first.

    Returns:
        Values ``(n, rows, columns)``, float32, rescaled by each image's own slope and intercept. Colours are
        ``(n, rows, columns, 3)``, red first.

    Raises:
        ScanError: naming the file whose pixels cannot be read.
    """
    (columns, rows), form = slices[0].file.shape, slices[0].file.pixels
    colours = (3,) if form.photometric in COLOUR else ()
    writer = SliceWriter(len(slices), (rows, columns, *colours), turned=turned)
    buffer = bytearray()
    for _, group in groupby(slices, key=lambda s: id(s.file)):
        part = list(group)
        file = part[0].file
        try:
            if _is_plain(file):
                if len(buffer) != file.pixels.frame_bytes:
                    buffer = bytearray(file.pixels.frame_bytes)
                pictures = _native(file, _frames_of(part), buffer)
            else:
                pictures = unpack(file, _frames_of(part))
            for s, stored in zip(part, _tiles(part, pictures), strict=True):
                _convert(s, stored, writer.next(), padding, invert)
        except ScanError as error:
            raise ScanError(f"{PurePath(file.path).name}: {error}") from None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # codecs have errors of their own; one in Rust panics, which is no Exception
            name = UID(file.pixels.syntax).name
            raise ScanError(
                f"{PurePath(file.path).name}: damaged: its pixels ({name}) cannot be read ({type(error).__name__})"
            ) from None
    return writer.array


def _frames_of(part: Sequence[Slice]) -> list[int]:
    return [s.frame for s in part] if part[0].file.tiles == (1, 1) else [0]


def _tiles(part: Sequence[Slice], pictures: Iterator[Array]) -> Iterator[Array]:
    """Cut a mosaic into its tiles; other pictures are whole."""
    beside, below = part[0].file.tiles
    if beside == below == 1:
        yield from pictures
        return
    mosaic, (columns, rows) = next(pictures), part[0].file.shape
    for s in part:
        y, x = s.frame // beside * rows, s.frame % beside * columns
        yield mosaic[y : y + rows, x : x + columns]


def _convert(s: Slice, stored: Array, out: Array, padding: float | None, invert: bool) -> None:
    """Stored pixels of one slice to values; ``stored`` is used up."""
    form = s.file.pixels
    if s.slope == 0 and stored.any():  # an empty slice of PET may have no scale
        raise ScanError("expected a rescale slope other than 0")
    mirrored = invert and form.photometric == "MONOCHROME1"
    padded = None if padding is None else _padded(s.file, stored)
    table = _modality_table(s.file)
    if table is not None:
        first, entries, bits = table
        stored = entries[np.clip(stored.astype(np.int64) - first, 0, len(entries) - 1)]
        if mirrored:
            stored = 2**bits - 1 - stored.astype(np.int64)
        out[...] = stored
    else:
        if mirrored and stored.dtype.kind in "iu":
            # In place: the range of stored values mirrored, which for two's complement is the bitwise complement.
            np.subtract(-1 if form.signed else (1 << form.stored) - 1, stored, out=stored)
        if abs(s.slope) * 2.0**form.stored + abs(s.intercept) > 3e38 and form.tag == tags.PIXEL_DATA:
            raise ScanError("expected a rescale slope whose values float32 can hold")
        # In float32 only where nothing is rounded twice: near 0, stored * slope + intercept would lose its digits.
        whole = s.slope == round(s.slope) and s.intercept == round(s.intercept)
        if stored.dtype.itemsize <= 2 and (
            s.intercept == 0 or (whole and abs(s.slope) < 256 and abs(s.intercept) < 2**23)
        ):
            np.copyto(out, stored, casting="unsafe")
            if s.slope != 1:
                out *= np.float32(s.slope)
            if s.intercept != 0:
                out += np.float32(s.intercept)
        else:
            np.copyto(out, stored.astype(np.float64) * s.slope + s.intercept, casting="unsafe")
    if padded is not None:
        out[padded] = padding


def _padded(file: ImageFile, stored: Array) -> Array | None:
    limits = [file.values.get(tag) for tag in (tags.PIXEL_PADDING_VALUE, tags.PIXEL_PADDING_RANGE_LIMIT)]
    form = (">" if file.pixels.syntax == BIG_ENDIAN else "<") + ("h" if file.pixels.signed else "H")
    known = [struct.unpack(form, value)[0] for value in limits if value and len(value) == 2]
    if file.pixels.signed and file.pixels.stored < 16:  # some write it in as many bits as a pixel has
        sign = 1 << (file.pixels.stored - 1)
        known = [((value & (2 * sign - 1)) ^ sign) - sign for value in known]
    return (stored >= min(known)) & (stored <= max(known)) if known else None


def _modality_table(file: ImageFile) -> tuple[int, Array, int] | None:
    items = file.values.get(tags.MODALITY_LUT_SEQUENCE)
    if not items:
        return None
    order = ">" if file.pixels.syntax == BIG_ENDIAN else "<"
    return lookup_table(items[0], "Modality LUT", order=order, signed=file.pixels.signed)


def lookup_table(item: Values, what: str, *, order: str, signed: bool) -> tuple[int, Array, int]:
    """Read a table of values: the input of its first entry, its entries, their bits (PS3.3 C.11.1.1 and C.11.2.1.1).

    Args:
        item: the item of its sequence.
        what: its name, for a message.
        order: byte order of the file, ``<`` or ``>``.
        signed: whether the input may be negative.

    Raises:
        ScanError: if it is incomplete.
    """
    descriptor, data = item.get(tags.LUT_DESCRIPTOR, b""), item.get(tags.LUT_DATA, b"")
    if len(descriptor) != 6 or not data:
        raise ScanError(f"damaged: a {what} without a descriptor or data")
    count, first, bits = struct.unpack(order + ("HhH" if signed else "HHH"), descriptor)
    count = count or 2**16
    entries = np.frombuffer(data, "u1" if len(data) in (count, count + 1) and bits <= 8 else order + "u2")
    if len(entries) < count or not 0 < bits <= 16:
        raise ScanError(f"damaged: expected a {what} of {count} entries of 1 to 16 bits, got {len(entries)} of {bits}")
    return first, entries[:count], bits


def _is_plain(file: ImageFile) -> bool:
    form = file.pixels
    return form.syntax in NATIVE and form.syntax != BIG_ENDIAN and form.photometric.startswith("MONOCHROME")


def _native(file: ImageFile, frames: Sequence[int], buffer: bytearray) -> Iterator[Array]:
    """Native grey frames, one after the other in the same memory: each must be used before the next."""
    form = file.pixels
    shape = (form.rows, form.columns)
    kind = np.dtype(
        {tags.FLOAT_PIXEL_DATA: "<f4", tags.DOUBLE_FLOAT_PIXEL_DATA: "<f8"}.get(
            form.tag, f"<{'ui'[form.signed]}{max(form.allocated // 8, 1)}"
        )
    )
    view = memoryview(buffer)
    unpacked = inflated(file) if form.syntax == DEFLATED else None
    with _Source(file.path) as source:
        for frame in frames:
            if form.allocated == 1:
                bits = form.rows * form.columns
                begin, end = frame * bits, (frame + 1) * bits
                first, last = begin // 8, (end + 7) // 8
                packed = source.read(file.start + first, last - first) if unpacked is None else unpacked[first:last]
                yield np.unpackbits(np.frombuffer(packed, "u1"), bitorder="little")[begin % 8 :][:bits].reshape(shape)
                continue
            at = frame * form.frame_bytes
            if unpacked is not None:
                view[:] = unpacked[at : at + form.frame_bytes]
            elif not source.into(view, file.start + at):
                raise ScanError(f"truncated: expected {form.frame_bytes} bytes of pixels for frame {frame}")
            yield value_bits(np.frombuffer(buffer, kind).reshape(shape), form)


class _Source:
    """A file that is read in pieces, or a member of a zip that was read whole."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> _Source:
        try:
            self.file: io.FileIO | io.BytesIO = Path(self.path).open("rb", buffering=0)
        except NotADirectoryError:
            self.file = io.BytesIO(read_whole(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def into(self, view: memoryview, start: int) -> bool:
        """Fill the view from byte ``start``; whether the file held so much."""
        if start < 0:
            return False
        self.file.seek(start)
        got = self.file.readinto(view)
        while got and got < len(view) and (more := self.file.readinto(view[got:])):
            got += more
        return got == len(view)

    def read(self, start: int, length: int) -> bytes:
        """Read exactly so many bytes."""
        buffer = bytearray(length)
        if not self.into(memoryview(buffer), start):
            raise ScanError(f"truncated: expected {length} bytes of pixels at byte {start}")
        return bytes(buffer)

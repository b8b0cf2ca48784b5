"""Slices to values: stored pixels, straight into one array, rescaled image by image (PS3.3 C.7.6.3 and C.11.1).

The usual image, native and grey, is read into one small buffer that stays in the processor's cache and is converted
from there, so that memory is written once. The rest is unpacked by the codec that ``headers.CODECS`` names.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from monai_mvreg.scans import tags
from monai_mvreg.scans.elements import BIG_ENDIAN, DEFLATED, data_set_start, inflate, read_elements, read_head
from monai_mvreg.scans.files import ScanError, read_range, read_whole
from monai_mvreg.scans.headers import CODECS, COLOUR, NATIVE, ImageFile, PixelFormat
from monai_mvreg.scans.slices import Slice

Array = npt.NDArray[Any]

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


def read_values(slices: Sequence[Slice], *, padding: float | None = None, invert: bool = True) -> Array:
    """Read slices of one shape.

    Args:
        slices: in the order wanted; frames of one file are read together.
        padding: put this value where a pixel has the PixelPaddingValue of its file; None leaves it.
        invert: whether MONOCHROME1, in which the smallest value is white, is inverted over the range of stored values.

    Returns:
        Values ``(n, rows, columns)``, float32, rescaled by each image's own slope and intercept. Colours are
        ``(n, rows, columns, 3)``, red first.

    Raises:
        ScanError: naming the file whose pixels cannot be read.
    """
    (columns, rows), form = slices[0].file.shape, slices[0].file.pixels
    colours = (3,) if form.photometric in COLOUR else ()
    values = np.empty((len(slices), rows, columns, *colours), np.float32)
    buffer = bytearray()
    at = 0
    for _, group in groupby(slices, key=lambda s: id(s.file)):
        part = list(group)
        file = part[0].file
        try:
            if _is_twelve_bit(file):
                values[at : at + len(part)] = _by_simple_itk(file)[[s.frame for s in part]]
                at += len(part)
                continue
            if _is_plain(file):
                if len(buffer) != file.pixels.frame_bytes:
                    buffer = bytearray(file.pixels.frame_bytes)
                pictures = _native(file, _frames_of(part), buffer)
            else:
                pictures = _unpacked(file, _frames_of(part))
            for s, stored in zip(part, _tiles(part, pictures), strict=True):
                _convert(s, stored, values[at], padding, invert)
                at += 1
        except ScanError as error:
            raise ScanError(f"{PurePath(file.path).name}: {error}") from None
        except Exception as error:  # codecs have errors of their own, and may quote a header
            name = UID(file.pixels.syntax).name
            raise ScanError(
                f"{PurePath(file.path).name}: damaged: its pixels ({name}) cannot be read ({type(error).__name__})"
            ) from None
    return values


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
        exact = np.float64 if stored.dtype.itemsize > 2 else np.float32
        if mirrored and stored.dtype.kind in "iu":
            # In place: the range of stored values mirrored, which for two's complement is the bitwise complement.
            np.subtract(-1 if form.signed else (1 << form.stored) - 1, stored, out=stored)
        if exact is np.float32 or (s.slope == 1 and s.intercept == 0):
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
    return (stored >= min(known)) & (stored <= max(known)) if known else None


def _modality_table(file: ImageFile) -> tuple[int, Array, int] | None:
    """The Modality LUT: the stored value of its first entry, its entries, their bits (PS3.3 C.11.1.1)."""
    items = file.values.get(tags.MODALITY_LUT_SEQUENCE)
    if not items:
        return None
    order = ">" if file.pixels.syntax == BIG_ENDIAN else "<"
    descriptor, data = items[0].get(tags.LUT_DESCRIPTOR, b""), items[0].get(tags.LUT_DATA, b"")
    if len(descriptor) != 6 or not data:
        raise ScanError("damaged: a Modality LUT without a descriptor or data")
    count, first, bits = struct.unpack(order + ("HhH" if file.pixels.signed else "HHH"), descriptor)
    count = count or 2**16
    entries = np.frombuffer(data, "u1" if len(data) in (count, count + 1) and bits <= 8 else order + "u2")
    if len(entries) < count:
        raise ScanError(f"damaged: expected a Modality LUT of {count} entries, got {len(entries)}")
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
    inflated = _inflated(file) if form.syntax == DEFLATED else None
    with _Source(file.path) as source:
        for frame in frames:
            if form.allocated == 1:
                bits = form.rows * form.columns
                begin, end = frame * bits, (frame + 1) * bits
                packed = source.read(file.start + begin // 8, (end + 7) // 8 - begin // 8)
                yield np.unpackbits(np.frombuffer(packed, "u1"), bitorder="little")[begin % 8 :][:bits].reshape(shape)
                continue
            at = frame * form.frame_bytes
            if inflated is not None:
                view[:] = inflated[at : at + form.frame_bytes]
            elif not source.into(view, file.start + at):
                raise ScanError(f"truncated: expected {form.frame_bytes} bytes of pixels for frame {frame}")
            yield _bits(np.frombuffer(buffer, kind).reshape(shape), form)


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


def _pixel_start(file: ImageFile) -> int:
    """Where the pixel data begin; packed files are walked so far only when they are read."""
    start = file.start if file.start >= 0 else read_elements(file.path, read_head(file.path), {}).pixels
    if start < 0:
        raise ScanError("cut off: it has no pixel data")
    return start


def _inflated(file: ImageFile) -> bytes:
    """The pixels of a deflated file."""
    start = _pixel_start(file)
    needed = file.pixels.frame_bytes * file.frames
    data = inflate(file.path, data_set_start(file.path), start + needed)[start:]
    if len(data) < needed:
        raise ScanError(f"truncated: expected {needed} bytes of pixels, got {len(data)}")
    return data


def _bits(stored: Array, form: PixelFormat) -> Array:
    """Keep the bits of the value alone: the others may hold an overlay, or nothing that is defined."""
    if form.stored == form.allocated or stored.dtype.kind == "f":
        return stored
    above = form.allocated - 1 - form.high
    if form.signed:
        np.left_shift(stored, above, out=stored)
        np.right_shift(stored, form.allocated - form.stored, out=stored)
        return stored
    if form.high >= form.stored:
        np.right_shift(stored, form.high + 1 - form.stored, out=stored)
    np.bitwise_and(stored, (1 << form.stored) - 1, out=stored)
    return stored


def _unpacked(file: ImageFile, frames: Sequence[int]) -> Iterator[Array]:
    """Frames by pydicom and one named codec: packed ones, big endian ones, colours."""
    form = file.pixels
    if form.syntax == DEFLATED:
        start, data = 0, _inflated(file)
    else:
        start = _pixel_start(file)
        data, _ = read_range(file.path, start, file.size - start)
    options: dict[str, Any] = {
        **{"rows": form.rows, "columns": form.columns, "samples_per_pixel": form.samples},
        **{"bits_allocated": form.allocated, "bits_stored": form.stored, "pixel_representation": int(form.signed)},
        **{"photometric_interpretation": form.photometric, "planar_configuration": form.planar},
        **{
            "pixel_keyword": {tags.PIXEL_DATA: "PixelData", tags.FLOAT_PIXEL_DATA: "FloatPixelData"}.get(
                form.tag, "DoubleFloatPixelData"
            )
        },
    }
    plugin, package = CODECS.get(form.syntax, ("", ""))
    with _quiet():
        decoder = get_decoder(UID(form.syntax))
        if plugin:
            if plugin not in decoder.available_plugins:
                raise ScanError(f"unpacking {UID(form.syntax).name} needs the package {package}: pip install {package}")
            _check_fragments(data)
            packed = [bytes(frame) for frame in generate_frames(data, number_of_frames=file.frames)]
            if len(packed) < file.frames:
                raise ScanError(f"truncated: expected {file.frames} frames, got {len(packed)}")
        elif form.allocated == 8 and form.syntax == BIG_ENDIAN and read_range(file.path, start - 8, 2)[0] == b"OW":
            # Bytes written as words: pairs are swapped, over the borders of odd frames.
            data = np.frombuffer(data[: len(data) // 2 * 2], "u2").byteswap().tobytes()
        for frame in frames:
            if plugin:
                _check_stream(packed[frame], form)
                source, options["decoding_plugin"] = encapsulate([packed[frame]], has_bot=False), plugin
            else:
                source = data[frame * form.frame_bytes : (frame + 1) * form.frame_bytes]
            picture, _ = decoder.as_array(source, index=0, number_of_frames=1, **options)
            if form.photometric == "PALETTE COLOR":
                picture = _coloured(file, picture)
            yield np.array(picture)


def _check_fragments(data: bytes) -> None:
    """Refuse packed pixel data that are cut off: some codecs would fill the rest with what comes to their mind."""
    at = 0
    while at + 8 <= len(data):
        tag, length = struct.unpack_from("<IH", data, at)[0], int.from_bytes(data[at + 4 : at + 8], "little")
        if tag != 0xE000FFFE:
            return
        at += 8 + length
        if at > len(data):
            raise ScanError(f"truncated: a fragment ends at byte {at} of {len(data)} bytes of pixels")


def _coloured(file: ImageFile, picture: Array) -> Array:
    """Look up the colours of a palette; scaled to 8 bits where its entries have 16 (PS3.3 C.7.6.3.1.5)."""
    data = io.BytesIO(read_whole(file.path))
    image = pydicom.dcmread(data, stop_before_pixels=True)
    colours = pydicom.pixels.apply_color_lut(picture, image)
    return np.asarray(colours >> 8 if colours.dtype.itemsize == 2 else colours)


def _check_stream(packed: bytes, form: PixelFormat) -> None:
    """Compare the size that a JPEG stream states with the header, before a codec takes memory for it."""
    if packed[:2] == b"\xff\x4f" and packed[2:4] == b"\xff\x51":  # JPEG 2000: SIZ comes first
        width, height, left, top = struct.unpack_from(">4I", packed, 8)
        size = (height - top, width - left)
    elif packed[:2] == b"\xff\xd8":
        at, size = 2, (0, 0)
        while at + 9 <= len(packed) and packed[at] == 0xFF:
            marker, length = packed[at + 1], int.from_bytes(packed[at + 2 : at + 4], "big")
            if marker in _FRAME_MARKERS:
                size = struct.unpack_from(">2H", packed, at + 5)
                break
            at += 1 if marker == 0xFF else 2 + length
    else:
        return  # RLE states no size, and unpacks into what the header states
    if size != (form.rows, form.columns):
        raise ScanError(f"damaged: {form.rows} rows and {form.columns} columns, but its stream has {size}")


# SOF0 to SOF15 without the tables in between, and SOF55 of JPEG-LS.
_FRAME_MARKERS = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}


def _is_twelve_bit(file: ImageFile) -> bool:
    return file.pixels.syntax == _JPEG_EXTENDED and file.pixels.allocated > 8


def _by_simple_itk(file: ImageFile) -> Array:
    """JPEG of 12 bits, which SimpleITK alone unpacks; it inverts MONOCHROME1 and rescales by itself."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    array = np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(file.path)), np.float32)
    expected = (file.frames, file.pixels.rows, file.pixels.columns)
    if array.shape != expected:
        raise ScanError(f"expected frames, rows and columns {expected}, got {array.shape}")
    return array


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom: its messages may quote values, and it logs what its caller handles."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)

"""Data elements of a DICOM file to what it says of its image: how pixels are stored, which series, which patient."""

from __future__ import annotations

import math
import re
import struct
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydicom.uid import UID

from monai_mvreg.scans.dicom import acquisition_date, tags
from monai_mvreg.scans.dicom.elements import BIG_ENDIAN, DEFLATED, IMPLICIT, PIXEL_DATA, UNDEFINED, Elements, Values
from monai_mvreg.scans.formats.byte_ranges import ScanError

NATIVE = {IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED}

# Who unpacks what: the plugin of pydicom, and the distribution it comes in. One each, so that a value never depends on
# what else is installed.
_JPEG, _LOSSLESS, _JPEG_LS = ("pillow", "pillow"), ("gdcm", "python-gdcm"), ("pyjpegls", "pyjpegls")
_JPEG_2000, _RLE = ("pylibjpeg", "pylibjpeg-openjpeg"), ("pylibjpeg", "pylibjpeg-rle")
CODECS: dict[str, tuple[str, str]] = {
    "1.2.840.10008.1.2.4.50": _JPEG,
    "1.2.840.10008.1.2.4.51": _JPEG,
    "1.2.840.10008.1.2.4.57": _LOSSLESS,
    "1.2.840.10008.1.2.4.70": _LOSSLESS,
    "1.2.840.10008.1.2.4.80": _JPEG_LS,
    "1.2.840.10008.1.2.4.81": _JPEG_LS,
    "1.2.840.10008.1.2.4.90": _JPEG_2000,
    "1.2.840.10008.1.2.4.91": _JPEG_2000,
    "1.2.840.10008.1.2.4.201": _JPEG_2000,
    "1.2.840.10008.1.2.4.202": _JPEG_2000,
    "1.2.840.10008.1.2.4.203": _JPEG_2000,
    "1.2.840.10008.1.2.5": _RLE,
}
COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "PALETTE COLOR"}
_CLASS = "1.2.840.10008.5.1.4.1.1."
PARAMETRIC_MAP, RT_DOSE, NUCLEAR = (_CLASS + tail for tail in ("30", "481.2", "20"))
SEGMENTATIONS = _CLASS + "66."  # binary and fractional, label maps, height maps
PET = {_CLASS + "128", _CLASS + "128.1", _CLASS + "130"}
_WHOLE_SLIDE = _CLASS + "77.1.6"
# CT, MR, PET and their enhanced and converted forms: slices of a volume, useless without a position.
_SLICED = {_CLASS + tail for tail in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "128", "128.1", "130")}
_FLAT = {"CR", "DX", "MG", "IO", "PX", "RG", "XC", "ES", "GM", "SM", "OP"}  # projections and photographs: never a stack


# What a scan is asked for after its slices are known; the rest of a header is let go, or 100,000 files fill a memory.
_KEPT = (
    tags.BODY_PART_EXAMINED,
    tags.BURNED_IN_ANNOTATION,
    tags.PIXEL_PADDING_VALUE,
    tags.PIXEL_PADDING_RANGE_LIMIT,
    tags.MODALITY_LUT_SEQUENCE,
    tags.RESCALE_TYPE,
    tags.UNITS,
    tags.DOSE_UNITS,
    *acquisition_date.TAGS,
)


_CINE = {tags.FRAME_TIME, tags.FRAME_TIME_VECTOR, tags.TIME_SLICE_VECTOR}  # times of frames that follow each other
_MOST_FRAMES = 200_000  # several times what any scanner writes: each frame costs memory, however small it is


class NoImageError(ScanError):
    """A file that is whole and holds no image of any series: nothing is missing without it."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How pixels are stored; ``tag`` is the element that holds them (integers, floats or doubles)."""

    rows: int
    columns: int
    samples: int
    planar: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    syntax: str
    tag: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one native frame (a frame of single bits may end within a byte: then rounded up)."""
        samples = 2 if self.photometric == "YBR_FULL_422" and self.syntax in NATIVE else self.samples
        return (self.rows * self.columns * samples * self.allocated + 7) // 8


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One DICOM file that holds an image.

    ``space`` is the FrameOfReferenceUID, ``image`` the SOPInstanceUID, ``kind`` the SOP class, ``values`` what else was
    read, by tag; ``start`` is where the value of the pixel data begins, -1 if that is not known yet. ``refusal`` says
    why it cannot be read. A mosaic has ``tiles`` slices beside and below each other in its one picture; the
    frames of ``cine`` follow each other in time.
    """

    path: str
    size: int
    study: str
    series: str
    series_number: str
    space: str
    image: str
    kind: str
    modality: str
    image_type: tuple[str, ...]
    frames: int
    pixels: PixelFormat
    start: int
    length: int
    refusal: str
    patient: str = field(repr=False)
    values: Values = field(repr=False)
    tiles: tuple[int, int] = (1, 1)
    cine: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and rows of one slice."""
        return self.pixels.columns // self.tiles[0], self.pixels.rows // self.tiles[1]

    @property
    def flat(self) -> bool:
        """Whether it is a projection or photograph, which is a scan of its own whatever lies beside it."""
        return self.modality in _FLAT

    @property
    def sliced(self) -> bool:
        """Whether it holds slices of a volume, which are useless without a position."""
        return self.kind in _SLICED


def text(values: Values, tag: int) -> str:
    """Read a text, without its padding; empty if it is absent."""
    value = values.get(tag)
    return _text(value) if isinstance(value, bytes) else ""


@lru_cache(maxsize=4096)
def _text(value: bytes) -> str:
    written = value.decode("latin-1").strip("\0 ")
    # Control characters would reach a terminal.
    return written if written.isprintable() else "".join(filter(str.isprintable, written)).strip()


def _identity(values: Values) -> str:
    """PatientID in the character set of the file (PS3.3 C.12.1.1.2), so that it equals what a table says."""
    value = values.get(tags.PATIENT_ID, b"")
    if value.isascii() and b"\x1b" not in value:  # ISO 2022 writes other characters in 7 bits too, after an escape
        return _text(value)
    from pydicom.charset import convert_encodings, decode_bytes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encodings = convert_encodings(list(words(values, tags.SPECIFIC_CHARACTER_SET)) or None)
        # In a text that is no name, only control characters end what an escape begins (PS3.5 6.1.2.5.3).
        written = str(decode_bytes(value, encodings, set(b"\r\n\t\f")))
    written = re.sub(r"\x1b[$()\-.,]*[0-~]", "", written)  # Python's codec of GB 2312 leaves the escape
    return "".join(filter(str.isprintable, written)).strip()


def numbers(values: Values, tag: int, count: int) -> tuple[float, ...]:
    """Read decimal numbers: ``count`` of them, any number for 0, none if the element is absent or empty.

    Raises:
        ScanError: if they are not finite numbers, or not so many.
    """
    value = values.get(tag)
    if not value:
        return ()
    try:
        found = _numbers(value)
        good = not found or not count or len(found) == count
    except (ValueError, AttributeError, TypeError):
        good = False
    if not good:
        wanted = f"{count or 'only'} finite numbers" if count != 1 else "one finite number"
        raise ScanError(f"expected {wanted} in {name_of(tag)}")
    return found


@lru_cache(maxsize=4096)
def _numbers(value: bytes) -> tuple[float, ...]:
    written = value.decode("ascii").strip("\0 ")
    found = tuple(map(float, written.split("\\"))) if written else ()
    if not all(map(math.isfinite, found)) or "_" in written:  # Python takes 1_0 for 10
        raise ValueError
    return found


def number(values: Values, tag: int) -> float | None:
    """Read one decimal number; None if it is absent or empty."""
    found = numbers(values, tag, 1)
    return found[0] if found else None


def binary(values: Values, tag: int, form: str, order: str = "<") -> tuple[Any, ...]:
    """Read binary numbers, ``form`` being a letter of ``struct``; none if the element is absent or empty."""
    value = values.get(tag)
    if not value:
        return ()
    size = struct.calcsize(form)
    if not isinstance(value, bytes) or len(value) % size:
        raise ScanError(f"expected binary numbers of {size} bytes in {name_of(tag)}")
    found = struct.unpack(f"{order}{len(value) // size}{form}", value)
    if form in "fd" and not all(map(math.isfinite, found)):
        raise ScanError(f"expected finite numbers in {name_of(tag)}")
    return found


def name_of(tag: int) -> str:
    """Name a tag as the standard does, for a message."""
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def pixel_format(elements: Elements) -> PixelFormat:
    """Read how the pixels of a file are stored.

    Raises:
        NoImageError: if it holds none.
        ScanError: if it is an image and damaged.
    """
    values = elements.values
    if tags.ROWS not in values or tags.BITS_ALLOCATED not in values:  # spectroscopy has rows of no pixels
        name = UID(text(values, tags.SOP_CLASS_UID)).name
        if "Image Storage" in name or not name:
            raise ScanError(
                "damaged or incomplete: an image without Rows, Columns or BitsAllocated, or of no SOP class"
            )
        raise NoImageError(f"a DICOM file without pixels ({name})")
    get = values.get
    return _pixel_format(
        get(tags.ROWS),
        get(tags.COLUMNS),
        get(tags.SAMPLES_PER_PIXEL),
        get(tags.PLANAR_CONFIGURATION),
        get(tags.BITS_ALLOCATED),
        get(tags.BITS_STORED),
        get(tags.HIGH_BIT),
        get(tags.PIXEL_REPRESENTATION),
        get(tags.PHOTOMETRIC_INTERPRETATION),
        elements.syntax,
        elements.pixel_tag if elements.pixel_tag > 0 else PIXEL_DATA[0],
        elements.order,
    )


def image_file(path: str, elements: Elements, form: PixelFormat, start: int, length: int) -> ImageFile:
    """Read what a file says of its image as a whole.

    Args:
        path: the file.
        elements: its wanted elements.
        form: how its pixels are stored.
        start: where the value of the pixel data begins; -1 if that is not known.
        length: how many bytes it says to have.

    Raises:
        ScanError: if it is damaged, or names no series.
    """
    values = elements.values
    series = text(values, tags.SERIES_INSTANCE_UID)
    if not series:
        raise ScanError("damaged or incomplete: an image without SeriesInstanceUID, which belongs to no series")
    frames = int(number(values, tags.NUMBER_OF_FRAMES) or 1)
    return ImageFile(
        path=path,
        size=elements.size,
        study=text(values, tags.STUDY_INSTANCE_UID),
        series=series,
        series_number=text(values, tags.SERIES_NUMBER),
        space=text(values, tags.FRAME_OF_REFERENCE_UID),
        image=text(values, tags.SOP_INSTANCE_UID),
        kind=text(values, tags.SOP_CLASS_UID),
        modality=text(values, tags.MODALITY),
        image_type=words(values, tags.IMAGE_TYPE),
        frames=frames,
        pixels=form,
        start=start,
        length=length,
        refusal=_refusal(text(values, tags.SOP_CLASS_UID), form, frames, elements.size, start, length),
        patient=_identity(values),
        values={tag: values[tag] for tag in _KEPT if tag in values},
        cine=frames > 1 and not values.keys().isdisjoint(_CINE),
    )


def words(values: Values, tag: int) -> tuple[str, ...]:
    """Read a text of several values."""
    return _words(text(values, tag))


@lru_cache(maxsize=1024)
def _words(written: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in written.split("\\")) if written else ()


@lru_cache(maxsize=1024)
def _pixel_format(
    rows: bytes | None,
    columns: bytes | None,
    samples: bytes | None,
    planar: bytes | None,
    allocated: bytes | None,
    stored: bytes | None,
    high: bytes | None,
    signed: bytes | None,
    photometric: bytes | None,
    syntax: str,
    tag: int,
    order: str,
) -> PixelFormat:
    """Decode group 0028; cached, because it is the same in every file of a series."""

    def short(value: bytes | None, default: int) -> int:
        if value is None:
            return default
        if len(value) != 2:
            raise ScanError("damaged: expected numbers of 2 bytes in group 0028")
        return int(struct.unpack(order + "H", value)[0])

    bits = short(allocated, 0)
    used = short(stored, bits)
    form = PixelFormat(
        rows=short(rows, 0),
        columns=short(columns, 0),
        samples=short(samples, 1),
        planar=short(planar, 0),
        allocated=bits,
        stored=used,
        high=short(high, used - 1),
        signed=short(signed, 0) == 1,
        photometric=_text(photometric or b""),
        syntax=syntax,
        tag=tag,
    )
    if not (form.rows and form.columns and form.samples):
        raise ScanError(f"damaged: {form.rows} rows, {form.columns} columns, {form.samples} samples per pixel")
    wanted = {PIXEL_DATA[1]: (32,), PIXEL_DATA[2]: (64,)}.get(tag, (1, 8, 16, 32))
    if bits not in wanted or not 0 < used <= bits or not used - 1 <= form.high < bits:
        raise ScanError(f"expected pixels of {wanted} bits, got {bits} allocated, {used} stored, high bit {form.high}")
    return form


def _refusal(kind: str, form: PixelFormat, frames: int, size: int, start: int, length: int) -> str:
    """Say why pixels so stored cannot be read, or nothing."""
    if form.photometric not in ("MONOCHROME1", "MONOCHROME2") and form.photometric not in COLOUR:
        return f"expected grey values or colours, got the photometric interpretation {form.photometric!r}"
    colours = 3 if form.photometric in COLOUR and form.photometric != "PALETTE COLOR" else 1
    if form.samples != colours:
        return f"expected {colours} samples per pixel of {form.photometric}, got {form.samples}"
    if kind == _WHOLE_SLIDE:
        return "a whole slide image in tiles, which is not read"
    if not 1 <= frames <= _MOST_FRAMES:
        return f"expected 1 to {_MOST_FRAMES} frames, got {frames}"
    needed = form.frame_bytes * frames if form.allocated > 1 else (form.rows * form.columns * frames + 7) // 8
    if form.syntax in CODECS or form.syntax == DEFLATED:
        # Images compress 2 to 20 fold, blank ones 60 fold.
        bomb = needed > 2**26 and needed > 200 * size
        return f"{size} bytes claim to unpack to {needed}: refused as a decompression bomb" if bomb else ""
    if form.syntax not in NATIVE:
        name = UID(form.syntax).name
        return f"transfer syntax {form.syntax}" + (f" ({name})" if name != form.syntax else "") + " is not read"
    if start < 0:
        return "cut off: it has no pixel data"
    if length == UNDEFINED:
        return f"damaged: packed pixels, and the transfer syntax {form.syntax} says that they are not"
    got = min(size - start, length)
    return f"truncated: expected {needed} bytes of pixels, got {got}" if got < needed else ""

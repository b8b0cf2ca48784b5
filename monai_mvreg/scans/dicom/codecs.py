"""Packed pixel data to stored values: by pydicom and one named codec each, and never by a codec that fills in the rest.

A codec is a large piece of C that trusts its input. What a stream states of itself is compared with the header before
it gets one, and pixel data that are cut off never do.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID, RLELossless, SecondaryCaptureImageStorage, generate_uid

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.elements import BIG_ENDIAN, DEFLATED, data_set_start, inflate, read_elements, read_head
from monai_mvreg.scans.dicom.headers import CODECS, ImageFile, PixelFormat
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_range, read_whole

Array = npt.NDArray[Any]

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
# SOF0 to SOF15 without the tables in between, and SOF55 of JPEG-LS; and which of them a transfer syntax means.
_FRAME_MARKERS = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_KINDS = {
    "1.2.840.10008.1.2.4.50": {0xC0},
    _JPEG_EXTENDED: {0xC0, 0xC1},
    "1.2.840.10008.1.2.4.57": {0xC3},
    "1.2.840.10008.1.2.4.70": {0xC3},
    "1.2.840.10008.1.2.4.80": {0xF7},
    "1.2.840.10008.1.2.4.81": {0xF7},
}
_JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
_LOCK = threading.Lock()


def _new_lock() -> None:
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):  # the thread that holds the lock does not live on in a forked process
    os.register_at_fork(after_in_child=_new_lock)
_KEYWORDS = {tags.FLOAT_PIXEL_DATA: "FloatPixelData", tags.DOUBLE_FLOAT_PIXEL_DATA: "DoubleFloatPixelData"}


def unpack(file: ImageFile, frames: Sequence[int]) -> Iterator[Array]:
    """Read frames that are packed, big endian or coloured.

    Args:
        file: the file.
        frames: numbers of the frames wanted.

    Yields:
        Stored values ``(rows, columns[, 3])`` of each; colours are red, green and blue.

    Raises:
        ScanError: if the pixel data are cut off or contradict the header, or if the codec is not installed.
    """
    form = file.pixels
    options: dict[str, Any] = {
        **{"rows": form.rows, "columns": form.columns, "samples_per_pixel": form.samples, "number_of_frames": 1},
        **{"bits_allocated": form.allocated, "bits_stored": form.stored, "pixel_representation": int(form.signed)},
        **{"photometric_interpretation": form.photometric, "planar_configuration": form.planar},
        **{"pixel_keyword": _KEYWORDS.get(form.tag, "PixelData")},
    }
    if form.syntax == _JPEG_EXTENDED and form.allocated > 8:
        yield from (_twelve_bits(packed, form) for packed in _packed_frames(file, frames))
        return
    decoder = get_decoder(UID(form.syntax))
    if form.syntax in (BIG_ENDIAN, RLELossless):  # which bits hold the value is applied afterwards, wherever they are
        options["bits_stored"] = form.allocated
    if form.syntax in CODECS:
        plugin, package = CODECS[form.syntax]
        if plugin not in decoder.available_plugins:
            raise ScanError(f"unpacking {UID(form.syntax).name} needs the package {package}: pip install {package}")
        options["decoding_plugin"] = plugin
        if plugin == "gdcm":  # it ends the process where these two do not suit it: they are applied afterwards
            options |= {"bits_stored": form.allocated, "pixel_representation": 0}
        sources = [encapsulate([packed], has_bot=False) for packed in _packed_frames(file, frames)]
    else:
        sources = _native_frames(file, frames)
    for source in sources:
        with _quiet():
            try:
                picture, _ = decoder.as_array(source, index=0, **options)
            except RuntimeError:
                shorter = _without_fill(source) if form.syntax in _JPEG_LS else []
                if not shorter:
                    raise
                picture = _first_whole(decoder, shorter, options)
            if form.photometric == "PALETTE COLOR":
                picture = _coloured(file, picture)
        picture = np.array(picture, picture.dtype.newbyteorder("="))
        if picture.ndim == 2 and picture.dtype.kind in "iu" and picture.dtype.itemsize * 8 == form.allocated:
            picture = value_bits(picture.view(f"{'ui'[form.signed]}{picture.dtype.itemsize}"), form)
        yield picture


def _without_fill(source: bytes) -> list[bytes]:
    """A stream of JPEG-LS with ever fewer of the bytes that fill it up before its end marker.

    Fill bytes are legal or were written by old encoders; the codec wants none, and takes no stream that is too short.
    """
    packed = next(generate_frames(source, number_of_frames=1)).rstrip(b"\0")
    body, end = packed[:-2], packed[-2:]
    if end != b"\xff\xd9":
        return []
    fill = len(body) - len(body.rstrip(b"\0\xff"))
    return [encapsulate([body[: len(body) - less] + end], has_bot=False) for less in range(1, min(fill, 64) + 1)]


def _first_whole(decoder: Any, sources: Sequence[bytes], options: dict[str, Any]) -> Array:
    for source in sources[:-1]:
        try:
            return np.asarray(decoder.as_array(source, index=0, **options)[0])
        except RuntimeError:
            continue
    return np.asarray(decoder.as_array(sources[-1], index=0, **options)[0])


def inflated(file: ImageFile) -> bytes:
    """Inflate the pixels of a deflated file.

    Raises:
        ScanError: if there are fewer than its header says.
    """
    start = _start(file)
    form = file.pixels
    needed = form.frame_bytes * file.frames if form.allocated > 1 else (form.rows * form.columns * file.frames + 7) // 8
    data = inflate(file.path, data_set_start(file.path), start + needed)[start:]
    if len(data) < needed:
        raise ScanError(f"truncated: expected {needed} bytes of pixels, got {len(data)}")
    return data


def value_bits(stored: Array, form: PixelFormat) -> Array:
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


def _start(file: ImageFile) -> int:
    """Where the pixel data begin; packed files are walked so far only when they are read."""
    start = file.start if file.start >= 0 else read_elements(file.path, read_head(file.path), {}).pixels
    if start < 0:
        raise ScanError("cut off: it has no pixel data")
    return start


def _packed_frames(file: ImageFile, frames: Sequence[int]) -> list[bytes]:
    """The streams of some frames, each of the size that the header says."""
    start = _start(file)
    data, _ = read_range(file.path, start, file.size - start)
    _check_fragments(data)
    with _quiet():
        packed = [bytes(frame) for frame in generate_frames(data, number_of_frames=file.frames)]
    if len(packed) < file.frames:
        raise ScanError(f"truncated: expected {file.frames} frames, got {len(packed)}")
    for frame in frames:
        _check_stream(packed[frame], file.pixels)
    return [packed[frame] for frame in frames]


def _native_frames(file: ImageFile, frames: Sequence[int]) -> list[bytes]:
    """The bytes of some frames that are not packed."""
    form = file.pixels
    if form.syntax == DEFLATED:
        data = inflated(file)
    else:
        start = _start(file)
        data, _ = read_range(file.path, start, file.size - start)
        if form.allocated == 8 and form.syntax == BIG_ENDIAN and read_range(file.path, start - 8, 2)[0] == b"OW":
            # Bytes written as words: pairs are swapped, over the borders of odd frames.
            data = np.frombuffer(data[: len(data) // 2 * 2], "u2").byteswap().tobytes()
    return [data[frame * form.frame_bytes : (frame + 1) * form.frame_bytes] for frame in frames]


def _twelve_bits(packed: bytes, form: PixelFormat) -> Array:
    """Unpack JPEG of 12 bits, for which pydicom has no codec, by SimpleITK, which reads files alone.

    It gets a file with this one stream and nothing that the original says beside it.
    """
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = _JPEG_EXTENDED
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = (
        form.rows,
        form.columns,
        1,
        "MONOCHROME2",
    )
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, form.stored, form.stored - 1
    image.PixelRepresentation = int(form.signed)
    image.PixelData = encapsulate([packed])
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory() as folder:
        image.save_as(f"{folder}/a.dcm", enforce_file_format=True)
        with _LOCK, _no_stderr():  # its library tries codecs of other depths first, and prints that they fail
            return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(f"{folder}/a.dcm"))[0])


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


def _check_stream(packed: bytes, form: PixelFormat) -> None:
    """Compare what a JPEG stream states of itself with the header: kind, size, samples and bits."""
    try:
        if packed[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SIZ comes first
            width, height, left, top = struct.unpack_from(">4I", packed, 8)
            (samples,), bits = struct.unpack_from(">H", packed, 40), (packed[42] & 127) + 1
            found = (height - top, width - left, samples)
        elif packed[:2] == b"\xff\xd8":
            at = 2
            while (marker := packed[at + 1]) not in _FRAME_MARKERS:
                at += 1 if marker == 0xFF else 2 + int.from_bytes(packed[at + 2 : at + 4], "big")
            if marker not in _KINDS.get(form.syntax, _FRAME_MARKERS):
                raise ScanError(f"damaged: its stream is of another kind ({marker:02X}) than {UID(form.syntax).name}")
            found, bits = (*struct.unpack_from(">2H", packed, at + 5), packed[at + 9]), packed[at + 4]
        elif UID(form.syntax) == RLELossless:
            return  # it states nothing, and unpacks into what the header states
        else:
            raise ScanError("damaged: expected a stream of JPEG or JPEG 2000, got another beginning")
    except (IndexError, struct.error):
        raise ScanError("damaged: its stream has no frame header") from None
    if found != (form.rows, form.columns, form.samples) or not 0 < bits <= form.allocated:
        header = f"{form.rows} rows, {form.columns} columns and {form.samples} samples of {form.allocated} bits"
        raise ScanError(f"damaged: its header has {header}, its stream {found} of {bits} bits")


def _coloured(file: ImageFile, picture: Array) -> Array:
    """Look up the colours of a palette; scaled to 8 bits where its entries have 16 (PS3.3 C.7.6.3.1.5)."""
    data = io.BytesIO(read_whole(file.path))
    image = pydicom.dcmread(data, stop_before_pixels=True)
    colours = pydicom.pixels.apply_color_lut(picture, image)
    return np.asarray(colours >> 8 if colours.dtype.itemsize == 2 else colours)


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Silence what a library prints past Python."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom: its messages may quote values, and it logs what its caller handles.

    One thread at a time, because log levels and warning filters are of the whole process. Codecs gain nothing from a
    second thread anyway: they hold the interpreter's lock.
    """
    log = logging.getLogger("pydicom")
    with _LOCK:
        level = log.level
        log.setLevel(logging.CRITICAL + 1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            log.setLevel(level)

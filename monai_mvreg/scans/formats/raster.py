"""Other formats to values, by a library each: PNG, JPEG and TIFF (Pillow), NRRD and MetaImage (SimpleITK)."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from monai_mvreg.scans.formats.byte_ranges import ScanError, read_range, read_whole, refuse_bomb
from monai_mvreg.scans.formats.text_headers import (
    TEXT_BYTES,
    in_millimetres,
    intensity,
    lies_in_patient,
    meta_fields,
    nrrd_fields,
)

Array = npt.NDArray[Any]

_MARKS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
_GREY = {"1", "L", "I", "F", "I;16", "I;16B", "I;16L"}
_COLOURS = {"RGB", "RGBA", "P", "LA"}
# Bits and sample format (1 unsigned, 2 signed, 3 float) of the TIFFs whose values Pillow keeps.
_TIFF_KINDS = {*((bits, 1) for bits in (1, 2, 4, 8, 16)), (16, 2), (32, 2), (32, 3)}
_SUBFILE_TYPE, _OLD_SUBFILE_TYPE = 254, 255  # bits of the first: 1 a smaller copy, 2 one of many pages, 4 a mask
_VOLUMES = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}


@dataclass(frozen=True)
class Raster:
    """What a picture or volume says of itself: ``shape`` in space (x first), ``frames``, ``spacing`` in mm if known.

    ``affine`` is None if the file does not say how it lies in the patient.
    """

    path: Path
    shape: tuple[int, ...]
    frames: int
    colour: bool
    spacing: tuple[float, ...]
    affine: Array | None


def is_picture(start: bytes) -> bool:
    """Whether a file is a PNG, JPEG or TIFF by its first bytes."""
    return start.startswith(_MARKS)


def is_volume(name: str) -> bool:
    """Whether a file is NRRD or MetaImage by its name."""
    return Path(name).suffix.lower() in _VOLUMES


@contextmanager
def _picture(path: Path) -> Iterator[ImageFile]:
    """Open a picture; every way in which it can be damaged is one error."""
    try:
        raw = read_whole(path)
        with Image.open(io.BytesIO(raw), formats=("PNG", "JPEG", "TIFF")) as image:
            _check_page(image, len(raw))
            yield image
    except ScanError:
        raise
    except Exception as error:  # Pillow raises whatever its decoders do
        raise ScanError(f"truncated or damaged picture ({type(error).__name__})") from None


def _check_page(image: ImageFile, size: int) -> None:
    """Refuse a picture that Pillow would not give as it is stored."""
    refuse_bomb(size, image.width * image.height * len(image.getbands()))
    if image.mode not in _GREY | _COLOURS:
        raise ScanError(f"expected grey values or colours, got a picture of mode {image.mode}")
    if image.mode in _COLOURS and any(";16" in str(tile[3]) for tile in image.tile):
        raise ScanError("expected colours of 8 bits, got 16, which would be cut to 8")
    if isinstance(image, TiffImageFile):
        bits, photometric, kind = (image.tag_v2.get(tag) for tag in (258, 262, 339))
        kind = kind[0] if isinstance(kind, tuple) else kind or 1
        bits = bits[0] if isinstance(bits, tuple) else bits or 1
        if (bits, kind) not in _TIFF_KINDS:
            raise ScanError(f"expected a TIFF of a kind that is read, got {bits} bits of sample format {kind}")
        if photometric == 0 and bits > 8:
            raise ScanError(f"expected a TIFF of {bits} bits in which the smallest value is black")


def _pages(image: ImageFile) -> list[int]:
    """The pages of a picture that are separate images: not the preview that a camera or a scanner adds."""
    if not isinstance(image, TiffImageFile):
        # What stands behind the picture of a JPEG (MPF) is a preview or another view; the frames of a PNG move.
        return [0] if image.format in ("JPEG", "MPO") else list(range(getattr(image, "n_frames", 1)))
    pages = []
    for page in range(image.n_frames):
        image.seek(page)
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & 5 and image.tag_v2.get(_OLD_SUBFILE_TYPE, 1) != 2:
            pages.append(page)
    image.seek(0)
    return pages if pages and pages[0] == 0 else [0, *pages]


def picture_header(path: Path) -> Raster:
    """Read the size of a picture; a TIFF may have several pages, which are its frames.

    Raises:
        ScanError: if it is damaged, or of a kind that is not read.
    """
    with _picture(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # stored lying on its side
        shape = image.size[::-1] if turned else image.size
        return Raster(path, shape, len(_pages(image)), image.mode in _COLOURS, (), None)


def read_picture(path: Path, frame: int) -> Array:
    """Read grey values ``(rows, columns)``, or colours ``(rows, columns, 3)``, as float32.

    Raises:
        ScanError: if it is damaged, or partly transparent.
    """
    with _picture(path) as image:
        size, colour, page = image.size, image.mode in _COLOURS, _pages(image)[frame]
        image.seek(page)
        _check_page(image, read_range(path, 0, 0)[1])
        if (image.size, image.mode in _COLOURS) != (size, colour):
            raise ScanError(f"expected pages of one size and kind, got another on page {page + 1}")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _GREY:
            return np.asarray(upright).astype(np.float32)
        *colours, alpha = (np.asarray(band) for band in upright.convert("RGBA").split())
        if (alpha != 255).any():
            raise ScanError("expected a picture without transparency")
        return np.stack(colours, axis=-1).astype(np.float32)


def volume_header(path: Path) -> Raster:
    """Read the geometry of an NRRD or MetaImage volume.

    Raises:
        ScanError: if it is damaged, keeps its voxels in a file elsewhere, or claims more voxels than it has bytes.
    """
    reader, fields = _reader(path), _fields(path)
    intensity(fields)
    components, dimensions, size = reader.GetNumberOfComponents(), reader.GetDimension(), reader.GetSize()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    colour = components == 3 and kind == "vector of 8-bit unsigned integer"
    if dimensions not in (2, 3, 4) or (components > 1 and not colour) or "complex" in kind:
        raise ScanError(f"expected one grey or coloured image, got {dimensions} dimensions of {components} components")
    space = 3 if dimensions > 2 and size[2] > 1 else 2
    spacing, origin = np.array(reader.GetSpacing()), np.array(reader.GetOrigin())
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)
    affine = np.eye(4)
    axes = min(dimensions, 3)
    affine[:axes, :axes] = direction[:axes, :axes] * spacing[:axes]
    affine[:axes, 3] = origin[:axes]
    affine = in_millimetres(fields, affine, colour=colour)
    placed = lies_in_patient(fields, affine[:axes, :axes], nrrd=_is_nrrd(path))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK counts to the left and to the back
    frames = size[3] if dimensions > 3 else 1
    lengths = tuple(map(float, np.linalg.norm(affine[:3, :space], axis=0)))
    return Raster(path, tuple(size[:space]), frames, colour, lengths, affine if placed else None)


def read_volume(path: Path) -> Array:
    """Read an NRRD or MetaImage volume: ``(frames, z, y, x[, 3])`` as float32.

    Raises:
        ScanError: if it is truncated or damaged.
    """
    header = volume_header(path)
    try:
        values: Array = sitk.GetArrayFromImage(_reader(path).Execute())
    except RuntimeError:
        raise ScanError("truncated or damaged") from None
    slope, offset = intensity(_fields(path))
    if (slope, offset) != (1.0, 0.0):
        values = values * np.float64(slope) + np.float64(offset)
    values = values.astype(np.float32)
    return values.reshape(header.frames, *header.shape[::-1], *((3,) if header.colour else ()))


def voxel_file(path: Path) -> Path:
    """The file with the voxels of an NRRD or MetaImage volume: itself, or another in the same folder.

    Raises:
        ScanError: if its header is damaged, or names anything else.
    """
    return _voxels(path, _fields(path))


def _is_nrrd(path: Path) -> bool:
    return _VOLUMES[path.suffix.lower()] == "NrrdImageIO"


def _fields(path: Path) -> dict[str, str]:
    start, _ = read_range(path, 0, TEXT_BYTES)
    if not path.is_file():
        raise ScanError("a volume of this format inside a zip is not read: unzip it first")
    return nrrd_fields(start) if _is_nrrd(path) else meta_fields(start)


def _voxels(path: Path, fields: dict[str, str]) -> Path:
    name = fields.get("datafile", "LOCAL")
    if name.upper() == "LOCAL":
        return path
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    plain = bool(name) and Path(name).name == name
    voxels = path.with_name(name) if plain else path
    if not plain or not os.path.isfile(voxels) or voxels.is_symlink():  # noqa: PTH113, of any length
        raise ScanError("expected its voxels in one file in the same folder")
    return voxels


def _reader(path: Path) -> Any:
    """A reader that knows the header, after it is sure that the voxels are where they should be and no more."""
    kind, fields = _VOLUMES[path.suffix.lower()], _fields(path)
    voxels = _voxels(path, fields)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise ScanError("expected an NRRD or MetaImage header, cannot read it") from None
    needed = int(np.prod(reader.GetSize(), dtype=np.float64)) * reader.GetNumberOfComponents() * _item_bytes(reader)
    have = voxels.stat().st_size
    if fields.get("encoding", "raw").lower() != "raw":
        refuse_bomb(have, needed)
    elif have < needed:
        raise ScanError(f"truncated: expected {needed} bytes of voxels, got {have}")
    return reader


def _item_bytes(reader: Any) -> int:
    """Bytes of one component, by the number in the name of its type."""
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = re.search(r"(\d+)-bit", name)
    if bits is None:
        raise ScanError(f"expected grey values or colours, got {name}")
    return int(bits[1]) // 8

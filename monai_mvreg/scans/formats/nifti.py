"""NIfTI files to values: single or in a pair, gzipped or not, read volume by volume without copies in between.

Source: the NIfTI-1 and NIfTI-2 headers, https://nifti.nimh.nih.gov; nibabel reads the header, this module the voxels.
"""

from __future__ import annotations

import io
import logging
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel import nifti1, nifti2
from nibabel.affines import voxel_sizes

from monai_mvreg.scans.formats.byte_ranges import ScanError, read_range, read_whole, refuse_bomb
from monai_mvreg.scans.formats.slice_buffer import SliceWriter

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_EXTENDED_BYTES = 2**14  # a header (348 bytes, in NIfTI-2 540), and most of what extends it
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # per metre and per micron; everything else is in mm
_TRAILING = 2**26


@dataclass(frozen=True)
class Nifti:
    """The header of a NIfTI file: ``shape`` in space, ``frames`` in time, where and how the voxels are stored."""

    path: Path
    shape: tuple[int, ...]
    frames: int
    colour: bool
    affine: Array
    oriented: bool
    spacing: tuple[float, ...]
    offset: int
    kind: np.dtype[Any]
    scale: tuple[float, float]

    @property
    def frame_bytes(self) -> int:
        """Bytes of one volume."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.kind.itemsize


def is_nifti(name: str) -> bool:
    """Whether a file is a NIfTI file by its name; of a pair, the file with the voxels stands for both."""
    return name.lower().endswith((".nii", ".nii.gz", ".img", ".img.gz"))


def header_file(path: Path) -> Path:
    """The file with the header: of a pair, the one beside the voxels; else the file itself."""
    return path.with_name(re.sub(r"\.(img|IMG)(?=(\.gz)?$)", _header_suffix, path.name))


def nifti_header(path: Path) -> Nifti:
    """Read the header of a NIfTI file.

    The affine is the sform if there is one, else the qform, else what the voxel sizes say; lengths are brought to mm.

    Raises:
        ScanError: if it is no NIfTI file, or none that holds one grey or coloured image in space and time.
    """
    beside = header_file(path)
    pair = path.name.lower().removesuffix(".gz").endswith(".img")
    raw = _header_bytes(beside)
    try:
        kinds = [kind for kind in _HEADERS if _is_a(kind, raw) and (pair or kind.is_single)]
        bare = next(kind(raw[: kind.sizeof_hdr], check=False) for kind in kinds)
        _check_offset(raw, bare)
        header = type(bare)(raw[: bare.sizeof_hdr], check=True)
        shape, kind = tuple(map(int, header.get_data_shape())), header.get_data_dtype()
        affine, offset = np.asarray(header.get_best_affine(), np.float64), int(header.get_data_offset())
        slope, intercept = header.get_slope_inter()
        units = _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
        oriented = bool(header["qform_code"] or header["sform_code"])
    except StopIteration:
        raise ScanError("expected a NIfTI file, got another format") from None
    except ScanError:
        raise
    except Exception as error:  # nibabel has errors of its own, and hostile numbers cause others
        raise ScanError(f"damaged NIfTI header ({type(error).__name__})") from None
    affine[:3] *= units
    if not np.isfinite(affine).all() or _flatness(affine) < 1e-6:
        raise ScanError("expected an affine with three directions, got one without")
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise ScanError(f"expected one image in space and time, got shape {shape}")
    colour = kind.names == ("R", "G", "B")
    if (kind.names and not colour) or kind.kind not in "iufV":
        raise ScanError(f"expected grey values or colours, got {kind}")
    size = read_range(path, 0, 0)[1]
    needed = offset + int(np.prod(shape, dtype=np.float64)) * kind.itemsize
    if read_range(path, 0, 2)[0] == b"\x1f\x8b":
        refuse_bomb(size, needed)
    elif size < needed:
        raise ScanError(f"truncated: expected {needed} bytes, got {size}")
    space = shape[: 3 if len(shape) > 2 and shape[2] > 1 else 2]
    return Nifti(
        path=path,
        shape=space,
        frames=shape[3] if len(shape) > 3 else 1,
        colour=colour,
        affine=affine,
        oriented=oriented,
        spacing=tuple(map(float, voxel_sizes(affine)[: len(space)])),
        offset=offset,
        kind=kind,
        scale=(1.0, 0.0) if colour else (1.0 if slope is None else slope, 0.0 if intercept is None else intercept),
    )


def _check_offset(raw: bytes, header: Any) -> None:
    """Refuse an offset that lets the header, or what extends it, be read as voxels (nifti1.h, vox_offset)."""
    start, ahead = float(header["vox_offset"]), int(header.sizeof_hdr)
    least = ahead + 4 if header.is_single else 0
    if not start >= least or start != start // 1:
        raise ScanError(f"expected voxels that begin at byte {least} or later, got vox_offset {start:g}")
    if not header.is_single or not any(raw[ahead : ahead + 1]):
        return
    at, form = least, header.endianness + "ii"
    while at + 8 <= len(raw):
        size, code = struct.unpack_from(form, raw, at)
        if size < 16 or size % 16 or not 0 <= code < 1000:  # no extension
            return
        if at <= start < at + size:
            raise ScanError(f"expected voxels after the extensions of the header, got vox_offset {start:g} within them")
        at += size
        if at >= start:
            return


def _header_suffix(found: re.Match[str]) -> str:
    return ".HDR" if found[1].isupper() else ".hdr"


def _flatness(affine: Array) -> float:
    """The volume of a voxel over that of a box with its edges: 0 if they lie in a plane."""
    edges = float(np.prod(np.linalg.norm(affine[:3, :3], axis=0)))
    return abs(float(np.linalg.det(affine[:3, :3]))) / edges if edges > 0 else 0.0


_HEADERS = (nifti1.Nifti1Header, nifti1.Nifti1PairHeader, nifti2.Nifti2Header, nifti2.Nifti2PairHeader)


def _is_a(kind: Any, raw: bytes) -> bool:
    """Whether these bytes have the mark of this header."""
    second = kind.sizeof_hdr == 540
    mark = raw[4:8] if second else raw[344:348]
    return len(raw) >= kind.sizeof_hdr and mark[:3] == (b"n+" if kind.is_single else b"ni") + (b"2" if second else b"1")


def _header_bytes(path: Path) -> bytes:
    raw, _ = read_range(path, 0, 2**16)
    if raw[:2] != b"\x1f\x8b":
        return raw[:_EXTENDED_BYTES]
    try:
        with _unzipped(io.BytesIO(raw)) as file:
            return bytes(file.read(_EXTENDED_BYTES))
    except Exception as error:
        raise ScanError(f"damaged gzip file ({type(error).__name__})") from None


def read_nifti(header: Nifti, frames: Sequence[int], *, turned: bool = False) -> Array:
    """Read volumes of a NIfTI file.

    Args:
        header: from :func:`nifti_header`.
        frames: the volumes wanted, in ascending order.
        turned: lay one grey volume out in memory with x first.

    Returns:
        Values ``(frames, z, y, x[, 3])``, float32, scaled by slope and intercept in float64.

    Raises:
        ScanError: if the file is truncated or damaged.
    """
    zipped = read_range(header.path, 0, 2)[0] == b"\x1f\x8b"
    try:
        with _opened(header.path, zipped=zipped) as file:
            file.seek(header.offset)
            values = _volumes(header, frames, file, turned and len(frames) == 1)
            if zipped and frames[-1] == header.frames - 1:
                _read_to_the_end(file)
            return values
    except ScanError:
        raise
    except Exception as error:  # gzip, zlib and isal have errors of their own
        raise ScanError(f"truncated or damaged ({type(error).__name__})") from None


@contextmanager
def _opened(path: Path, *, zipped: bool) -> Iterator[Any]:
    try:
        source: Any = path.open("rb", buffering=0)
    except NotADirectoryError:
        source = io.BytesIO(read_whole(path))
    with source:  # a gzip file leaves what it reads open
        yield _unzipped(source) if zipped else source


def _unzipped(file: Any) -> Any:
    kind: Any = igzip.IGzipFile  # isal ships no types
    return kind(fileobj=file)


def _read_to_the_end(file: Any) -> None:
    """Only at its end is the checksum of a gzip compared; what follows the voxels is dropped, within reason."""
    for _ in range(64):
        if not file.read(_TRAILING // 64):
            return
    raise ScanError(f"more than {_TRAILING} bytes behind the voxels")


def _volumes(header: Nifti, frames: Sequence[int], file: Any, turned: bool) -> Array:
    # Voxels lie x first. Slice by slice through a buffer that stays in the processor's cache, memory is written once.
    kind = np.dtype("u1") if header.colour else header.kind
    shape = (*header.shape[1::-1], *((3,) if header.colour else ()))
    depth = header.shape[2] if len(header.shape) > 2 else 1
    writer = SliceWriter(len(frames) * depth, shape, turned=turned)
    buffer = bytearray(int(np.prod(shape)) * kind.itemsize)
    view, stored = memoryview(buffer), np.frombuffer(buffer, kind)
    slope, intercept = header.scale
    at = 0
    for frame in frames:
        if frame > at:
            file.seek(header.offset + frame * header.frame_bytes)
        at = frame + 1
        for _ in range(depth):
            row = writer.next().reshape(-1)
            got = file.readinto(view)
            while got < len(view):
                more = file.readinto(view[got:])
                if not more:
                    raise ScanError(f"truncated: its voxels end in volume {frame}")
                got += more
            if (slope, intercept) == (1.0, 0.0):
                np.copyto(row, stored, casting="unsafe")
            else:
                scaled = stored * np.float64(slope)
                scaled += np.float64(intercept)
                np.copyto(row, scaled, casting="unsafe")
    return writer.array.reshape(len(frames), depth, *shape) if len(frames) > 1 else writer.array[None]

"""Files to scans: find the scans of a folder, and read one as an array in mm (the first step of the way of the data).

The address of a scan is one string that fits one cell of a table: a file (NIfTI, PNG, JPEG, one DICOM image), a folder
that holds exactly one DICOM image series, or ``folder#SeriesInstanceUID`` when the folder holds several.
"""

from __future__ import annotations

import datetime
import gzip
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from nibabel.affines import voxel_sizes
from PIL import Image, ImageOps
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.dicom import Array, Header, read_header, read_pixels, stack_slices

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """One scan, known from its headers alone.

    ``shape`` and ``spacing`` (mm, empty if unknown) follow the axes of the array: columns, rows[, slices]. ``modality``
    is empty if unknown. ``patient`` is the DICOM PatientID, empty for other formats: never shown.
    """

    address: str
    modality: str
    date: datetime.date | None
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    files: tuple[Path, ...]
    patient: str = field(repr=False)


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that gave no scan, and why."""

    path: Path
    reason: str


def find_scans(folder: Path) -> tuple[list[Scan], list[LeftOut]]:
    """Find every scan below a folder, from the headers alone.

    Args:
        folder: searched to any depth; DICOM, PNG and JPEG are known by content, NIfTI by its suffix.

    Returns:
        The scans sorted by address, and what gave no scan with the reason: a bad file is never an exception.

    Raises:
        ValueError: if ``folder`` is not a folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"expected a folder to search for scans, got {str(folder)!r}")
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        folders[path.parent].append(path)
    scans: list[Scan] = []
    left_out: list[LeftOut] = []
    homes: dict[str, dict[Path, list[Scan]]] = defaultdict(dict)
    for parent, files in tqdm(folders.items(), "headers", unit="folder", disable=None):
        series, others, damaged = _sort_out(files)
        left_out += damaged
        for other in others:
            try:
                scans.append(_file_scan(other))
            except ValueError as error:
                left_out.append(LeftOut(other.path, str(error)))
        for uid, headers in series.items():
            # Slices belong together wherever they lie; radiographs without a position stand alone.
            placed = bool(headers[0].position.size)
            home = homes[uid if placed else f"{uid} in {parent}"].setdefault(parent, [])
            try:
                if damaged and placed:
                    raise ValueError(f"damaged DICOM files in its folder: {_listed(damaged)}")
                address = parent.as_posix() + (f"#{uid}" if len(series) > 1 else "")
                home += _series_scans(address, headers)
            except ValueError as error:
                left_out.append(LeftOut(parent, f"series ...{uid[-12:]}: {error}"))
    for uid, places in homes.items():
        if len(places) > 1:  # its parts would pass for scans of their own
            reason = f"series ...{uid[-12:]}: expected its files in one folder, found them in {len(places)}"
            left_out += [LeftOut(parent, reason) for parent in places]
        else:
            scans += next(iter(places.values()))
    return sorted(scans, key=lambda s: s.address), sorted(left_out, key=lambda item: item.path)


class ScanReader(ImageReader):
    """Read one scan by its address for MONAI's image loading: float32 ``(X, Y)`` or ``(X, Y, Z)``, affine in RAS mm.

    Values are those of the modality (rescaled image by image), larger is brighter (MONOCHROME1 is inverted). The slices
    of a series are ordered along their normal; a tilted gantry gives a sheared affine. The affine of a 2D image holds
    its spacing and, where its plane in the patient is known, the direction of its axes in that plane.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (4, 3)).save(f"{folder}/scan.png")
        ...     array, meta = ScanReader().get_data(ScanReader().read(f"{folder}/scan.png"))
        >>> array.shape
        (4, 3)
    """

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:
        """Accept every address: ``read`` decides by content."""
        return True

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> tuple[Array, Array]:
        """Read the scan at an address.

        Args:
            data: the address, or a sequence of exactly one, as MONAI's ``LoadImage`` hands it over.
            kwargs: part of MONAI's signature; none is accepted.

        Returns:
            The array, float32, and its affine ``(4, 4)``, RAS in mm.

        Raises:
            FileNotFoundError: if nothing is there.
            ValueError: if what is there is not exactly one readable scan, with the reason.
        """
        if kwargs:
            raise ValueError(f"expected no further arguments, got {sorted(kwargs)}")
        addresses = [data] if isinstance(data, (str, Path)) else list(data)
        if len(addresses) != 1:
            raise ValueError(f"expected the address of one scan, got {len(addresses)}")
        path, uid = Path(addresses[0]), ""
        if not path.exists() and "#" in path.name:
            path, uid = path.with_name(path.name.rpartition("#")[0]), path.name.rpartition("#")[2]
        if not path.exists():
            raise FileNotFoundError(f"expected a scan at {str(addresses[0])!r}, there is no such file or folder")
        try:
            array, affine = _read_folder(path, uid) if path.is_dir() else _read_file(path)
            if bad := np.size(array) - np.count_nonzero(np.isfinite(array)):
                raise ValueError(f"expected finite values, got {bad} that are NaN or infinite")
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
        return array, affine

    def get_data(self, img: tuple[Array, Array]) -> tuple[Array, dict[str, Any]]:
        """Give the array and the metadata that MONAI's transforms need; the rest of a header may identify a patient.

        Args:
            img: what ``read`` returned.
        """
        array, affine = img
        return array, {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel",
        }


def _read_folder(folder: Path, uid: str) -> tuple[Array, Array]:
    series, others, damaged = _sort_out(sorted(p for p in folder.iterdir() if p.is_file()))
    beside = f"; no DICOM image: {_listed(others)}" if others else ""
    tails = ", ".join(f"...{found[-12:]}" for found in series) or "none"
    if damaged:
        raise ValueError(f"{damaged[0].path.name}: {damaged[0].reason}")
    if uid not in series if uid else not series:
        raise ValueError(f"expected {'series ...' + uid[-12:] if uid else 'a DICOM image series'}, got {tails}{beside}")
    if not uid and len(series) > 1:
        raise ValueError(
            f"expected one DICOM image series, got {len(series)} ({tails}): write folder#SeriesInstanceUID to name one"
        )
    try:
        headers, affine = stack_slices(series[uid or next(iter(series))])
    except ValueError as error:
        raise ValueError(f"{error}{beside}") from None
    if len(headers) == 1:
        return read_pixels(headers[0]).T, _plane_affine(affine, headers[0].spacing)
    if affine is None:
        raise ValueError(f"expected one volume, got {len(headers)} 2D images: write the file of one of them")
    # Slices stay contiguous in memory: the (X, Y, Z) view of them costs no transposing copy.
    volume = np.empty((len(headers), *headers[0].shape[::-1]), np.float32)
    for index, header in enumerate(headers):
        volume[index] = read_pixels(header)
    return volume.transpose(2, 1, 0), affine


def _read_file(path: Path) -> tuple[Array, Array]:
    kind = _kind(path)
    if kind == "nifti":
        return _nifti(path)
    if kind == "picture":
        return _picture(path), np.eye(4)
    if kind != "dicom":
        raise ValueError(f"expected a NIfTI, PNG, JPEG or DICOM file, got {kind}")
    header = read_header(path)
    if isinstance(header, str):
        raise ValueError(header)
    (header,), affine = stack_slices([header])
    return read_pixels(header).T, _plane_affine(affine, header.spacing)


def _kind(path: Path) -> str:
    """The format by content (by suffix for NIfTI, whose mark lies anywhere once zipped), or else what it is not."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        return f"a file that cannot be opened ({type(error).__name__})"
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return "nifti"
    if start[128:] == b"DICM":
        return "dicom"
    if start.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
        return "picture"
    return "another format" if start else "an empty file"


def _file_scan(other: LeftOut) -> Scan:
    """The scan in a NIfTI file or a picture."""
    shape: tuple[int, ...]
    if other.reason == "nifti":
        image = _nifti_header(other.path)
        shape = tuple(image.shape[: 3 if image.ndim > 2 and image.shape[2] > 1 else 2])
        spacing = tuple(map(float, voxel_sizes(image.affine)[: len(shape)]))
    elif other.reason == "picture":
        shape, spacing = _picture(other.path).shape, ()
    else:
        raise ValueError(other.reason)
    return Scan(other.path.as_posix(), "", None, spacing, shape, (other.path,), "")


def _nifti_header(path: Path) -> Any:
    try:
        image = nib.load(path)
        kind = image.get_data_dtype()
    except Exception as error:
        raise ValueError(f"expected a NIfTI file, cannot read it ({type(error).__name__})") from None
    if any(n > 1 for n in image.shape[3:]):
        raise ValueError(f"expected one 2D or 3D image, got shape {image.shape}: several time points or channels")
    if kind.fields or kind.kind == "c" or image.ndim < 2:
        raise ValueError(f"expected an image of grey values, got {kind} of shape {image.shape}")
    return image


def _nifti(path: Path) -> tuple[Array, Array]:
    image = _nifti_header(path)
    try:
        raw = path.read_bytes()  # to its end: otherwise the checksum of a gzip is not compared
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        array = np.asanyarray(type(image).from_bytes(raw).dataobj).astype(np.float32)
    except Exception as error:
        raise ValueError(f"truncated or damaged NIfTI file ({type(error).__name__})") from None
    if not (image.header["qform_code"] or image.header["sform_code"]):
        logger.warning("%s: no qform and no sform, the orientation is taken as it is stored", path.name)
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3:
        return array, image.affine
    return array, _plane_affine(image.affine, voxel_sizes(image.affine)[:2])


def _picture(path: Path) -> Array:
    """Grey values ``(X, Y)`` of a PNG or JPEG."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode == "L" or image.mode.startswith("I"):
                return np.asarray(image).T.astype(np.float32)
            *colours, alpha = (np.asarray(band) for band in image.convert("RGBA").split())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"truncated or damaged picture ({type(error).__name__})") from None
    if (alpha != 255).any() or any((band != colours[0]).any() for band in colours):
        raise ValueError("expected a grey picture, got colours or transparency")
    return colours[0].T.astype(np.float32)


def _sort_out(files: Sequence[Path]) -> tuple[dict[str, list[Header]], list[LeftOut], list[LeftOut]]:
    """The DICOM images of a folder by series, its other files (the reason is their format), and the damaged ones."""
    series: dict[str, list[Header]] = defaultdict(list)
    others, damaged = [], []
    for path in files:
        if (kind := _kind(path)) != "dicom":
            others.append(LeftOut(path, kind))
            continue
        try:
            header = read_header(path)
        except ValueError as error:
            damaged.append(LeftOut(path, str(error)))
            continue
        if isinstance(header, str):
            others.append(LeftOut(path, header))
        else:
            series[header.series].append(header)
    return dict(series), others, damaged


def _series_scans(address: str, headers: Sequence[Header]) -> list[Scan]:
    """The scans of one DICOM series: one volume at the address, or its 2D images at their files."""
    stack, affine = stack_slices(headers)
    scans = []
    for part in [stack] if affine is not None else [[header] for header in stack]:
        first = part[0]
        shape: tuple[int, ...] = first.shape
        spacing = first.spacing
        place = address if len(part) > 1 else first.path.as_posix()
        if affine is not None and len(part) > 1:
            shape, spacing = (*shape, len(part)), (*spacing, float(np.linalg.norm(affine[:3, 2])))
        date = min((header.date for header in part if header.date), default=None)
        files = tuple(header.path for header in part)
        scans.append(Scan(place, first.modality, date, spacing, shape, files, first.patient))
    return scans


def _listed(items: Sequence[LeftOut]) -> str:
    """File names and reasons for a message; the first five."""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(f"{item.path.name} ({item.reason})" for item in items[:5]) + more


def _plane_affine(affine: Array | None, spacing: Sequence[float]) -> Array:
    """The affine of a 2D image: each axis along the nearest axis of the patient within the nearest main plane."""
    plane = np.diag([*(spacing if len(spacing) else (1.0, 1.0)), 1.0, 1.0])
    if affine is not None:
        (first, first_sign), (second, second_sign) = nib.io_orientation(affine)[:2]
        plane[:2, :2] = np.diag([first_sign, second_sign]) @ plane[:2, :2]
        if first > second:
            plane[:2] = plane[1::-1]
    return plane

"""Files to scans: find every scan in a folder, a zip or a DICOMDIR, from the headers alone (the first step of the way).

The address of a scan is one string that fits one cell of a table: a file, a folder that holds exactly one DICOM image
series, ``folder#SeriesInstanceUID`` where it holds several, and ``folder#SeriesInstanceUID:name`` where the series
holds several volumes (echoes, orientations, stacks). A zip counts as a folder: ``study.zip``,
``study.zip/folder/file``.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.scans.addresses import ScanAddress, scan_key
from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.acquisition_date import SOURCES, Moment, acquired, in_order
from monai_mvreg.scans.dicom.duplicates import without_copies
from monai_mvreg.scans.dicom.elements import read_head
from monai_mvreg.scans.dicom.headers import COLOUR, SEGMENTATIONS, ImageFile, NoImageError, text
from monai_mvreg.scans.dicom.multiframe import read_slices
from monai_mvreg.scans.dicom.slices import Slice
from monai_mvreg.scans.dicom.volumes import Stack, even_count, find_stacks
from monai_mvreg.scans.discovery import LINK_INSIDE, OUTSIDE_DICOMDIR, OUTSIDE_ZIP, is_directory, list_files
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.formats.nifti import Nifti, is_nifti, nifti_header
from monai_mvreg.scans.formats.raster import Raster, is_picture, is_volume, picture_header, volume_header
from monai_mvreg.scans.unread import is_bare_dicom, is_no_slice, named_like_slices, why_no_scan

logger = logging.getLogger(__name__)

_EMPTY = "an empty file"


@dataclass(frozen=True)
class Scan:
    """One scan as its headers describe it; what they do not say is empty or None.

    ``address`` finds it again, see the top of this module; ``files`` are all its files. ``series`` is the
    SeriesInstanceUID, ``volume`` names the volume if the series has several; both are empty for other formats.
    ``modality`` and ``body_part`` are those of DICOM. ``date`` is a ``date``, or a ``datetime`` if the time of day is
    known, read from the DICOM attribute ``date_from``. ``shape`` and ``spacing`` (mm) follow the axes of the array:
    columns, rows[, slices]; ``frames`` counts what ``frames_are`` names; ``colour`` is true for RGB.
    ``transfer_syntax`` is the UID of the pixel encoding. ``patient`` is the DICOM PatientID, which ``repr`` hides;
    ``content`` is what reading needs.

    Example:
        >>> scans, _ = find_scans("patient")
        >>> scans[0].address, scans[0].modality, scans[0].shape, scans[0].spacing
        ('patient/2015-03-23', 'MR', (24, 24, 16), (4.0, 4.0, 4.0))
    """

    address: str
    series: str
    volume: str
    modality: str
    body_part: str
    date: Moment | None
    date_from: str
    shape: tuple[int, ...]
    frames: int
    colour: bool
    spacing: tuple[float, ...]
    transfer_syntax: str
    files: tuple[Path, ...]
    patient: str = field(repr=False)
    content: Stack | Nifti | Raster = field(repr=False, compare=False)

    @property
    def frames_are(self) -> str:
        """What the frames are: ``time points`` where a clock or an order of acquisition says so, else ``images``."""
        if isinstance(self.content, Stack):
            return "time points" if self.content.timed else "images at each position"
        return "pages" if isinstance(self.content, Raster) and not self.spacing else "time points"

    @property
    def key(self) -> str:
        """``series`` and ``volume`` in one text, as in an address."""
        return scan_key(self.series, self.volume)


@dataclass(frozen=True)
class LeftOut:
    """A file or series that is no scan, and why; ``scan`` is set if it can be read nevertheless, as a localizer can."""

    path: Path
    reason: str
    scan: Scan | None = field(default=None, repr=False)


@dataclass
class Sorted:
    """The files of a folder by what they hold.

    ``series`` are the slices by SeriesInstanceUID, ``single`` the scans of one file each, ``damaged`` DICOM files of an
    unknown series, ``ruins`` files that may have been one by their names, ``others`` what else gave no scan, and
    ``unopened`` what was not even listed.
    """

    series: dict[str, list[Slice]]
    single: list[Nifti | Raster]
    damaged: list[LeftOut]
    ruins: list[LeftOut]
    others: list[LeftOut]
    unopened: Sequence[LeftOut] = ()


def find_scans(
    source: str | Path | Sequence[str | Path], *, resample: bool = False
) -> tuple[list[Scan], list[LeftOut]]:
    """Find every scan by reading only headers.

    Args:
        source: a folder (searched to any depth), a DICOMDIR, a zip, a file, or several of these. DICOM and pictures are
            recognised by content, other formats by suffix.
        resample: list volumes with unevenly spaced slices too; they are read with ``Choices(resample=True)``.

    Returns:
        The scans sorted by address, and what is no scan with the reason. Localizers, derived images (reformats,
        projections), secondary captures and segmentations are among the latter, each with its scan. A damaged file
        raises nothing.

    Raises:
        ScanError: if a source does not exist or cannot be opened.

    Example:
        >>> scans, left_out = find_scans("patient")
        >>> [str(scan.date) for scan in scans[:2]], left_out
        (['2015-03-23', '2015-10-13'], [])
    """
    files: dict[str, None] = {}  # in order, each once
    left_out: list[LeftOut] = []
    for item in [source] if isinstance(source, (str, Path)) else source:
        found, refused = list_files(Path(item))
        files |= dict.fromkeys(found)
        left_out += [LeftOut(path, reason) for path, reason in refused]
    return scans_of(sort_files(tqdm(files, "headers", unit="file", disable=None)), left_out, resample=resample)


def sort_files(files: Iterable[str], *, series: str = "") -> Sorted:
    """Read the headers of files.

    Args:
        files: the files.
        series: keep only this SeriesInstanceUID.
    """
    result = Sorted(defaultdict(list), [], [], [], [])
    for name in files:
        if (legible := name.encode("utf-8", "backslashreplace").decode()) != name:
            result.damaged.append(LeftOut(Path(legible), "a name that is not UTF-8: rename it"))
            continue
        start = b""
        try:
            head = read_head(name)
            start, size = head
            if start[128:132] == b"DICM" and not is_directory(start):
                for s in read_slices(name, head):
                    result.series[s.file.series].append(s)
            else:
                _sort_other(Path(name), start, size, result)
        except NoImageError as error:
            result.others.append(LeftOut(Path(name), str(error)))
        except ScanError as error:
            kind = result.damaged if start[128:132] == b"DICM" else result.ruins
            kind.append(LeftOut(Path(name), str(error)))
        except Exception as error:  # a header may hold what nobody thought of, and one file must not hide the others
            result.damaged.append(LeftOut(Path(name), f"damaged: cannot be read ({type(error).__name__})"))
    if series:
        result.series = {uid: slices for uid, slices in result.series.items() if uid == series}
    return result


def _sort_other(path: Path, start: bytes, size: int, result: Sorted) -> None:
    """Read the header of a file that is no DICOM image, or say what it is."""
    if is_nifti(path.name):
        result.single.append(nifti_header(path))
    elif is_picture(start):
        result.single.append(picture_header(path))
    elif is_volume(path.name):
        result.single.append(volume_header(path))
    elif start[128:132] != b"DICM" and is_bare_dicom(start, size):
        result.damaged.append(LeftOut(path, "a DICOM file without its mark or preamble"))
    elif not any(start[:256]):
        result.ruins.append(LeftOut(path, "nothing but zeros where its header should be" if size else _EMPTY))
    else:
        (result.others if is_no_slice(start) else result.ruins).append(LeftOut(path, why_no_scan(path, start)))


def scans_of(
    found: Sorted, left_out: Sequence[LeftOut] = (), *, resample: bool = False
) -> tuple[list[Scan], list[LeftOut]]:
    """Turn sorted files into scans, and what gave none with the reason; both sorted.

    Copies of images are known only now: they join ``others``.
    """
    scans: list[Scan] = [_single(item) for item in found.single]
    left = [*left_out, *found.damaged, *found.ruins]
    found.unopened = left_out
    homes = _homes(found.series)
    for uid, slices in found.series.items():
        tail = f"series ...{uid[-12:]}"
        try:
            for what, names in (
                ("PatientID", {s.file.patient for s in slices}),
                ("study", {s.file.study for s in slices}),
            ):
                if len(names) > 1:
                    raise ScanError(f"expected one {what} in a series, got {len(names)}")
            kept, copies = without_copies(slices)
            stacks = find_stacks(kept, resample=resample)
        except ScanError as error:
            left.append(LeftOut(_common([s.file for s in slices]), f"{tail}: {error}"))
            continue
        if copies:
            copy, pair = next(iter(copies.items()))
            sentence = f"{pair} are the same image twice: one is used ({len(copies)} such files)"
            logger.warning("%s: %s", tail, sentence)
            found.others.append(LeftOut(Path(copy), f"no scan: {sentence}"))
        for stack in stacks:
            if isinstance(stack, ScanError):
                left.append(LeftOut(_common([s.file for s in slices]), f"{tail}: {stack}"))
                continue
            scan = _scan(uid, stack, stacks, homes)
            damaged = damaged_of(found, scan.files)
            first = stack.slices[0][0].file
            if damaged and stack.affine is not None and first.frames == 1:
                reason = f"{tail}: a damaged file in its folder: {damaged[0].path.name} ({damaged[0].reason})"
                left.append(LeftOut(Path(_common([s.file for s in slices])), reason))
            elif kind := _no_scan(first):
                left.append(LeftOut(ScanAddress.parse(scan.address).place, kind, scan))
            else:
                scans.append(scan)
    left += found.others
    return sorted(scans, key=lambda s: s.address), sorted(left, key=lambda item: (item.path, item.reason))


def damaged_of(found: Sorted, files: Sequence[Path]) -> list[LeftOut]:
    """Those files without a slice that may be the missing one of a scan.

    Damaged files and what could not be opened count in a folder of the scan, or below the one that all its files share;
    ruins next to its files with a name like theirs: IM005 next to IM004. What a DICOMDIR or a zip names outside of
    itself counts for all that they hold.
    """
    if not files or not (found.damaged or found.ruins or found.unopened):
        return []
    homes = {str(path.parent) for path in files}
    below = "" if len(homes) == 1 else os.path.join(os.path.commonpath(homes), "")  # noqa: PTH118

    def near(path: Path) -> bool:
        home = str(path.parent)
        return home in homes or bool(below and f"{home}{os.sep}".startswith(below))

    damaged = [item for item in found.damaged if near(item.path)]
    damaged += [item for item in found.ruins if named_like_slices(item.path, files, suffix=item.reason != _EMPTY)]
    for item in found.unopened:
        if item.reason == OUTSIDE_ZIP:
            hurt = named_like_slices(item.path, files, anywhere=True, suffix=False)
        elif item.reason == OUTSIDE_DICOMDIR:
            hurt = any(path.is_relative_to(item.path.parent) for path in files)
        else:
            hurt = item.reason != LINK_INSIDE and near(item.path)
        damaged += [item] * hurt
    return damaged


def _homes(series: dict[str, list[Slice]]) -> dict[str, set[str]]:
    """Which series have files in or below each folder, and in each file."""
    homes: dict[str, set[str]] = defaultdict(set)
    for uid, slices in series.items():
        for path in {s.file.path for s in slices}:
            homes[path].add(uid)
        for parent in {PurePath(s.file.path).parent for s in slices}:
            for folder in (parent, *parent.parents):
                homes[str(folder)].add(uid)
    return homes


def _common(files: Sequence[ImageFile]) -> Path:
    """The file, or the folder that all files share."""
    paths = {file.path for file in files}
    if len(paths) == 1:
        return Path(next(iter(paths)))
    return Path(os.path.commonpath({str(PurePath(path).parent) for path in paths}))


def _lies_in(stack: Stack, place: Path) -> bool:
    """Whether a file of a stack is in or below a folder."""
    return any(Path(s.file.path).is_relative_to(place) for slices in stack.slices for s in slices)


def _scan(uid: str, stack: Stack, stacks: Sequence[Stack | ScanError], homes: dict[str, set[str]]) -> Scan:
    first = stack.slices[0][0]
    files = list({s.file.path: s.file for place in stack.slices for s in place}.values())
    place = _common(files)
    name = stack.name
    if place.as_posix() == files[0].path.replace(os.sep, "/"):
        inside = [s for s in stacks if isinstance(s, ScanError) or s.slices[0][0].file.path == files[0].path]
        name = name if len(inside) > 1 and first.file.frames > 1 else ""
    spatial = len(stack.slices[0]) > 1
    depth = even_count(stack.heights) if stack.heights else len(stack.slices[0])  # as it is read: at even distances
    step: tuple[float, ...] = ()
    if stack.affine is not None:
        step = (float(np.linalg.norm(stack.affine[:3, 2])) * (len(stack.slices[0]) - 1) / max(depth - 1, 1),)
    date, source = min((acquired(file.values) for file in files), key=_earliest)
    # In a folder of its own a volume is the only one of its series, and its address needs no name.
    beside = any(isinstance(s, ScanError) or (s is not stack and _lies_in(s, place)) for s in stacks) if name else False
    several = beside or len(homes[str(place)]) > 1
    return Scan(
        address=str(ScanAddress(place, uid if several else "", name if beside else "")),
        series=uid,
        volume=name,
        modality=first.file.modality,
        body_part=text(first.file.values, tags.BODY_PART_EXAMINED),
        date=date,
        date_from=source,
        shape=(*first.file.shape, depth) if spatial else first.file.shape,
        frames=len(stack.slices),
        colour=first.file.pixels.photometric in COLOUR,
        spacing=(*first.spacing, *step) if spatial else first.spacing,
        transfer_syntax=first.file.pixels.syntax,
        files=tuple(Path(file.path) for file in files),
        patient=first.file.patient,
        content=stack,
    )


def _earliest(found: tuple[Moment | None, str]) -> tuple[int, tuple[int, int]]:
    """Sort key of dates: the most telling attribute first, in it the earliest, unknown last."""
    moment, source = found
    names = [name for name, *_ in SOURCES]
    return (len(names), (0, 0)) if moment is None else (names.index(source), in_order(moment))


def _single(item: Nifti | Raster) -> Scan:
    return Scan(
        address=item.path.as_posix(),
        series="",
        volume="",
        modality="",
        body_part="",
        date=None,
        date_from="",
        shape=item.shape,
        frames=item.frames,
        colour=item.colour,
        spacing=item.spacing,
        transfer_syntax="",
        files=(item.path,),
        patient="",
        content=item,
    )


# Words of Image Type that say an image was made from others, or shows no patient. That it is DERIVED, or SECONDARY,
# does not say so: de-identified, converted and lossily compressed originals are called that too.
_DERIVED = {
    "PROJECTION IMAGE",
    "MIP",
    "MINIP",
    "MAXIP",
    "VRT",
    "VOLUME RENDERING",
    "REFORMATTED",
    "MPR",
    "CSA MPR",
    "CSA 3D EDITOR",
    "CSA RESAMPLED",
    "SCREEN SAVE",
    "POSDISP",
    "PATIENT_INFO",
    "DOSE_INFO",
    "DOSE REPORT",
}


def _no_scan(file: ImageFile) -> str:
    """Why an image that can be read is no scan of its own, or nothing."""
    kinds = set(file.image_type)
    shown = "\\".join(file.image_type)
    if kinds & {"LOCALIZER", "SCOUT"}:
        return f"a localizer ({shown})"
    if kinds & _DERIVED and file.image_type[:2] != ("ORIGINAL", "PRIMARY"):  # an oblique slice of old MR is an MPR too
        return f"derived from other images ({shown})"
    if file.kind.startswith(SEGMENTATIONS) or file.modality == "SEG":
        return "a segmentation"
    return "a secondary capture" if file.kind.startswith("1.2.840.10008.5.1.4.1.1.7") else ""

"""A folder, a zip or a DICOMDIR -> the files in it, and what in it is not opened."""

from __future__ import annotations

import os
from pathlib import Path

from monai_mvreg.scans.addresses import archive_of
from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.elements import read_elements, read_head
from monai_mvreg.scans.dicom.headers import words
from monai_mvreg.scans.formats.byte_ranges import POINTS_OUT, ScanError, named_members, unsafe_member

_DIRECTORY = b"1.2.840.10008.1.3.10"  # the SOP class of a DICOMDIR
Refused = list[tuple[Path, str]]  # where, and why

LINK_INSIDE = "a link to a folder, which could lead in circles"
OUTSIDE_ZIP = "a member of the zip with a name that points out of its zip"
OUTSIDE_DICOMDIR = "a file that the DICOMDIR names outside its own folder"


def list_files(source: Path) -> tuple[list[str], Refused]:
    """List the files of a folder, of a zip, or those that a DICOMDIR names; any other file is itself.

    Raises:
        ScanError: if there is no such place, or it cannot be opened.
    """
    if os.path.isdir(source):  # noqa: PTH112, of a name that is too long Path.is_dir raises
        return _folder_files(source)
    if not os.path.exists(source):  # noqa: PTH110, as above
        archive = archive_of(source)
        files, refused = ([], []) if archive is None else _zip_files(archive)
        if not (inside := [file for file in files if Path(file).is_relative_to(source)]):
            raise ScanError(f"expected a folder or file with scans, there is none at {str(source)!r}")
        return inside, refused
    try:
        start, _ = read_head(source)
        if start.startswith(b"PK\x03\x04"):
            return _zip_files(source)
    except ScanError as error:
        raise ScanError(f"{source.name}: {error}") from None
    if is_directory(start):
        return _directory_files(source)
    return [str(source)], []


def is_directory(start: bytes) -> bool:
    """Whether a file is a DICOMDIR by its first bytes."""
    return start[128:132] == b"DICM" and _DIRECTORY in start[132:400]


def _folder_files(folder: Path) -> tuple[list[str], Refused]:
    """The files of a folder; folder by folder, so that those of a series stand together."""
    files: list[str] = []
    refused: Refused = []

    def closed(error: OSError) -> None:
        refused.append((Path(str(error.filename)), f"a folder that cannot be opened ({type(error).__name__})"))

    for walked, below, names in os.walk(folder, onerror=closed):
        parent = "" if walked == "." else walked.removeprefix("./")  # as Path spells it
        below.sort()
        for name in below:
            if os.path.islink(path := os.path.join(parent, name)):  # noqa: PTH114, PTH118, a Path for each is slow
                inside = Path(path).resolve().is_relative_to(folder.resolve())
                refused.append((Path(path), LINK_INSIDE if inside else "a link to another folder, not followed"))
        files += [os.path.join(parent, name) for name in sorted(names)]  # noqa: PTH118
    return files, refused


def _zip_files(archive: Path) -> tuple[list[str], Refused]:
    files: list[str] = []
    refused: Refused = []
    for place, members in named_members(archive).items():
        path = archive / place
        if any(unsafe_member(info) == POINTS_OUT for info in members):
            refused.append((archive / path.name, OUTSIDE_ZIP))
        elif reason := unsafe_member(members[0]):
            refused.append((path, f"a member of the zip, {reason}"))
        elif len({(info.CRC, info.file_size) for info in members}) > 1:
            refused.append((path, f"{len(members)} different members of the zip with this one name"))
        elif members[0].is_dir():
            refused.append((path, f"a folder in the zip with {members[0].file_size} bytes of content"))
        else:
            files.append(str(path))
    return sorted(files), refused


def _directory_files(directory: Path) -> tuple[list[str], Refused]:
    """The files that a DICOMDIR names; none of them may lie outside its folder."""
    home = directory.parent
    wanted = {tags.DIRECTORY_RECORD_SEQUENCE: True, tags.REFERENCED_FILE_ID: False}
    try:
        values = read_elements(directory, read_head(directory), wanted).values
    except ScanError as error:
        raise ScanError(f"{directory.name}: damaged DICOMDIR ({error})") from None
    parts = [words(record, tags.REFERENCED_FILE_ID) for record in values.get(tags.DIRECTORY_RECORD_SEQUENCE, [])]
    parts = [names for names in parts if names]
    if not parts:
        raise ScanError(f"{directory.name}: expected a DICOMDIR that names files, it names none")
    files, refused = [], []
    for names in parts:
        path = home.joinpath(*names)
        if any(name in ("", ".", "..") or set(name) & set("/\\:\0") for name in names):
            refused.append((directory, OUTSIDE_DICOMDIR))
        elif not path.resolve().is_relative_to(home.resolve()):
            refused.append((path, "a file that the DICOMDIR names, linked to outside its own folder"))
        else:
            files.append(str(_as_spelled(home, names)))  # one that is not there may be the missing slice
    return sorted(set(files)), refused


def _as_spelled(home: Path, names: tuple[str, ...]) -> Path:
    """The file that a DICOMDIR names, where a disk spells it in other letters: im001, or IM001.;1 of ISO 9660."""
    path = home.joinpath(*names)
    if path.exists():
        return path
    place = home
    for name in names:
        try:
            alike = [entry for entry in os.listdir(place) if _plain(entry) == _plain(name)]  # noqa: PTH208, of any name
        except OSError:
            return path
        if len(alike) != 1:
            return path
        place = place / alike[0]
    return place if place.resolve().is_relative_to(home.resolve()) else path


def _plain(name: str) -> str:
    return name.casefold().partition(";")[0].rstrip(".")

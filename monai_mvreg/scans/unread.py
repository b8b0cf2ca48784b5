"""A file that gives no scan -> what it is, and whether it may be a lost slice of the series next to it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path, PurePath

from monai_mvreg.scans.addresses import exists
from monai_mvreg.scans.discovery import is_directory

_SUFFIXES = {".dcm", ".dicom", ".dic", ".ima"}  # of DICOM files
_PACKERS = {".gz", ".bz2", ".xz", ".zst", ".zip", ".z"}
_APPLE_DOUBLE = b"\0\x05\x16\x07"  # what macOS keeps next to a file on foreign disks
_FIRST_GROUPS = {0x0002, 0x0004, 0x0008, 0x0010}
_REPRESENTATIONS = set(re.findall("..", "AEASATCSDADSDTFDFLISLOLTPNSHSLSSSTTMUIULUSOBODOFOLOVOWSQSVUCUNURUTUV"))
_CHAIN = 4  # elements in ascending order that are no coincidence


def is_bare_dicom(start: bytes, size: int) -> bool:
    """Whether a file holds a DICOM data set although it lacks the mark DICM at byte 128.

    Args:
        start: its first bytes.
        size: its size in bytes.

    Example:
        >>> is_bare_dicom(bytes.fromhex("0800 1200 4441 0800") + b"20200101" + bytes.fromhex("0800 1600 5549 0000"), 24)
        True
    """
    if start.startswith(b"PK\x03\x04") or start[257:262] == b"ustar":  # an archive, which holds other files
        return False
    if b"DICM\x02\0" in start[:4096]:
        return True
    return any(_is_data_set(start, at, size, *form) for at in (0, 4, 128, 132) for form in _FORMS)


_FORMS = tuple((order, explicit) for order in "<>" for explicit in (True, False))


def _is_data_set(start: bytes, at: int, size: int, order: str, explicit: bool) -> bool:
    """Whether elements begin at a byte: tags in ascending order, value representations, lengths that the file holds."""
    last, known = -1, 0
    while known < _CHAIN and at + 8 <= len(start):
        group, element = struct.unpack_from(order + "HH", start, at)
        tag = group << 16 | element
        if tag <= last or group > 0x7FE0 or (last < 0 and group not in _FIRST_GROUPS):
            return False
        if explicit or group == 2:
            representation = start[at + 4 : at + 6].decode("latin-1")
            if representation not in _REPRESENTATIONS:
                return False
            long = representation[0] == "O" or representation in ("SQ", "SV", "UC", "UN", "UR", "UT", "UV")
            if long and at + 12 > len(start):
                break
            length = struct.unpack_from(order + ("I" if long else "H"), start, at + (8 if long else 6))[0]
            at += 12 if long else 8
        else:
            length, at = struct.unpack_from(order + "I", start, at + 4)[0], at + 8
        if length == 0xFFFFFFFF:
            return known > 1
        if length % 2 or at + length > size:
            return False
        last, known, at = tag, known + 1, at + length
    return known >= _CHAIN or (known > 1 and at >= min(len(start), size) - 8)


def why_no_scan(path: Path, start: bytes) -> str:
    """Say what a file is that holds no scan.

    Args:
        path: the file.
        start: its first bytes.
    """
    if is_directory(start):
        return "a DICOMDIR, which is followed only if it is named itself"
    if start.startswith(b"PK\x03\x04"):
        return "a zip, which is searched only if it is named itself"
    if start.startswith(_APPLE_DOUBLE):
        return "no scan: metadata of macOS"
    if found := re.fullmatch(r"(.*)\.hdr(\.gz)?", path.name, re.IGNORECASE):
        names = [found[1] + ending for ending in (".img", ".IMG", ".img.gz", ".IMG.GZ")]
        image = next((name for name in names if exists(path.with_name(name))), "")
        return f"the header of {image}" if image else f"a header without its image: there is no {names[0]}"
    return "no scan: another format"


def is_no_slice(start: bytes) -> bool:
    """Whether a file is of a kind that is never the remains of a slice: a DICOMDIR, or metadata of macOS."""
    return is_directory(start) or start.startswith(_APPLE_DOUBLE)


def named_like_slices(path: Path, slices: Iterable[Path], *, anywhere: bool = False, suffix: bool = True) -> bool:
    """Whether a file that cannot be read may be a slice by its name: IM005 next to IM004, b.dcm next to a.dcm.

    Args:
        path: the file.
        slices: the files of a scan.
        anywhere: whether it counts in another folder than theirs too.
        suffix: whether the ending of DICOM files is enough.

    Example:
        >>> named_like_slices(Path("a/IM005"), [Path("a/IM004")]), named_like_slices(Path("a/notes"), [Path("a/IM004")])
        (True, False)
    """
    near = [file for file in slices if anywhere or file.parent == path.parent]
    bare = path.with_suffix("") if path.suffix.lower() in _PACKERS else path
    ending = bare.suffix.lower()
    if suffix and ending in _SUFFIXES and any(file.suffix.lower() == ending for file in near):
        return True
    patterns = {_pattern(file) for file in near}
    return _pattern(path) in patterns or _pattern(bare) in patterns


def _pattern(path: PurePath) -> str:
    return re.sub(r"[0-9a-f]+", "0", path.name.lower())

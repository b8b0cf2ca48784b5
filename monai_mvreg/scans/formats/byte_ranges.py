"""Where bytes come from: a file on disk or a member of a zip, read in part, and never more than it can hold."""

from __future__ import annotations

import os
import stat
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath

POINTS_OUT = "a name that points out of its zip"
# A picture or volume compresses 2 to 20 fold, and a mask some 500 fold.
_BOMB = ((2**26, 1000), (2**30, 100))


class ScanError(ValueError):
    """A scan cannot be read correctly; the message names the file or series and never a patient.

    Example:
        >>> from monai_mvreg.scans import read_scan
        >>> read_scan("cohort.csv")
        Traceback (most recent call last):
        monai_mvreg.scans.formats.byte_ranges.ScanError: cohort.csv: no scan: another format
    """


def refuse_bomb(packed: int, unpacked: int) -> None:
    """Refuse to unpack what no scan could be, before any memory is taken.

    Args:
        packed: bytes at hand.
        unpacked: bytes that they claim to become.

    Raises:
        ScanError: above 1 GiB at more than 100 to 1, or above 64 MiB at more than 1000 to 1.
    """
    for limit, ratio in _BOMB:
        if unpacked > limit and unpacked > ratio * packed:
            raise ScanError(f"{packed} bytes claim to unpack to {unpacked}: refused as a decompression bomb")


def read_range(path: str | Path, start: int, length: int) -> tuple[bytes, int]:
    """Read a part of a file, or of a member of a zip (``archive.zip/folder/file``).

    Args:
        path: the file.
        start: first byte.
        length: number of bytes; fewer come where the file ends.

    Returns:
        The bytes, and the size of the whole file in bytes.

    Raises:
        ScanError: if there is no such regular file, or it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except NotADirectoryError:
        return _read_member(Path(path), start, length)
    except OSError as error:
        raise ScanError(f"cannot be opened ({type(error).__name__})") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ScanError("expected a regular file")
        os.lseek(descriptor, start, os.SEEK_SET)
        return os.read(descriptor, length) if length else b"", facts.st_size
    except OSError as error:
        raise ScanError(f"cannot be read ({type(error).__name__})") from None
    finally:
        os.close(descriptor)


def read_whole(path: str | Path) -> bytes:
    """Read a whole file, or a whole member of a zip."""
    _, size = read_range(path, 0, 0)
    data, _ = read_range(path, 0, size)
    if len(data) < size:  # more than the kernel hands over at once
        parts, at = [data], len(data)
        while at < size and (part := read_range(path, at, size - at)[0]):
            parts.append(part)
            at += len(part)
        data = b"".join(parts)
    return data


def zip_members(archive: str | Path) -> list[zipfile.ZipInfo]:
    """List the files in a zip.

    Raises:
        ScanError: if it is damaged.
    """
    return [info for info in _opened(archive).infolist() if not info.is_dir()]


def named_members(archive: str | Path) -> dict[str, list[zipfile.ZipInfo]]:
    """The members of a zip by the path that they have in it; a zip may hold several of one name.

    Raises:
        ScanError: if it is damaged.
    """
    return _opened(archive).named


def unsafe_member(info: zipfile.ZipInfo) -> str:
    """Say why a member of a zip is not opened, or nothing."""
    parts = info.filename.replace("\\", "/").split("/")
    if ".." in parts or info.filename.startswith(("/", "\\")) or ":" in parts[0]:
        return POINTS_OUT
    if info.flag_bits & 1:
        return "encrypted"
    return ""


def _read_member(path: Path, start: int, length: int) -> tuple[bytes, int]:
    """Read a part of ``archive.zip/folder/file``, and its size."""
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    if archive is None:
        raise ScanError("there is no such file")
    opened = _opened(archive)
    try:
        (info, *others) = opened.named[path.relative_to(archive).as_posix()]
        if any(other.CRC != info.CRC for other in others):
            raise ScanError(f"expected one member of the zip with this name, got {len(others) + 1} that differ")
        if reason := unsafe_member(info):
            raise ScanError(reason)
        refuse_bomb(info.compress_size, info.file_size)
        with opened.open(info) as file:
            return file.read(start + length)[start:], info.file_size
    except ScanError:
        raise
    except Exception as error:  # zlib, bz2, lzma and zipfile have errors of their own
        raise ScanError(f"cannot be read from its zip ({type(error).__name__})") from None


class _Zip(zipfile.ZipFile):
    """A zip with its members by path: names such as ``./a`` and ``x//a`` are brought to the form that paths have."""

    def __init__(self, archive: str) -> None:
        super().__init__(archive)
        self.named: dict[str, list[zipfile.ZipInfo]] = {}
        for info in self.infolist():
            if not info.is_dir() or info.file_size:
                self.named.setdefault(PurePosixPath(info.filename).as_posix(), []).append(info)


def _opened(archive: str | Path) -> _Zip:
    try:
        facts = Path(archive).stat()
        return _zip_file(str(archive), facts.st_mtime_ns, facts.st_size, os.getpid())
    except Exception as error:  # zipfile raises what comes to hand
        raise ScanError(f"not a zip that can be opened ({type(error).__name__})") from None


# One archive stays open: to list thousands of members anew for each of them would take minutes. A forked process opens
# its own, because processes that share a descriptor move its position under each other.
@lru_cache(maxsize=1)
def _zip_file(archive: str, changed: int, size: int, process: int) -> _Zip:
    return _Zip(archive)

"""The address of a scan: one text that fits one cell of a table, and the place and key that it is made of.

The place is a file or folder, in a zip or not; behind ``#`` stands the key: a SeriesInstanceUID, and behind ``:`` the
name of one volume. A key has no ``#`` and no ``/``, so an address is taken apart at its last ``#``, unless that is part
of the name of a file or folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from monai_mvreg.scans.formats.byte_ranges import ScanError, zip_members


def split(address: str | Path) -> tuple[Path, str]:
    """The place and the key of an address; the key is empty if it has none.

    Example:
        >>> split("nowhere/study#1.2.3:echo-20")
        (PosixPath('nowhere/study'), '1.2.3:echo-20')
    """
    text = os.fspath(address)
    place, mark, key = text.rpartition("#")
    if not mark or "/" in key or os.sep in key or exists(Path(text)):
        return Path(text), ""
    return Path(place or "."), key


def exists(place: Path) -> bool:
    """Whether there is such a file or folder, on disk or in a zip."""
    if os.path.exists(place):  # noqa: PTH110, of a name that is too long Path.exists raises
        return True
    archive = archive_of(place)
    if archive is None:
        return False
    try:
        names = [info.filename for info in zip_members(archive)]
    except ScanError:
        return False
    inside = place.relative_to(archive).as_posix()
    return any(name == inside or name.startswith(f"{inside}/") for name in names)


def archive_of(place: Path) -> Path | None:
    """The zip that a place lies in, if there is one."""
    return next((parent for parent in place.parents if os.path.isfile(parent)), None)  # noqa: PTH113, as above


def relative(address: str, home: Path) -> str:
    """An address below a folder or zip, to be read from there again.

    Example:
        >>> relative("study/mr#1.2", Path("study")), relative("study#1.2", Path("study"))
        ('mr#1.2', '.#1.2')
    """
    place, key = split(address)
    inside = place.relative_to(home) if place.is_relative_to(home) else place
    return inside.as_posix() + (f"#{key}" if key else "")


def short(address: str) -> str:
    """An address with the end of its UID alone, which is enough to see."""
    place, mark, key = address.rpartition("#")
    if not mark or "/" in key:
        return address
    uid, colon, name = key.partition(":")
    return f"{place}#{'...' * bool(uid)}{uid[-12:]}{colon}{name}"

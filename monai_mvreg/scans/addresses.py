"""The address of a scan: text in tables, JSON and transforms; place, series and volume in code.

The text is ``place``, ``place#series`` or ``place#series:volume``. No other module takes it apart or puts it together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from monai_mvreg.scans.formats.byte_ranges import ScanError, zip_members


@dataclass(frozen=True)
class ScanAddress:
    """Where a scan is.

    Args:
        place: a file or folder, on disk or in a zip.
        series: the SeriesInstanceUID, where the place holds several series.
        volume: the name of one volume, where the series holds several.

    Example:
        >>> ScanAddress.parse("nowhere/study#1.2.3:echo-20")
        ScanAddress(place=PosixPath('nowhere/study'), series='1.2.3', volume='echo-20')
        >>> str(ScanAddress(Path("study"), "1.2.3"))
        'study#1.2.3'
    """

    place: Path
    series: str = ""
    volume: str = ""

    @classmethod
    def parse(cls, text: str | Path) -> ScanAddress:
        """Take the text of an address apart.

        Names of files and folders may hold ``#`` too: what stands after the last one is a series and volume, unless it
        holds a separator of folders, or there is a file or folder of the whole name.

        Args:
            text: an address. If it is relative, it is relative to the current folder.
        """
        whole = os.fspath(text)
        place, mark, key = whole.rpartition("#")
        if not mark or "/" in key or os.sep in key or exists(Path(whole)):
            return cls(Path(whole))
        series, _, volume = key.partition(":")
        return cls(Path(place), series, volume)

    def __str__(self) -> str:
        return self.place.as_posix() + (f"#{self.key}" if self.key else "")

    @property
    def key(self) -> str:
        """Series and volume in one text, empty without both."""
        return scan_key(self.series, self.volume)

    @property
    def short(self) -> str:
        """The address for display: of the series only the end, and no place if it is the current folder."""
        series = f"...{self.series[-12:]}" if self.series else ""
        shown = str(replace(self, series=series))
        return shown.removeprefix(".") if self.key and self.place == Path() else shown

    def relative_to(self, home: Path) -> ScanAddress:
        """The address from a folder or zip; unchanged if it is not below it.

        Args:
            home: the folder or zip.

        Example:
            >>> str(ScanAddress.parse("study#1.2").relative_to(Path("study")))
            '.#1.2'
        """
        return replace(self, place=self.place.relative_to(home)) if self.place.is_relative_to(home) else self


def scan_key(series: str, volume: str) -> str:
    """Series and volume as they are written after ``#``.

    Args:
        series: a SeriesInstanceUID.
        volume: the name of a volume, or nothing.
    """
    return f"{series}:{volume}" if volume else series


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

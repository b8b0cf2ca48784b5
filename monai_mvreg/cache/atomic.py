"""A file is whole or not there: written beside its place, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a file to write that takes the place of ``path`` when all went well, also when the machine goes down.

    Whoever reads ``path`` meanwhile finds what was there before, and still does after an error. For one writer.

    Args:
        path: the file; folders above it are made.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "cohort.csv") as unfinished:
        ...         _ = unfinished.write_text("patient,path")
        ...     [file.name for file in Path(folder).iterdir()]
        ['cohort.csv']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    try:
        yield unfinished
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 that takes the place of ``path`` whole or not at all.

    Args:
        path: the file; folders above it are made.
        text: its whole content.
    """
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Bring the names of the files in a folder to the disk, where the system can do that (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Atomic writes: a file is written under another name in its folder, then renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = 16384  # bytes that are left


@contextmanager
def atomic_write(path: Path, *, ending: str = ".part", durable: bool = True) -> Iterator[Path]:
    """Give a file to write that replaces ``path`` when the block ends without an error.

    Until then, and after an error or a kill, ``path`` holds what it held before.

    Args:
        path: the file; folders above it are made.
        ending: what the unfinished file has after the name of ``path``; writers of the same file at the same time need
            one each.
        durable: write to the disk before renaming, so that not even a power failure leaves a truncated file. Without it
            the reader must be able to detect one.

    Raises:
        OSError: naming the folder if its disk is full, whatever the writer made of that.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "cohort.csv") as unfinished:
        ...         _ = unfinished.write_text("patient,path")
        ...     [file.name for file in Path(folder).iterdir()]
        ['cohort.csv']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ending)
    try:
        yield unfinished
        if durable:
            with unfinished.open("r+b") as file:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises no OSError
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if full or shutil.disk_usage(path.parent).free < _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent)) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically.

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

"""One object on its way in: bytes go straight to a file, up to a size, and never the last space of the disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO

_STEP = 2**24  # bytes between two looks at the free space


class IncomingFile:
    """Stands in for the temporary file that pynetdicom writes an object to while it arrives.

    What is refused is still taken from the connection, so that its sender can be told: up to once more the limit, then
    the connection ends. Nothing is left behind when this is closed, or dropped because the connection broke, unless
    somebody took the file away by then.

    Args:
        folder: where the file is written.
        most: bytes of an object that are accepted.
        least_free: bytes of the disk that stay free.
    """

    def __init__(self, folder: Path, *, most: int, least_free: int) -> None:
        self.folder, self.most, self.least_free = folder, most, least_free
        self.refusal, self.size, self._next_look = "", 0, 0
        self._digest = hashlib.sha256()
        self._out: BinaryIO | None = None
        self.name = str(folder / "none")
        try:
            descriptor, self.name = tempfile.mkstemp(dir=folder, suffix=".part")
            self._out = os.fdopen(descriptor, "wb", buffering=2**16)
        except OSError:
            self.refusal = "space"
        self._end = weakref.finalize(self, _remove, self._out, self.name)

    @property
    def file(self) -> IncomingFile:
        """What pynetdicom flushes after each part."""
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all bytes, in hexadecimal."""
        return self._digest.hexdigest()

    def flush(self) -> None:
        """Do nothing: the whole is brought to the disk once, by :meth:`finish`."""

    def write(self, data: bytes) -> None:
        """Write a part.

        Raises:
            OSError: if a refused object goes on and on.
        """
        self.size += len(data)
        if self.size > self.most:
            self.refusal = self.refusal or "size"
        if not self.refusal and self.size >= self._next_look:
            self._next_look = self.size + _STEP
            if shutil.disk_usage(self.folder).free < self.least_free:
                self.refusal = "space"
        if self.refusal:
            if self.size > 2 * self.most:
                raise OSError(f"expected an object of at most {self.most} bytes, got more than twice as many")
            return
        self._digest.update(data)
        try:
            if self._out is not None:
                self._out.write(data)
        except OSError:
            self.refusal = "space"

    def finish(self) -> None:
        """Bring the bytes to the disk; ``refusal`` says if that failed."""
        if self._out is None or self.refusal:
            return
        try:
            self._out.flush()
            os.fsync(self._out.fileno())
        except OSError:
            self.refusal = "space"

    def close(self) -> None:
        """End, and remove the file if it is still there."""
        self._end()


def _remove(out: BinaryIO | None, name: str) -> None:
    try:
        if out is not None:
            out.close()
    except OSError:  # what could not be written on a full disk is tried again, and not wanted any more
        pass
    Path(name).unlink(missing_ok=True)

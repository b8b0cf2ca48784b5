"""The store under both caches: files named by what they were computed from, complete or absent, for many processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_mvreg.cache.atomic import atomic_write

_UNFINISHED = ".part"
_ABANDONED = 86_400.0  # age in seconds of an unfinished file that nobody is writing any more


class DamagedEntryError(ValueError):
    """An entry does not hold what was written to it."""


def entry_name(key: str, content: str) -> str:
    """Name an entry by how it is computed and what it is computed from.

    Args:
        key: a hash of the computation: transforms, network, code.
        content: a hash of the bytes of the scan.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(f"{key} {content}".encode()).hexdigest()


@dataclass(frozen=True)
class ContentStore:
    """Entries in a folder. Processes may share it, and may be killed at any moment.

    An entry is either bytes, with a checksum, or an array, which is mapped and not read.

    Args:
        folder: where the entries are.
        suffix: of their files.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store, name = ContentStore(Path(folder), ".bytes"), entry_name("how", "what")
        ...     store.write_bytes(name, b"computed")
        ...     store.read_bytes(name), store.read_bytes(entry_name("how", "something else"))
        (b'computed', None)
    """

    folder: Path
    suffix: str

    def path(self, name: str) -> Path:
        """The file of an entry, in one of 256 subfolders: some file systems are slow in large folders."""
        return self.folder / f"{name[:2]}/{name}{self.suffix}"

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write an entry of bytes.

        Args:
            name: of the entry.
            content: its bytes.
        """
        # The checksum reveals a file that a power failure truncated: there is no need to wait for the disk.
        with atomic_write(self.path(name), ending=_ending(), durable=False) as unfinished:
            unfinished.write_bytes(_checksum(name, content) + content)

    def read_bytes(self, name: str) -> bytes | None:
        """Read an entry of bytes, and note that it was used.

        Args:
            name: of the entry.

        Returns:
            Its bytes, or None if there is no such entry.

        Raises:
            DamagedEntryError: if the checksum does not match.
        """
        path = self.path(name)
        try:
            whole = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        size = hashlib.sha256().digest_size
        content = whole[size:]
        if whole[:size] != _checksum(name, content):
            raise DamagedEntryError(f"{path}: cache entry is damaged, its checksum does not match: delete it")
        return content

    def write_array(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write an entry that is an array.

        Args:
            name: of the entry.
            array: of any shape and numeric type.
        """
        with atomic_write(self.path(name), ending=_ending()) as unfinished, unfinished.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    def map_array(self, name: str) -> npt.NDArray[Any] | None:
        """Map an entry that is an array into memory, copy-on-write: changing the array does not change the entry.

        Args:
            name: of the entry.

        Returns:
            The array, or None if there is no such entry.

        Raises:
            DamagedEntryError: if the file is truncated or holds no array.
        """
        path = self.path(name)
        try:
            array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError) as error:
            raise DamagedEntryError(f"{path}: cache entry is damaged, {error}: delete it") from None
        return array

    def prune(self, max_bytes: int, *, keep: Container[str]) -> int:
        """Delete the least recently read or written entries until ``max_bytes`` are left, and abandoned files.

        Args:
            max_bytes: size of all entries together.
            keep: names of entries in use, which are never deleted.

        Returns:
            The size of the remaining entries, which is larger than ``max_bytes`` if those in use are.
        """
        self.remove_abandoned()
        entries = sorted(self._files(self.suffix), key=lambda entry: entry[1].st_mtime_ns)
        total = sum(facts.st_size for _, facts in entries)
        for path, facts in entries:
            if total > max_bytes and path.name.removesuffix(self.suffix) not in keep:
                path.unlink(missing_ok=True)
                total -= facts.st_size
        return total

    def remove_abandoned(self) -> None:
        """Delete the files that killed processes left unfinished, once they are a day old."""
        for path, facts in self._files(_UNFINISHED):
            if time.time() - facts.st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)

    def _files(self, ending: str) -> Iterator[tuple[Path, os.stat_result]]:
        for pattern in (f"??/*{ending}", f"*{ending}"):  # version 0.1 had no subfolders for embeddings
            for path in self.folder.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # another process prunes too
                    yield path, path.stat()


def _ending() -> str:
    """Of an unfinished file: several processes may write the same entry at the same time."""
    return f".{uuid.uuid4().hex}{_UNFINISHED}"


def _checksum(name: str, content: bytes) -> bytes:
    """Of a name and its content, so that an entry under another name is damaged too."""
    return hashlib.sha256(name.encode() + content).digest()

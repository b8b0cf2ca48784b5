"""An object on its way in: limits on its size and on the disk, and nothing left behind."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path

import pytest

from monai_mvreg.service.incoming import IncomingFile


def test_the_bytes_are_on_the_disk_with_their_hash(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path, most=100, least_free=0)
    file.write(b"one ")
    file.write(b"two")
    file.finish()
    assert Path(file.name).read_bytes() == b"one two" and file.refusal == ""
    assert file.digest == hashlib.sha256(b"one two").hexdigest()


def test_the_bytes_are_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    file = IncomingFile(tmp_path, most=100, least_free=0)
    file.write(b"12345")
    file.finish()
    assert synced == [5]


def test_too_large_an_object_is_refused_and_not_written(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path, most=10, least_free=0)
    for _ in range(4):
        file.write(b"12345")
    file.finish()
    assert file.refusal == "size" and Path(file.name).stat().st_size <= 10


def test_an_object_without_end_ends_its_connection(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path, most=10, least_free=0)
    with pytest.raises(OSError, match="twice"):
        for _ in range(10):
            file.write(b"12345")


def test_the_last_space_of_the_disk_is_not_taken(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path, most=100, least_free=2**60)
    file.write(b"1")
    assert file.refusal == "space"


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path, most=10**9, least_free=0)

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    file._out = Full()  # type: ignore[assignment]
    file.write(b"1")
    assert file.refusal == "space"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert IncomingFile(tmp_path / "none", most=10, least_free=0).refusal == "space"


@pytest.mark.parametrize("broken", [False, True], ids=["closed", "its connection broke"])
def test_nothing_is_left_behind(tmp_path: Path, broken: bool) -> None:
    file = IncomingFile(tmp_path, most=10, least_free=0)
    file.write(b"1")
    if not broken:
        file.close()
    del file
    gc.collect()
    assert not any(tmp_path.iterdir())


def test_a_file_that_was_taken_away_stays(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path, most=10, least_free=0)
    file.write(b"1")
    file.finish()
    Path(file.name).rename(tmp_path / "kept")
    file.close()
    assert (tmp_path / "kept").read_bytes() == b"1"

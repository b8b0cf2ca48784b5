"""Files: bytes come from disk or from a zip alike, and nothing is opened that points elsewhere or explodes."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from monai_mvreg.scans.formats.byte_ranges import (
    ScanError,
    read_range,
    read_whole,
    refuse_bomb,
    unsafe_member,
    zip_members,
)


def test_a_part_of_a_file_comes_with_the_size_of_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_range(tmp_path / "a", 3, 4) == (b"3456", 10)
    assert read_range(tmp_path / "a", 8, 99) == (b"89", 10)
    assert read_whole(tmp_path / "a") == b"0123456789"


def test_a_member_of_a_zip_is_read_like_a_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/y", bytes(range(100)))
        archive.writestr("x/", b"")
    assert [info.filename for info in zip_members(tmp_path / "a.zip")] == ["x/y"]
    assert read_range(tmp_path / "a.zip/x/y", 10, 3) == (b"\x0a\x0b\x0c", 100)
    assert read_whole(tmp_path / "a.zip/x/y") == bytes(range(100))
    with pytest.raises(ScanError, match="cannot be read from its zip"):
        read_range(tmp_path / "a.zip/none", 0, 1)


def test_a_zip_that_changes_is_read_anew(tmp_path: Path) -> None:
    for content in (b"one", b"second"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x", content)
        assert read_whole(tmp_path / "a.zip/x") == content


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "\\x", "C:/x", "a\\..\\x"])
def test_a_member_that_points_out_of_its_zip_is_not_opened(name: str) -> None:
    assert "points out" in unsafe_member(zipfile.ZipInfo(name))
    assert unsafe_member(zipfile.ZipInfo("a..b/x..y")) == ""


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "regular file"), ("none", "cannot be opened"), (".", "(regular file|cannot be)")):
        with pytest.raises(ScanError, match=words):
            read_range(tmp_path / name, 0, 1)


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ScanError, match="not a zip"):
        zip_members(tmp_path / "a.zip")


def test_a_bomb_is_known_by_its_claim_and_a_mask_is_none(tmp_path: Path) -> None:
    refuse_bomb(10**6, 10**9)  # a large mask
    refuse_bomb(100, 2**20)
    for packed, unpacked in ((10**6, 2 * 2**30), (1000, 2**27)):
        with pytest.raises(ScanError, match="decompression bomb"):
            refuse_bomb(packed, unpacked)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x", bytes(2**27))
    with pytest.raises(ScanError, match="decompression bomb"):
        read_range(tmp_path / "a.zip/x", 0, 1)

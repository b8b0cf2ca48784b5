"""Listing: every file of a folder, a zip or a DICOMDIR, or a word about why it is not opened."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from make_dicom import write_series, write_slice
from pydicom.fileset import FileSet

from monai_mvreg.scans.discovery import list_files
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.formats.byte_ranges import ScanError


def test_a_folder_is_searched_to_any_depth_and_a_link_to_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x").write_bytes(b"1")
    (tmp_path / "y").write_bytes(b"1")
    (tmp_path / "round").symlink_to(tmp_path)
    files, refused = list_files(tmp_path)
    assert files == [str(tmp_path / "y"), str(tmp_path / "a/b/x")]
    assert refused == [(tmp_path / "round", "a link to a folder, which could lead in circles")]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_files(tmp_path)[1] == [(tmp_path / "closed", "a folder that cannot be opened (PermissionError)")]


def test_a_dicomdir_leads_nowhere_else_and_a_file_that_it_names_and_that_is_gone_may_be_the_missing_slice(
    tmp_path: Path,
) -> None:
    made, disc = FileSet(), tmp_path / "disc"
    tags = {"StudyDate": "20200101", "StudyTime": "0900", "StudyID": "1", "SeriesNumber": 1, "InstanceNumber": 1}
    for path in write_series(tmp_path / "in", (0, 1, 2), StudyInstanceUID="1.5", **tags).iterdir():
        made.add(path)
    made.write(disc)
    images = sorted(path for path in disc.rglob("IM*") if path.is_file())
    assert [scan.shape for scan in find_scans(disc / "DICOMDIR")[0]] == [(4, 3, 3)]
    images[-1].rename(tmp_path / "outside")
    scans, left_out = find_scans(disc / "DICOMDIR")
    assert not scans and any("cannot be opened (FileNotFoundError)" in item.reason for item in left_out)
    images[-1].symlink_to(tmp_path / "outside")
    _, refused = list_files(disc / "DICOMDIR")
    assert [reason for _, reason in refused] == ["a file that the DICOMDIR names, linked to outside its own folder"]


def test_members_of_a_zip_that_point_elsewhere_or_are_encrypted_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../out", b"1")
        archive.writestr("in/x", b"1")
    files, refused = list_files(tmp_path / "a.zip")
    assert files == [str(tmp_path / "a.zip/in/x")]
    assert refused == [(tmp_path / "a.zip/out", "a member of the zip with a name that points out of its zip")]


@pytest.mark.parametrize("second", ["x/im1", "./x/im1", "x//im1"])
def test_different_members_of_one_name_are_refused_and_equal_ones_are_one(second: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile says that it writes a name twice
        for z, name in enumerate(("x/im0", "x/im1", second)):
            archive.write(write_slice(tmp_path / f"{z}", z), name)
    files, refused = list_files(tmp_path / "a.zip")
    assert files == [str(tmp_path / "a.zip/x/im0")]
    assert refused == [(tmp_path / "a.zip/x/im1", "2 different members of the zip with this one name")]
    scans, left_out = find_scans(tmp_path / "a.zip")
    assert not scans and any("2 different members" in item.reason for item in left_out)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for z, name in enumerate(("x/im0", "x/im1", second)):
            archive.write(tmp_path / f"{min(z, 1)}", name)
    assert [scan.shape for scan in find_scans(tmp_path / "b.zip")[0]] == [(4, 3, 2)]


def test_a_name_of_a_member_in_a_form_that_paths_do_not_have_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for z, name in enumerate(("./im0", "x//im1", "im2")):
            archive.write(write_slice(tmp_path / f"{z}", z), name)
    assert [scan.shape for scan in find_scans(tmp_path / "a.zip")[0]] == [(4, 3, 3)]


def test_what_cannot_be_opened_may_hold_the_missing_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "a", (0, 1, 2))
    write_series(tmp_path / "elsewhere", (3, 4))
    (tmp_path / "a/more").symlink_to(tmp_path / "elsewhere")
    scans, left_out = find_scans(tmp_path / "a")
    assert not scans and any("a link to another folder, not followed" in item.reason for item in left_out)
    encrypted = zipfile.ZipFile.infolist

    def locked(self: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        for info in encrypted(self):
            info.flag_bits |= info.filename.endswith("im2")
        return encrypted(self)

    monkeypatch.setattr(zipfile.ZipFile, "infolist", locked)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for z in range(3):
            archive.write(tmp_path / f"a/im{z}", f"im{z}")
    scans, left_out = find_scans(tmp_path / "a.zip")
    assert not scans and any("a member of the zip, encrypted" in item.reason for item in left_out)


def test_what_is_no_place_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="there is none at"):
        list_files(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ScanError, match="pipe: expected a regular file"):
        list_files(tmp_path / "pipe")


@pytest.mark.parametrize("spelled", [str.lower, lambda name: f"{name}.;1", lambda name: f"{name.lower()}."])
def test_a_dicomdir_is_followed_in_whatever_letters_the_disk_has(spelled: Callable[[str], str], tmp_path: Path) -> None:
    made, disc = FileSet(), tmp_path / "disc"
    tags = {"StudyDate": "20200101", "StudyTime": "0900", "StudyID": "1", "SeriesNumber": 1, "InstanceNumber": 1}
    for path in write_series(tmp_path / "in", (0, 1, 2), StudyInstanceUID="1.5", **tags).iterdir():
        made.add(path)
    made.write(disc)
    for path in [path for path in disc.rglob("IM*") if path.is_file()]:
        path.rename(path.with_name(spelled(path.name)))
    for path in [path for path in disc.iterdir() if path.is_dir()]:
        path.rename(path.with_name(path.name.lower()))
    assert [scan.shape for scan in find_scans(disc / "DICOMDIR")[0]] == [(4, 3, 3)]

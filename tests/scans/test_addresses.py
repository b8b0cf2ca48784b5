"""Addresses: what is found can be read from its address, wherever it lies and however it is named."""

from __future__ import annotations

import ntpath
import os
import zipfile
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from make_dicom import refusal, write_series

from monai_mvreg.scans.addresses import ScanAddress, exists
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
PLACES = st.lists(NAMES, max_size=4).map(lambda names: Path("nowhere", *names))
UIDS = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,9}){1,6}", fullmatch=True)
VOLUMES = st.from_regex(r"[a-z0-9.-]{1,12}", fullmatch=True)
IN_SERIES = st.builds(ScanAddress, PLACES, UIDS, VOLUMES | st.just(""))


# ---- Text and back ---------------------------------------------------------------------------------------------------


@given(IN_SERIES)
def test_text_and_back_is_the_same_address_also_with_marks_in_the_names_of_folders(address: ScanAddress) -> None:
    assert ScanAddress.parse(str(address)) == address


@given(PLACES)
def test_a_place_without_a_mark_is_itself(place: Path) -> None:
    assume("#" not in str(place))
    assert ScanAddress.parse(str(place)) == ScanAddress.parse(place) == ScanAddress(place)
    assert str(ScanAddress(place)) == place.as_posix()


@given(st.text(st.characters(exclude_characters="\0"), max_size=20))
def test_any_text_is_an_address_whose_text_stays(text: str) -> None:
    once = str(ScanAddress.parse(text))
    assert str(ScanAddress.parse(once)) == once


@pytest.mark.parametrize(
    ("text", "place", "series", "volume"),
    [
        ("study#1.2", "study", "1.2", ""),
        ("study#1.2:echo-20", "study", "1.2", "echo-20"),
        ("study.zip/a/b#1.2", "study.zip/a/b", "1.2", ""),
        ("a#b/c#1.2", "a#b/c", "1.2", ""),
        ("a#b/c.nii", "a#b/c.nii", "", ""),
        ("C:/data/study#1.2:echo-20", "C:/data/study", "1.2", "echo-20"),
        ("a:b/c", "a:b/c", "", ""),
        ("#1.2", ".", "1.2", ""),
        (".#1.2", ".", "1.2", ""),
        (".", ".", "", ""),
        ("study#", "study", "", ""),
    ],
)
def test_an_address_is_taken_apart_at_its_last_mark(text: str, place: str, series: str, volume: str) -> None:
    assert ScanAddress.parse(text) == ScanAddress(Path(place), series, volume)


def test_a_mark_in_the_name_of_a_file_or_folder_that_exists_is_part_of_its_name(tmp_path: Path) -> None:
    for name in ("a#1.2", "scan#3.nii"):
        (tmp_path / name).touch()
        assert ScanAddress.parse(tmp_path / name) == ScanAddress(tmp_path / name)
        assert ScanAddress.parse(f"{tmp_path / name}#1.3") == ScanAddress(tmp_path / name, "1.3")


def test_a_mark_in_the_name_of_a_member_of_a_zip_is_part_of_its_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        archive.writestr("mr#1/scan#2.nii", b"")
    for inside in ("mr#1", "mr#1/scan#2.nii"):
        place = tmp_path / "study.zip" / inside
        assert ScanAddress.parse(place) == ScanAddress(place)
        assert ScanAddress.parse(f"{place}#1.2:a") == ScanAddress(place, "1.2", "a")


def test_separators_of_windows_end_a_name_too_and_are_written_as_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    place: Any = PureWindowsPath(r"C:\data\a#b\study")
    assert str(ScanAddress(place, "1.2")) == "C:/data/a#b/study#1.2"
    monkeypatch.setattr(os, "sep", ntpath.sep)
    assert ScanAddress.parse(r"C:\data\a#b\c.nii") == ScanAddress(Path(r"C:\data\a#b\c.nii"))
    assert ScanAddress.parse(r"C:\data\a#b#1.2") == ScanAddress(Path(r"C:\data\a#b"), "1.2")


# ---- From a folder, and for display ----------------------------------------------------------------------------------


@given(IN_SERIES)
def test_the_way_from_a_folder_and_back_is_the_same_address(address: ScanAddress) -> None:
    for home in (address.place, *address.place.parents):
        inside = address.relative_to(home)
        assert home / inside.place == address.place and inside.key == address.key
        assert ScanAddress.parse(str(inside)) == inside


@pytest.mark.parametrize(
    ("text", "home", "expected"),
    [
        ("study/mr#1.2", "study", "mr#1.2"),
        ("study#1.2:a", "study", ".#1.2:a"),
        ("study.zip/mr", "study.zip", "mr"),
        ("study", "study", "."),
        ("study/mr#1.2", "other", "study/mr#1.2"),
        ("study#1.2", ".", "study#1.2"),
        ("study-2/mr", "study", "study-2/mr"),
    ],
)
def test_an_address_below_a_folder_or_zip_is_relative_to_it(text: str, home: str, expected: str) -> None:
    assert str(ScanAddress.parse(text).relative_to(Path(home))) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a/b#1.2.3.4.5.6.7.8.9:echo-5", "a/b#....4.5.6.7.8.9:echo-5"),
        (".#1.2.3.4.5.6.7.8.9", "#....4.5.6.7.8.9"),
        (".hidden#1.2", ".hidden#...1.2"),
        ("a#b/c.nii", "a#b/c.nii"),
        (".", "."),
    ],
)
def test_only_the_end_of_a_uid_is_shown(text: str, shown: str) -> None:
    assert ScanAddress.parse(text).short == shown


# ---- Scans on disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["plain", "with # in it", "a#b#c"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_scan_is_read_again_from_its_address_below_its_folder(home: str, packed: bool, tmp_path: Path) -> None:
    place = tmp_path / home
    write_series(place, (0, 1), SeriesInstanceUID="1.1")
    write_series(place / "more", (0, 1, 2), SeriesInstanceUID="1.2")
    write_series(place / "more", (0, 1, 2, 3), SeriesInstanceUID="1.3")
    for number, path in enumerate(sorted(place.rglob("im*"))):
        path.rename(path.with_name(f"{number}"))
    write_series(place, (0, 1), SeriesInstanceUID="1.1")
    if packed:
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            for path in sorted(place.rglob("*")):
                archive.write(path, path.relative_to(tmp_path))
        place = tmp_path / "study.zip"
    for scan in find_scans(place)[0]:
        inside = ScanAddress.parse(scan.address).relative_to(tmp_path)
        data = read_scan(tmp_path / str(inside))
        assert data.array.shape == scan.shape and exists(ScanAddress.parse(tmp_path / str(inside)).place)


def test_the_current_folder_gives_the_same_addresses_as_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "s", (0, 1), SeriesInstanceUID="1.1")
    write_series(tmp_path / "s", (0, 1, 2), SeriesInstanceUID="1.2")
    expected = [ScanAddress.parse(scan.address).relative_to(tmp_path / "s") for scan in find_scans(tmp_path / "s")[0]]
    monkeypatch.chdir(tmp_path / "s")
    scans = find_scans(".")[0]
    assert [ScanAddress.parse(scan.address) for scan in scans] == expected
    for scan in scans:
        np.testing.assert_array_equal(read_scan(scan.address).array, read_scan(scan).array)


def test_a_name_that_no_system_allows_is_no_place(tmp_path: Path) -> None:
    assert not exists(tmp_path / ("x" * 300))
    assert "there is none at" in refusal(tmp_path / ("x" * 300))

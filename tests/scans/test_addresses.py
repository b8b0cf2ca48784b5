"""Addresses: what is found can be read from its address, wherever it lies and however it is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from make_dicom import refusal, write_series

from monai_mvreg.scans.addresses import exists, relative, short, split
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan


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
        inside = relative(scan.address, tmp_path)
        data = read_scan(tmp_path / inside)
        assert data.array.shape == scan.shape and exists(split(tmp_path / inside)[0])


def test_the_current_folder_gives_the_same_addresses_as_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "s", (0, 1), SeriesInstanceUID="1.1")
    write_series(tmp_path / "s", (0, 1, 2), SeriesInstanceUID="1.2")
    expected = [relative(scan.address, tmp_path / "s") for scan in find_scans(tmp_path / "s")[0]]
    monkeypatch.chdir(tmp_path / "s")
    scans = find_scans(".")[0]
    assert [relative(scan.address, Path()) for scan in scans] == expected
    for scan in scans:
        np.testing.assert_array_equal(read_scan(scan.address).array, read_scan(scan).array)


def test_only_the_end_of_a_uid_is_shown() -> None:
    assert short("a/b#1.2.3.4.5.6.7.8.9:echo-5") == "a/b#....4.5.6.7.8.9:echo-5"
    assert short("a#b/c.nii") == "a#b/c.nii"


def test_a_name_that_no_system_allows_is_no_place(tmp_path: Path) -> None:
    assert not exists(tmp_path / ("x" * 300))
    assert "there is none at" in refusal(tmp_path / ("x" * 300))

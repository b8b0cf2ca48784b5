"""Content of scans: what is part of one changes its hash, and nothing else does."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from make_dicom import write_series, write_slice

from monai_mvreg.scans.content_hash import content_hashes, scan_content
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.formats.byte_ranges import ScanError


def of(address: Path | str) -> str:
    return content_hashes([str(address)])[str(address)]


def touch(path: Path) -> None:
    """Change the last byte, and leave size and time as they were."""
    facts, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def volume(path: Path, voxels: int = 1) -> Path:
    nib.save(nib.Nifti1Image(np.full((4, 3, 2), voxels, np.int16), np.eye(4)), path)
    return path


def test_a_file_is_known_by_its_bytes_and_not_by_its_name_or_time(tmp_path: Path) -> None:
    one = volume(tmp_path / "one.nii")
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "elsewhere/other.nii"
    shutil.copyfile(one, other)
    assert of(one) == of(other)
    touch(other)
    assert of(one) != of(other)


def test_the_ending_of_a_name_counts_because_it_chooses_the_reader(tmp_path: Path) -> None:
    one = volume(tmp_path / "one.nii")
    other = tmp_path / "one.img"
    shutil.copyfile(one, other)
    assert of(one) != of(other)


@pytest.mark.parametrize(("name", "second"), [("a.img", "a.hdr"), ("a.mhd", "a.raw"), ("a.nhdr", "a.raw")])
def test_a_header_and_voxels_in_two_files_both_count(name: str, second: str, tmp_path: Path) -> None:
    if name.endswith("img"):
        nib.save(nib.Nifti1Pair(np.ones((4, 3, 2), np.int16), np.eye(4)), tmp_path / name)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 3, 2), np.int16)), str(tmp_path / name), False)
    before = of(tmp_path / name)
    (tmp_path / "company.raw").write_bytes(b"not of this scan")
    assert of(tmp_path / name) == before
    touch(tmp_path / second)
    assert of(tmp_path / name) != before


def test_every_file_of_a_series_counts_and_one_that_is_added_too(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    write_series(folder)
    before = of(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert of(tmp_path / "copy") == before
    files = sorted(folder.iterdir())
    touch(files[1])
    changed = of(folder)
    shutil.copyfile(files[0], folder / "zz_added.dcm")
    assert len({before, changed, of(folder)}) == 3


def test_two_series_of_one_folder_differ_by_their_keys(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    assert len(set(content_hashes([f"{tmp_path}/series#1.2.3", f"{tmp_path}/series#1.2.4"]).values())) == 2


def test_a_member_of_a_zip_is_known_by_its_bytes(tmp_path: Path) -> None:
    volume(tmp_path / "a.nii"), volume(tmp_path / "b.nii", 2)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("a.nii", "b.nii"):
            archive.write(tmp_path / name, f"scans/{name}")
    inside = [of(tmp_path / "all.zip/scans" / name) for name in ("a.nii", "b.nii")]
    assert inside == [of(tmp_path / name) for name in ("a.nii", "b.nii")]


def test_company_that_cannot_be_read_does_not_stop_it(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    os.mkfifo(tmp_path / "series/pipe")
    assert of(tmp_path / "series")


def test_an_address_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="expected a folder or file with scans"):
        of(tmp_path / "nowhere.nii")


def test_a_scan_that_was_found_stays_the_same_when_others_come_to_lie_beside_it(tmp_path: Path) -> None:
    write_series(tmp_path / "flat")
    [before] = find_scans(tmp_path / "flat")[0]
    for number, z in enumerate((0, 2, 4)):
        write_slice(tmp_path / "flat" / f"other{number}", z, SeriesInstanceUID="1.2.4")
    after = {scan.key: scan for scan in find_scans(tmp_path / "flat")[0]}
    assert scan_content(after["1.2.3"]) == scan_content(before) != scan_content(after["1.2.4"])
    write_slice(tmp_path / "flat" / "im3", 6)
    [longer] = [scan for scan in find_scans(tmp_path / "flat")[0] if scan.key == "1.2.3"]
    assert scan_content(longer) != scan_content(before)

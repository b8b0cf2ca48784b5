"""The inventory: what is in a folder, per patient and visit, and never who they are unless asked."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from make_dicom import CANARY, new_image, save, write_series, write_slice
from PIL import Image

from monai_mvreg.cohort.inventory import as_json, contact_sheet, take_inventory, visits
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import read_scan


def pictures(page: Path) -> list[np.ndarray]:
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", page.read_text())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L")) for text in found]


def test_scans_stand_by_patient_and_day_and_those_of_one_day_together(tmp_path: Path) -> None:
    for name, date in (("b", "20200201"), ("a", "20200101"), ("c", "20200201")):
        write_series(tmp_path / name, SeriesInstanceUID=f"1.{ord(name)}", StudyDate=date)
    found = take_inventory(tmp_path)
    assert [row.split() for row in visits(found).splitlines()[1:]] == [
        ["1", "0", "MR", "-", "4x3x3", "0.25x0.5x2", "1", "a"],
        ["31", "MR", "-", "4x3x3", "0.25x0.5x2", "1", "b"],
        ["MR", "-", "4x3x3", "0.25x0.5x2", "1", "c"],
    ]
    assert [scan.address for scan in found.scans] == [(tmp_path / name).as_posix() for name in "abc"]


def test_the_patient_and_the_date_are_shown_only_on_request(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    found = take_inventory(tmp_path)
    for identify in (False, True):
        contact_sheet(tmp_path / f"{identify}.html", found, identify=identify)
        page = (tmp_path / f"{identify}.html").read_text()
        told = visits(found, identify=identify) + str(as_json(found, identify=identify))
        assert (CANARY in told) == (CANARY in page) == identify
        assert ("2020-01-31" in told) == identify
    assert CANARY not in repr(found.scans) + repr(found.left_out)


def test_localizers_and_derived_images_count_on_request(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_slice(tmp_path / "b/1", SeriesInstanceUID="1.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert [len(take_inventory(tmp_path, everything=everything).scans) for everything in (False, True)] == [1, 2]
    with pytest.raises(ScanError, match="a localizer"):
        take_inventory(tmp_path / "b")


def test_the_middle_slice_is_shown_in_proportion_without_reading_the_others(tmp_path: Path) -> None:
    for z in range(5):
        image = new_image(z, Rows=40, Columns=40, PixelSpacing=[2, 1])
        image.PixelData = np.full((40, 40), 1000 if z == 2 else 0, "<u2").tobytes()
        save(image, tmp_path / f"a/{z}")
    found = take_inventory(tmp_path)
    for z in (0, 1, 3, 4):
        (tmp_path / f"a/{z}").unlink()
    contact_sheet(tmp_path / "page.html", found)
    (picture,) = pictures(tmp_path / "page.html")
    assert picture.shape == (160, 80)


def test_a_nifti_volume_is_shown_from_below_with_the_front_up(tmp_path: Path) -> None:
    voxels = np.zeros((32, 32, 3), np.float32)
    voxels[:8, 24:, 1] = 100  # right and front, in a volume stored from right to left
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 1, 1, 1])), tmp_path / "in.nii")
    (tmp_path / "p").mkdir()
    (tmp_path / "in.nii").rename(tmp_path / "p/in.nii")
    contact_sheet(tmp_path / "page.html", take_inventory(tmp_path))
    (picture,) = pictures(tmp_path / "page.html")
    rows, columns = np.nonzero(picture > 128)
    assert rows.max() < 80  # the front is up
    assert columns.max() < 80  # the patient's right is on the left


@pytest.mark.parametrize(
    ("tags", "shown"),
    [
        ({"Modality": "US"}, False),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, True),
        ({"BurnedInAnnotation": "YES"}, False),
        ({}, True),
    ],
)
def test_pictures_that_may_hold_a_name_are_not_shown(tags: dict[str, Any], shown: bool, tmp_path: Path) -> None:
    write_slice(tmp_path / "a", **tags)
    found = take_inventory(tmp_path)
    contact_sheet(tmp_path / "page.html", found)
    assert len(pictures(tmp_path / "page.html")) == shown
    assert ("text may be burned in" in (tmp_path / "page.html").read_text()) != shown
    contact_sheet(tmp_path / "asked.html", found, identify=True)
    assert len(pictures(tmp_path / "asked.html")) == 1


def test_a_scan_that_cannot_be_read_says_so_in_its_place_and_the_page_needs_nothing_else(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    found = take_inventory(tmp_path)
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    contact_sheet(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text()
    assert "cannot be" in page and not pictures(tmp_path / "page.html")
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", page)


def test_a_picture_that_may_have_a_name_in_it_is_not_shown_whichever_slice_says_so(tmp_path: Path) -> None:
    for z, said in ((0, "NO"), (1, "YES"), (2, "NO")):
        write_slice(tmp_path / "a" / f"{z}", z, BurnedInAnnotation=said)
    captured = "1.2.840.10008.5.1.4.1.1.7"
    write_slice(tmp_path / "b", SOPClassUID=captured, Modality="CT", SeriesInstanceUID="1.9")
    for number, modality in enumerate(("US", "XC", "ES", "OT")):
        write_slice(tmp_path / modality, Modality=modality, SeriesInstanceUID=f"1.8.{number}")
    found = take_inventory(tmp_path, everything=True)
    for identify in (False, True):
        contact_sheet(tmp_path / f"{identify}.html", found, identify=identify)
        assert len(pictures(tmp_path / f"{identify}.html")) == (6 if identify else 0)


def test_what_would_move_the_cursor_of_a_terminal_is_not_shown(tmp_path: Path) -> None:
    write_series(tmp_path, BodyPartExamined="A\x1b[2JB")
    assert "\x1b" not in visits(take_inventory(tmp_path)) and "A[2JB" in visits(take_inventory(tmp_path))


def test_series_that_lie_directly_in_the_folder_are_read_from_the_table(tmp_path: Path) -> None:
    for number in range(2):
        for z in (0, 1):
            write_slice(tmp_path / f"{number}{z}", z, SeriesInstanceUID=f"1.{number}")
    rows = take_inventory(tmp_path).rows
    assert list(rows["path"]) == [".#1.0", ".#1.1"]
    assert [read_scan(tmp_path / path).array.shape for path in rows["path"]] == [(4, 3, 2)] * 2


def test_patients_of_a_zip_are_its_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for name in ("p1", "p2"):
            nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4)), tmp_path / "x.nii")
            archive.write(tmp_path / "x.nii", f"{name}/x.nii")
    rows = take_inventory(tmp_path / "study.zip").rows
    assert list(rows["patient"]) == ["p1", "p2"] and list(rows["path"]) == ["study.zip/p1/x.nii", "study.zip/p2/x.nii"]

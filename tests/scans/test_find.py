"""Find: every scan of a folder, a zip or a DICOMDIR, by headers alone, and a reason for everything else."""

from __future__ import annotations

import datetime
import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from make_dicom import CANARY, PACK, needs_pack, new_image, save, write_series, write_slice
from PIL import Image
from pydicom.fileset import FileSet
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage, generate_uid

from monai_mvreg.scans.dicom.acquisition_date import in_order
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_range
from monai_mvreg.scans.read import read_scan

PYDICOM = Path(pydicom.__file__).parent / "data/test_files"


def test_a_scan_knows_everything_from_headers_and_hides_its_patient(tmp_path: Path) -> None:
    tags = {"BodyPartExamined": "HEAD", "AcquisitionDate": "20200130", "AcquisitionTime": "1015", "StudyTime": "0900"}
    write_series(tmp_path / "a b", **tags)
    (tmp_path / "notes.txt").write_text("x")
    (scan,), (left_out,) = find_scans(tmp_path)
    assert (scan.address, scan.key, scan.modality, scan.body_part) == (
        (tmp_path / "a b").as_posix(),
        "1.2.3",
        "MR",
        "HEAD",
    )
    assert (scan.date, scan.date_from) == (datetime.datetime(2020, 1, 30, 10, 15), "AcquisitionDate")
    assert (scan.shape, scan.frames, scan.spacing) == ((4, 3, 3), 1, (0.25, 0.5, 2.0))
    assert scan.transfer_syntax == "1.2.840.10008.1.2.1" and not scan.colour
    assert [path.name for path in scan.files] == ["im1", "im2", "im0"]
    assert scan.patient == CANARY and CANARY not in repr(scan)
    assert (left_out.path.name, left_out.reason) == ("notes.txt", "no scan: another format")


def test_the_date_of_a_scan_is_that_of_its_acquisition_where_one_slice_has_another_date_alone(tmp_path: Path) -> None:
    for z in (0, 1):
        write_slice(tmp_path / f"{z}", z, AcquisitionDate="20200102", StudyDate="20191231")
    write_slice(tmp_path / "2", 2, StudyDate="20191231")
    (scan,), _ = find_scans(tmp_path)
    assert (scan.date, scan.date_from) == (datetime.date(2020, 1, 2), "AcquisitionDate")


@pytest.mark.parametrize("ruin", ["empty", "short", "zeros", "mark", "bare", "gone"])
def test_a_last_slice_that_lost_its_content_is_missed(ruin: str, tmp_path: Path) -> None:
    write_series(tmp_path, (0, 1, 2, 3))
    last, whole = tmp_path / "im3", (tmp_path / "im3").read_bytes()
    zeros = bytes(512) + whole[512:]
    changed = {"empty": b"", "short": whole[:100], "zeros": zeros, "mark": whole[:131] + b"N" + whole[132:]}
    last.unlink()
    if ruin == "gone":
        last.symlink_to(tmp_path / "nowhere")
    else:
        last.write_bytes(changed.get(ruin, whole[132:]))
    (tmp_path / "notes.txt").write_bytes(b"")  # junk, not a slice
    for address in (tmp_path, f"{tmp_path}#1.2.3"):
        with pytest.raises(ScanError, match=r"a damaged file in its folder: im3"):
            read_scan(address)
    assert not find_scans(tmp_path)[0]


def test_an_empty_file_of_another_name_is_no_slice(tmp_path: Path) -> None:
    write_series(tmp_path, (0, 1, 2))
    (tmp_path / "empty").write_bytes(b"")
    assert read_scan(tmp_path).array.shape == (4, 3, 3)


def test_a_damaged_file_in_a_folder_of_its_own_is_missed_by_the_series_around_it(tmp_path: Path) -> None:
    write_series(tmp_path / "a", (0, 2))
    write_series(tmp_path / "b", (1, 3))
    write_series(tmp_path / "other", SeriesInstanceUID="1.2.4")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/cut").write_bytes(write_slice(tmp_path / "whole", 4).read_bytes()[:300])
    (tmp_path / "whole").unlink()
    scans, _ = find_scans(tmp_path)
    assert [scan.key for scan in scans] == ["1.2.4"]
    with pytest.raises(ScanError, match="a damaged file in its folder: cut"):
        read_scan(f"{tmp_path}#1.2.3")


def test_a_series_that_refers_to_others_is_read_whole_by_its_address(tmp_path: Path) -> None:
    write_series(tmp_path, (0, 1, 2))
    write_series(tmp_path / "other", SeriesInstanceUID="1.2.4")
    image = new_image(3)
    other = pydicom.Dataset()
    other.SeriesInstanceUID, other.RetrieveURL = "9.9.9", "x" * 20_000
    image.ReferencedSeriesSequence = [other]
    save(image, tmp_path / "im3")
    assert read_scan(f"{tmp_path}#1.2.3").array.shape == (4, 3, 4)


def test_one_file_named_twice_is_one_file(tmp_path: Path) -> None:
    write_series(tmp_path, (0, 1))
    assert [scan.frames for scan in find_scans([tmp_path, tmp_path / "im0"])[0]] == [1]


def test_the_key_of_a_patient_is_read_in_the_character_set_of_its_file(tmp_path: Path) -> None:
    for name, encoding in (("ISO_IR 192", "utf-8"), ("ISO_IR 100", "latin-1")):
        image = new_image(SpecificCharacterSet=name, SeriesInstanceUID=f"1.{len(encoding)}")
        image.PatientID = "M\u00fcller1"
        save(image, tmp_path / encoding)
    assert [scan.patient for scan in find_scans(tmp_path)[0]] == ["M\u00fcller1"] * 2


def test_the_date_of_a_scan_is_its_earliest_moment(tmp_path: Path) -> None:
    for z, time in ((0, "120001"), (1, "115959"), (2, "120003")):
        write_slice(tmp_path / f"{z}", z, AcquisitionDate="20200130", AcquisitionTime=time)
    assert find_scans(tmp_path)[0][0].date == datetime.datetime(2020, 1, 30, 11, 59, 59)


def test_no_pixels_are_read_to_find_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path)
    most = 0

    def limited(path: Any, start: int, length: int) -> tuple[bytes, int]:
        nonlocal most
        data, size = read_range(path, start, length)
        most = max(most, start + len(data))
        return data, size

    for path in tmp_path.iterdir():
        image = pydicom.dcmread(path)
        image.Rows, image.Columns, image.PixelData = 400, 500, bytes(400_000)
        image.save_as(path)
    monkeypatch.setattr("monai_mvreg.scans.dicom.elements.read_range", limited)
    monkeypatch.setattr("monai_mvreg.scans.dicom.duplicates.read_values", None)
    assert find_scans(tmp_path)[0][0].shape == (500, 400, 3)
    assert 0 < most < 20_000


def test_a_series_spread_over_folders_is_one_scan_at_their_common_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "x/a", (0, 4))
    write_series(tmp_path / "x/b/c", (2, 6))
    write_series(tmp_path / "y", SeriesInstanceUID="1.2.4")
    addresses = [scan.address for scan in find_scans(tmp_path)[0]]
    assert addresses == [(tmp_path / "x").as_posix(), (tmp_path / "y").as_posix()]
    assert read_scan(addresses[0]).array.shape == (4, 3, 4)


def test_every_address_reads_the_scan_it_was_found_for(tmp_path: Path) -> None:
    write_series(tmp_path / "one", PixelData=bytes(24))
    for number, uid in enumerate(("1.2.5", "1.2.6")):
        for z in (0, 1):
            for echo in (5, 9):
                tags = {"EchoTime": echo, "SeriesInstanceUID": uid, "PixelData": bytes([number, echo] * 12)}
                write_slice(tmp_path / f"two/{uid}-{z}-{echo}", z, **tags)
    write_slice(tmp_path / "two/alone", SeriesInstanceUID="1.2.7", PixelData=bytes([9, 1] * 12))
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), 3, np.int16), np.eye(4)), tmp_path / "two/n.nii")
    Image.new("L", (4, 3), 8).save(tmp_path / "two/p.png")
    scans, left_out = find_scans(tmp_path)
    assert len(scans) == len({scan.address for scan in scans}) == 8 and not left_out
    for scan in scans:
        one, other = read_scan(scan), read_scan(scan.address)
        np.testing.assert_array_equal(one.array, other.array)
        assert one.array.shape[:2] == scan.shape[:2]
    values = [read_scan(scan).array.flat[0] for scan in scans]
    assert len(set(values)) == 8


@pytest.mark.parametrize("beside", [False, True])
def test_volumes_of_one_series_in_folders_of_their_own_are_read_by_their_addresses(
    tmp_path: Path, beside: bool
) -> None:
    for echo in (20, 80):
        write_series(tmp_path / f"e{echo}", (0, 2), EchoTime=echo, PixelData=bytes([echo, 0] * 12))
    if beside:  # another series in the folder: its address needs a key
        for number, z in enumerate((0, 2)):
            write_slice(tmp_path / f"e20/other{number}", z, SeriesInstanceUID="1.2.9", PixelData=bytes([9, 0] * 12))
    scans, left_out = find_scans(tmp_path)
    assert len({scan.address for scan in scans}) == len(scans) == 2 + beside and not left_out
    values = {read_scan(scan.address).array.flat[0] for scan in scans}
    assert values == {20, 80, *([9] if beside else [])}


def test_a_damaged_file_refuses_the_series_it_may_belong_to_and_no_other(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", SeriesInstanceUID="1.2.4")
    whole = (tmp_path / "a/im0").read_bytes()
    (tmp_path / "a/cut").write_bytes(whole[:300])
    (tmp_path / "a/empty").write_bytes(b"")
    scans, left_out = find_scans(tmp_path)
    assert [scan.key for scan in scans] == ["1.2.4"]
    reasons = {item.path.name: item.reason for item in left_out}
    assert "a damaged file in its folder: cut (cut off" in reasons["a"]
    assert "cut off" in reasons["cut"] and reasons["empty"] == "an empty file"


def test_images_that_are_no_scans_are_left_out_with_the_reason_and_can_be_read_all_the_same(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "a localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "derived from other images": {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]},
        "a secondary capture": {"SOPClassUID": SecondaryCaptureImageStorage},
    }
    for number, tags in enumerate(kinds.values()):
        write_slice(tmp_path / f"{number}", SeriesInstanceUID=f"1.{number}", **tags)
    write_slice(tmp_path / "kept", SeriesInstanceUID="1.9", ImageType=["DERIVED", "SECONDARY", "OTHER"])
    write_slice(tmp_path / "oblique", SeriesInstanceUID="1.8", ImageType=["ORIGINAL", "PRIMARY", "MPR"])
    save(new_image(SOPClassUID=BasicTextSRStorage, Rows=None), tmp_path / "report")
    scans, left_out = find_scans(tmp_path)
    assert [scan.address for scan in scans] == [(tmp_path / name).as_posix() for name in ("kept", "oblique")]
    reasons = {item.path.name: item for item in left_out}
    for number, words in enumerate(kinds):
        item = reasons[str(number)]
        assert item.reason.startswith(words) and item.scan is not None
        assert read_scan(item.scan).array.shape == (4, 3)
    assert reasons["report"].reason == "a DICOM file without pixels (Basic Text SR Storage)"
    assert reasons["report"].scan is None


def test_a_zip_is_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path / "in/a")
    write_series(tmp_path / "in/b", SeriesInstanceUID="1.2.4")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4)), tmp_path / "in/n.nii.gz")
    Image.new("L", (4, 3), 8).save(tmp_path / "in/p.png")
    shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "study.zip", "a") as archive:
        archive.writestr("../../evil.dcm", (tmp_path / "in/a/im0").read_bytes())
    scans, left_out = find_scans(tmp_path / "study.zip")
    inside = [Path(scan.address).relative_to(tmp_path / "study.zip").as_posix() for scan in scans]
    assert inside == ["a", "b", "n.nii.gz", "p.png"]
    assert [item.reason for item in left_out] == ["a member of the zip with a name that points out of its zip"]
    for scan, folder in zip(scans, ("a", "b"), strict=False):
        np.testing.assert_array_equal(read_scan(scan).array, read_scan(tmp_path / "in" / folder).array)
        np.testing.assert_array_equal(read_scan(scan.address).array, read_scan(scan).array)
    assert read_scan(scans[2]).array.sum() == 8 and read_scan(scans[3].address).array.sum() == 96
    found = find_scans(tmp_path)[1]
    assert any("a zip, which is searched only if it is named itself" in item.reason for item in found)


def test_a_dicomdir_names_its_files_and_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    files = FileSet()
    for z in (0, 2, 4):
        image = new_image(
            z, StudyInstanceUID="1.9", StudyID="1", StudyTime="1200", SeriesNumber=1, InstanceNumber=int(z)
        )
        image.AccessionNumber = ""
        image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = (
            image.SOPClassUID,
            image.SOPInstanceUID,
        )
        files.add(image)
    files.write(tmp_path / "disc")
    directory = tmp_path / "disc/DICOMDIR"
    scans, left_out = find_scans(directory)
    assert [scan.shape for scan in scans] == [(4, 3, 3)] and not left_out
    assert read_scan(scans[0].address).array.shape == (4, 3, 3)
    assert [item.reason for item in find_scans(tmp_path / "disc")[1]] == [
        "a DICOMDIR, which is followed only if it is named itself"
    ]
    write_slice(tmp_path / "secret", 6)
    names = sorted(
        path.relative_to(tmp_path / "disc").parts for path in (tmp_path / "disc").rglob("*") if path.is_file()
    )
    records = pydicom.dcmread(directory)
    for record in records.DirectoryRecordSequence:
        if "ReferencedFileID" in record and list(record.ReferencedFileID) == list(names[1]):
            record.ReferencedFileID = ["..", "secret"]
    records.save_as(directory)
    scans, left_out = find_scans(directory)
    assert any("outside its own folder" in item.reason for item in left_out)
    assert all((tmp_path / "disc") in path.parents for scan in scans for path in scan.files)
    directory.write_bytes(directory.read_bytes()[:600])
    with pytest.raises(ScanError, match="damaged DICOMDIR"):
        find_scans(directory)


def test_the_dicomdir_of_pydicom_names_what_its_folder_holds() -> None:
    by_name, _ = find_scans(PYDICOM / "dicomdirtests/DICOMDIR")
    by_folder, _ = find_scans(PYDICOM / "dicomdirtests")
    assert by_name and {scan.key for scan in by_name} <= {scan.key for scan in by_folder}


def test_files_may_be_named_one_by_one(tmp_path: Path) -> None:
    write_series(tmp_path)
    (scan,), _ = find_scans([tmp_path / "im0", tmp_path / "im2"])
    assert scan.shape == (4, 3, 2)
    with pytest.raises(ScanError, match="there is none at"):
        find_scans(tmp_path / "none")


def test_thousands_of_series_take_time_in_proportion(tmp_path: Path) -> None:
    image = new_image()
    for number in range(600):
        image.SeriesInstanceUID, image.SOPInstanceUID = f"1.2.{number}", generate_uid()
        save(image, tmp_path / f"{number // 20}/{number}")
    scans, left_out = find_scans(tmp_path)
    assert len(scans) == 600 and not left_out


@needs_pack
def test_the_visits_of_the_pack_are_in_order_and_the_undated_stay_undated(caplog: pytest.LogCaptureFixture) -> None:
    expected = json.loads((PACK / "expected.json").read_text())["visits"]
    with caplog.at_level(logging.DEBUG):
        found = find_scans(PACK / "visits")
    dates = {f"visits/{Path(scan.address).parent.name}": scan.date for scan in found[0]}
    for item in expected["items"]:
        moment = dates[item["folder"]]
        if item["datetime"] is None:
            assert moment is None
        elif "T" in item["datetime"]:
            assert moment == datetime.datetime.fromisoformat(item["datetime"])
        else:
            assert moment == datetime.date.fromisoformat(item["datetime"]) and type(moment) is datetime.date
    dated = sorted((name for name, moment in dates.items() if moment), key=lambda name: in_order(dates[name]))
    assert [name.removeprefix("visits/") for name in dated] == expected["order"]
    assert CANARY not in caplog.text + repr(found)

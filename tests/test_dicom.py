"""DICOM slices to arrays: order, geometry and values come from the headers, and odd slices are refused by name."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from monai_mvreg.scans import ScanReader, find_scans

PACK = Path(__file__).parents[2] / "shared/data/dicom"


def write_slice(path: Path, z: float, **tags: Any) -> pydicom.Dataset:
    """Write a 3 x 4 slice at height z whose pixels are 10 z plus their number; tags set to None are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.SeriesInstanceUID, image.Modality, image.PatientID, image.StudyDate = "1.2.3", "MR", "ZZPHI", "20200131"
    image.PatientName = "ZZPHI^Z"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 3, 4, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelSpacing, image.SliceThickness = [0.5, 0.25], 9
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, 20, z]
    image.PixelData = (np.arange(12) + round(10 * z)).astype("<u2").tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    image.save_as(path, enforce_file_format=True)
    return image


def write_series(folder: Path, heights: tuple[float, ...] = (4, 0, 2), **tags: Any) -> Path:
    for number, z in enumerate(heights):
        write_slice(folder / f"im{number}", z, **tags)
    return folder


def refusal(address: Path | str) -> str:
    with pytest.raises(ValueError) as error:
        ScanReader().read(address)
    assert "ZZPHI" not in str(error.value)
    return str(error.value)


def test_slices_are_ordered_by_position_and_the_affine_is_ras(tmp_path: Path) -> None:
    array, affine = ScanReader().read(write_series(tmp_path, InstanceNumber=1))
    assert array.dtype == np.float32 and array.shape == (4, 3, 3)
    assert array[0, 0].tolist() == [0, 20, 40] and array[:, 1, 0].tolist() == [4, 5, 6, 7]
    expected = [[-0.25, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected)


def test_each_slice_is_rescaled_by_its_own_header(tmp_path: Path) -> None:
    write_slice(tmp_path / "a", 0, RescaleSlope=1, RescaleIntercept=0)
    write_slice(tmp_path / "b", 2, RescaleSlope=0.125, RescaleIntercept=-1)
    array, _ = ScanReader().read(tmp_path)
    assert array[0, 0].tolist() == [0, 1.5] and array[1, 0, 1] == 1.625


def test_monochrome1_is_inverted_so_that_larger_is_brighter(tmp_path: Path) -> None:
    write_slice(tmp_path / "a", 0, PhotometricInterpretation="MONOCHROME1")
    assert ScanReader().read(tmp_path / "a")[0][0, 0] == 4095


def test_a_tilted_gantry_gives_a_sheared_affine(tmp_path: Path) -> None:
    for number in range(3):
        write_slice(tmp_path / f"{number}", 2 * number, ImagePositionPatient=[0, 0.6 * number, 2 * number])
    np.testing.assert_allclose(ScanReader().read(tmp_path)[1][:3, 2], [0, -0.6, 2])


@pytest.mark.parametrize(
    ("heights", "words"),
    [
        ((0, 2, 4, 8), "between im2 (at 4.00 mm) and im3 (at 8.00 mm): 1 missing"),
        ((0, 2, 4, 7, 10, 13, 16), "every 3.000 mm, got 2.000 mm between im0"),
        ((0, 2, 2, 4), "im1, im2 at the same"),
        ((0, 2, 4, 0, 2, 4), "got 2: several time points"),
    ],
)
def test_slices_that_are_not_one_even_stack_are_refused_with_the_place(
    heights: tuple[float, ...], words: str, tmp_path: Path
) -> None:
    assert words in refusal(write_series(tmp_path, heights))


def test_the_positions_of_an_oblique_series_written_with_one_decimal_are_even(tmp_path: Path) -> None:
    for number in range(12):
        write_slice(tmp_path / f"{number}", 0, ImagePositionPatient=[0, 0, round(0.625 * number, 1)])
    assert abs(ScanReader().read(tmp_path)[1][2, 2] - 0.625) < 0.01


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PixelSpacing": [0.5, 0.5]}, "one pixel spacing, got another in odd"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "one orientation, got another in odd"),
        ({"ImagePositionPatient": None}, "none in odd"),
        ({"Rows": 2, "PixelData": bytes(16)}, "one matrix, got another in odd"),
        ({"PixelData": bytes(16)}, "odd: truncated: expected 24 bytes of pixels"),
        ({"PhotometricInterpretation": "RGB"}, "odd: expected grey values, got RGB"),
        ({"NumberOfFrames": 2, "PixelData": bytes(48)}, "odd: multi-frame object of 2 frames"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]}, "odd: mosaic"),
    ],
)
def test_one_odd_slice_is_refused_by_its_file_name(tags: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_series(tmp_path)
    write_slice(tmp_path / "odd", 6, **tags)
    assert words in refusal(tmp_path)
    assert any(words.rpartition(": ")[2] in item.reason for item in find_scans(tmp_path)[1])


def test_a_number_that_is_none_is_refused_without_being_shown(tmp_path: Path) -> None:
    write_slice(tmp_path / "odd", 6)
    odd = (tmp_path / "odd").read_bytes()
    (tmp_path / "odd").write_bytes(odd.replace(b"-10", b"Z.Z"))
    message = refusal(tmp_path)
    assert "odd: expected 3 finite numbers in ImagePositionPatient" in message and "Z.Z" not in message


def test_several_series_in_a_folder_are_refused_and_one_is_read_by_its_uid(tmp_path: Path) -> None:
    write_series(tmp_path)
    for z in (0, 1, 2):
        write_slice(tmp_path / f"other{z}", z, SeriesInstanceUID="1.2.4")
    assert "got 2 (...1.2.3, ...1.2.4): write folder#SeriesInstanceUID" in refusal(tmp_path)
    addresses = [scan.address for scan in find_scans(tmp_path)[0]]
    assert addresses == [f"{tmp_path}#1.2.3", f"{tmp_path}#1.2.4"]
    assert ScanReader().read(addresses[1])[1][2, 2] == 1
    assert "expected series ...9.9" in refusal(f"{tmp_path}#9.9")


def test_an_exact_copy_of_a_slice_is_used_once_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path)
    (tmp_path / "twin").write_bytes((tmp_path / "im0").read_bytes())
    assert ScanReader().read(tmp_path)[0].shape == (4, 3, 3)
    assert "twin is a copy of im0" in caplog.text


def test_radiographs_of_one_series_are_scans_of_their_own(tmp_path: Path) -> None:
    plain = {"Modality": "DX", "ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    write_series(tmp_path, ImagerPixelSpacing=[0.2, 0.1], **plain)
    scans, left_out = find_scans(tmp_path)
    assert [(s.shape, s.spacing, s.modality) for s in scans] == [((4, 3), (0.1, 0.2), "DX")] * 3 and not left_out
    array, affine = ScanReader().read(scans[0].address)
    assert array.shape == (4, 3) and affine.diagonal().tolist() == [0.1, 0.2, 1, 1]
    assert "3 2D images: write the file" in refusal(tmp_path)


def test_slices_without_any_position_are_refused(tmp_path: Path) -> None:
    assert "expected a position" in refusal(write_series(tmp_path, ImagePositionPatient=None))


@pytest.mark.parametrize(
    ("tags", "date"),
    [
        ({"AcquisitionDateTime": "20200110093000.0+0100"}, datetime.date(2020, 1, 10)),
        ({"AcquisitionDate": "19000101", "SeriesDate": "20210304"}, datetime.date(2021, 3, 4)),
        ({"ContentDate": "20219999"}, datetime.date(2020, 1, 31)),
        ({"StudyDate": "2018.03.04"}, datetime.date(2018, 3, 4)),
        ({"StudyDate": ""}, None),
    ],
)
def test_the_date_is_the_first_real_one(tags: dict[str, str], date: datetime.date | None, tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        write_slice(tmp_path / "a", 0, **tags)
    assert find_scans(tmp_path)[0][0].date == date


@pytest.mark.skipif(not PACK.is_dir(), reason="the data pack of DICOM series is not beside the project")
def test_a_codec_of_another_library_is_rescaled_alike_and_its_truncation_refused(tmp_path: Path) -> None:
    source = sorted((PACK / "series/mr_jpll_fragments").iterdir())[0]
    image = pydicom.dcmread(source)
    before = ScanReader().read(source)[0]
    image.RescaleSlope, image.RescaleIntercept = "0.5", "-3"
    image.save_as(tmp_path / "a")
    np.testing.assert_allclose(ScanReader().read(tmp_path / "a")[0], before * 0.5 - 3)
    (tmp_path / "b").write_bytes(source.read_bytes()[:-3000])
    assert refusal(tmp_path / "b").startswith("b: ")

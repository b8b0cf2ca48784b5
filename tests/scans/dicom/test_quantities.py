"""Quantities: uptake, precise values and brightness by their published formulas, and a missing attribute by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from make_dicom import at, enhanced, item, new_image, refusal, save
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import PositronEmissionTomographyImageStorage

from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import Choices, read_scan

SUV, SHOWN, PRECISE = Choices(suv=True), Choices(brightness=True), Choices(philips_precise=True)


def pet(**tags: Any) -> Dataset:
    """70 kg, 100 MBq, scanned one half-life after the injection: an uptake of 1 is 10^8 / 2 / 70,000 Bq/ml."""
    image = new_image(SOPClassUID=PositronEmissionTomographyImageStorage, Modality="PT")
    image.Units, image.DecayCorrection, image.PatientWeight = "BQML", "START", 70
    image.SeriesDate = image.AcquisitionDate = "20200131"
    image.SeriesTime, image.AcquisitionTime = "110000", "110030"
    tracer = item(RadionuclideTotalDose=1e8, RadionuclideHalfLife=3600, RadiopharmaceuticalStartTime="100000")
    image.RadiopharmaceuticalInformationSequence = Sequence([tracer])
    image.RescaleSlope, image.RescaleIntercept = 1e8 / 2 / 70_000, 0
    for name, value in tags.items():
        holder = tracer if name.startswith("Radio") else image
        if value is None:
            delattr(holder, name)
        else:
            setattr(holder, name, value)
    return image


def uptake(image: Dataset, path: Path) -> float:
    data = read_scan(save(image, path), choices=SUV)
    assert data.facts["unit"] == "g/ml"
    return float(data.array[1, 0])  # one stored unit


def test_uptake_is_activity_over_what_is_left_of_the_injection_by_weight(tmp_path: Path) -> None:
    assert uptake(pet(), tmp_path / "a") == pytest.approx(1)
    assert read_scan(tmp_path / "a").facts["unit"] == "BQML"
    assert uptake(pet(PatientWeight=35), tmp_path / "b") == pytest.approx(0.5)
    assert uptake(pet(DecayCorrection="ADMIN"), tmp_path / "c") == pytest.approx(0.5)


def test_an_injection_before_midnight_and_one_with_a_date_count_right(tmp_path: Path) -> None:
    late = pet(SeriesTime="003000", AcquisitionTime="003000", RadiopharmaceuticalStartTime="233000")
    assert uptake(late, tmp_path / "a") == pytest.approx(1)
    dated = pet(RadiopharmaceuticalStartTime=None, RadiopharmaceuticalStartDateTime="20200131100000.0")
    assert uptake(dated, tmp_path / "b") == pytest.approx(1)
    # Time zones are of the clock on the wall, as all times of the scan.
    zoned = pet(RadiopharmaceuticalStartDateTime="20200131100000+0100", RadiopharmaceuticalStartTime="050000")
    assert uptake(zoned, tmp_path / "c") == pytest.approx(1)


def test_values_that_are_uptake_already_stay(tmp_path: Path) -> None:
    assert uptake(pet(Units="GML", RescaleSlope=2, PatientWeight=None), tmp_path / "a") == 2
    assert "SUVType BW" in refusal(save(pet(Units="GML", SUVType="LBM"), tmp_path / "b"), choices=SUV)


def test_philips_counts_have_a_factor_of_their_own(tmp_path: Path) -> None:
    image = pet(Units="CNTS", RescaleSlope=1)
    assert "expected Units BQML or GML, got 'CNTS'" in refusal(save(image, tmp_path / "a"), choices=SUV)
    image.add_new(0x70530010, "LO", "Philips PET Private Group")
    image.add_new(0x70531000, "DS", "0.25")
    assert uptake(image, tmp_path / "b") == 0.25


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PatientWeight": None}, "PatientWeight"),
        ({"PatientWeight": 0}, "PatientWeight"),
        ({"RadionuclideTotalDose": None}, "RadionuclideTotalDose"),
        ({"RadionuclideHalfLife": None}, "RadionuclideHalfLife"),
        ({"RadiopharmaceuticalStartTime": None}, "RadiopharmaceuticalStartTime"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection START or ADMIN, got 'NONE'"),
        ({"Units": "CM2ML"}, "Units"),
        ({"SeriesTime": None}, "SeriesDate and SeriesTime"),
        ({"SeriesTime": "120000"}, "SeriesTime before AcquisitionTime"),
        ({"RadiopharmaceuticalStartDateTime": "20200201100000"}, "injection before the scan"),
    ],
)
def test_uptake_without_what_it_takes_is_refused_by_attribute(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = save(pet(**change), tmp_path / "a.dcm")
    message = refusal(path, choices=SUV)
    assert words in message and message.startswith("a.dcm") and "70" not in message
    assert read_scan(path).array[1, 0] > 0  # without SUV nothing is asked of them


def test_precise_values_of_philips_follow_chenevert(tmp_path: Path) -> None:
    image = new_image(RescaleSlope=2.5, RescaleIntercept=-3)
    assert "2005,100E" in refusal(save(image, tmp_path / "a"), choices=PRECISE)
    image.add_new(0x20050010, "LO", "Philips MR Imaging DD 001")
    image.add_new(0x2005100E, "FL", 0.004)
    stored, scale = 7, struct.unpack("<f", struct.pack("<f", 0.004))[0]
    found = read_scan(save(image, tmp_path / "b"), choices=PRECISE).array[3, 1]
    assert found == pytest.approx((stored * 2.5 - 3) / (2.5 * scale), rel=1e-6)
    assert read_scan(tmp_path / "b").array[3, 1] == stored * 2.5 - 3


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_brightness_is_the_window_of_the_header_as_pydicom_applies_it(
    function: str, photometric: str, tmp_path: Path
) -> None:
    image = new_image(WindowCenter=[6, 99], WindowWidth=[5, 99], VOILUTFunction=function)
    image.PhotometricInterpretation, image.RescaleSlope, image.RescaleIntercept = photometric, 1, 0
    path = save(image, tmp_path / "a")
    expected = apply_voi_lut(pydicom.dcmread(path).pixel_array, image) / 4095
    data = read_scan(path, choices=SHOWN)
    assert data.facts["unit"] == "1"
    np.testing.assert_allclose(data.array.T, 1 - expected if photometric == "MONOCHROME1" else expected, atol=2e-4)


def test_brightness_by_a_voi_lut_is_what_pydicom_looks_up(tmp_path: Path) -> None:
    image = new_image()
    image.VOILUTSequence = Sequence([item(LUTDescriptor=[8, 2, 12])])
    image.VOILUTSequence[0].add_new("LUTData", "US", [0, 5, 100, 400, 1000, 2000, 4000, 4095])
    path = save(image, tmp_path / "a")
    expected = apply_voi_lut(pydicom.dcmread(path).pixel_array, image) / 4095
    np.testing.assert_allclose(read_scan(path, choices=SHOWN).array.T, expected, rtol=1e-6)


def test_brightness_without_a_window_is_refused(tmp_path: Path) -> None:
    assert "expected WindowCenter" in refusal(save(new_image(), tmp_path / "a"), choices=SHOWN)
    assert "positive width" in refusal(save(new_image(WindowCenter=1, WindowWidth=0), tmp_path / "b"), choices=SHOWN)


def test_the_scan_began_with_its_first_acquisition_whichever_slice_that_is(tmp_path: Path) -> None:
    for number, time in enumerate(("110500", "110030", "111000")):
        save(pet(ImagePositionPatient=[0, 0, number], AcquisitionTime=time), tmp_path / f"{number}")
    assert read_scan(tmp_path, choices=SUV).array[1, 0].tolist() == pytest.approx([1] * 3)
    save(pet(ImagePositionPatient=[0, 0, 3], AcquisitionTime="105900"), tmp_path / "3")
    assert "expected SeriesTime before AcquisitionTime" in refusal(tmp_path, choices=SUV)


def test_images_of_one_scan_with_two_weights_are_refused(tmp_path: Path) -> None:
    for number, weight in enumerate((70, 70, 71)):
        save(pet(ImagePositionPatient=[0, 0, number], PatientWeight=weight), tmp_path / f"{number}")
    assert "expected one weight, dose and start" in refusal(tmp_path, choices=SUV)


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"RadiopharmaceuticalStartTime": "110200"}, "leaves the day open"),
        ({"RadionuclideHalfLife": 282_000}, "leaves the day open"),
        ({"RadionuclideHalfLife": 0.001}, "more than 50 half-lives"),
    ],
)
def test_an_injection_that_may_be_of_another_day_or_is_gone_is_refused(
    tags: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert says in refusal(save(pet(**tags), tmp_path / "a"), choices=SUV)


def test_a_zone_counts_where_the_file_has_one(tmp_path: Path) -> None:
    image = pet(RadiopharmaceuticalStartDateTime="20200131080000+0000", TimezoneOffsetFromUTC="+0200")
    assert uptake(image, tmp_path / "a") == pytest.approx(1)


def test_padding_stays_what_was_chosen(tmp_path: Path) -> None:
    image = pet(PixelPaddingValue=1)
    data = read_scan(save(image, tmp_path / "a"), choices=Choices(suv=True, padding=-5))
    assert data.array[1, 0] == -5


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_voi_table_is_read_in_any_width_and_byte_order(order: str, wide: bool, tmp_path: Path) -> None:
    entries = np.arange(0, 240, 20)
    image = new_image(BitsStored=16, HighBit=15)
    table = item(LUTData=entries.astype(f"{order}u2" if wide else "u1").tobytes())
    table.add_new(0x00283002, "US", [12, 0, 8])
    image.VOILUTSequence = Sequence([table])
    if order == ">":
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        image.PixelData = np.arange(12, dtype=">u2").tobytes()
    data = read_scan(save(image, tmp_path / "a"), choices=SHOWN)
    np.testing.assert_allclose(data.array.T.ravel(), entries / 255, rtol=1e-6)


def test_two_choices_that_exclude_each_other_and_a_file_without_a_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="expected one of suv, philips_precise and brightness"):
        Choices(suv=True, brightness=True)
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.int16), np.eye(4)), tmp_path / "a.nii")
    for choices in (SUV, SHOWN, PRECISE):
        assert "expected a DICOM scan" in refusal(tmp_path / "a.nii", choices=choices)


def test_counts_without_a_scale_are_no_activity(tmp_path: Path) -> None:
    path = save(pet(RescaleSlope=None, RescaleIntercept=None), tmp_path / "a")
    assert read_scan(path).facts["unit"] == ""
    assert "expected RescaleSlope, got none" in refusal(path, choices=SUV)
    assert read_scan(save(pet(RescaleIntercept=None), tmp_path / "b")).facts["unit"] == "BQML"


WINDOW = {"WindowCenter": "1.5", "WindowWidth": "3"}


@pytest.mark.parametrize("where", ["shared", "frames", "top"])
def test_the_window_of_an_enhanced_image_is_that_of_its_frames(where: str, tmp_path: Path) -> None:
    window = {"FrameVOILUTSequence": item(**WINDOW, VOILUTFunction="LINEAR_EXACT")}
    frames = [{"PlanePositionSequence": at(z), **(window if where == "frames" else {})} for z in range(4)]
    image = enhanced(frames, shared=window if where == "shared" else {})
    if where == "top":
        image.WindowCenter, image.WindowWidth, image.VOILUTFunction = 1.5, 3, "LINEAR_EXACT"
    data = read_scan(save(image, tmp_path / "a"), choices=Choices(brightness=True))
    np.testing.assert_allclose(data.array[0, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-6)


def test_each_frame_has_its_own_window_and_one_without_is_refused(tmp_path: Path) -> None:
    windows = [item(WindowCenter=str(4 * z + 1), WindowWidth="4", VOILUTFunction="LINEAR_EXACT") for z in range(3)]
    frames = [{"PlanePositionSequence": at(z), "FrameVOILUTSequence": windows[z]} for z in range(3)]
    data = read_scan(save(enhanced(frames), tmp_path / "a"), choices=Choices(brightness=True))
    np.testing.assert_allclose(data.array[0, 0], [0.25, 0, 0], atol=1e-6)
    del frames[1]["FrameVOILUTSequence"]
    said = refusal(save(enhanced(frames), tmp_path / "b"), choices=Choices(brightness=True))
    assert "expected WindowCenter and WindowWidth or a VOI LUT, got none" in said

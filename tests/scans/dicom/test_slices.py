"""Slices: an ordinary image says where it lies and what tells it from others at its place."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_dicom import item, new_image, refusal, save, write_slice
from pydicom.sequence import Sequence
from pydicom.uid import UltrasoundMultiFrameImageStorage

from monai_mvreg.scans.dicom.elements import read_head
from monai_mvreg.scans.dicom.multiframe import read_slices
from monai_mvreg.scans.dicom.slices import ORDER, Slice, component_of, unit_axes


def slices_of(path: Path) -> list[Slice]:
    return read_slices(str(path), read_head(path))


def test_an_image_knows_its_place_and_its_scale(tmp_path: Path) -> None:
    (s,) = slices_of(write_slice(tmp_path / "a", 2.5, RescaleSlope=0.5, RescaleIntercept=-3, EchoTime=4.6))
    assert s.position == (-10, 20, 2.5) and s.axes == (1, 0, 0, 0, 1, 0)
    assert s.spacing == (0.25, 0.5)  # of columns and of rows; the attribute has them the other way round
    assert (s.slope, s.intercept, s.echo, s.thickness) == (0.5, -3, 4.6, 9)


def test_what_may_tell_time_points_apart_is_kept_in_order(tmp_path: Path) -> None:
    image = new_image(TemporalPositionIdentifier=3, TriggerTime=40.5, AcquisitionNumber=2, InstanceNumber=9)
    image.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    image.add_new(0x0019100C, "IS", "1000")
    (s,) = slices_of(save(image, tmp_path / "a"))
    assert dict(zip(ORDER, s.order, strict=True)) == {
        **{"temporal position": 3, "trigger time": 40.5, "acquisition number": 2, "b-value": 1000},
        **{"flip angle": None, "inversion time": None, "dimension index": None, "frame reference time": None},
        **{"acquisition time": None, "content time": None, "instance number": 9},
    }


def test_a_private_number_of_another_vendor_is_no_b_value(tmp_path: Path) -> None:
    image = new_image()
    image.add_new(0x00190010, "LO", "SOMEBODY ELSE")
    image.add_new(0x0019100C, "IS", "1000")
    assert slices_of(save(image, tmp_path / "a"))[0].order[ORDER.index("b-value")] is None


@pytest.mark.parametrize(
    ("tags", "spacing"),
    [
        ({"ImagerPixelSpacing": [3, 2]}, (0.25, 0.5)),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [3, 2]}, (2, 3)),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [3, 2]}, (2, 3)),
        ({"PixelSpacing": None, "NominalScannedPixelSpacing": [5, 4]}, (4, 5)),
        ({"PixelSpacing": None}, ()),
    ],
)
def test_the_distance_in_the_patient_comes_before_that_in_the_detector(
    tags: dict[str, Any], spacing: tuple[float, ...], tmp_path: Path
) -> None:
    assert slices_of(write_slice(tmp_path / "a", **tags))[0].spacing == spacing


def test_the_one_region_of_an_ultrasound_image_gives_its_spacing(tmp_path: Path) -> None:
    def region(unit: int) -> Any:
        return item(
            **{"PhysicalUnitsXDirection": unit, "PhysicalUnitsYDirection": unit},
            **{"PhysicalDeltaX": 0.02, "PhysicalDeltaY": -0.03},
        )

    for regions, spacing in (([region(3)], (0.2, 0.3)), ([region(4)], ()), ([region(3)] * 2, ())):
        image = new_image(Modality="US", PixelSpacing=None, SequenceOfUltrasoundRegions=Sequence(regions))
        assert slices_of(save(image, tmp_path / "a"))[0].spacing == pytest.approx(spacing)


def test_frames_without_places_are_numbered(tmp_path: Path) -> None:
    image = new_image(NumberOfFrames=3, SOPClassUID=UltrasoundMultiFrameImageStorage, Modality="US", InstanceNumber=2)
    image.PixelData = bytes(72)
    found = slices_of(save(image, tmp_path / "a"))
    assert [s.frame for s in found] == [0, 1, 2] and not found[0].position
    assert [s.order[-1] for s in found] == [2e6, 2e6 + 1, 2e6 + 2]


@pytest.mark.parametrize(
    ("image_type", "component", "expected"),
    [
        (("ORIGINAL", "PRIMARY", "M", "ND"), "", "magnitude"),
        (("ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"), "", "magnitude"),
        (("ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"), "", "phase"),
        (("DERIVED", "PRIMARY", "ADC"), "", ""),
        (("ORIGINAL", "PRIMARY"), "IMAGINARY", "imaginary"),
        (("M", "P"), "", ""),
    ],
)
def test_the_component_of_an_mr_image_is_told_by_its_words(
    image_type: tuple[str, ...], component: str, expected: str
) -> None:
    assert component_of(image_type, component) == expected


def test_ge_says_in_private_what_an_image_is(tmp_path: Path) -> None:
    image = new_image(Manufacturer="GE MEDICAL SYSTEMS")
    image.add_new(0x00430010, "LO", "GEMS_PARM_01")
    image.add_new(0x0043102F, "SS", 1)
    image.add_new(0x00431030, "SS", 2)
    (s,) = slices_of(save(image, tmp_path / "a"))
    assert (s.component, s.stack) == ("phase", "map")


def test_directions_are_made_exactly_one_long_and_refused_if_they_are_no_directions(tmp_path: Path) -> None:
    axes = np.reshape(unit_axes((0.9999, 0, 0.003, 0, 1.001, 0)), (2, 3))
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-15)
    assert "perpendicular unit vectors" in refusal(
        write_slice(tmp_path / "a", ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0])
    )
    assert "positive distance" in refusal(write_slice(tmp_path / "b", PixelSpacing=[-1, 1]))


def test_a_damaged_number_refuses_its_image_and_its_series_is_known(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "odd")
    path.write_bytes(path.read_bytes().replace(b"-10", b"Z.Z"))
    (s,) = slices_of(path)
    assert s.file.series == "1.2.3" and "expected 3 finite numbers in ImagePositionPatient" in s.file.refusal
    assert struct.pack("3s", b"Z.Z").decode() not in s.file.refusal

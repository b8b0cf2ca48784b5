"""Private blocks: elements are found by their creator, whatever number its block has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_dicom import csa_header, mosaic, new_image, refusal, save
from pydicom.dataset import Dataset

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import Choices, read_scan


def private(image: Dataset, tag: int, vr: str, value: object, *, creator: str, block: int) -> Dataset:
    """Write an element of a creator in a block, behind one of another creator in block 10."""
    group = tag & 0xFFFF0000
    if block != 0x10:
        image.add_new(group | 0x10, "LO", "SOMEBODY ELSE")
        image.add_new(group | 0x1000 | tag & 0xFF, "LO", "nothing")
    image.add_new(group | block, "LO", creator)
    image.add_new(group | block << 8 | tag & 0xFF, vr, value)
    return image


@pytest.mark.parametrize("block", [0x10, 0x11, 0x20, 0xFF])
def test_a_mosaic_is_described_in_any_block(block: int, tmp_path: Path) -> None:
    image = mosaic()
    del image[0x0029, 0x0010], image[0x0029, 0x1010]
    private(image, 0x00291010, "OB", csa_header(3, (0, 0, 1)), creator="SIEMENS CSA HEADER", block=block)
    assert read_scan(save(image, tmp_path / "a")).array.shape == (2, 2, 3)


def test_a_header_of_another_creator_in_block_10_is_none(tmp_path: Path) -> None:
    image = mosaic()
    image[0x0029, 0x0010].value = "SOMEBODY ELSE"
    assert "without the private header" in refusal(save(image, tmp_path / "a"))


@pytest.mark.parametrize("block", [0x10, 0x11, 0x80])
@pytest.mark.parametrize(
    ("tag", "vr", "creator", "values"),
    [
        (0x0019100C, "IS", "SIEMENS MR HEADER", (0, 1000)),
        (0x00431039, "IS", "GEMS_PARM_01", ([0, 8, 0, 0], [1000000700, 8, 0, 0])),
        (0x20011003, "FL", "Philips Imaging DD 001", (0.0, 1000.0)),
        (0x20011003, "FL", "PHILIPS IMAGING DD 001", (0.0, 1000.0)),
    ],
)
def test_b_values_are_found_in_any_block(
    tag: int, vr: str, creator: str, values: tuple[object, object], block: int, tmp_path: Path
) -> None:
    for number in range(4):
        image = new_image(number // 2, InstanceNumber=9 - number, PixelData=np.full(12, number % 2, "<u2").tobytes())
        save(private(image, tag, vr, values[number % 2], creator=creator, block=block), tmp_path / f"{number}")
    data = read_scan(tmp_path)
    assert data.array[0, 0].tolist() == [[0, 1]] * 2 and data.facts["frames"][0] == "b-value 0"


@pytest.mark.parametrize("block", [0x10, 0x12])
def test_the_components_of_ge_are_found_in_any_block(block: int, tmp_path: Path) -> None:
    for number in range(4):
        image = new_image(number // 2, Manufacturer="GE MEDICAL SYSTEMS")
        private(image, 0x0043102F, "SS", number % 2, creator="GEMS_PARM_01", block=block)
        save(image, tmp_path / f"{number}")
    assert sorted(scan.volume for scan in find_scans(tmp_path)[0]) == ["magnitude", "phase"]


@pytest.mark.parametrize("block", [0x10, 0x15])
def test_the_scale_of_philips_is_found_in_any_block_and_only_that_of_its_creator(block: int, tmp_path: Path) -> None:
    image = new_image(RescaleSlope=2, RescaleIntercept=0)
    private(image, 0x2005100E, "FL", 0.5, creator="Philips MR Imaging DD 001", block=block)
    image.add_new(0x20050030, "LO", "Philips MR Imaging DD 002")
    image.add_new(0x2005300E, "FL", 7.0)
    data = read_scan(save(image, tmp_path / "a"), choices=Choices(philips_precise=True))
    assert data.array[1, 0] == 2  # a stored 1 over 0.5

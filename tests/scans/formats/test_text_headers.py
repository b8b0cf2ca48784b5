"""Text headers: lengths in mm, a place in the patient where one is said, and no encoding that ends in rubbish."""

from __future__ import annotations

import bz2
import logging
from pathlib import Path

import numpy as np
import pytest
from make_dicom import refusal
from make_volumes import SHORTS, write_meta, write_nrrd

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan
from monai_mvreg.scans.reader import ScanReader

LPS = "space: left-posterior-superior\n"
DIRECTIONS = "encoding: raw\nspace directions: (2,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)\n"


@pytest.mark.parametrize(
    ("units", "factors"),
    [
        ('"mm" "mm" "mm"', (1, 1, 1)),
        ('"cm" "cm" "cm"', (10, 10, 10)),
        ('"m" "Meters" "m"', (1000, 1000, 1000)),
        ('"um" "micron" "µm"', (1e-3, 1e-3, 1e-3)),
        ('"mm" "mm" "cm"', (1, 1, 10)),
        ('"" "" ""', (1, 1, 1)),
    ],
)
def test_lengths_of_an_nrrd_are_brought_to_millimetres(
    units: str, factors: tuple[float, float, float], tmp_path: Path
) -> None:
    data = read_scan(write_nrrd(tmp_path / "a.nrrd", f"{LPS}{DIRECTIONS}space units: {units}\n"))
    np.testing.assert_allclose(data.facts["spacing"], np.multiply((2, 2, 3), factors))
    assert data.affine is not None
    np.testing.assert_allclose(data.affine[:3, 3], np.multiply((-1, -2, 3), factors))
    assert find_scans(tmp_path)[0][0].spacing == data.facts["spacing"]


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("cm", 10), ("um", 1e-3), ("?", 1)])
def test_lengths_of_axes_without_a_space_and_of_a_metaimage_have_units_too(
    unit: str, factor: float, tmp_path: Path
) -> None:
    if unit != "?":
        fields = f'encoding: raw\nspacings: 2 2 3\nunits: "{unit}" "{unit}" "{unit}"\n'
        data = read_scan(write_nrrd(tmp_path / "a.nrrd", fields))
        np.testing.assert_allclose(data.facts["spacing"], np.multiply((2, 2, 3), factor))
    data = read_scan(write_meta(tmp_path / "a.mha", f"DistanceUnits = {unit}\nElementSpacing = 2 2 3\n"))
    np.testing.assert_allclose(data.facts["spacing"], np.multiply((2, 2, 3), factor))


@pytest.mark.parametrize("unit", ["s", "pixels", "furlong"])
def test_what_is_no_unit_of_length_is_refused_with_its_name(unit: str, tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", f'{LPS}{DIRECTIONS}space units: "{unit}" "{unit}" "{unit}"\n')
    assert f"expected a unit of length, got '{unit}'" in refusal(path)
    assert "expected a unit of length" in refusal(write_meta(tmp_path / "a.mha", f"DistanceUnits = {unit}\n"))


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("LAS", (-1, 1, 1)),
        ("scanner-xyz", None),
        ("3D-right-handed", None),
        ("3D-left-handed", None),
        ("", None),
    ],
)
def test_a_place_in_the_patient_is_that_of_a_space_that_says_so(
    space: str, signs: tuple[int, int, int] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = f"space: {space}\n{DIRECTIONS}" if space else "encoding: raw\nspacings: 2 2 3\n"
    with caplog.at_level(logging.WARNING):
        data = read_scan(write_nrrd(tmp_path / "a.nrrd", fields))
    assert data.facts["spacing"] == (2, 2, 3)
    if signs is None:
        assert data.affine is None and "does not say how it lies in the patient" in caplog.text
        _, facts = ScanReader().get_data(str(tmp_path / "a.nrrd"))
        assert facts["affine"].diagonal().tolist() == [2, 2, 3, 1]
    else:
        assert data.affine is not None and not caplog.text
        assert data.affine.diagonal().tolist() == [*np.multiply((2, 2, 3), signs), 1]


@pytest.mark.parametrize(
    ("fields", "placed"),
    [
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n", True),
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1\nAnatomicalOrientation = RAI\n", True),
        ("TransformMatrix = 0 1 0 1 0 0 0 0 -1\nAnatomicalOrientation = ARS\n", True),
        ("AnatomicalOrientation = RAI\n", True),
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1\nAnatomicalOrientation = ???\n", True),
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1\nAnatomicalOrientation = LPI\n", False),
        ("AnatomicalOrientation = ASL\n", False),
        ("ElementSpacing = 2 2 3\n", False),
    ],
)
def test_a_metaimage_has_a_place_if_it_states_one_that_its_letters_do_not_deny(
    fields: str, placed: bool, tmp_path: Path
) -> None:
    assert (read_scan(write_meta(tmp_path / "a.mha", fields)).affine is not None) == placed


@pytest.mark.parametrize("encoding", ["bzip2", "bz2", "lzma"])
def test_an_encoding_that_is_not_read_is_named_and_no_scan(encoding: str, tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", f"{LPS}encoding: {encoding}\n", bz2.compress(SHORTS))
    assert f"got the encoding '{encoding}'" in refusal(path)
    scans, (left_out,) = find_scans(tmp_path)
    assert not scans and encoding in left_out.reason


@pytest.mark.parametrize("encoding", ["hex", "ascii", "text"])
def test_voxels_as_text_are_read(encoding: str, tmp_path: Path) -> None:
    voxels = SHORTS.hex() if encoding == "hex" else " ".join(map(str, range(24)))
    data = read_scan(write_nrrd(tmp_path / "a.nrrd", f"{LPS}encoding: {encoding}\n", voxels.encode()))
    assert data.array.transpose().ravel().tolist() == list(range(24))

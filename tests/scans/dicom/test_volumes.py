"""Stacks: slices are ordered by where they lie, and what is mixed, doubled, missing or uneven is refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_dicom import at, enhanced, item, new_image, refusal, save, write_series, write_slice
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import Choices, read_scan


def names(folder: Path) -> list[str]:
    return sorted(scan.volume for scan in find_scans(folder)[0])


def test_slices_are_ordered_by_position_and_the_affine_is_ras(tmp_path: Path) -> None:
    data = read_scan(write_series(tmp_path, InstanceNumber=1))
    assert data.array.dtype == np.float32 and data.array.shape == (4, 3, 3)
    assert data.array[0, 0].tolist() == [0, 20, 40] and data.array[:, 1, 0].tolist() == [4, 5, 6, 7]
    expected = [[-0.25, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(data.affine, expected)


@pytest.mark.parametrize(
    "axes", [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [0.8, 0.6, 0, 0, 0, -1], [-1, 0, 0, 0, 1, 0]]
)
def test_every_voxel_lies_where_its_own_header_puts_it(axes: list[float], tmp_path: Path) -> None:
    normal = np.cross(axes[:3], axes[3:])
    places = [np.array([5.0, -7, 11]) + 2.5 * step * normal for step in (2, 0, 3, 1)]
    for number, place in enumerate(places):
        image = new_image(ImageOrientationPatient=axes, ImagePositionPatient=place.tolist())
        image.PixelData = np.full(12, number, "<u2").tobytes()
        save(image, tmp_path / f"{number}")
    data = read_scan(tmp_path)
    assert data.affine is not None
    for number, place in enumerate(places):  # PS3.3 C.7.6.2.1.1, formula C.7.6.2.1-1, then LPS to RAS
        z = int(np.flatnonzero(data.array[0, 0] == number)[0])
        for column, row in ((0, 0), (3, 2)):
            expected = place + np.array(axes[:3]) * 0.25 * column + np.array(axes[3:]) * 0.5 * row
            found = (data.affine @ [column, row, z, 1])[:3]
            np.testing.assert_allclose(found, expected * [-1, -1, 1], atol=1e-9)


def test_a_tilted_gantry_gives_a_sheared_affine_and_says_so(tmp_path: Path) -> None:
    for number in range(3):
        write_slice(tmp_path / f"{number}", ImagePositionPatient=[0, 0.6 * number, 2 * number])
    data = read_scan(tmp_path)
    assert data.affine is not None
    np.testing.assert_allclose(data.affine[:3, 2], [0, -0.6, 2])
    assert data.facts["tilt_degrees"] == pytest.approx(np.degrees(np.arctan(0.3)), abs=1e-3)


def test_a_step_within_a_tenth_of_a_degree_of_the_normal_is_no_tilt(tmp_path: Path) -> None:
    for degrees in (0.095, 0.105):
        for number in range(3):
            place = [0, round(2 * number * np.tan(np.radians(degrees)), 9), 2 * number]
            write_slice(tmp_path / f"{degrees}" / f"{number}", ImagePositionPatient=place)
    assert read_scan(tmp_path / "0.095").facts["tilt_degrees"] == 0
    assert read_scan(tmp_path / "0.105").facts["tilt_degrees"] == pytest.approx(0.105, abs=1e-3)


@pytest.mark.parametrize(
    ("heights", "words"),
    [
        ((0, 2, 4, 8), "between im2 (at 4.00 mm) and im3 (at 8.00 mm): 1 missing"),
        ((0, 2, 4, 10, 12, 14, 16, 18, 20, 22), "between im2 (at 4.00 mm) and im3 (at 10.00 mm): 2 missing"),
        ((0, 2, 4, 7, 10, 13, 16), "every 3.000 mm, got 2.000 mm between im0"),
        ((0, 2, 2, 4), "expected 1 image at each position, got 2 at 2.00 mm: im1, im2"),
        ((0, 2, 4, 0, 2, 4, 0, 2), "expected 3 images at each position, got 2 at 4.00 mm: im2, im5"),
        ((0, 2, 4, 0, 2, 4), "got 2 images at each position, and nothing that tells them apart: im0, im3"),
    ],
)
def test_slices_that_are_not_one_even_stack_are_refused_with_the_place(
    heights: tuple[float, ...], words: str, tmp_path: Path
) -> None:
    assert words in refusal(write_series(tmp_path, heights))
    ((item,),) = [find_scans(tmp_path)[1]]
    assert item.reason.startswith("series ...1.2.3: ") and words in item.reason


def test_positions_written_with_one_decimal_are_even(tmp_path: Path) -> None:
    for number in range(12):
        write_slice(tmp_path / f"{number}", ImagePositionPatient=[0, 0, round(0.625 * number, 1)])
    affine = read_scan(tmp_path).affine
    assert affine is not None and abs(affine[2, 2] - 0.625) < 0.01


def test_gaps_of_tiny_steps_may_differ_from_the_step_by_35_percent(tmp_path: Path) -> None:
    for name, share in (("within", 0.34), ("beyond", 0.36)):  # each slice is off by half, in turn up and down
        heights = [0.2 * (number + 1 + share / 2 * (-1) ** number) for number in range(21)]
        write_series(tmp_path / name, tuple(round(z, 6) for z in heights))
    assert read_scan(tmp_path / "within").array.shape == (4, 3, 21)
    assert "expected slices every" in refusal(tmp_path / "beyond")


@pytest.mark.parametrize(("step", "limit"), [(0.2, 0.04), (1, 0.06), (2, 0.06), (5, 0.1)])
def test_a_slice_may_lie_off_the_line_by_0_06_mm_or_2_percent_of_a_step(
    step: float, limit: float, tmp_path: Path
) -> None:
    for name, off in (("within", 0.95 * limit), ("beyond", 1.05 * limit)):
        for number in range(21):  # a shift of the middle one of n moves the line of least squares by 1 / n of it
            shift = off / (1 - 1 / 21) if number == 10 else 0
            write_slice(tmp_path / name / f"{number}", ImagePositionPatient=[round(shift, 6), 0, step * number])
    assert read_scan(tmp_path / "within").array.shape == (4, 3, 21)
    assert "expected slices every" in refusal(tmp_path / "beyond")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PixelSpacing": [0.5, 0.5]}, "expected one pixel spacing, got another in odd"),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}, "expected one orientation, got another in odd"),
        (
            {"ImageOrientationPatient": [0.995, 0.0998749, 0, -0.0998749, 0.995, 0]},
            "one orientation, got another in odd",
        ),
        ({"Rows": 2, "PixelData": bytes(16)}, "expected one matrix, got another in odd"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "one photometric interpretation, got another in odd"),
        ({"ImagePositionPatient": None}, "expected a position and orientation of every image, none in odd"),
        ({"PixelData": bytes(16)}, "odd: truncated: expected 24 bytes of pixels"),
    ],
)
@pytest.mark.parametrize("height", [4.0, 12.0])  # among the others, or next to them
def test_one_odd_slice_is_refused_by_its_file_name(
    tags: dict[str, Any], words: str, height: float, tmp_path: Path
) -> None:
    write_series(tmp_path, tuple(z for z in range(0, 12, 2) if z != height))
    write_slice(tmp_path / "odd", height, **tags)
    assert words in refusal(tmp_path)
    assert any(words in item.reason for item in find_scans(tmp_path)[1])


@pytest.mark.parametrize(
    ("odd", "own"),
    [
        ((1, 3, 5, 7), (1, 3, 5, 7, 9)),  # at most a tenth of the 40 others
        ((80.8,), (81.2,)),  # at most one and a half steps above the last of them, 78
    ],
)
def test_a_few_slices_of_another_pixel_distance_among_others_are_odd_and_further_ones_are_a_scan(
    odd: tuple[float, ...], own: tuple[float, ...], tmp_path: Path
) -> None:
    for name, heights in (("odd", odd), ("own", own)):
        write_series(tmp_path / name / "many", tuple(range(0, 80, 2)))
        write_series(tmp_path / name / "few", heights, PixelSpacing=[0.5, 0.5])
    assert "expected one pixel spacing, got another in im0" in refusal(tmp_path / "odd")
    assert len(find_scans(tmp_path / "own")[0]) == 2


def test_directions_that_differ_by_less_than_0_0002_are_one(tmp_path: Path) -> None:
    for name, by in (("one", 1.9e-4), ("two", 2.1e-4)):
        write_series(tmp_path / name / "most", (0, 2, 6))
        write_slice(tmp_path / name / "other", 4, ImageOrientationPatient=[1, 0, by, 0, 1, 0])
    assert read_scan(tmp_path / "one").array.shape == (4, 3, 4)
    assert "expected one orientation, got another in other" in refusal(tmp_path / "two")


def test_three_planes_of_one_series_are_three_scans(tmp_path: Path) -> None:
    for number, axes in enumerate(([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])):
        normal = np.cross(axes[:3], axes[3:])
        for step in range(2):
            write_slice(
                tmp_path / f"{number}{step}",
                ImageOrientationPatient=axes,
                ImagePositionPatient=(normal * step * 3).tolist(),
            )
    assert names(tmp_path) == ["axial", "coronal", "sagittal"]
    assert [read_scan(scan).array.shape for scan in find_scans(tmp_path)[0]] == [(4, 3, 2)] * 3


@pytest.mark.parametrize(
    ("keyword", "values", "expected"),
    [
        ("EchoTime", (5, 12.5), ["echo-12.5", "echo-5"]),
        ("SeriesNumber", (3, 4), ["number-3", "number-4"]),
        ("ImageType", (["ORIGINAL", "PRIMARY", "P"], ["ORIGINAL", "PRIMARY", "M"]), ["magnitude", "phase"]),
        ("ImageType", (["DERIVED", "PRIMARY", "WATER"], ["DERIVED", "PRIMARY", "FAT"]), ["fat", "water"]),
    ],
)
def test_what_differs_in_kind_is_never_merged_and_named_by_the_difference(
    keyword: str, values: tuple[Any, Any], expected: list[str], tmp_path: Path
) -> None:
    for number, value in enumerate(values):
        for z in (0, 2, 4):
            write_slice(tmp_path / f"{number}{z}", z, **{keyword: value})
    assert names(tmp_path) == expected
    assert all(scan.shape == (4, 3, 3) for scan in find_scans(tmp_path)[0])
    assert all(name in refusal(tmp_path) for name in expected)
    address = f"{tmp_path}#1.2.3:{expected[0]}"
    assert read_scan(address).array[0, 0].tolist() == [0, 20, 40]


def test_words_of_image_type_that_change_within_a_volume_do_not_part_it(tmp_path: Path) -> None:
    for z in range(4):
        write_slice(tmp_path / f"{z}", z, ImageType=["ORIGINAL", "PRIMARY", "AXIAL", *["ADD"] * (z % 2)])
    assert read_scan(tmp_path).array.shape == (4, 3, 4)


@pytest.mark.parametrize(
    ("keyword", "values", "label"),
    [
        ("TemporalPositionIdentifier", (2, 1), "temporal position 1"),
        ("TriggerTime", (500, 40.5), "trigger time 40.5"),
        ("AcquisitionNumber", (9, 8), "acquisition number 8"),
        ("DiffusionBValue", (1000.0, 0.0), "b-value 0"),
        ("InstanceNumber", (20, 10), "instance number 1"),
    ],
)
def test_time_points_are_told_apart_by_the_first_attribute_that_does_so_everywhere(
    keyword: str, values: tuple[float, float], label: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, value in enumerate(values):
        for z in (0, 1, 2):
            # An acquisition number that differs between positions tells nothing.
            numbers = {"AcquisitionNumber": z} if keyword != "AcquisitionNumber" else {}
            write_slice(
                tmp_path / f"{number}{z}", z, **{**numbers, keyword: value, "PixelData": bytes([number, 0] * 12)}
            )
    with caplog.at_level(logging.WARNING):
        data = read_scan(tmp_path)
    assert data.array.shape == (4, 3, 3, 2) and data.array[0, 0, 0].tolist() == [1, 0]
    assert data.facts["frames"][0] == label
    assert ("only by their numbers" in caplog.text) == (keyword == "InstanceNumber")


def test_one_position_at_several_times_is_a_picture_that_moves(tmp_path: Path) -> None:
    for number in range(4):
        write_slice(tmp_path / f"{number}", 5, TriggerTime=40 * number, PixelData=bytes([number, 0] * 12))
    (scan,), _ = find_scans(tmp_path)
    assert (scan.shape, scan.frames) == ((4, 3), 4)
    assert read_scan(scan).array[0, 0].tolist() == [0, 1, 2, 3]


def test_slices_beside_each_other_at_one_height_are_refused(tmp_path: Path) -> None:
    for number, x in enumerate((0, 50)):
        for z in (0, 2):
            write_slice(tmp_path / f"{number}{z}", ImagePositionPatient=[x, 0, z], InstanceNumber=number)
    assert "beside each other" in refusal(tmp_path)


@pytest.mark.parametrize(("heights", "limit"), [((5,), 0.1), ((0, 2), 0.1), ((0, 10), 0.2)])
def test_images_at_one_height_may_lie_0_1_mm_or_2_percent_of_a_gap_apart(
    heights: tuple[float, ...], limit: float, tmp_path: Path
) -> None:
    for name, shift in (("within", 0.95 * limit), ("beyond", 1.05 * limit)):
        write_series(tmp_path / name / "first", heights, InstanceNumber=1)
        for z in heights:
            place = [-10 + shift, 20, z]
            write_slice(tmp_path / name / f"second{z}", ImagePositionPatient=place, InstanceNumber=2)
    assert read_scan(tmp_path / "within").array.shape[-1] == 2
    assert "beside each other" in refusal(tmp_path / "beyond")


def test_radiographs_of_one_series_are_scans_of_their_own(tmp_path: Path) -> None:
    for name in ("pa", "lateral"):
        write_slice(
            tmp_path / name, Modality="DX", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", ImagePositionPatient=None
        )
    write_slice(tmp_path / "cut", Modality="DX", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", PixelData=bytes(2))
    scans, left_out = find_scans(tmp_path)
    assert [Path(scan.address).name for scan in scans] == ["lateral", "pa"]
    assert ["cut" in item.reason and "truncated" in item.reason for item in left_out] == [True]
    assert "got 3" in refusal(tmp_path) and "cut" in refusal(tmp_path)
    assert read_scan(tmp_path / "pa").affine is None


def test_captures_without_a_place_never_form_a_stack_and_ct_slices_without_one_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        capture = {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "CT", "ImagePositionPatient": None}
        write_slice(tmp_path / f"sc/{number}", **capture)
        write_slice(tmp_path / f"ct/{number}", SOPClassUID=CTImageStorage, ImagePositionPatient=None)
    assert [item.reason for item in find_scans(tmp_path / "sc")[1]] == ["a secondary capture"] * 2
    assert "none in 0, 1" in refusal(tmp_path / "ct")


def test_slices_without_a_pixel_distance_form_no_volume(tmp_path: Path) -> None:
    assert "expected PixelSpacing, got none" in refusal(write_series(tmp_path, PixelSpacing=None))


UNEVEN = (0, 2, 4, 7, 10, 13, 16)


def test_uneven_slices_are_interpolated_on_request_to_the_nearest_distance(tmp_path: Path) -> None:
    write_series(tmp_path, UNEVEN)
    data = read_scan(tmp_path, choices=Choices(resample=True))
    # Pixels are ten times the height, so that a linear interpolation is exact.
    assert data.affine is not None and data.facts["resampled"]
    assert data.affine[2].tolist() == [0, 0, 2, 0]
    np.testing.assert_allclose(data.array[0, 0], np.arange(0, 161, 20))
    (scan,), _ = find_scans(tmp_path, resample=True)
    np.testing.assert_allclose(read_scan(scan).array, data.array)


def test_a_missing_slice_and_a_bent_stack_are_refused_all_the_same(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", (0, 2, 4, 8, 10, 12, 14, 16, 18, 20, 22, 24))
    assert "1 missing" in refusal(tmp_path / "gap", choices=Choices(resample=True))
    for number, z in enumerate(UNEVEN):
        write_slice(tmp_path / f"bent/{number}", ImagePositionPatient=[z * z / 20, 0, z])
    assert "expected slices every" in refusal(tmp_path / "bent", choices=Choices(resample=True))


def heights_of(steps: list[float]) -> tuple[float, ...]:
    """Heights of slices whose gaps are so many times 2 mm."""
    return tuple((2 * np.cumsum([0, *steps])).round(6).tolist())


@pytest.mark.parametrize(
    ("lost", "plan"),
    [
        ([1] * 9 + [1.91], [1] * 9 + [1.89]),  # a lost slice leaves a gap of a whole number of steps
        ([1] * 9 + [1.09, 2], [1] * 9 + [1.11, 2]),  # between others that are even
        ([1] * 36 + [2] * 4, [1] * 35 + [2] * 5),  # and a tenth of the gaps at most are of lost slices
    ],
)
def test_gaps_within_a_tenth_of_whole_steps_are_lost_slices_that_are_never_interpolated(
    lost: list[float], plan: list[float], tmp_path: Path
) -> None:
    assert "missing" in refusal(write_series(tmp_path / "lost", heights_of(lost)), choices=Choices(resample=True))
    assert read_scan(write_series(tmp_path / "plan", heights_of(plan)), choices=Choices(resample=True)).facts[
        "resampled"
    ]


@pytest.mark.parametrize(("step", "limit"), [(2, 0.06), (10, 0.2)])
def test_slices_are_interpolated_if_they_lie_on_a_straight_line_to_0_06_mm_or_2_percent_of_a_step(
    step: float, limit: float, tmp_path: Path
) -> None:
    for name, off in (("within", 0.95 * limit), ("beyond", 1.05 * limit)):
        for number, gaps in enumerate((0, 1, 2, 3.5, 5)):
            place = [off if number == 1 else 0, 0, step * gaps]
            write_slice(tmp_path / name / f"{number}", ImagePositionPatient=place)
    assert read_scan(tmp_path / "within", choices=Choices(resample=True)).facts["resampled"]
    assert "expected slices every" in refusal(tmp_path / "beyond", choices=Choices(resample=True))


@pytest.mark.parametrize(
    ("tags", "key"),
    [
        (({"FrameOfReferenceUID": "1.7"}, {"FrameOfReferenceUID": "1.8"}), "image"),
        (({"Modality": "CT", "SOPClassUID": CTImageStorage}, {}), "ct"),
        (({"EchoNumbers": 1, "EchoTime": 5}, {"EchoNumbers": 2, "EchoTime": 5}), "echo-number"),
        (({"ImageType": [*"OPM", "W"]}, {"ImageType": [*"OPM", "F"]}), "w"),
        (({"RescaleType": "HU"}, {"RescaleType": "US"}), "hu"),
    ],
)
@pytest.mark.parametrize("heights", [(0, 2, 4), (1, 3, 5), (6, 8, 10)], ids=["same places", "between", "above"])
def test_images_of_two_kinds_are_never_one_volume(
    tags: tuple[dict[str, Any], dict[str, Any]], key: str, heights: tuple[float, ...], tmp_path: Path
) -> None:
    write_series(tmp_path / "a", (0, 2, 4), **tags[0])
    write_series(tmp_path / "b", heights, **tags[1])
    scans, _ = find_scans(tmp_path)
    assert [scan.shape for scan in scans] == [(4, 3, 3)] * 2 and any(key in scan.key for scan in scans)


@pytest.mark.parametrize("what", ["PatientID", "StudyInstanceUID"])
def test_a_series_of_two_patients_or_studies_is_refused_without_their_names(what: str, tmp_path: Path) -> None:
    write_series(tmp_path / "a", (0, 2))
    write_series(tmp_path / "b", (4, 6), **{what: "1.99"})
    said = refusal(tmp_path)
    assert f"expected one {'PatientID' if 'P' in what else 'study'} in a series, got 2" in said and "1.99" not in said


@pytest.mark.parametrize(
    "values",
    [
        {"AcquisitionTime": ("101010", "101110")},
        {"ContentTime": ("101010", "101110")},
        {"FlipAngle": (5, 30)},
        {"InversionTime": (100, 900)},
        {"FrameReferenceTime": (0, 100)},
        {(0x0043, 0x39, "GEMS_PARM_01", "IS"): ([0, 8, 0, 0], [1000000700, 8, 0, 0])},
        {(0x2001, 0x03, "Philips Imaging DD 001", "FL"): (0.0, 1000.0)},
    ],
    ids=str,
)
def test_time_points_are_told_apart_by_what_says_so_and_not_by_instance_numbers(
    values: dict[Any, tuple[Any, Any]], tmp_path: Path
) -> None:
    ((name, pair),) = values.items()
    for i, number in enumerate((1, 2, 4, 3, 6, 5)):  # written in another order at the second and third place
        image = new_image(i // 2 * 2, InstanceNumber=number, PixelData=np.full(12, i % 2, "<u2").tobytes())
        if isinstance(name, str):
            setattr(image, name, pair[i % 2])
        else:
            group, element, creator, kind = name
            image.private_block(group, creator, create=True).add_new(element, kind, pair[i % 2])
        save(image, tmp_path / f"{i}")
    data = read_scan(tmp_path)
    assert data.array[0, 0].tolist() == [[0, 1]] * 3 and "instance number" not in data.facts["frames"][0]


def test_the_mean_of_all_diffusion_directions_is_a_volume_of_its_own(tmp_path: Path) -> None:
    for i, (b_value, direction) in enumerate(((0.0, "N"), (1000.0, "D"), (1000.0, "I"))):
        for z in (0, 2):
            image = new_image(z, InstanceNumber=i)
            block = image.private_block(0x2001, "Philips Imaging DD 001", create=True)
            block.add_new(0x03, "FL", b_value)
            block.add_new(0x04, "CS", direction)
            save(image, tmp_path / f"{i}{z}")
    found = {scan.volume: scan.frames for scan in find_scans(tmp_path)[0]}
    assert found == {"image": 2, "isotropic": 1}


def test_of_three_slices_the_lost_one_is_named_where_it_was(tmp_path: Path) -> None:
    said = refusal(write_series(tmp_path, (0, 2, 6)))
    assert "every 2.000 mm, got 4.000 mm between im1 (at 2.00 mm) and im2 (at 6.00 mm): 1 missing" in said


def test_a_slice_off_by_a_quarter_of_a_tiny_step_is_refused(tmp_path: Path) -> None:
    assert "expected slices every 0.050 mm" in refusal(write_series(tmp_path, (0, 0.05, 0.113, 0.15, 0.2)))


def test_slices_of_a_thousand_orientations_are_refused_soon(tmp_path: Path) -> None:
    frames = [
        {
            "PlanePositionSequence": at(number),
            "PlaneOrientationSequence": item(
                ImageOrientationPatient=[np.cos(number / 500), np.sin(number / 500), 0, 0, 0, 1]
            ),
        }
        for number in range(1200)
    ]
    assert "more than 1000" in refusal(save(enhanced(frames), tmp_path / "a"))


@pytest.mark.parametrize(
    "kept",
    [
        [z for z in range(30) if z % 3 != 2],
        [z for z in range(30) if z % 4 < 2],
        [0, 1, 3, 5, 6, 8, 10, 11, 13, 15],
        [z for z in range(40) if z % 5 not in (2, 3)],
        [0, 1, 2, 3, 5, 7, 9, 13, 15, 17],
    ],
    ids=["every third", "two of four", "more gaps than steps", "two of five", "within a plan of two distances"],
)
def test_lost_slices_are_refused_however_many_they_are(kept: list[int], tmp_path: Path) -> None:
    write_series(tmp_path, tuple(2.0 * z for z in kept))
    assert "missing" in refusal(tmp_path, choices=Choices(resample=True))
    assert not find_scans(tmp_path, resample=True)[0]


@pytest.mark.parametrize("heights", [UNEVEN, (0, 3, 6, 9, 11, 13, 15, 17, 20, 23), (0, 1, 2, 3, 5, 7, 9, 11)])
def test_what_is_listed_of_uneven_slices_is_what_is_read(heights: tuple[float, ...], tmp_path: Path) -> None:
    write_series(tmp_path, heights)
    (scan,), _ = find_scans(tmp_path, resample=True)
    data = read_scan(scan)
    assert scan.shape == data.array.shape and scan.spacing == pytest.approx(data.facts["spacing"])
    assert scan.spacing[2] == pytest.approx(min(np.diff(heights)), rel=0.1)


def test_slices_too_uneven_to_be_evened_are_not_listed(tmp_path: Path) -> None:
    write_series(tmp_path, (0, 0.05, 2, 4.3, 6.1, 8))
    assert "that would need" in refusal(tmp_path, choices=Choices(resample=True))
    assert not find_scans(tmp_path, resample=True)[0]

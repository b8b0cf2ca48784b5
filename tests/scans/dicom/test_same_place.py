"""Several images at one position: parted by how they were made, in order by a clock that tells it, or refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_dicom import at, enhanced, item, refusal, save, write_slice
from pydicom.uid import CTImageStorage

from monai_mvreg.scans.dicom.same_place import clusters
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan


@pytest.mark.parametrize(
    ("keyword", "values", "names"),
    [
        ("ConvolutionKernel", ("B30f", "B70f"), ["b30f", "b70f"]),
        ("ConvolutionKernel", (["Br40", "1"], ["Br40", "3"]), ["br40-1", "br40-3"]),
        ("FilterType", ("HEAD FILTER", "BODY FILTER"), ["body-filter", "head-filter"]),
        ("KVP", ("80", "140.0"), ["140", "80"]),
        ("ReceiveCoilName", ("C1", "C2"), ["c1", "c2"]),
        ("RepetitionTime", ("500", "2000"), ["2000", "500"]),
        ("ContrastBolusAgent", ("", "GD"), ["gd", "image"]),
        ("SeriesDescription", ("one", "two"), ["image-1", "image-2"]),
        ("SliceThickness", (1, 5), ["1", "5"]),
        ("ScanOptions", ("FS", ["FS", "PFP"]), ["fs", "fs-pfp"]),
    ],
)
@pytest.mark.parametrize("clock", ["", "AcquisitionTime", "ContentTime", "AcquisitionNumber"])
def test_images_made_in_two_ways_are_two_volumes_and_never_time_points(
    keyword: str, values: tuple[Any, Any], names: list[str], clock: str, tmp_path: Path
) -> None:
    for number, value in enumerate(values):
        times = {clock: f"10101{number}" if "Time" in clock else number} if clock else {}
        for z in (0, 2, 4):
            write_slice(tmp_path / f"{number}{z}", z, **{keyword: value, "InstanceNumber": number, **times})
    scans, _ = find_scans(tmp_path)
    assert sorted(scan.volume for scan in scans) == names
    assert all((scan.shape, scan.frames) == ((4, 3, 3), 1) for scan in scans)
    assert read_scan(scans[0].address).array.shape == (4, 3, 3)


def test_a_kernel_that_changes_along_the_body_does_not_part_a_volume(tmp_path: Path) -> None:
    for z in range(4):
        write_slice(tmp_path / f"{z}", z, ConvolutionKernel="B30f" if z < 2 else "B70f", KVP=["120", "120.0"][z % 2])
    assert read_scan(tmp_path).array.shape == (4, 3, 4)


def test_two_kernels_at_some_positions_alone_are_refused_with_both(tmp_path: Path) -> None:
    for z in range(4):
        write_slice(tmp_path / f"a{z}", z, ConvolutionKernel="B30f", InstanceNumber=1)
        write_slice(tmp_path / f"b{z}", z, ConvolutionKernel="B30f" if z else "B70f", InstanceNumber=2)
    assert "expected one ConvolutionKernel at each position, got b30f and b70f" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("group", "keyword", "values"),
    [
        ("CTReconstructionSequence", "ConvolutionKernel", ("B30f", "B70f")),
        ("CTXRayDetailsSequence", "KVP", (80, 140)),
        ("MRReceiveCoilSequence", "ReceiveCoilName", ("C1", "C2")),
    ],
)
def test_frames_made_in_two_ways_are_two_volumes(
    group: str, keyword: str, values: tuple[Any, Any], tmp_path: Path
) -> None:
    frames = [
        {
            "PlanePositionSequence": at(z),
            group: item(**{keyword: value}),
            "FrameContentSequence": item(DimensionIndexValues=[number + 1, z + 1]),
        }
        for number, value in enumerate(values)
        for z in (0, 1)
    ]
    save(enhanced(frames), tmp_path / "a")
    scans, _ = find_scans(tmp_path)
    assert [(scan.shape, scan.frames) for scan in scans] == [((4, 3, 2), 1)] * 2


@pytest.mark.parametrize("shuffled", [False, True], ids=["numbers in order", "numbers in another order"])
def test_phases_of_a_heart_that_beats_differently_at_each_position_are_in_order(shuffled: bool, tmp_path: Path) -> None:
    for number in range(15):
        place, phase = divmod(number, 5)
        write_slice(
            tmp_path / f"{number:02}",
            8 * place,
            TriggerTime=f"{phase * (40 + 3.5 * place):.1f}",
            ContentDate="20200101",
            ContentTime=f"10{59 - phase}00",
            InstanceNumber=(7 * number) % 15 if shuffled else number,
            PixelData=np.full(12, phase, "<u2").tobytes(),
        )
    data = read_scan(tmp_path)
    assert data.array[0, 0].tolist() == [[0, 1, 2, 3, 4]] * 3 and data.facts["frames"][0] == "trigger time 1"


def test_trigger_times_without_an_order_are_no_clock(tmp_path: Path) -> None:
    rows = ((10, 900, 40, 33), (700, 20, 650, 30), (5, 300, 310, 320))
    for place, row in enumerate(rows):
        for number, time in enumerate(row):
            write_slice(tmp_path / f"{place}{number}", place, TriggerTime=time, InstanceNumber=number)
    assert "trigger times differ from position to position without an order" in refusal(tmp_path)
    for place, row in enumerate(rows):
        for number, time in enumerate(row):
            times = {"TriggerTime": time, "AcquisitionTime": f"10101{number}"}
            write_slice(tmp_path / f"{place}{number}", place, InstanceNumber=number, **times)
    assert read_scan(tmp_path).facts["frames"][0] == "acquisition time 1"


@pytest.mark.parametrize("given", [{"AcquisitionTime": "10101{}"}, {"TriggerTime": "{}0"}, {"AcquisitionNumber": "{}"}])
@pytest.mark.parametrize("places", [1, 2])
def test_one_position_for_images_that_lie_elsewhere_is_refused(
    places: int, given: dict[str, str], tmp_path: Path
) -> None:
    for number in range(8):
        tags = {name: form.format(number // places) for name, form in given.items()}
        write_slice(tmp_path / f"{number}", number % places, SliceLocation=5 * number, InstanceNumber=number, **tags)
    assert "expected one position of images with one SliceLocation, got 0 to" in refusal(tmp_path)


def test_frames_at_one_position_with_other_numbers_in_their_stack_are_refused(tmp_path: Path) -> None:
    frames = [
        {"FrameContentSequence": item(StackID="1", InStackPositionNumber=z + 1, TemporalPositionIndex=z + 1)}
        for z in range(3)
    ]
    path = save(enhanced(frames, shared={"PlanePositionSequence": at(0)}), tmp_path / "a")
    assert "expected one position of images with one SliceLocation" in refusal(path)


def test_an_echo_time_written_in_two_ways_is_one(tmp_path: Path) -> None:
    for z in range(6):
        write_slice(tmp_path / f"{z}", z, EchoTime=["2.4124999", "2.4125001"][z % 2], SeriesNumber=["3", "03"][z % 2])
    assert read_scan(tmp_path).array.shape == (4, 3, 6)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [("TriggerTime", ("40.5", "500")), ("FlipAngle", ("5", "30")), ("InversionTime", ("9", "90"))],
)
def test_numbers_that_tell_images_apart_may_be_written_in_two_ways(
    keyword: str, values: tuple[str, str], tmp_path: Path
) -> None:
    for z in range(4):
        for number, value in enumerate(values):
            written = f"{float(value) + 1e-9:.9f}" if z % 2 else value
            write_slice(tmp_path / f"{z}{number}", z, **{keyword: written, "InstanceNumber": 7 - z})
    data = read_scan(tmp_path)
    assert data.array.shape == (4, 3, 4, 2) and data.facts["frames"][0].startswith(keyword.split("T")[0].lower()[:4])


def test_water_and_fat_whose_places_are_written_in_two_ways_are_two_volumes(tmp_path: Path) -> None:
    for z, (one, two) in enumerate(((0, 0), (1.2349999, 1.2350001), (2.47, 2.47))):
        write_slice(tmp_path / f"w{z}", one, ImageType=["ORIGINAL", "PRIMARY", "X"])
        write_slice(tmp_path / f"f{z}", two, ImageType=["ORIGINAL", "PRIMARY", "Y"])
    assert [scan.shape for scan in find_scans(tmp_path)[0]] == [(4, 3, 3)] * 2


def test_a_frame_of_reference_in_every_file_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for z in range(4):
        write_slice(tmp_path / f"{z}", z, FrameOfReferenceUID=f"1.7.{z}")
    with caplog.at_level(logging.WARNING):
        scans, _ = find_scans(tmp_path)
    assert [scan.shape for scan in scans] == [(4, 3)] * 4
    assert caplog.text.count("4 images of one series have a FrameOfReferenceUID each") == 1


def test_images_at_one_position_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write_slice(tmp_path / f"{number}", 0, Modality="CT", SOPClassUID=CTImageStorage, AcquisitionNumber=number)
    monkeypatch.setattr("monai_mvreg.scans.dicom.same_place.read_head", None)
    assert find_scans(tmp_path)[0][0].frames == 20


def test_neighbours_within_the_tolerance_are_one_number() -> None:
    assert clusters([5.0, None, 4.9999, 30.0], 1e-3) == {None: None, 4.9999: 4.9999, 5.0: 4.9999, 30.0: 30.0}

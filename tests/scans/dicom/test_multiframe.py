"""Layouts: multi-frame objects and mosaics know the place, the scale and the meaning of each of their slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_dicom import at, csa_header, dose, enhanced, item, mosaic, new_image, refusal, save, write_series
from pydicom.sequence import Sequence
from pydicom.uid import NuclearMedicineImageStorage, ParametricMapStorage, SegmentationStorage

from monai_mvreg.scans.dicom.elements import read_head
from monai_mvreg.scans.dicom.multiframe import read_slices
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan


def test_frames_are_ordered_by_their_place_and_scaled_each_by_its_own_groups(tmp_path: Path) -> None:
    frames = [
        {
            "PlanePositionSequence": at(z),
            "PixelValueTransformationSequence": item(RescaleSlope=slope, RescaleIntercept=1, RescaleType="US"),
        }
        for z, slope in ((4, 2), (0, 4), (2, 8))
    ]
    data = read_scan(save(enhanced(frames), tmp_path / "a"))
    assert data.array.shape == (4, 3, 3)
    assert data.array[0, 0].tolist() == [1 * 4 + 1, 2 * 8 + 1, 0 * 2 + 1]
    np.testing.assert_allclose(data.affine, [[-0.25, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])


def test_what_a_frame_says_itself_counts_before_what_is_shared(tmp_path: Path) -> None:
    other = item(PixelSpacing=[1, 1], SliceThickness=3)
    frames: list[dict[str, Any]] = [{"PlanePositionSequence": at(z)} for z in range(3)]
    frames += [{"PlanePositionSequence": at(z), "PixelMeasuresSequence": other} for z in range(3)]
    path = save(enhanced(frames), tmp_path / "a")
    found = [s.spacing for s in read_slices(str(path), read_head(path))]
    assert found == [(0.25, 0.5)] * 3 + [(1, 1)] * 3
    assert sorted(scan.address for scan in find_scans(path)[0]) == [f"{path}#1.2.3:0.25mm", f"{path}#1.2.3:1mm"]


def test_functional_groups_for_another_number_of_frames_are_refused(tmp_path: Path) -> None:
    image = enhanced([{"PlanePositionSequence": at(0)}] * 3)
    image.PerFrameFunctionalGroupsSequence.pop()
    assert "functional groups for 3 frames, got 2" in refusal(save(image, tmp_path / "a"))


@pytest.mark.parametrize(
    ("group", "keyword", "values", "label"),
    [
        ("FrameContentSequence", "TemporalPositionIndex", (2, 1), "temporal position 1"),
        ("MRDiffusionSequence", "DiffusionBValue", (1000.0, 0.0), "b-value 0"),
        ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", (30.5, 2.0), "trigger time 2"),
    ],
)
def test_time_points_are_ordered_by_what_tells_them_apart(
    group: str, keyword: str, values: tuple[float, float], label: str, tmp_path: Path
) -> None:
    frames = [{"PlanePositionSequence": at(z), group: item(**{keyword: v})} for v in values for z in (0, 1)]
    data = read_scan(save(enhanced(frames), tmp_path / "a"))
    assert data.array.shape == (4, 3, 2, 2) and data.facts["frames"][0] == label
    assert data.array[0, 0].tolist() == [[2, 0], [3, 1]]


def test_dimension_indices_order_frames_that_nothing_else_tells_apart(tmp_path: Path) -> None:
    frames = [
        {"PlanePositionSequence": at(z), "FrameContentSequence": item(DimensionIndexValues=[1, z + 1, direction, 7])}
        for z, direction in ((0, 3), (1, 1), (0, 1), (1, 3), (1, 2), (0, 2))
    ]
    data = read_scan(save(enhanced(frames), tmp_path / "a"))
    assert data.facts["frames"] == ("dimension index 1", "dimension index 2", "dimension index 3")
    assert data.array[0, 0].tolist() == [[2, 5, 0], [1, 4, 3]]


def test_two_echoes_and_two_components_in_one_object_are_never_merged(tmp_path: Path) -> None:
    frames = [
        {
            "PlanePositionSequence": at(z),
            "MREchoSequence": item(EffectiveEchoTime=echo),
            "MRImageFrameTypeSequence": item(ComplexImageComponent=part, FrameType=["ORIGINAL", "PRIMARY", "X", "Y"]),
        }
        for echo in (4.5, 9.0)
        for part in ("MAGNITUDE", "PHASE")
        for z in (0, 1, 2)
    ]
    path = save(enhanced(frames), tmp_path / "a")
    scans, _ = find_scans(path)
    names = [scan.volume for scan in scans]
    assert names == ["magnitude-echo-4.5", "magnitude-echo-9", "phase-echo-4.5", "phase-echo-9"]
    assert [read_scan(scan).array[0, 0].tolist() for scan in scans] == [[0, 1, 2], [6, 7, 8], [3, 4, 5], [9, 10, 11]]
    assert read_scan(scans[2].address).array[0, 0].tolist() == [3, 4, 5]
    assert "got 4: #...1.2.3:magnitude-echo-4.5" in refusal(path)


def test_one_volume_spread_over_several_multi_frame_files_is_one(tmp_path: Path) -> None:
    for number, heights in enumerate([(2, 3), (0, 1)]):
        save(enhanced([{"PlanePositionSequence": at(z)} for z in heights]), tmp_path / f"{number}")
    assert read_scan(tmp_path).array[0, 0].tolist() == [0, 1, 0, 1]


def test_a_parametric_map_has_its_real_world_values(tmp_path: Path) -> None:
    real = item(RealWorldValueSlope=0.5, RealWorldValueIntercept=10.0)
    image = enhanced([{"PlanePositionSequence": at(z), "RealWorldValueMappingSequence": real} for z in (0, 1)])
    image.SOPClassUID = ParametricMapStorage
    assert read_scan(save(image, tmp_path / "a")).array[0, 0].tolist() == [10, 10.5]


def test_a_segmentation_is_read_bit_by_bit_and_left_out_of_what_is_found(tmp_path: Path) -> None:
    image = enhanced(
        [
            {"PlanePositionSequence": at(z), "SegmentIdentificationSequence": item(ReferencedSegmentNumber=number)}
            for number in (1, 2)
            for z in (0, 1, 2)
        ],
        **{"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "SOPClassUID": SegmentationStorage, "Modality": "SEG"},
    )
    bits = np.random.default_rng(0).integers(0, 2, (6, 3, 4))
    image.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes() + b"\0"
    path = save(image, tmp_path / "a")
    scans, left_out = find_scans(path)
    assert not scans and [item.reason for item in left_out] == ["a segmentation"] * 2
    second = read_scan(f"{path}#1.2.3:segment-2").array
    np.testing.assert_array_equal(second, bits[3:].transpose(2, 1, 0))


def test_a_dose_grid_lies_where_its_offsets_say_and_is_in_gray(tmp_path: Path) -> None:
    data = read_scan(save(dose(), tmp_path / "a"))
    assert data.array[0, 0].tolist() == [0, 6, 12] and data.facts["unit"] == "GY"
    assert data.affine is not None and data.affine[2].tolist() == [0, 0, 3, 0]
    # The older form gives heights in the patient instead, downward here.
    image = dose(ImagePositionPatient=[0, 0, 50], GridFrameOffsetVector=[50, 47, 44])
    data = read_scan(save(image, tmp_path / "b"))
    assert data.array[0, 0].tolist() == [12, 6, 0] and data.affine is not None and data.affine[2, 3] == 44


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"GridFrameOffsetVector": [0, 3]}, "for 3 planes, got 2"),
        ({"GridFrameOffsetVector": [1, 4, 7]}, "to begin with 0 or"),
        ({"DoseGridScaling": None}, "DoseGridScaling"),
    ],
)
def test_a_dose_grid_without_its_geometry_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(save(dose(**change), tmp_path / "a"))


def test_a_tomogram_of_nuclear_medicine_follows_its_detector(tmp_path: Path) -> None:
    image = new_image(SOPClassUID=NuclearMedicineImageStorage, Modality="NM", NumberOfFrames=3, SpacingBetweenSlices=-2)
    image.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    image.DetectorInformationSequence = Sequence(
        [item(ImagePositionPatient=[-10, 20, 8], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    )
    image.SliceVector = [1, 2, 3]
    image.PixelData = np.repeat(np.arange(3, dtype="<u2"), 12).tobytes()
    data = read_scan(save(image, tmp_path / "a"))
    assert data.array[0, 0].tolist() == [2, 1, 0]
    assert data.affine is not None and data.affine[:, 2].tolist() == [0, 0, 2, 0] and data.affine[2, 3] == 4


def test_the_tiles_of_a_siemens_mosaic_lie_around_the_centre_of_the_picture(tmp_path: Path) -> None:
    data = read_scan(save(mosaic(), tmp_path / "a"))
    assert data.array.shape == (2, 2, 3) and data.array[0, 0].tolist() == [0, 1, 2]
    # The position in the header is of a slice as large as the picture: half of the difference, 1 mm, further in.
    np.testing.assert_allclose(data.affine, [[-1, 0, 0, 9], [0, -1, 0, -21], [0, 0, 3, 0], [0, 0, 0, 1]])


def test_the_slices_of_a_mosaic_may_run_against_the_normal(tmp_path: Path) -> None:
    image = mosaic()
    image[0x00291010].value = csa_header(3, (0, 0, -1))
    data = read_scan(save(image, tmp_path / "a"))
    assert data.array[0, 0].tolist() == [2, 1, 0] and data.affine is not None and data.affine[2, 3] == -6


@pytest.mark.parametrize("header", [None, b"SV10", b"junk" * 30, csa_header(0, (0, 0, 1)), csa_header(5, (0, 0, 1))])
def test_a_mosaic_without_its_private_header_is_refused(header: bytes | None, tmp_path: Path) -> None:
    image = mosaic()
    if header is None:
        del image[0x00291010]
    else:
        image[0x00291010].value = header
    assert "mosaic" in refusal(save(image, tmp_path / "a"))


def test_the_tiles_of_a_mosaic_of_united_imaging_state_their_places(tmp_path: Path) -> None:
    image = new_image(Rows=4, Columns=6, PixelSpacing=[1, 1], ImagePositionPatient=None)
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "VFRAME"]
    image.PixelData = np.kron([[0, 1, 2], [3, 4, 9]], np.ones((2, 2))).astype("<u2").tobytes()
    image.add_new(0x00650010, "LO", "Image Private Header")
    image.add_new(0x00651050, "DS", "5")
    image.add_new(0x00651051, "SQ", Sequence([at(-2 * z) for z in range(5)]))
    data = read_scan(save(image, tmp_path / "a"))
    assert data.array.shape == (2, 2, 5) and data.array[0, 0].tolist() == [4, 3, 2, 1, 0]
    del image[0x00651051]
    assert "mosaic" in refusal(save(image, tmp_path / "b"))


def test_an_ordinary_series_needs_none_of_this(tmp_path: Path) -> None:
    path = write_series(tmp_path) / "im0"
    assert len(read_slices(str(path), read_head(path))) == 1


@pytest.mark.parametrize("axes", [[1, 0, 0, 0, -1, 0], [-1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]])
def test_heights_of_a_dose_grid_are_those_in_the_patient_whichever_way_its_rows_run(
    axes: list[float], tmp_path: Path
) -> None:
    image = dose(ImageOrientationPatient=axes, ImagePositionPatient=[1, 2, 10], GridFrameOffsetVector=[10, 13, 16])
    data = read_scan(save(image, tmp_path / "a"))
    assert data.affine is not None
    last = int(data.array[0, 0].argmax())  # the frame with the highest number
    assert (data.affine @ [0, 0, last, 1])[2] == pytest.approx(16)


@pytest.mark.parametrize(
    "change", [{"SpacingBetweenSlices": None}, {"SliceVector": [1, 1, 2]}, {"SliceVector": [1, 2]}]
)
def test_a_tomogram_that_does_not_say_where_its_slices_lie_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    image = new_image(SOPClassUID=NuclearMedicineImageStorage, Modality="NM", NumberOfFrames=3)
    image.ImageType, image.PixelData = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], bytes(72)
    image.SpacingBetweenSlices, image.SliceVector = 4, [1, 2, 3]
    for name, value in change.items():
        setattr(image, name, value) if value is not None else delattr(image, name)
    assert "expected a reconstructed tomogram" in refusal(save(image, tmp_path / "a"))


def test_water_and_fat_in_one_object_are_two_scans(tmp_path: Path) -> None:
    frames = [
        {
            "PlanePositionSequence": at(z),
            "MRImageFrameTypeSequence": item(FrameType=["DERIVED", "PRIMARY", "DIXON", kind]),
        }
        for kind, z in (("WATER", 0), ("WATER", 2), ("FAT", 4), ("FAT", 6))
    ]
    scans, _ = find_scans(save(enhanced(frames), tmp_path / "a"))
    assert [(scan.key, scan.shape) for scan in scans] == [("1.2.3:fat", (4, 3, 2)), ("1.2.3:water", (4, 3, 2))]


def test_a_parametric_map_with_a_table_of_values_is_refused(tmp_path: Path) -> None:
    mapping = item(RealWorldValueLUTData=[1.0, 2.0])
    image = enhanced([{"PlanePositionSequence": at(0), "RealWorldValueMappingSequence": mapping}])
    image.SOPClassUID = ParametricMapStorage
    assert "expected RealWorldValueSlope" in refusal(save(image, tmp_path / "a"))


def test_a_scale_written_as_in_an_ordinary_image_counts(tmp_path: Path) -> None:
    frames = [{"PlanePositionSequence": at(z)} for z in (0, 1)]
    data = read_scan(save(enhanced(frames, RescaleSlope=3, RescaleIntercept=-5), tmp_path / "a"))
    assert data.array[0, 0].tolist() == [-5, -2]


def test_the_unit_of_an_enhanced_image_is_that_of_its_frames(tmp_path: Path) -> None:
    shared = {"PixelValueTransformationSequence": item(RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")}
    frames = [{"PlanePositionSequence": at(z)} for z in (0, 1)]
    assert read_scan(save(enhanced(frames, shared=shared), tmp_path / "a")).facts["unit"] == "HU"


@pytest.mark.parametrize("image_type", [["ORIGINAL", "PRIMARY", "M", "MOSAIC"], ["ORIGINAL", "PRIMARY", "VFRAME"]])
def test_a_mosaic_of_several_frames_is_none(image_type: list[str], tmp_path: Path) -> None:
    image = new_image(ImageType=image_type, NumberOfFrames=2, PixelData=bytes(48))
    assert find_scans(save(image, tmp_path / "a")) is not None


@pytest.mark.parametrize("kind", ["66.4", "66.7", "66.8", "7.2"])
def test_segmentations_of_every_class_are_left_out(kind: str, tmp_path: Path) -> None:
    image = enhanced([{"PlanePositionSequence": at(z)} for z in (0, 1, 2)], Modality="SEG")
    image.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{kind}"
    save(image, tmp_path / "a")
    scans, (left_out,) = find_scans(tmp_path)
    assert not scans and left_out.reason == "a segmentation" and left_out.scan is not None


def test_planes_of_an_ultrasound_volume_are_no_time_points(tmp_path: Path) -> None:
    frames = [
        {
            "PlanePositionVolumeSequence": item(ImagePositionVolume=[0, 0, 0.6 * z]),
            "FrameContentSequence": item(DimensionIndexValues=[z + 1, 1], TemporalPositionIndex=1),
        }
        for z in range(3)
    ]
    image = enhanced(frames, SOPClassUID="1.2.840.10008.5.1.4.1.1.6.2", Modality="US")
    assert "got 3 planes in coordinates of a transducer" in refusal(save(image, tmp_path / "a"))


@pytest.mark.parametrize("kind", ["4.1", "2.1", "77.1.5.4", "12.1.1"])
def test_frames_without_a_place_are_time_points_only_by_a_clock(kind: str, tmp_path: Path) -> None:
    bare = enhanced([{"FrameContentSequence": item(DimensionIndexValues=[z + 1])} for z in range(3)])
    bare.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{kind}"
    assert "expected a position or a time of each frame, got 3 frames" in refusal(save(bare, tmp_path / "a"))
    timed = enhanced([{"FrameContentSequence": item(TemporalPositionIndex=z + 1)} for z in range(3)])
    timed.SOPClassUID = "1.2.840.10008.5.1.4.1.1.12.1.1"
    assert read_scan(save(timed, tmp_path / "b")).array.shape == (4, 3, 3)


def test_two_detectors_of_nuclear_medicine_are_two_scans(tmp_path: Path) -> None:
    image = new_image(SOPClassUID="1.2.840.10008.5.1.4.1.1.20", Modality="NM", NumberOfFrames=2)
    image.DetectorVector, image.EnergyWindowVector = [1, 2], [1, 1]
    image.PixelData = np.repeat(np.arange(2, dtype="<u2"), 12).tobytes()
    save(image, tmp_path / "a")
    scans, _ = find_scans(tmp_path)
    assert [(scan.volume, scan.frames) for scan in scans] == [("detector-1", 1), ("detector-2", 1)]
    assert [read_scan(scan.address).array.max() for scan in scans] == [0, 1]

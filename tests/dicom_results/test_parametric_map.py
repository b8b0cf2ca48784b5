"""A Parametric Map: values and place are those of the saliency, patient and study those of the scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import torch
from made_results import NUMBER, complaints, needs_validator, predicted, scans_in, write_study
from make_dicom import CANARY, PACK, at, enhanced, needs_pack, save
from monai.data import MetaTensor
from pydicom.dataset import Dataset
from tiny_model import BUNDLE, write_model, write_scan

from monai_mvreg.dicom_results.evidence import used_instances, write_object
from monai_mvreg.dicom_results.parametric_map import make_map, patient_maps
from monai_mvreg.explain.explanation import explain_patient, used_part
from monai_mvreg.explain.saliency import gradcam
from monai_mvreg.predict.prediction import PURPOSE
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import find_patient
from monai_mvreg.scans.find import Scan
from monai_mvreg.scans.read import Choices, read_scan, scan_at

Array = npt.NDArray[np.float64]


def saliency_of(scan: Scan) -> MetaTensor:
    """A map of noise on the grid of a scan."""
    data = read_scan(scan, frame=0 if scan.frames > 1 else None)
    array = data.array[..., 0] if scan.colour else data.array
    noise = torch.randn(array.shape, generator=torch.Generator().manual_seed(1))
    return MetaTensor(noise, affine=torch.as_tensor(np.array(data.affine if data.affine is not None else np.eye(4))))


def mapped(home: Path, scan: Scan | None = None, *, method: str = "occlusion") -> Dataset:
    used = scan or scans_in(home)[0]
    prediction = predicted(home, [used])
    (source,) = used_instances(prediction, home=home)
    return make_map(saliency_of(used), source, prediction=prediction, method=method)


def placed(image: Dataset) -> dict[tuple[float, ...], float]:
    """The stored value of every voxel by its place in the patient, LPS in mm, rounded to 0.01: as DICOM defines it."""
    shared = image.SharedFunctionalGroupsSequence[0]
    pixels = np.frombuffer(image.FloatPixelData, "<f4").reshape(-1, image.Rows, image.Columns)
    across, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    height, width = shared.PixelMeasuresSequence[0].PixelSpacing
    found = {}
    for frame, groups in zip(pixels, image.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for (row, column), value in np.ndenumerate(frame):
            place = corner + column * width * across + row * height * down
            found[tuple((place.round(2) + 0.0).tolist())] = float(value)
    return found


def expected(saliency: MetaTensor, affine: Array) -> dict[tuple[float, ...], float]:
    """The value of every voxel of a map by its place, LPS in mm."""
    values = np.asarray(saliency.as_tensor())
    values = values if values.ndim == 3 else values[:, :, None]
    lps = np.diag([-1, -1, 1, 1]) @ affine
    return {
        tuple(((lps @ [*index, 1])[:3].round(2) + 0.0).tolist()): float(value)
        for index, value in np.ndenumerate(values)
    }


OBLIQUE = [0.8, 0.6, 0.0, -0.36, 0.48, 0.8]
FLIPPED = [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
UPRIGHT = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize("axes", [[1, 0, 0, 0, 1, 0], FLIPPED, UPRIGHT], ids=["axial", "flipped", "sagittal"])
def test_every_voxel_has_its_value_at_its_place(tmp_path: Path, axes: list[float]) -> None:
    home = tmp_path / "home"
    normal = np.cross(axes[:3], axes[3:])
    for number, z in enumerate((4.0, 0.0, 2.0)):
        position = (np.array([-10.0, 20.0, 0.0]) + z * normal).tolist()
        write_study(
            home / str(number), uid="1.2.3", heights=(z,), ImagePositionPatient=position, ImageOrientationPatient=axes
        )
    (scan,) = scans_in(home)
    assert placed(mapped(home)) == pytest.approx(expected(saliency_of(scan), scan.content.affine))


def test_of_an_oblique_scan_too(tmp_path: Path) -> None:
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    for z in (0.0, 3.0, 6.0):
        tags = {"ImagePositionPatient": (z * normal).tolist(), "ImageOrientationPatient": OBLIQUE}
        write_study(tmp_path / str(z), uid="1.2.3", heights=(z,), **tags)
    (scan,) = scans_in(tmp_path)
    assert placed(mapped(tmp_path)) == pytest.approx(expected(saliency_of(scan), scan.content.affine))


def test_of_a_scan_that_was_evened_out_the_planes_are_those_that_the_network_saw(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", heights=(0, 2, 4, 6.8, 9.6))
    scan = scan_at(str(tmp_path / "a"), resample=True)
    data = read_scan(scan, choices=Choices(resample=True))
    saliency = MetaTensor(torch.randn(data.array.shape), affine=torch.as_tensor(data.affine.copy()))
    prediction = predicted(tmp_path, [scan])
    (source,) = used_instances(prediction, home=tmp_path)
    made = make_map(saliency, source, prediction=prediction, method="gradcam")
    assert made.NumberOfFrames == data.array.shape[2] > 5
    assert placed(made) == pytest.approx(expected(saliency, data.affine))


def test_of_a_single_slice_too(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", heights=(7.0,))
    (scan,) = scans_in(tmp_path)
    found = placed(mapped(tmp_path))
    assert found == pytest.approx(expected(saliency_of(scan), scan.content.affine))
    assert {z for _, _, z in found} == {7.0}


def test_highdicom_reads_the_volume_where_the_scan_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_study(home, uid="1.2.3", heights=(4, 0, 2, 6))
    write_object(mapped(home), tmp_path / "map.dcm")
    volume = hd.imread(tmp_path / "map.dcm").get_volume()
    source = hd.get_volume_from_series([pydicom.dcmread(path) for path in home.iterdir()])
    same = volume.match_geometry(source)
    assert same.geometry_equal(source)
    (scan,) = scans_in(home)
    assert np.sort(same.array, axis=None) == pytest.approx(np.sort(np.asarray(saliency_of(scan)), axis=None))


def test_it_refers_to_the_instances_of_the_scan_and_each_plane_to_its_own(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    write_study(tmp_path / "b", uid="1.2.4")
    made = mapped(tmp_path)
    heights = {}
    for path in (tmp_path / "a").iterdir():
        source = pydicom.dcmread(path)
        heights[str(source.SOPInstanceUID)] = source.ImagePositionPatient[2]
    (series,) = made.ReferencedSeriesSequence
    assert {str(one.ReferencedSOPInstanceUID) for one in series.ReferencedInstanceSequence} == set(heights)
    for frame in made.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert heights[source.ReferencedSOPInstanceUID] == frame.PlanePositionSequence[0].ImagePositionPatient[2]


def test_of_frames_that_say_their_orientation_and_spacing_one_by_one(tmp_path: Path) -> None:
    own = {
        "PlaneOrientationSequence": _item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        "PixelMeasuresSequence": _item(PixelSpacing=[0.5, 0.25], SliceThickness=2),
    }
    image = enhanced([{"PlanePositionSequence": at(z), **own} for z in (0.0, 2.0, 4.0)], StudyInstanceUID="1.2.9")
    for name in own:
        del image.SharedFunctionalGroupsSequence[0][name]
    image.FrameOfReferenceUID = "1.2.8"
    save(image, tmp_path / "im")
    (scan,) = scans_in(tmp_path)
    made = mapped(tmp_path)
    assert placed(made) == pytest.approx(expected(saliency_of(scan), scan.content.affine))
    for one in made.PerFrameFunctionalGroupsSequence:
        (source,) = one.DerivationImageSequence[0].SourceImageSequence
        assert one.PlanePositionSequence[0].ImagePositionPatient[2] == 2 * (int(source.ReferencedFrameNumber) - 1)


def _item(**tags: object) -> Dataset:
    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def test_its_values_are_in_the_unit_of_the_number_and_those_of_gradcam_have_none(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    for method, unit, meaning in (
        ("occlusion", "mL", "Saliency"),
        ("gradcam", "1", "Gradient-weighted class activation"),
    ):
        made = mapped(tmp_path, method=method)
        (told,) = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
        assert (told.MeasurementUnitsCodeSequence[0].CodeValue, told.LUTLabel) == (unit, method)
        assert told.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeMeaning == meaning
        assert (told.RealWorldValueSlope, told.RealWorldValueIntercept) == (1, 0)
        values = np.frombuffer(made.FloatPixelData, "<f4")
        assert told.DoubleFloatRealWorldValueFirstValueMapped == pytest.approx(values.min())
        assert told.DoubleFloatRealWorldValueLastValueMapped == pytest.approx(values.max())


def test_it_has_the_patient_study_and_body_part_of_the_scan_and_says_that_it_is_for_research(tmp_path: Path) -> None:
    write_study(
        tmp_path / "a",
        uid="1.2.3",
        BodyPartExamined="KNEE",
        Laterality="L",
        PatientName="Müller",
        SpecificCharacterSet="ISO_IR 100",
    )
    made, source = mapped(tmp_path), pydicom.dcmread(tmp_path / "a" / "im0")
    for name in (
        "PatientID",
        "PatientName",
        "StudyInstanceUID",
        "StudyDate",
        "FrameOfReferenceUID",
        "BodyPartExamined",
        "Laterality",
        "SpecificCharacterSet",
    ):
        assert made[name].value == source[name].value, name
    assert (made.ContentQualification, made.ContentDescription) == ("RESEARCH", PURPOSE[:64])
    assert made.SeriesDescription == "Research use only: occlusion of volume"
    assert made.SOPClassUID == pydicom.uid.ParametricMapStorage


def test_its_uid_is_that_of_the_scan_the_method_and_the_prediction(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    write_study(tmp_path / "b", uid="1.2.4")
    one, other = scans_in(tmp_path)
    made = [mapped(tmp_path, one), mapped(tmp_path, one, method="gradcam"), mapped(tmp_path, other)]
    assert len({image.SOPInstanceUID for image in made}) == len({image.SeriesInstanceUID for image in made}) == 3
    assert mapped(tmp_path, one).SOPInstanceUID == made[0].SOPInstanceUID


def refused(home: Path, *, method: str = "occlusion", saliency: MetaTensor | None = None) -> str:
    (scan,) = scans_in(home)
    prediction = predicted(home)
    (source,) = used_instances(prediction, home=home)
    with pytest.raises(ValueError) as error:
        make_map(saliency if saliency is not None else saliency_of(scan), source, prediction=prediction, method=method)
    assert CANARY not in str(error.value)
    return str(error.value)


def test_a_radiograph_has_no_place_to_lay_a_map_over(tmp_path: Path) -> None:
    flat = {"Modality": "DX", "ImagePositionPatient": None, "ImageOrientationPatient": None}
    write_study(tmp_path / "a", uid="1.2.3", heights=(0,), **flat)
    assert refused(tmp_path).startswith("scan 1: expected a scan with a place in the patient")


def test_a_scan_without_a_frame_of_reference_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", FrameOfReferenceUID="")
    assert refused(tmp_path).startswith("scan 1: expected a scan with a place in the patient")


def test_saliency_on_another_grid_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    (scan,) = scans_in(tmp_path)
    mine = saliency_of(scan)
    assert "expected saliency on its own grid (4, 3, 3)" in refused(tmp_path, saliency=mine[:, :, :2])
    moved = MetaTensor(mine.as_tensor(), affine=torch.as_tensor(np.diag([1.0, 1, 2, 1]) @ np.asarray(mine.affine)))
    assert "or another affine" in refused(tmp_path, saliency=moved)


def test_saliency_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    (scan,) = scans_in(tmp_path)
    mine = saliency_of(scan)
    mine[0, 0, 0] = float("nan")
    assert "expected finite values of saliency, got 1" in refused(tmp_path, saliency=mine)


def test_another_method_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    assert refused(tmp_path, method="lime") == "expected a method of ['gradcam', 'occlusion'], got 'lime'"


def test_the_maps_of_a_patient_hold_what_mvreg_explain_writes(tmp_path: Path) -> None:
    import nibabel as nib

    home = tmp_path / "patient"
    write_study(home / "a", uid="1.2.3", date="20200101")
    write_scan(home / "scan_2020-03-01.nii", seed=2)
    write_study(home / "b", uid="1.2.4", date="20200601", heights=(0, 2, 4, 6))
    predictor = Predictor.from_bundle(BUNDLE, models=write_model(tmp_path / "model" / "models"))
    found = find_patient(home, predictor.trained)
    prediction = predictor.predict(found, home=home)
    part = used_part(found.patient, prediction, home=home)
    maps, without = patient_maps(predictor, part, prediction=prediction, home=home, method="gradcam")
    assert (set(maps), set(without)) == ({0, 2}, {1})
    assert without[1].startswith("scan 2 is not DICOM")
    explain_patient(predictor, part, tmp_path / "nifti", methods={"gradcam": gradcam})
    for scan, made in maps.items():
        file = nib.load(tmp_path / "nifti" / f"scan-{scan}_gradcam.nii.gz")
        whole = MetaTensor(torch.as_tensor(np.asarray(file.dataobj)), affine=torch.as_tensor(file.affine))
        assert placed(made) == pytest.approx(expected(whole, file.affine), abs=1e-6)
    with pytest.raises(ValueError, match="expected a number from 0 to 0, got 1"):
        patient_maps(predictor, part, prediction=prediction, home=home, method="gradcam", number=1)


@needs_validator
@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_dciodvfy_finds_no_error_and_nothing_to_warn_of(tmp_path: Path, modality: str) -> None:
    kind = {"MR": pydicom.uid.MRImageStorage, "CT": pydicom.uid.CTImageStorage}[modality]
    write_study(tmp_path / "a", uid="1.2.3", Modality=modality, SOPClassUID=kind, PatientName="Nobody^At all")
    for method in ("gradcam", "occlusion"):
        assert complaints(mapped(tmp_path, method=method), tmp_path / "map.dcm") == ([], [])


def test_the_side_of_the_image_is_the_side_of_the_map(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", BodyPartExamined="KNEE", ImageLaterality="R")
    assert mapped(tmp_path).Laterality == "R"
    write_study(tmp_path / "b", uid="1.2.4", BodyPartExamined="BRAIN")
    assert "Laterality" not in mapped(tmp_path, scans_in(tmp_path)[1])


def test_of_several_numbers_each_has_its_own_map(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    prediction = predicted(tmp_path, numbers=(NUMBER, replace(NUMBER, name="thickness", unit="mm")))
    (source,) = used_instances(prediction, home=tmp_path)
    saliency = saliency_of(source.scan)
    made = [make_map(saliency, source, prediction=prediction, method="occlusion", number=at) for at in (0, 1)]
    told = [image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0] for image in made]
    assert [one.MeasurementUnitsCodeSequence[0].CodeValue for one in told] == ["mL", "mm"]
    assert made[0].SOPInstanceUID != made[1].SOPInstanceUID
    assert made[0].SeriesInstanceUID != made[1].SeriesInstanceUID


@needs_validator
@pytest.mark.parametrize("size", [0, 0.001])
def test_a_map_of_next_to_nothing_is_valid_too(tmp_path: Path, size: float) -> None:
    write_study(tmp_path / "a", uid="1.2.3", PatientName="Nobody^At all")
    prediction = predicted(tmp_path)
    (source,) = used_instances(prediction, home=tmp_path)
    faint = saliency_of(source.scan) * size
    made = make_map(faint, source, prediction=prediction, method="gradcam")
    assert complaints(made, tmp_path / "map.dcm") == ([], [])


@needs_validator
def test_without_a_body_part_the_side_is_empty_and_there_is_no_error(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", BodyPartExamined="")
    made = mapped(tmp_path)
    assert made.Laterality == ""
    assert complaints(made, tmp_path / "map.dcm")[0] == []


# Faults of the files themselves.
FAULTS = ("StudyInstanceUID has same value as FrameOfReferenceUID",)
FEW = {"ct_tiny": 1, "ct_tilt_neg": 1, "mr_enh_2echo": 2, "mr_mosaic_siemens": 1, "one_MR_small": 1}
REST = {"ct_straight": 1, "mr_enh_t1": 1, "mr_enh_phase": 1, "mr_enh_rgb": 1, "mr_ge_4d": 1, "mr_sag_hfdl": 1}
REST |= {"ct_two_orientations": 2, "mr_localizer_7": 7, "mr_mosaic_hfdl": 1, "pm_float": 1, "ct_scout": 1}


@needs_pack
@needs_validator
@pytest.mark.parametrize("series", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_a_map_of_a_real_scan_lies_where_the_scan_lies_and_is_valid(series: str, tmp_path: Path) -> None:
    home = PACK / "series" / series
    scans = [scan for scan in scans_in(home) if scan.content.affine is not None]
    assert len(scans) == {**FEW, **REST}[series]
    for scan in scans:
        made, mine = mapped(home, scan), saliency_of(scan)
        pixels = np.frombuffer(made.FloatPixelData, "<f4").reshape(-1, made.Rows, made.Columns)
        array = np.asarray(mine.as_tensor())
        np.testing.assert_array_equal(np.sort(pixels, axis=None), np.sort(array, axis=None))
        lps = np.diag([-1, -1, 1, 1]) @ scan.content.affine
        for frame, groups in zip(pixels, made.PerFrameFunctionalGroupsSequence, strict=True):
            corner = groups.PlanePositionSequence[0].ImagePositionPatient
            index = np.linalg.solve(lps, [*map(float, corner), 1])[:3]
            np.testing.assert_allclose(index, [0, 0, round(index[2])], atol=0.05)
            own = array[:, :, round(index[2])] if array.ndim == 3 else array
            np.testing.assert_array_equal(frame, own.T)
        errors, _ = complaints(made, tmp_path / "map.dcm")
        assert [error for error in errors if not any(fault in error for fault in FAULTS)] == []


def test_an_odd_sex_or_birth_date_in_the_header_is_taken_over_and_stops_nothing(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", PatientSex="X", PatientBirthDate="1970.01.02", InstanceNumber=1)
    made = mapped(tmp_path)
    assert (made.PatientSex, made.PatientBirthDate) == ("X", "19700102")

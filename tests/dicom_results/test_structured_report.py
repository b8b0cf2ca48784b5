"""A structured report: what it says are the numbers of the prediction, and what it refers to are the used instances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from made_results import MODEL, NUMBER, complaints, needs_validator, predicted, scans_in, write_study
from make_dicom import CANARY, PACK, needs_pack
from pydicom.dataset import Dataset
from tiny_model import BUNDLE, write_model, write_scan

from monai_mvreg.dicom_results.evidence import write_object
from monai_mvreg.dicom_results.structured_report import SCHEME, make_report
from monai_mvreg.predict.prediction import (
    PURPOSE,
    PredictedNumber,
    Prediction,
    PredictionWarning,
    SurvivalCurve,
    UnusedScan,
    in_words,
)
from monai_mvreg.predict.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.from_bundle(BUNDLE, models=write_model(tmp_path_factory.mktemp("model") / "models"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A patient of two DICOM visits and a NIfTI volume between them."""
    write_study(tmp_path / "patient" / "a", uid="1.2.3", date="20200101", Modality="MR")
    write_scan(tmp_path / "patient" / "scan_2020-03-01.nii", seed=2)
    write_study(tmp_path / "patient" / "b", uid="1.2.4", date="20200601", Modality="CT")
    return tmp_path / "patient"


def items(tree: Dataset) -> Iterator[Dataset]:
    for item in tree.get("ContentSequence", []):
        yield item
        yield from items(item)


def code(item: Dataset) -> str:
    name = item.ConceptNameCodeSequence[0]
    return str(name.get("CodeValue") or name.LongCodeValue)


def numbers(tree: Dataset) -> dict[str, list[tuple[float, str]]]:
    """All numbers of a tree with their unit, by the code of their name."""
    found: dict[str, list[tuple[float, str]]] = {}
    for item in items(tree):
        if item.ValueType == "NUM":
            value = item.MeasuredValueSequence[0]
            unit = value.MeasurementUnitsCodeSequence[0].CodeValue
            found.setdefault(code(item), []).append((value.FloatingPointValue, unit))
            assert float(value.NumericValue) == pytest.approx(value.FloatingPointValue, rel=1e-6)
    return found


def texts(tree: Dataset, name: str) -> list[str]:
    return [str(item.TextValue) for item in items(tree) if item.ValueType == "TEXT" and code(item) == name]


def images(tree: Dataset) -> list[str]:
    return [str(i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for i in items(tree) if i.ValueType == "IMAGE"]


def evidence(report: Dataset) -> dict[str, set[str]]:
    """Instances by the study that the evidence of a report names."""
    studies = [*report.get("CurrentRequestedProcedureEvidenceSequence", [])]
    studies += report.get("PertinentOtherEvidenceSequence", [])
    return {
        study.StudyInstanceUID: {
            str(one.ReferencedSOPInstanceUID)
            for series in study.ReferencedSeriesSequence
            for one in series.ReferencedSOPSequence
        }
        for study in studies
    }


def uids(folder: Path) -> list[str]:
    return sorted(str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.rglob("im*"))


def written(report: Dataset, tmp_path: Path) -> Dataset:
    write_object(report, tmp_path / "report.dcm")
    return pydicom.dcmread(tmp_path / "report.dcm")


def test_a_file_holds_exactly_the_numbers_of_the_predictor(home: Path, predictor: Predictor, tmp_path: Path) -> None:
    prediction = predictor.predict_folder(home)
    (number,) = prediction.numbers
    made = written(make_report(prediction, home=home), tmp_path)
    found = numbers(made)
    assert found["target.volume"] == [(number.value, "mL")]
    assert (found["low"], found["high"]) == ([(number.low, "mL")], [(number.high, "mL")])
    assert found["confidence"] == [(0.9, "1")]
    assert found["newest_visit"] == [(prediction.newest_visit[0], "mL")]
    assert found["weight"] == [(scan.weight, "1") for scan in prediction.scans]
    assert found["contribution.volume"] == [(scan.contributions[0], "mL") for scan in prediction.scans]
    assert found["128740"] == [(scan.day, "d") for scan in prediction.scans]
    assert texts(made, "content") == [scan.content for scan in prediction.scans]


def test_highdicom_reads_the_file_as_a_measurement_report(home: Path, tmp_path: Path) -> None:
    written(make_report(predicted(home), home=home), tmp_path)
    report = hd.sr.srread(tmp_path / "report.dcm")
    assert isinstance(report, hd.sr.Comprehensive3DSR)
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["prediction", "scan 1", "scan 2", "scan 3"]
    (measured,) = groups[0].get_measurements()
    assert (measured.value, measured.unit.value) == (NUMBER.value, "mL")


def test_the_used_instances_are_referred_to_each_once_and_no_other(home: Path) -> None:
    write_study(home / "unused", uid="1.2.5")
    used = [scan for scan in scans_in(home) if "unused" not in scan.address]
    report = make_report(predicted(home, used), home=home)
    expected = sorted(uids(home / "a") + uids(home / "b"))
    assert sorted(images(report)) == expected
    assert sorted(uid for study in evidence(report).values() for uid in study) == expected


def test_each_scan_refers_to_its_own_instances(home: Path) -> None:
    report = make_report(predicted(home), home=home)
    groups = [item for item in items(report) if item.ValueType == "CONTAINER" and code(item) == "125007"]
    found = {texts(group, "112039")[0]: sorted(images(group)) for group in groups}
    assert found == {"prediction": [], "scan 1": uids(home / "a"), "scan 2": uids(home / "b"), "scan 3": []}


def test_a_scan_that_is_not_dicom_is_named_by_its_hash(home: Path) -> None:
    prediction = predicted(home)
    report = make_report(prediction, home=home)
    (group,) = [item for item in items(report) if texts(item, "format")][-1:]
    assert texts(group, "content") == [prediction.scans[2].content]
    assert texts(group, "format") == ["not DICOM: known by its SHA-256 alone"]


def test_it_belongs_to_the_patient_and_the_study_of_the_newest_scan(home: Path) -> None:
    report = make_report(predicted(home), home=home)
    newest = pydicom.dcmread(home / "b" / "im0")
    for name in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyID",
    ):
        assert report[name].value == newest[name].value
    assert report.AccessionNumber == "A1"
    current = report.CurrentRequestedProcedureEvidenceSequence
    assert [study.StudyInstanceUID for study in current] == ["1.2.4.9"]
    assert [study.StudyInstanceUID for study in report.PertinentOtherEvidenceSequence] == ["1.2.3.9"]


def test_viewers_that_show_text_alone_show_the_numbers(home: Path) -> None:
    prediction = predicted(home)
    assert texts(make_report(prediction, home=home), "words") == [in_words(number) for number in prediction.numbers]


def test_it_says_that_it_is_for_research_preliminary_and_unverified(home: Path) -> None:
    report = make_report(predicted(home), home=home)
    assert texts(report, "121106") == [PURPOSE]
    order = [code(item) for item in report.ContentSequence]
    assert order.index("121106") < order.index("126010")  # before any number
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert report.SeriesDescription == "Research use only: volume"


def test_it_names_the_model_its_software_and_its_hashes(home: Path) -> None:
    report = make_report(predicted(home), home=home)
    assert (texts(report, "111001"), texts(report, "111003")) == (["a model"], ["1.2"])
    assert texts(report, "111002") == [
        "software: monai-mvreg 0",
        f"SHA-256 of weights: {'a' * 64}",
        f"SHA-256 of weights: {'b' * 64}",
        f"hash of preprocessing: {'c' * 64}",
    ]
    assert texts(report, "121013") == ["a model"]  # the observer is a device
    assert (report.ManufacturerModelName, report.SoftwareVersions, report.DeviceSerialNumber) == (
        "a model",
        "monai-mvreg 0",
        "1.2",
    )


def test_warnings_stand_with_what_they_are_about_and_what_was_left_out_is_told(home: Path) -> None:
    cautions = (
        PredictionWarning("scans", "3 scans, training saw 2"),
        PredictionWarning("spacing", "spacing 9 mm", scan=1),
    )
    left_out = (UnusedScan("c#1.2.840.113619.2.5.1762583153", "modality US, the model was trained on MR"),)
    report = make_report(predicted(home, warnings=cautions, left_out=left_out), home=home)
    direct = {code(item): str(item.TextValue) for item in report.ContentSequence if item.ValueType == "TEXT"}
    assert direct["warning"] == "3 scans, training saw 2"
    assert direct["left_out"] == "c#...5.1762583153: modality US, the model was trained on MR"
    (group,) = [item for item in items(report) if item.ValueType == "CONTAINER" and texts(item, "112039") == ["scan 2"]]
    assert texts(group, "warning") == ["spacing 9 mm"]


def test_without_warnings_there_is_no_such_item(home: Path) -> None:
    report = make_report(predicted(home), home=home)
    assert texts(report, "warning") == texts(report, "left_out") == []


def test_modality_and_date_of_each_scan_are_coded(home: Path) -> None:
    report = make_report(predicted(home), home=home)
    assert [item.ConceptCodeSequence[0].CodeValue for item in items(report) if code(item) == "121139"] == ["MR", "CT"]
    dates = [(code(item), str(item.Date)) for item in items(report) if item.ValueType == "DATE"]
    assert dates == [("111060", "20200101"), ("111060", "20200601")]
    write_study(home / "c", uid="1.2.6", AcquisitionDate="20210101", AcquisitionTime="101112")
    report = make_report(predicted(home), home=home)
    dates = [(code(item), str(item.Date)) for item in items(report) if item.ValueType == "DATE"]
    assert ("126201", "20210101") in dates


def test_of_a_time_to_event_it_says_risk_median_and_each_horizon(home: Path) -> None:
    curve = SurvivalCurve(730.0, (365.0, 1095.5), (0.2, 0.7), (1.0,), (0.9,))
    report = make_report(predicted(home, numbers=(PredictedNumber("log_risk", "1", -0.25),), survival=curve), home=home)
    found = numbers(report)
    assert found["target.log_risk"] == [(-0.25, "1")]
    assert found["median_time"] == [(730.0, "d")]
    assert (found["risk.365"], found["risk.1095.5"]) == ([(0.2, "1")], [(0.7, "1")])
    assert "low" not in found


def test_a_median_time_that_is_not_reached_is_said_in_words(home: Path) -> None:
    curve = SurvivalCurve(None, (365.0,), (0.2,), (1.0,), (0.9,))
    report = make_report(predicted(home, numbers=(PredictedNumber("log_risk", "1", -0.25),), survival=curve), home=home)
    assert "median_time" not in numbers(report)
    assert texts(report, "median_time") == ["not reached in the time that the training patients were followed"]


def two_targets(home: Path) -> Prediction:
    second = PredictedNumber("the_thickness_of_the_cortex", "mm", 2.5)
    whole = predicted(home, numbers=(NUMBER, second))
    return replace(whole, scans=tuple(replace(scan, contributions=(0.5, -0.25)) for scan in whole.scans))


def test_each_of_several_numbers_has_its_unit_and_contributions(home: Path) -> None:
    found = numbers(make_report(two_targets(home), home=home))
    assert found["target.the_thickness_of_the_cortex"] == [(2.5, "mm")]
    assert found["contribution.volume"] == [(0.5, "mL")] * 3
    assert found["contribution.the_thickness_of_the_cortex"] == [(-0.25, "mm")] * 3


def test_the_view_of_a_scan_is_told(home: Path) -> None:
    whole = predicted(home)
    scans = (replace(whole.scans[0], view="lateral"), *whole.scans[1:])
    assert texts(make_report(replace(whole, scans=scans), home=home), "view") == ["lateral"]


def test_names_that_are_too_long_for_dicom_are_cut_where_they_are_shown_alone(home: Path, tmp_path: Path) -> None:
    name = "n" * 80
    model = replace(MODEL, name="m\\" * 40, version="v" * 80, software="s" * 80)
    whole = predicted(home, numbers=(replace(NUMBER, name=name),), model=model)
    made = written(make_report(whole, home=home), tmp_path)
    assert numbers(made)[f"target.{name}"] == [(NUMBER.value, "mL")]
    assert texts(made, "111001") == [model.name]
    assert made.ManufacturerModelName == ("m/" * 40)[:64]


def test_the_device_is_the_model(home: Path) -> None:
    def device(report: Dataset) -> list[str]:
        return [str(item.UID) for item in items(report) if item.ValueType == "UIDREF" and code(item) == "121012"]

    one, again = (device(make_report(predicted(home), home=home)) for _ in range(2))
    other = device(make_report(predicted(home, model=replace(MODEL, version="2")), home=home))
    assert one == again != other


def test_the_spread_is_a_standard_deviation_in_the_unit_of_the_number(home: Path) -> None:
    assert numbers(make_report(predicted(home), home=home))["386136009"] == [(NUMBER.spread, "mL")]


def test_codes_that_no_public_scheme_has_are_of_a_private_one_that_is_declared(home: Path) -> None:
    report = make_report(two_targets(home), home=home)
    public = {"DCM", "UCUM", "SCT", "UMLS", "RFC5646", "NCIt"}
    schemes = {item.ConceptNameCodeSequence[0].CodingSchemeDesignator for item in items(report)}
    assert schemes - public == {SCHEME}
    (declared,) = report.CodingSchemeIdentificationSequence
    assert declared.CodingSchemeDesignator == SCHEME


def test_public_codes_have_the_meaning_that_the_standard_lists(home: Path) -> None:
    from pydicom.sr.codedict import codes

    listed = {
        (scheme, getattr(getattr(codes, scheme), name).value): getattr(getattr(codes, scheme), name).meaning
        for scheme in ("DCM", "SCT")
        for name in getattr(codes, scheme).dir()
    }
    report = make_report(two_targets(home), home=home)
    named = [item.ConceptNameCodeSequence[0] for item in items(report)]
    for name in named:
        if name.CodingSchemeDesignator in ("DCM", "SCT"):
            assert (name.CodingSchemeDesignator, name.CodeValue) in listed, name.CodeMeaning


def test_a_unit_that_ucum_does_not_know_is_refused_with_the_number(home: Path) -> None:
    with pytest.raises(ValueError, match=r"^volume: expected a unit by UCUM"):
        make_report(predicted(home, numbers=(replace(NUMBER, unit="years"),)), home=home)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(home: Path, value: float) -> None:
    whole = predicted(home)
    for change in (
        {"numbers": (replace(NUMBER, value=value),)},
        {"numbers": (replace(NUMBER, low=value),)},
        {"newest_visit": (value,)},
        {"scans": (replace(whole.scans[0], weight=value), *whole.scans[1:])},
        {"scans": (replace(whole.scans[0], contributions=(value,)), *whole.scans[1:])},
        {"survival": SurvivalCurve(1.0, (365.0,), (value,), (), ())},
    ):
        with pytest.raises(ValueError, match="expected finite numbers in a prediction, got 1"):
            make_report(replace(whole, **change), home=home)


def test_the_uid_is_the_same_for_the_same_result_and_another_for_another(home: Path) -> None:
    one, again = (make_report(predicted(home), home=home) for _ in range(2))
    other = make_report(predicted(home, numbers=(replace(NUMBER, value=1.0),)), home=home)
    assert one.SOPInstanceUID == again.SOPInstanceUID == one.file_meta.MediaStorageSOPInstanceUID
    assert one.SeriesInstanceUID == again.SeriesInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID and one.SeriesInstanceUID != other.SeriesInstanceUID
    assert len({one.SOPInstanceUID, one.SeriesInstanceUID, one.StudyInstanceUID}) == 3


NAMES = {
    "ISO_IR 100": "Müller^Jörg",
    "ISO_IR 144": "Иванов^Пётр",
    "ISO_IR 192": "Wang^XiaoDong=王^小东",
}


@pytest.mark.parametrize("charset", NAMES)
@pytest.mark.parametrize("target", ["volume", "größe"])
def test_a_name_that_is_not_ascii_stays_the_name(tmp_path: Path, charset: str, target: str) -> None:
    write_study(tmp_path / "a", uid="1.2.3", SpecificCharacterSet=charset, PatientName=NAMES[charset])
    prediction = predicted(tmp_path, numbers=(replace(NUMBER, name=target),))
    made = written(make_report(prediction, home=tmp_path), tmp_path)
    assert str(made.PatientName) == NAMES[charset]
    assert f"target.{target}" in numbers(made)
    assert made.SpecificCharacterSet == (charset if target == "volume" else "ISO_IR 192")


def test_a_name_in_two_japanese_character_sets_stays_the_name(tmp_path: Path) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    write_study(tmp_path / "a", uid="1.2.3", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    made = written(make_report(predicted(tmp_path), home=tmp_path), tmp_path)
    assert str(made.PatientName) == name
    assert list(made.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]


def test_dates_as_before_dicom_3_are_written_as_today(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", date="2018.03.04", StudyTime="10:20:30", PatientBirthDate="1970.01.02")
    made = written(make_report(predicted(tmp_path), home=tmp_path), tmp_path)
    assert (made.StudyDate, made.StudyTime, made.PatientBirthDate) == ("20180304", "102030", "19700102")


def test_nothing_of_the_patient_is_logged_or_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    # highdicom 0.28 logs names that it takes for odd, with the name.
    odd = {"PatientName": CANARY, "PatientID": f"{CANARY}\\x", "PatientBirthDate": CANARY, "PatientSex": CANARY}
    write_study(tmp_path / "a", uid="1.2.3", **odd)
    prediction = predicted(tmp_path)
    caplog.clear()
    recwarn.clear()
    write_object(make_report(prediction, home=tmp_path), tmp_path / "report.dcm")
    assert CANARY not in caplog.text
    assert not [one for one in recwarn if CANARY in str(one.message)]


@needs_validator
@pytest.mark.parametrize("modality", ["MR", "CT", "CR", "DX"])
def test_dciodvfy_finds_no_error_and_only_the_private_scheme_to_warn_of(tmp_path: Path, modality: str) -> None:
    kinds = {
        "MR": pydicom.uid.MRImageStorage,
        "CT": pydicom.uid.CTImageStorage,
        "CR": pydicom.uid.ComputedRadiographyImageStorage,
        "DX": pydicom.uid.DigitalXRayImageStorageForPresentation,
    }
    flat = {"ImagePositionPatient": None, "ImageOrientationPatient": None} if modality in ("CR", "DX") else {}
    tags = {"Modality": modality, "SOPClassUID": kinds[modality], "PatientName": "Nobody^At all", **flat}
    write_study(tmp_path / "a", uid="1.2.3", heights=(0,) if flat else (0, 2, 4), **tags)
    cautions = (PredictionWarning("scans", "some"), PredictionWarning("spacing", "some", scan=0))
    whole = predicted(tmp_path, warnings=cautions, left_out=(UnusedScan("x", "no scan"),), newest_visit=(0.5,))
    assert complaints(make_report(whole, home=tmp_path), tmp_path / "report.dcm") == ([], [])
    curve = SurvivalCurve(None, (365.0,), (0.2,), (1.0,), (0.9,))
    survival = replace(whole, survival=curve, numbers=(PredictedNumber("log_risk", "1", -0.25),))
    assert complaints(make_report(survival, home=tmp_path), tmp_path / "report.dcm") == ([], [])


# Of the files in the pack these have faults of their own that a report takes over: who it was de-identified by.
FAULTS = ("DeidentificationMethod",)
FEW = ["cr_mono1", "ct_tiny", "ct_tilt_neg", "mr_enh_2echo", "mr_mosaic_siemens", "one_MR_small", "rtdose"]
REST = sorted({path.name for path in (PACK / "series").glob("*")} - {*FEW, "not_images"})


@needs_pack
@needs_validator
@pytest.mark.parametrize("series", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_a_report_of_a_real_series_refers_to_its_files_and_is_valid(series: str, tmp_path: Path) -> None:
    home = PACK / "series" / series
    for scan in scans_in(home):
        report = make_report(predicted(home, [scan]), home=home)
        files = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in scan.files]
        assert sorted(images(report)) == sorted(str(file.SOPInstanceUID) for file in files)
        assert (report.PatientID, report.StudyInstanceUID) == (files[0].get("PatientID", ""), files[0].StudyInstanceUID)
        errors, _ = complaints(report, tmp_path / "report.dcm")
        assert [error for error in errors if not any(fault in error for fault in FAULTS)] == []

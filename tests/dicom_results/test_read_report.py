"""A report that was written says the prediction again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from made_results import MODEL, NUMBER, predicted, scans_in, write_study
from pydicom.dataset import Dataset
from tiny_model import write_scan

from monai_mvreg.dicom_results.evidence import write_object
from monai_mvreg.dicom_results.read_report import ReadReport, read_report
from monai_mvreg.dicom_results.structured_report import make_report
from monai_mvreg.predict.prediction import PredictedNumber, Prediction, PredictionWarning, SurvivalCurve
from tests.dicom_results.test_evidence import two_echoes


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_study(tmp_path / "patient" / "a", uid="1.2.3", Modality="CT")
    write_scan(tmp_path / "patient" / "b.nii", seed=2)
    return tmp_path / "patient"


def returned(prediction: Prediction, home: Path) -> ReadReport:
    write_object(make_report(prediction, home=home), home.parent / "report.dcm")
    return read_report(pydicom.dcmread(home.parent / "report.dcm"))


def test_numbers_scans_and_model_come_back_exactly(home: Path) -> None:
    prediction = predicted(home)
    found = returned(prediction, home)
    assert (found.numbers, found.model, found.survival) == (prediction.numbers, prediction.model, None)
    for mine, given in zip(found.scans, prediction.scans, strict=True):
        assert (mine.day, mine.weight, mine.contributions) == (given.day, given.weight, given.contributions)
        assert (mine.content, mine.modality) == (given.content, given.modality)
    instances = {str(pydicom.dcmread(path).SOPInstanceUID) for path in (home / "a").iterdir()}
    assert {uid for uid, _ in found.scans[0].instances} == instances
    assert found.scans[1].instances == ()


def test_a_number_without_interval_and_a_scan_alone_come_back(home: Path) -> None:
    bare = PredictedNumber("a_number_with_a_long_name", "{score}/mL.min-1.kg-1", -3.5)
    prediction = predicted(home, numbers=(bare,))
    prediction = replace(prediction, scans=(replace(prediction.scans[0], contributions=None),))
    found = returned(prediction, home)
    assert found.numbers == (bare,)
    assert found.scans[0].contributions is None


def test_several_numbers_come_back_in_their_order(home: Path) -> None:
    whole = predicted(home, numbers=(NUMBER, PredictedNumber("age", "a", 71.5), PredictedNumber("weight", "kg", 70.0)))
    scans = tuple(replace(scan, contributions=(0.5, -0.25, 0.125)) for scan in whole.scans)
    found = returned(replace(whole, scans=scans), home)
    assert found.numbers == whole.numbers
    assert [scan.contributions for scan in found.scans] == [(0.5, -0.25, 0.125)] * 2


@pytest.mark.parametrize("median", [730.5, None])
def test_a_time_to_event_comes_back_at_its_horizons(home: Path, median: float | None) -> None:
    curve = SurvivalCurve(median, (365.0, 1095.5), (0.2, 0.7), (1.0, 2.0), (0.9, 0.8))
    found = returned(predicted(home, numbers=(PredictedNumber("log_risk", "1", -0.25),), survival=curve), home)
    assert found.survival == replace(curve, days=(), survival=())


def test_warnings_of_the_patient_and_of_scans_come_back(home: Path) -> None:
    cautions = (PredictionWarning("scans", "of all"), PredictionWarning("spacing", "of the second", scan=1))
    assert returned(predicted(home, warnings=cautions), home).warnings == ("of all", "of the second")


def test_the_used_frames_of_a_multi_frame_object_come_back(tmp_path: Path) -> None:
    two_echoes(tmp_path / "patient" / "im")
    home = tmp_path / "patient"
    _, long = scans_in(home)
    (scan,) = returned(predicted(home, [long]), home).scans
    assert [frames for _, frames in scan.instances] == [(2, 4, 6)]


def test_what_highdicom_reads_is_taken_too(home: Path) -> None:
    returned(predicted(home), home)
    assert read_report(hd.sr.srread(home.parent / "report.dcm")).model == MODEL


def test_another_object_is_refused(home: Path) -> None:
    report = make_report(predicted(home), home=home)
    report.ContentSequence = [item for item in report.ContentSequence if item.ValueType != "CONTAINER"]
    for other in (Dataset(), pydicom.dcmread(home / "a" / "im0"), report):
        with pytest.raises(ValueError, match="expected a structured report of monai-mvreg, got another DICOM object"):
            read_report(other)

"""The verbs of the command line for the hospital."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pydicom
import pytest
from made_results import write_study
from make_dicom import CANARY
from tiny_model import BUNDLE, write_model, write_scan

from monai_mvreg.cli.main import main
from monai_mvreg.dicom_results.read_report import read_report
from monai_mvreg.predict.predictor import Predictor


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "models")


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    write_study(tmp_path / "patient" / "a", uid="1.2.3", date="20200101")
    write_study(tmp_path / "patient" / "b", uid="1.2.4", date="20200601")
    return tmp_path / "patient"


def run(source: Path, models: Path, *arguments: object) -> int:
    return main(["sr", str(source), "--bundle", str(BUNDLE), "--models", str(models), *map(str, arguments)])


def test_sr_writes_the_report_into_a_folder(patient: Path, models: Path, tmp_path: Path) -> None:
    assert run(patient, models, "--out", tmp_path / "out") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.dcm"]
    found = read_report(pydicom.dcmread(tmp_path / "out" / "report.dcm"))
    assert found.numbers == Predictor.from_bundle(BUNDLE, models=models).predict_folder(patient).numbers


def test_sr_writes_the_report_into_a_file_and_the_maps_beside_it(
    patient: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scan(patient / "scan_2020-03-01.nii", seed=2)
    assert run(patient, models, "--out", tmp_path / "out" / "mine.dcm", "--maps", "gradcam") == 0
    files = ["mine.dcm", "scan-1_gradcam.dcm", "scan-3_gradcam.dcm"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    shown = capsys.readouterr().out
    assert [line.rpartition("/")[2] for line in shown.splitlines() if line.startswith("Written")] == files
    assert "no map: scan 2 is not DICOM" in shown and CANARY not in shown


def test_sr_writes_a_folder_for_each_patient_of_a_table(patient: Path, models: Path, tmp_path: Path) -> None:
    rows = [("p1", "patient/a", 0), ("p2", "patient/b", 0)]
    pd.DataFrame(rows, columns=["patient", "path", "day"]).to_csv(tmp_path / "cohort.csv", index=False)
    assert run(tmp_path / "cohort.csv", models, "--out", tmp_path / "out") == 0
    studies = [pydicom.dcmread(tmp_path / "out" / f"patient-{at}" / "report.dcm").StudyInstanceUID for at in (1, 2)]
    assert studies == ["1.2.3.9", "1.2.4.9"]


def test_sr_writes_the_others_where_a_patient_of_a_table_has_no_prediction(
    patient: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.nii").write_bytes(b"no scan" * 99)
    rows = [("p1", "bad.nii", 0), ("p2", "patient/b", 0)]
    pd.DataFrame(rows, columns=["patient", "path", "day"]).to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "cohort.csv", models, "--out", tmp_path / "out")
    assert end.value.code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["patient-2"]
    assert "error: nothing could be predicted for 1 patient\n  patient 1: " in capsys.readouterr().err


def test_sr_ends_with_2_and_a_sentence_where_no_scan_is_dicom(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scan(tmp_path / "patient" / "x.nii", seed=1)
    assert run(tmp_path / "patient", models, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("error: expected a DICOM scan among the 1 used, got none")
    assert not (tmp_path / "out").exists()


def test_sr_writes_the_others_where_a_patient_of_a_table_has_no_report_and_names_its_number(
    patient: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scan(tmp_path / "x.nii", seed=1)
    rows = [("Mustermann", "x.nii", 0), ("p2", "patient/b", 0)]
    pd.DataFrame(rows, columns=["patient", "path", "day"]).to_csv(tmp_path / "c.csv")
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "c.csv", models, "--out", tmp_path / "out")
    assert end.value.code == 1 and (tmp_path / "out" / "patient-2" / "report.dcm").is_file()
    shown = capsys.readouterr().err
    assert "error: patient 1 of the table: expected a DICOM scan" in shown and "Mustermann" not in shown


def test_sr_refuses_one_file_for_many_patients(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame([("p", "x.nii", 0)], columns=["patient", "path", "day"]).to_csv(tmp_path / "c.csv")
    assert run(tmp_path / "c.csv", models, "--out", tmp_path / "out.dcm") == 2
    assert "expected --out FOLDER for a table of patients" in capsys.readouterr().err


def test_sr_refuses_a_unit_that_dicom_has_no_code_for(
    patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = write_model(tmp_path / "years" / "models", unit="years")
    assert run(patient, models, "--out", tmp_path / "out") == 2
    assert "volume: expected a unit by UCUM" in capsys.readouterr().err


def test_without_highdicom_sr_says_what_to_install(
    patient: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.delitem(sys.modules, "monai_mvreg.dicom_results.parametric_map", raising=False)
    assert run(patient, Path("nowhere"), "--out", "nowhere") == 2
    assert capsys.readouterr().err == 'error: DICOM objects need highdicom: pip install "monai-mvreg[dicom]"\n'

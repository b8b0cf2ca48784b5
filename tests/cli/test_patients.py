"""The verbs of the command line for patients."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from mistakes import mistake
from tiny_model import BUNDLE, write_model, write_scan, write_visit

from monai_mvreg.cli.main import main
from monai_mvreg.predict.prediction import prediction_schema, read_predictions
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.scans.read import read_scan


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model" / "models")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for at, date in enumerate(("20200101", "20200301")):
        write_visit(tmp_path / "patient" / f"visit-{at}", date=date, seed=at)
    return tmp_path / "patient"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [(f"p{at // 2}", write_scan(tmp_path / f"{at}.nii", seed=at).name, 300 * (at % 2)) for at in range(6)]
    pd.DataFrame(rows, columns=["patient", "path", "day"]).to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


def run(verb: str, source: Path, models: Path, *arguments: object) -> int:
    return main([verb, str(source), "--bundle", str(BUNDLE), "--models", str(models), *map(str, arguments)])


def test_predict_prints_one_patient_in_words(folder: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", folder, models) == 0
    shown = capsys.readouterr().out
    [number] = Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder).numbers
    assert f"volume: {number.value:.4g} mL (90% interval {number.low:.4g} to {number.high:.4g})" in shown
    assert "visit-1" in shown and "Mustermann" not in shown


def test_predict_prints_json_and_nothing_else(folder: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", folder, models, "--json") == 0
    [found] = json.loads(capsys.readouterr().out)["predictions"]
    expected = Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder)
    assert found["numbers"][0]["value"] == expected.numbers[0].value


def test_predict_writes_every_patient_of_a_table(table: Path, models: Path, tmp_path: Path) -> None:
    assert run("predict", table, models, "--out", tmp_path / "out") == 0
    found = read_predictions(tmp_path / "out" / "predictions.json")
    rows = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(rows["patient"]) == [one.patient for one in found] == ["p0", "p1", "p2"]
    assert rows["volume_predicted"].tolist() == pytest.approx([one.numbers[0].value for one in found], rel=1e-6)


def test_a_patient_without_a_prediction_does_not_stop_the_others_and_is_told(
    table: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for at in (2, 3):
        (tmp_path / f"{at}.nii").write_bytes(b"no scan" * 99)
    with pytest.raises(SystemExit) as end:
        run("predict", table, models, "--out", tmp_path / "out")
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert "error: nothing could be predicted for 1 patient\n  patient 2: expected a scan" in told
    assert "p1" not in told
    whole = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [one["patient"] for one in whole["predictions"]] == ["p0", "p2"]
    assert [one["patient"] for one in whole["unpredicted"]] == ["p1"]


def test_each_folder_of_a_folder_is_a_patient_if_asked(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("anna", "bert", "carl")):
        write_scan(tmp_path / "all" / name / "t1_2020-01-01.nii", seed=seed)
    (tmp_path / "all" / "dora").mkdir()
    assert run("predict", tmp_path / "all", models) == 2
    assert "got files in 3 folders that may be patients" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run("predict", tmp_path / "all", models, "--each", "--out", tmp_path / "out")
    shown = capsys.readouterr()
    assert end.value.code == 1 and "3 patients predicted" in shown.out
    assert "  patient 4: " in shown.err
    whole = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [one["patient"] for one in whole["predictions"]] == ["anna", "bert", "carl"]
    assert [one["patient"] for one in whole["unpredicted"]] == ["dora"]
    alone = Predictor.from_bundle(BUNDLE, models=models).predict_folder(tmp_path / "all" / "bert")
    assert whole["predictions"][1]["numbers"][0]["value"] == alone.numbers[0].value
    assert run("predict", tmp_path / "all" / "anna", models, "--each") == 2
    assert "expected a folder with one folder per patient" in capsys.readouterr().err


def test_the_schema_of_the_answer_is_printed_without_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["predict", "--schema"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == prediction_schema()


def test_predict_refuses_in_one_line(
    table: Path, folder: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--bundle", BUNDLE, "--models", models]
    assert "give --bundle" in mistake(capsys, "predict", folder, "--bundle", tmp_path)
    assert "expected --covariate NAME=VALUE, got 'age'" in mistake(
        capsys, "predict", folder, *model, "--covariate", "age"
    )
    assert "expected no covariates for this model" in mistake(capsys, "predict", folder, *model, "--covariate", "age=3")
    assert "expected covariates in the table" in mistake(capsys, "predict", table, *model, "--covariate", "age=3")
    assert "expected a column 'when'" in mistake(capsys, "predict", table, *model, "--day", "when")


def test_explain_writes_maps_that_lie_over_the_scans(
    folder: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", folder, models, "--out", tmp_path / "maps", "--method", "gradcam", "--json") == 0
    [found] = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in found["maps"]] == ["scan-0_gradcam.nii.gz", "scan-1_gradcam.nii.gz"]
    scan, own = nib.load(tmp_path / "maps" / "scan-0_gradcam.nii.gz"), read_scan(folder / "visit-0")
    assert scan.shape == own.array.shape
    assert own.affine is not None
    np.testing.assert_allclose(scan.affine, own.affine, atol=1e-5)


def test_report_writes_one_page_for_a_folder_without_a_name(folder: Path, models: Path, tmp_path: Path) -> None:
    assert run("report", folder, models, "--out", tmp_path / "new" / "page.html") == 0
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    [number] = Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder).numbers
    assert f"{number.value:.0f}".strip("-") in page and "Prediction for one patient" in page
    assert page.count("data:image/jpeg") == 2 and "visit-0" not in page and "Mustermann" not in page


def test_report_shows_no_scan_with_a_name_burned_in(folder: Path, models: Path, tmp_path: Path) -> None:
    write_visit(folder / "visit-9", date="20200501", seed=9, BurnedInAnnotation="YES")
    for arguments, pictures in (([], 2), (["--identify"], 3)):
        assert run("report", folder, models, "--out", tmp_path / "page.html", "--saliency", "none", *arguments) == 0
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert page.count("data:image/jpeg") == pictures
        assert ("text may be burned in" in page) == (pictures == 2)


def test_report_writes_a_page_for_each_patient_of_a_table_and_an_index(
    table: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for at in (2, 3):
        (tmp_path / f"{at}.nii").write_bytes(b"no scan" * 99)
    with pytest.raises(SystemExit) as end:
        run("report", table, models, "--out", tmp_path / "pages", "--saliency", "none", "--json")
    assert end.value.code == 1
    shown = capsys.readouterr()
    names = [Path(page).name for page in json.loads(shown.out)]
    assert names == ["index.html", "patient-1.html", "patient-3.html"]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "pages").iterdir())
    index = (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert 'href="patient-3.html"' in index and "Without a prediction" in index


def test_report_refuses_in_one_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--bundle", BUNDLE, "--models", models, "--out", tmp_path / "page.html"]
    assert "expected SOURCE" in mistake(capsys, "report", *arguments)
    assert "expected trained weights" in mistake(
        capsys, "report", "--card", "--models", tmp_path, "--out", tmp_path / "card"
    )


def test_report_writes_the_card_of_a_model(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["report", "--card", "--models", str(models), "--bundle", str(BUNDLE), "--out", str(tmp_path / "c")]) == 0
    )
    assert "model_card.html" in capsys.readouterr().out
    assert "## Intended use" in (tmp_path / "c" / "MODEL_CARD.md").read_text(encoding="utf-8")

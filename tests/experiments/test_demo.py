"""The demo: an honest cohort, the same every time, and a report at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.transforms import Compose, LoadImaged, Orientationd

from monai_mvreg.cli.main import main
from monai_mvreg.cohort.sources import rows_from_scans
from monai_mvreg.cohort.table import Columns, read_cohort
from monai_mvreg.experiments.demo import (
    SHAPE,
    VOXEL,
    draw_patient,
    write_demo_cohort,
    write_dicom,
    write_nifti,
)
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import FoundPatient
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.reader import ScanReader

BUNDLE = Path(__file__).parents[2] / "bundle"
LOAD = LoadImaged("image", reader=ScanReader(), ensure_channel_first=True)
READ = Compose([LOAD, Orientationd("image", "RAS", labels=None)])
COLUMNS = Columns(day="day", target=("growth",), unit="unit", fold="fold")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_demo_cohort(folder, patients=12)
    return folder


def test_the_same_seed_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_demo_cohort(tmp_path, patients=12)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*") if path.is_file())
    for name in names:
        if name.suffix == ".gz":  # a gzip holds the time it was written
            np.testing.assert_array_equal(*(READ({"image": str(at / name)})["image"] for at in (folder, tmp_path)))
        else:
            assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_another_seed_draws_another_patient() -> None:
    assert draw_patient(0, seed=1).growth != draw_patient(0).growth


def test_dicom_and_nifti_of_one_volume_read_the_same(tmp_path: Path) -> None:
    patient = draw_patient(3)
    dicom = write_dicom(tmp_path / "series", patient.volumes[0], date=patient.start, patient="P")
    nifti = write_nifti(tmp_path / "scan.nii.gz", patient.volumes[0])
    one, other = (READ({"image": str(path)})["image"] for path in (dicom, nifti))
    np.testing.assert_array_equal(one.numpy(), other.numpy())
    np.testing.assert_array_equal(one[0].numpy(), patient.volumes[0])
    np.testing.assert_allclose(one.affine, other.affine)
    np.testing.assert_allclose(np.diag(one.affine)[:3], VOXEL)


def test_the_target_is_the_slope_of_the_diameters_over_the_years(folder: Path) -> None:
    table = pd.read_csv(folder / "cohort.csv").groupby("patient").first()
    for number, written in enumerate(table.itertuples()):
        patient = draw_patient(number)
        slope = np.polyfit(np.array(patient.days) / 365.25, patient.diameters, 1)[0]
        assert written.growth == pytest.approx(slope, abs=1e-4)
        assert written.unit == "mm/a"


def test_the_larger_the_diameter_the_more_voxels_are_bright() -> None:
    wanted, measured = [], []
    for number in range(30):
        patient = draw_patient(number)
        for diameter, volume in zip(patient.diameters, patient.volumes, strict=True):
            smooth = torch.nn.functional.avg_pool3d(torch.from_numpy(volume.astype(np.float32))[None], 3, 1, 1)
            wanted.append(diameter)
            measured.append(float((smooth > 0.72 * smooth.max()).sum()) ** (1 / 3))
    assert np.corrcoef(wanted, measured)[0, 1] > 0.7


def test_one_scan_tells_little_about_the_growth() -> None:
    patients = [draw_patient(number) for number in range(400)]
    growth = [patient.growth for patient in patients]
    for at in (0, -1):
        sizes = [patient.diameters[at] for patient in patients]
        assert np.corrcoef(growth, sizes)[0, 1] ** 2 < 0.2


def test_cohort_has_two_to_five_dated_scans_per_patient_in_both_formats(folder: Path) -> None:
    cohort = read_cohort(str(folder / "cohort.csv"), COLUMNS, images=str(folder))
    assert len(cohort.patients) == 12
    assert {patient.fold for patient in cohort.patients} == {"0", "1", "2", "3", "4"}
    assert all(2 <= len(patient.scans) <= 5 for patient in cohort.patients)
    assert sum("dicom" in patient.scans[0] for patient in cohort.patients) == 6
    for patient in cohort.patients[:2]:
        assert READ({"image": patient.scans[0]})["image"].shape == (1, *SHAPE)


def test_newest_table_holds_the_last_scan_of_each_patient(folder: Path) -> None:
    every, newest = (pd.read_csv(folder / name) for name in ("cohort.csv", "newest.csv"))
    last = every.sort_values("day").groupby("patient")["path"].last()
    assert newest.set_index("patient")["path"].to_dict() == last.to_dict()


def test_the_written_folders_are_found_as_any_other(folder: Path) -> None:
    table = pd.read_csv(folder / "cohort.csv")
    for kind in ("dicom", "nifti"):
        scans, left_out = find_scans(folder / kind)
        rows, nobodys = rows_from_scans(folder / kind, scans)
        assert not left_out and not nobodys
        own = table[table["path"].str.startswith(kind)]
        assert rows["path"].tolist() == own["path"].str.removeprefix(f"{kind}/").tolist()
        assert rows["day"].tolist() == own["day"].tolist()


def prediction_properties(out: Path) -> None:
    """Of a demo's model: a follow-up equals a full run, any visits have a number, and no order of rows matters."""
    predictor = Predictor.from_bundle(BUNDLE, models=out / "models")
    cohort = read_cohort(str(out / "cohort" / "cohort.csv"), Columns(day="day"), images=str(out / "cohort"))
    patient = max(cohort.patients, key=lambda patient: len(patient.scans))
    following = Predictor.from_bundle(BUNDLE, models=out / "models", kept=out.parent / "kept")
    encoded: list[int] = []
    following.members[0].encoder.register_forward_hook(lambda *_: encoded.append(1))
    for visits in range(1, len(patient.scans) + 1):
        scans, days = patient.scans[:visits], patient.days[:visits]
        part = replace(patient, scans=scans, days=days, views=(0,) * visits)
        whole = predictor.predict(FoundPatient(part, {}, ()), home=out)
        assert following.predict(FoundPatient(part, {}, ()), home=out) == whole
        assert len(encoded) == visits
        turned = replace(part, scans=scans[::-1], days=days[::-1])
        assert predictor.predict(FoundPatient(turned, {}, ()), home=out) == whole


def test_demo_ends_with_a_report_and_says_what_was_reached(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "it's out"
    assert main(["demo", "--out", str(out), "--patients", "16", "--epochs", "1"]) == 0
    shown = capfd.readouterr()
    for words in ("All scans with their dates", "Newest scan alone", "Mean of the training patients", "mm/year ("):
        assert words in shown.out
    assert f"Report: {out / 'report.html'}" in shown.out
    assert "mvreg scan FOLDER" in shown.out and "monai.bundle run" in shown.out
    assert "train" in shown.err  # the progress bar
    page = (out / "report.html").read_text(encoding="utf-8")
    for title in ("A synthetic cohort", "Comparison", "The scans of one patient", "Training", "Limits"):
        assert f"<h2>{title}</h2>" in page
    predictions = pd.read_csv(out / "predictions.csv")
    assert set(predictions["fold"]) == {1}
    assert "DEMO-" not in page
    assert json.loads((out / "metrics.json").read_text())["growth"]["patients"] == len(predictions)
    assert (out / "models/model.pt").is_file() and (out / "newest_scan/predictions.csv").is_file()
    prediction_properties(out)
    # A second demo does not touch the first.
    assert main(["demo", "--out", str(out)]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and "rm -r" in error and error.count("\n") == 1


def test_demo_refuses_a_folder_of_someone_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected a new or empty folder" in error and "rm -r" not in error


@pytest.mark.slow
def test_the_full_demo_beats_the_newest_scan_and_the_mean(tmp_path: Path) -> None:
    from monai_mvreg.experiments.demo import run_demo

    result = run_demo(tmp_path / "demo")
    all_scans, newest, mean = result.errors.values()
    assert result.r2.value > 0.7
    assert all_scans.high < newest.low and all_scans.high < mean.low

"""Cross-validation: every patient predicted once by models that did not see it, and the same after an interruption."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from monai_mvreg.experiments.crossval import Plan, _choosing, crossvalidate, predict_new
from monai_mvreg.metrics.survival import concordance
from monai_mvreg.results.predictions_table import PredictionsTable, average
from tests.results.tables import whole

BUNDLE = Path(__file__).parents[2] / "bundle"
TINY: dict[str, Any] = {
    "spatial_size": [8, 8, 8],
    "grid": [{"_target_": "monai.transforms.ResizeWithPadOrCropd", "keys": "image", "spatial_size": "@spatial_size"}],
    "intensity": [{"_target_": "monai.transforms.ScaleIntensityd", "keys": "image", "minv": None, "factor": -0.99}],
    "augmentation": [],
    "encoder": {"_target_": "torch.nn.Flatten"},
    "embedding_size": 512,
    "pool": {"_target_": "monai_mvreg.networks.pools.MeanPool", "size": "@embedding_size"},
    "epochs": 2,
    "batch_size": 4,
    "device": "$torch.device('cpu')",
}


def study(folder: Path, *, fold: bool = True) -> Path:
    """18 patients of one scan each; the target is its brightness, and so is, turned round, the time to event."""
    folder.mkdir()
    generator, rows = np.random.default_rng(0), []
    for number in range(18):
        level = generator.uniform(20, 80)
        image = generator.normal(level, 1, (8, 8, 8)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{number}.nii")
        row = {"patient": f"p{number:02d}", "path": f"{number}.nii", "day": 0, "target": round(level, 3)}
        row |= {"time_to_event": round(10_000 / level, 1), "event": int(number % 4 > 0)}
        rows.append(row | ({"fold": number % 3} if fold else {}))
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | ({} if fold else {"columns#fold": None})))
    return folder


def plan_of(folder: Path, **settings: Any) -> Plan:
    return Plan(BUNDLE, (folder / "tiny.yaml",), folder, settings)


def test_every_patient_is_predicted_once_by_a_model_that_left_it_out(tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    table = crossvalidate(plan_of(folder), tmp_path / "out").frame
    assert list(table["patient"]) == [f"p{number:02d}" for number in range(18)]
    for name in "012":
        alone = pd.read_csv(tmp_path / f"out/fold-{name}_seed-0/test/predictions.csv").set_index("patient")
        mine = table[table["fold"] == name].set_index("patient")
        assert set(alone.index) == set(mine.index)
        np.testing.assert_allclose(mine["target_predicted"], alone["target_predicted"].loc[mine.index])
        seen = pd.read_csv(tmp_path / f"out/fold-{name}_seed-0/training/predictions.csv")
        assert not set(seen["patient"]) & set(mine.index)
    stored = json.loads((tmp_path / "out/metrics.json").read_text())["target"]
    assert stored["patients"] == 18
    assert "Mean of the patients of other folds" in (tmp_path / "out/report.html").read_text()

    pd.read_csv(folder / "cohort.csv")[["patient", "path", "day"]].to_csv(tmp_path / "new.csv", index=False)
    new = predict_new(plan_of(folder), tmp_path / "out", tmp_path / "new.csv").frame
    models = [pd.read_csv(path) for path in sorted((tmp_path / "out").glob("fold-*/new/predictions.csv"))]
    assert len(models) == 3 and len(new) == 18
    np.testing.assert_allclose(
        new["target_predicted"], np.mean([model["target_predicted"] for model in models], axis=0), rtol=1e-6
    )

    for found in (table, new):
        assert list(found.columns).index("target_high") == list(found.columns).index("target_predicted") + 2
        assert (found["target_low"] < found["target_predicted"]).all()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.log")}
    again = crossvalidate(plan_of(folder), tmp_path / "out").frame
    pd.testing.assert_frame_equal(again, table)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.log")}
    with pytest.raises(ValueError, match=r"in settings#epochs \(there: not given, now: 3\): name another folder"):
        crossvalidate(plan_of(folder, epochs=3), tmp_path / "out")
    rows = pd.read_csv(folder / "cohort.csv")
    for name, corrected in (("target", rows["target"] + 100), ("unit", "mL")):
        rows.assign(**{name: corrected}).to_csv(folder / "cohort.csv", index=False)
        changed = plan_of(folder, **({"columns#unit": "unit"} if name == "unit" else {}))
        with pytest.raises(ValueError, match=r"a run that differs in cohort \(there: hash \w+, unit 1, now: hash"):
            crossvalidate(changed, tmp_path / "out")


def test_a_cohort_without_folds_gets_balanced_ones_and_a_broken_run_names_its_log(tmp_path: Path) -> None:
    folder = study(tmp_path / "data", fold=False)
    with pytest.raises(ChildProcessError, match=r"fold-0_seed-0, train: .* did you mean 'epochs'.*train\.log"):
        crossvalidate(plan_of(folder, epoch=1), tmp_path / "out", folds=3)
    settings = json.loads((tmp_path / "out/plan.json").read_text())["settings"]
    assert settings["folds"] == 3 and isinstance(settings["split_seed"], int)
    assert "--columns#fold $None" in " ".join(plan_of(folder, **{"columns#fold": None}).arguments("train"))
    with pytest.raises(ValueError, match="at least 3 folds"):
        crossvalidate(plan_of(folder), tmp_path / "two", folds=2)


def test_with_several_seeds_every_other_fold_chooses_the_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: dict[str, list[tuple[int, str]]] = {}

    def run(_: Plan, place: Path, settings: dict[str, Any], fold: str) -> None:
        (validation,) = settings["validation_folds"]
        assert settings["test_folds"] == [fold]
        chosen.setdefault(fold, []).append((settings["seed"], validation))
        rows = pd.DataFrame({"patient": [f"p{fold}"], "fold": fold, "target": 1.0, "target_predicted": 1.0 + int(fold)})
        (place / "test").mkdir(parents=True)
        PredictionsTable(whole(rows)).write(place / "test/predictions.csv")

    monkeypatch.setattr("monai_mvreg.experiments.crossval._run_fold", run)
    crossvalidate(plan_of(study(tmp_path / "data")), tmp_path / "out", seeds=(0, 1))
    assert {fold: {seed for seed, _ in runs} for fold, runs in chosen.items()} == {fold: {0, 1} for fold in "012"}
    assert {fold: {other for _, other in runs} for fold, runs in chosen.items()} == {
        fold: set("012") - {fold} for fold in "012"
    }


@pytest.mark.slow
def test_the_fold_that_chooses_the_epoch_is_predicted_by_the_training(tmp_path: Path) -> None:
    crossvalidate(plan_of(study(tmp_path / "data"), epochs=1), tmp_path / "out", seeds=(0, 1))
    for test in "012":
        tables = [tmp_path / f"out/fold-{test}_seed-{seed}/training/predictions.csv" for seed in (0, 1)]
        chose = [set(pd.read_csv(table, dtype={"fold": str})["fold"]) for table in tables]
        assert sorted(chose, key=min) == [{other} for other in "012" if other != test]


def test_predictions_of_several_models_are_averaged_by_patient() -> None:
    first = whole(pd.DataFrame({"patient": ["a", "b"], "target": [1, 2], "target_predicted": [1.0, 3.0], "unit": "mL"}))
    second = first.iloc[::-1].assign(target_predicted=[5.0, 2.0])
    mean = average([PredictionsTable(first), PredictionsTable(second)])
    assert mean.predicted("target").tolist() == [1.5, 4.0] and mean.patient.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="the same patients"):
        average([PredictionsTable(first), PredictionsTable(second.assign(patient=["a", "c"]))])


@pytest.mark.parametrize("apart", [False, True], ids=["in the table of scans", "in a table of outcomes"])
def test_shuffled_labels_are_those_of_other_patients_and_nothing_else_changes(apart: bool, tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    rows = pd.read_csv(folder / "cohort.csv")
    for path in rows["path"]:
        shutil.copy(folder / path, folder / f"later_{path}")
    rows = pd.concat([rows, rows.assign(path="later_" + rows["path"], day=9)])  # two scans each
    rows.to_csv(folder / "cohort.csv", index=False)
    settings = {}
    if apart:
        rows.drop_duplicates("patient").drop(columns=["path", "day"]).to_csv(tmp_path / "outcomes.csv", index=False)
        settings["outcomes_file"] = str(tmp_path / "outcomes.csv")
    plan = plan_of(folder, **settings)
    shuffled = plan.permuted(tmp_path / "permuted.csv", seed=1)
    before, after = plan.cohort().patients, shuffled.cohort().patients
    assert [(p.key, p.scans, p.days, p.fold) for p in before] == [(p.key, p.scans, p.days, p.fold) for p in after]
    assert sorted(p.target for p in before) == sorted(p.target for p in after)
    assert sum(a.target == b.target for a, b in zip(before, after, strict=True)) < 5
    assert shuffled.permuted(tmp_path / "again.csv", seed=2).cohort().patients != after


@pytest.mark.slow
def test_shuffled_labels_fall_to_the_mean(tmp_path: Path) -> None:
    plan = plan_of(study(tmp_path / "data")).permuted(tmp_path / "out/permuted.csv", seed=0)
    crossvalidate(plan, tmp_path / "out")
    assert json.loads((tmp_path / "out/metrics.json").read_text())["target"]["r2"]["low"] < 0


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_table(tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    uninterrupted = crossvalidate(plan_of(folder), tmp_path / "whole")
    command = [sys.executable, "-c", "import sys; from monai_mvreg.cli.main import main; sys.exit(main())", "crossval"]
    command += [str(folder / "tiny.yaml"), "--dataset_dir", str(folder), "--out", str(tmp_path / "out")]
    command += ["--bundle", str(BUNDLE)]
    for moment in ("fold-0_seed-0/train.log", "fold-0_seed-0/train.done", "fold-1_seed-0/train.log"):
        run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "out" / moment).exists():
            assert run.poll() is None
            time.sleep(0.05)
        time.sleep(2)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    again = pd.read_csv(tmp_path / "out/predictions.csv", dtype={"fold": str})
    np.testing.assert_allclose(again["target_predicted"], uninterrupted.predicted("target"), rtol=1e-5)


@pytest.mark.slow
def test_survival_is_cross_validated_too(tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    survival = BUNDLE / "configs/survival.yaml"
    plan = Plan(
        BUNDLE, (folder / "tiny.yaml", survival), folder, {"horizons": [150, 300], "batch_size": 6, "epochs": 2}
    )
    table = crossvalidate(plan, tmp_path / "out", seeds=(0, 1)).frame
    assert {"log_risk", "risk_150", "risk_300"} <= set(table.columns) and len(table) == 18
    hazard = np.log(-np.log(1 - table["risk_300"].to_numpy()))
    expected = concordance(hazard, table[["time_to_event", "event"]].to_numpy(np.float64))
    found = json.loads((tmp_path / "out/metrics.json").read_text())["time_to_event"]["harrell"]["value"]
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_fold_that_cannot_choose_an_epoch_is_passed_over_but_tested(tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    rows = pd.read_csv(folder / "cohort.csv")
    rows.loc[0, "fold"] = 9
    rows.to_csv(folder / "cohort.csv", index=False)
    plan = plan_of(folder)
    found = _choosing(plan, plan.cohort())
    assert {fold: list(itertools.islice(others, 3)) for fold, others in found.items()} == {
        "0": ["1", "2", "1"],
        "1": ["2", "0", "2"],
        "2": ["0", "1", "0"],
        "9": ["0", "1", "2"],
    }


def test_what_a_training_would_refuse_is_refused_before_the_first_one(tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    rows = pd.read_csv(folder / "cohort.csv")
    rows.loc[rows["fold"] != 0, "target"] = 5
    rows.to_csv(folder / "cohort.csv", index=False)
    with pytest.raises(ValueError, match=r"^fold 0 for testing and 1 for validation: expected values of 'target' that"):
        crossvalidate(plan_of(folder), tmp_path / "out")
    assert not list((tmp_path / "out").glob("fold-*"))

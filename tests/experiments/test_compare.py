"""Comparison: what needs no network is right, and every choice stands beside it on the same patients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.linear_model
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from monai_mvreg.cohort.table import Cohort, Patient
from monai_mvreg.experiments import compare as module
from monai_mvreg.experiments.compare import BASELINES, choices, compare, search
from monai_mvreg.experiments.crossval import Plan
from tests.experiments.test_crossval import BUNDLE, plan_of, study

GRID = {"dropout": {"none": 0.0, "half": 0.5}}


def cohort_of(patients: int) -> tuple[Cohort, pd.DataFrame]:
    """Age and a missing number decide the target; the fourth part of the patients is in each fold."""
    generator = np.random.default_rng(0)
    age = generator.normal(60, 10, patients)
    other = np.where(generator.uniform(size=patients) < 0.2, np.nan, generator.normal(size=patients))
    target = 0.5 * age + 3 * np.nan_to_num(other) + generator.normal(size=patients)
    keys = [f"p{number:03d}" for number in range(patients)]
    rows = zip(keys, target, age, other, strict=True)
    people = tuple(Patient(key, (), (), (), (float(y),), (float(a), float(o))) for key, y, a, o in rows)
    table = pd.DataFrame({"patient": keys, "fold": [str(number % 4) for number in range(patients)], "volume": target})
    return Cohort(people, ("volume",), "mL", (), ("age", "other")), table


def cross_validated(monkeypatch: pytest.MonkeyPatch, cohort: Cohort, tables: dict[str, pd.DataFrame]) -> list[Plan]:
    """Stand in for the runs of the bundle, which have tests of their own."""
    seen: list[Plan] = []

    def run(plan: Plan, out: Path, *, seeds: Any) -> pd.DataFrame:
        seen.append(plan)
        return tables[out.name]

    monkeypatch.setattr(module, "crossvalidate", run)
    monkeypatch.setattr(module, "validation_metric", lambda out, *, lower_is_better: float(lower_is_better))
    monkeypatch.setattr(Plan, "read", lambda plan, setting: True)
    monkeypatch.setattr(Plan, "cohort", lambda plan: cohort)
    return seen


def test_every_combination_and_the_baselines_are_compared_on_the_same_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, table = cohort_of(200)
    generator = np.random.default_rng(1)
    spread = {"none": 1.0, "half": 4.0, "last-scan-alone": 8.0, "mean-of-scans": 6.0}
    tables = {
        name: table.assign(volume_predicted=table["volume"] + width * generator.normal(size=200))
        for name, width in spread.items()
    }
    seen = cross_validated(monkeypatch, cohort, tables)
    found = compare(Plan(tmp_path, (), tmp_path, {"epochs": 2}), choices(GRID), tmp_path).set_index("choice")
    assert [plan.settings for plan in seen[:2]] == [{"epochs": 2, "dropout": 0.0}, {"epochs": 2, "dropout": 0.5}]
    assert seen[2].settings["pool"] == BASELINES["last scan alone"]["pool"]
    assert found.index[0] == "none" and set(found.index) == {
        "none",
        "half",
        "last scan alone",
        "mean of scans",
        "covariates alone",
        "mean of the training patients",
    }
    assert found.loc["none", "minus_mean_high"] < 0 < found.loc["last scan alone", "minus_mean_high"]
    assert found.loc["covariates alone", "r2"] > 0.9
    assert pd.read_csv(tmp_path / "comparison.csv")["choice"].tolist() == found.index.tolist()


def test_the_mean_and_ridge_of_a_fold_know_only_the_other_folds() -> None:
    _, table = cohort_of(80)
    seen = []

    def predict(train: np.ndarray) -> np.ndarray:
        seen.append(set(table["fold"][train]))
        return np.arange(80.0)

    assert module._by_fold(table, predict).tolist() == list(range(80))
    assert seen == [set("123"), set("023"), set("013"), set("012")]


def test_ridge_equals_scikit_learn_at_the_strength_that_it_chose() -> None:
    cohort, table = cohort_of(120)
    target, train = table["volume"].to_numpy(), np.arange(120) < 80
    features = module._scaled(np.array([patient.covariates for patient in cohort.patients]), train)
    ours = module._ridge(features, target, train)
    models = [sklearn.linear_model.Ridge(alpha=alpha * 80) for alpha in module._STRENGTHS]
    theirs = [model.fit(features[train], target[train]).predict(features) for model in models]
    assert min(np.abs(found - ours).max() for found in theirs) < 1e-8


def test_the_strength_of_ridge_is_that_of_the_least_error_of_leaving_one_out() -> None:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(40, 30))
    target = features[:, 0] + 2 * generator.normal(size=40)
    everybody = np.ones(40, dtype=bool)
    theirs = sklearn.linear_model.RidgeCV(alphas=module._STRENGTHS * 40).fit(features - features.mean(0), target)
    expected = theirs.predict(features - features.mean(0))
    assert theirs.alpha_ > module._STRENGTHS[0] * 40
    np.testing.assert_allclose(module._ridge(features, target, everybody), expected, atol=1e-8)


def test_the_penalised_cox_model_equals_that_of_scikit_survival() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(150, 3))
    time = np.exp(-features @ [1.0, -0.5, 0] + generator.gumbel(size=150)).round(2) + 0.01
    label = np.stack([time, generator.uniform(size=150) < 0.7], 1).astype(np.float64)
    ours = module._cox(features, label, np.ones(150, dtype=bool), strength=0.05)
    model = CoxPHSurvivalAnalysis(alpha=2 * 0.05 * label[:, 1].sum(), ties="efron", tol=1e-12)
    theirs = model.fit(features, Surv.from_arrays(label[:, 1] > 0, time)).coef_
    np.testing.assert_allclose(ours, features @ theirs, atol=1e-4)


def test_times_are_compared_by_concordance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort, table = cohort_of(200)
    generator = np.random.default_rng(2)
    risk = generator.normal(size=200)
    time = 1000 * np.exp(-risk + generator.gumbel(size=200))
    table = table.drop(columns="volume").assign(days_left=time, event=1, log_risk=0.0)
    right, wrong = 1 - np.exp(-np.exp(risk)), generator.uniform(0.1, 0.9, 200)
    tables = {name: table.assign(risk_300=right, risk_900=right) for name in ("none", "mean-of-scans")}
    tables |= {name: table.assign(risk_300=wrong, risk_900=wrong) for name in ("half", "last-scan-alone")}
    cross_validated(monkeypatch, cohort, tables)
    found = compare(Plan(tmp_path, (), tmp_path, {}), choices(GRID), tmp_path).set_index("choice")
    assert found.loc["Kaplan-Meier", "concordance"] == 0.5 and found.loc["none", "minus_chance_low"] > 0
    assert found.loc["half", "minus_chance_low"] < 0 < found.loc["half", "minus_chance_high"]
    assert "covariates alone" in found.index


def test_a_grid_that_names_no_choices_is_refused() -> None:
    with pytest.raises(ValueError, match="a name and a value for each choice of 'dropout'"):
        choices({"dropout": [0.1, 0.2]})  # type: ignore[dict-item]


@pytest.mark.slow
def test_a_comparison_runs_the_bundle_and_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    table = compare(plan_of(folder), {"none": {"dropout": 0.0}}, tmp_path / "out")
    assert set(table["choice"]) == {"none", "last scan alone", "mean of scans", "mean of the training patients"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.log")}
    pd.testing.assert_frame_equal(compare(plan_of(folder), {"none": {"dropout": 0.0}}, tmp_path / "out"), table)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.log")}


SPACE: dict[str, Any] = {
    "learning_rate": {"low": 0.0001, "high": 1.0, "log": True},
    "epochs": {"low": 5, "high": 9},
    "dropout": {"none": 0.0, "half": 0.5},
}


def test_a_search_comes_near_the_optimum_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation metric is least at a learning rate of 0.01 without dropout."""
    ran: list[dict[str, Any]] = []
    done: dict[Path, dict[str, Any]] = {}

    def run(plan: Plan, out: Path, *, seeds: Any) -> None:
        if len(ran) == 12 and out not in done:
            raise KeyboardInterrupt
        if out not in done:
            ran.append(plan.settings)
        done[out] = plan.settings

    def error(out: Path, *, lower_is_better: bool) -> float:
        return float(abs(np.log10(done[out]["learning_rate"]) + 2) + done[out]["dropout"])

    monkeypatch.setattr(module, "crossvalidate", run)
    monkeypatch.setattr(module, "validation_metric", error)
    monkeypatch.setattr(Plan, "read", lambda plan, setting: True)
    plan = Plan(tmp_path, (), tmp_path, {"batch_size": 4})
    with pytest.raises(KeyboardInterrupt):
        search(plan, SPACE, tmp_path, trials=40)
    before = list(ran)
    monkeypatch.setattr(module, "crossvalidate", lambda plan, out, *, seeds: done.setdefault(out, plan.settings))
    found = search(plan, SPACE, tmp_path, trials=40)
    # What was finished is asked for again in the same order, and not run anew.
    settings = [plan.settings | own for own in found.values()]
    assert settings[:12] == before and settings == list(done.values()) and len(settings) == 40
    assert all(1e-4 <= own["learning_rate"] <= 1 and own["epochs"] in range(5, 10) for own in settings)
    best = min(found.values(), key=lambda own: abs(np.log10(own["learning_rate"]) + 2) + own["dropout"])
    assert best["dropout"] == 0.0 and 0.005 < best["learning_rate"] < 0.02
    assert next(iter(found)).startswith("trial 0, ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (3, "expected choices or a range of 'epochs', got 3"),
        ({"low": 3}, r"expected low, high and perhaps log for the range of 'epochs', got \['low'\]"),
        ({"low": 3, "high": 4, "step": 1}, r"got \['high', 'low', 'step'\]"),
    ],
)
def test_a_wrong_space_is_refused(values: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "read", lambda plan, setting: True)
    with pytest.raises(ValueError, match=message):
        search(Plan(tmp_path, (), tmp_path, {}), {"epochs": values}, tmp_path, trials=1)
    with pytest.raises(ValueError, match="it needs a number of --trials"):
        choices({"epochs": {"low": 3, "high": 4}})


def test_a_search_without_optuna_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r'pip install "monai-mvreg\[search\]"'):
        search(Plan(tmp_path, (), tmp_path, {}), SPACE, tmp_path, trials=1)


@pytest.mark.slow
def test_a_search_runs_the_bundle_and_stands_beside_the_baselines(tmp_path: Path) -> None:
    plan = plan_of(study(tmp_path / "data"))
    runs = search(plan, {"learning_rate": {"low": 0.001, "high": 0.01}}, tmp_path / "out", trials=1)
    found = compare(plan, runs, tmp_path / "out").set_index("choice")
    (name,) = runs
    histories = sorted((tmp_path / "out").glob("trial-0*/fold-*/training/history.csv"))
    assert len(histories) == 3
    best = np.mean([pd.read_csv(history)["mae"].min() for history in histories])
    assert found.loc[name, "validation"] == pytest.approx(best)


@pytest.mark.slow
def test_a_comparison_that_was_killed_ends_with_the_same_table(tmp_path: Path) -> None:
    folder = study(tmp_path / "data")
    (folder / "space.yaml").write_text("learning_rate: {low: 0.001, high: 0.01}\n")

    def command(out: Path) -> list[str]:
        program = [
            sys.executable,
            "-c",
            "import sys; from monai_mvreg.cli.main import main; sys.exit(main())",
            "compare",
        ]
        files = [str(folder / "space.yaml"), str(folder / "tiny.yaml"), "--dataset_dir", str(folder)]
        return [*program, *files, "--out", str(out), "--bundle", str(BUNDLE), "--trials", "1"]

    subprocess.run(command(tmp_path / "whole"), check=True, stdout=subprocess.DEVNULL)
    for moment in ("trial-0*/fold-1_seed-0/train.log", "last-scan-alone/fold-0_seed-0/train.done"):
        run = subprocess.Popen(command(tmp_path / "out"), start_new_session=True, stdout=subprocess.DEVNULL)
        while not list((tmp_path / "out").glob(moment)):
            assert run.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    subprocess.run(command(tmp_path / "out"), check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "out/comparison.csv").read_text() == (tmp_path / "whole/comparison.csv").read_text()

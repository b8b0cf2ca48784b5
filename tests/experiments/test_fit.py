"""A model fitted from Python is the one that the bundle trains, and what it saves predicts the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from monai_mvreg import Columns, FittedModel, Prediction, Predictor, fit
from monai_mvreg.bundle_folder import find_bundle
from monai_mvreg.experiments.demo import write_demo_cohort
from monai_mvreg.trained.weights import read_weights, weights_hash

COLUMNS = Columns(day="day", target=("growth",), unit="unit", fold="fold")
QUICK = {
    "epochs": 1,
    "spatial_size": [16, 16, 16],
    "batch_size": 4,
    "test_folds": ["1"],
    "device": "$torch.device('cpu')",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_cohort(tmp_path_factory.mktemp("cohort") / "cohort", patients=12)


@pytest.fixture(scope="module")
def model(table: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedModel:
    return fit(str(table), COLUMNS, out=tmp_path_factory.mktemp("study"), settings=QUICK)


def numbers(predictions: list[Prediction]) -> list[float]:
    return [prediction.numbers[0].value for prediction in predictions]


def test_the_model_is_bit_by_bit_the_one_that_monai_bundle_trains(
    model: FittedModel, table: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(find_bundle() / "configs/train.yaml")]
    command += ["--bundle_root", str(tmp_path), "--dataset_dir", str(table.parent), "--cohort_file", str(table)]
    command += ["--target", "['growth']", "--columns#unit", "unit"]
    command += [part for name, value in QUICK.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
    mine, theirs = read_weights(model.folder / "models"), read_weights(tmp_path / "models")
    assert weights_hash(mine) == weights_hash(theirs)


def test_every_patient_of_a_table_is_predicted_and_a_report_is_there(model: FittedModel, table: Path) -> None:
    found = model.predict(table)
    keys = pd.read_csv(table, dtype=str)["patient"].drop_duplicates().tolist()
    assert [prediction.patient for prediction in found] == keys
    assert model.report.is_file()


def test_the_log_has_one_line_for_an_epoch(table: Path, tmp_path: Path) -> None:
    fit(table, COLUMNS, out=tmp_path, settings={**QUICK, "epochs": 3})
    log = (tmp_path / "train.log").read_text()
    lines = re.findall(
        r"epoch (\d) of 3: loss [\d.e-]+, mae [\d.]+ \((?:the best|best [\d.]+ in epoch \d)\), [\d.]+ s(.*)", log
    )
    assert [number for number, _ in lines] == ["1", "2", "3"]
    assert [bool(re.fullmatch(r", at most \d+ s left", left)) for _, left in lines] == [True, True, False]
    assert "Epoch[" not in log and "Engine run" not in log and "nvImageCodec" not in log
    history = pd.read_csv(tmp_path / "eval" / "history.csv")
    best = int(history["epoch"][history["mae"].idxmin()])
    assert f"epoch {best} of 3" in next(line for line in log.splitlines()[::-1] if "(the best)" in line)


def test_what_is_saved_predicts_the_same_and_knows_no_patient(model: FittedModel, table: Path, tmp_path: Path) -> None:
    model.save(str(tmp_path / "saved"))
    first = pd.read_csv(table, dtype=str).iloc[0]
    scan = table.parent / first["path"]
    folder = scan if scan.is_dir() else scan.parent
    again = Predictor.from_bundle(str(tmp_path / "saved")).predict_folder(str(folder))
    assert again.numbers == model.predictor().predict_folder(folder).numbers
    held = b"".join(file.read_bytes() for file in (tmp_path / "saved").rglob("*") if file.is_file())
    assert not [key for key in pd.read_csv(table, dtype=str)["patient"] if key.encode() in held]
    with pytest.raises(ValueError, match="empty"):
        model.save(tmp_path / "saved")


def test_folds_that_were_kept_apart_are_evaluated_and_those_of_the_training_are_refused(model: FittedModel) -> None:
    metrics = model.evaluate(["1"])
    assert metrics["growth"]["patients"] == (pd.read_csv(model.table).groupby("patient")["fold"].first() == 1).sum()
    assert (model.folder / "test" / "report.html").is_file()
    with pytest.raises(ValueError, match="patients that the model has not learned from"):
        model.evaluate(["2"])


def test_a_time_to_event_is_fitted_by_a_preset(table: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(table)
    rank = rows["patient"].rank(method="dense").astype(int)
    rows["time"], rows["died"] = 100 * rank, rank % 3 > 0
    rows = rows.assign(died=rows["died"].astype(int), path=[str(table.parent / path) for path in rows["path"]])
    rows.to_csv(tmp_path / "cohort.csv", index=False)
    columns = Columns(day="day", target=("time",), event="died", fold="fold")
    settings = {**QUICK, "horizons": [365], "validation_folds": ["0", "2"]}
    model = fit(tmp_path / "cohort.csv", columns, out=tmp_path / "study", presets=["survival"], settings=settings)
    for prediction in model.predict(tmp_path / "cohort.csv"):
        assert isinstance(prediction, Prediction) and prediction.survival is not None
        assert np.all(np.diff(prediction.survival.survival) <= 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"settings": {"epoch": 3}}, "expected a setting of the bundle, got 'epoch': did you mean 'epochs'"),
        ({"settings": {"pool": {"_target_": "monai_mvreg.networks.pools.MeenPool"}}}, "MeenPool"),
        ({"columns": Columns(target=("size",))}, "size"),
        ({"table": "nowhere.csv"}, "nowhere.csv"),
        ({"presets": ["ctt"]}, "expected a preset, a path or one of ct, .*survival.*, got 'ctt'"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_nothing_of_python_changes(
    table: Path, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    given = {"table": table, "columns": COLUMNS, "out": tmp_path, **change}
    hook = sys.excepthook
    with pytest.raises((ValueError, OSError, ModuleNotFoundError), match=sentence) as error:
        fit(given.pop("table"), given.pop("columns"), **given)  # type: ignore[arg-type]
    assert error.value.__cause__ is None and sys.excepthook is hook

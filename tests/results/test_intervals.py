"""Intervals in tables of predictions: fitted on held-out patients, they hold nine of ten others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_mvreg.results.calibration import fit_interval, read_intervals
from monai_mvreg.results.intervals import crossfit_intervals, extend_intervals, fit_intervals
from monai_mvreg.results.predictions_table import PredictionsTable


def predictions(patients: int, seed: int = 0, *, folds: int = 1) -> pd.DataFrame:
    """Normal errors, whose spread differs fourfold between patients and is predicted up to a factor."""
    generator = np.random.default_rng(seed)
    spread = generator.uniform(1, 4, patients)
    table = pd.DataFrame(
        {"patient": [f"p{i:05d}" for i in range(patients)], "fold": [str(i % folds) for i in range(patients)]}
    )
    table["volume"] = generator.normal(50, 10, patients)
    table["volume_predicted"] = table["volume"] + spread * generator.normal(size=patients)
    return table.assign(volume_spread=0.3 * spread, unit="mL", scans=1, days="0", weights="1.0")


def covered(table: pd.DataFrame, where: slice | pd.Series = slice(None)) -> float:  # type: ignore[type-arg]
    rows = table[where]
    return float(((rows["volume_low"] <= rows["volume"]) & (rows["volume"] <= rows["volume_high"])).mean())


def test_intervals_of_a_training_are_written_and_hold_nine_of_ten_others(tmp_path: Path) -> None:
    predictions(2000).to_csv(tmp_path / "predictions.csv", index=False)
    fit_intervals(str(tmp_path), str(tmp_path / "models/intervals.json"), ["volume"])
    written = pd.read_csv(tmp_path / "predictions.csv", dtype={"days": str})
    assert list(written.columns[2:7]) == ["volume", "volume_predicted", "volume_spread", "volume_low", "volume_high"]
    assert written["days"].tolist() == ["0"] * 2000
    (interval,) = read_intervals(tmp_path / "models/intervals.json", ["volume"])
    assert interval is not None and interval.reach == pytest.approx(1.645 / 0.3, rel=0.05)  # normal errors
    new = predictions(2000, seed=1)
    low, high = interval.around(new["volume_predicted"].to_numpy(), spread=new["volume_spread"].to_numpy())
    new = new.assign(volume_low=low, volume_high=high)
    hard = new["volume_spread"] > new["volume_spread"].median()
    # By spread, hard and easy patients are held alike; one width for all would hold too few of the hard.
    assert all(0.87 < covered(new, rows) < 0.93 for rows in (slice(None), hard, ~hard))
    known = PredictionsTable(predictions(2000, seed=1, folds=4).drop(columns="volume_spread"))
    flat = crossfit_intervals(known, "volume").frame
    assert covered(flat, hard) < 0.87 or covered(flat, ~hard) > 0.93


def test_each_fold_gets_the_interval_of_the_others() -> None:
    table = predictions(90, folds=3)
    found = crossfit_intervals(PredictionsTable(table), "volume").frame
    for fold in "012":
        rows, others = found[found["fold"] == fold], table[table["fold"] != fold]
        numbers = (others[name].to_numpy() for name in ("volume_predicted", "volume", "volume_spread"))
        predicted, measured, spread = numbers
        interval = fit_interval(predicted, measured, spread=spread)
        low, high = interval.around(rows["volume_predicted"].to_numpy(), spread=rows["volume_spread"].to_numpy())
        np.testing.assert_allclose(rows[["volume_low", "volume_high"]], np.stack([low, high], 1))


def test_new_patients_are_held_by_the_models_of_all_folds() -> None:
    known, new = predictions(600, folds=3), predictions(3000, seed=1)
    models = [
        PredictionsTable(new.assign(volume_predicted=new["volume_predicted"] + shift)) for shift in (-0.1, 0.0, 0.1)
    ]
    unmeasured = PredictionsTable(new.assign(volume=np.nan))
    found = extend_intervals(unmeasured, models, PredictionsTable(known), "volume").frame.assign(volume=new["volume"])
    assert 0.87 < covered(found) < 0.93
    # One model for all folds, and no spread: the interval is that of all errors.
    plain = known.drop(columns="volume_spread")
    alone = PredictionsTable(new.drop(columns="volume_spread"))
    found = extend_intervals(alone, [alone] * 3, PredictionsTable(plain), "volume").frame
    whole = fit_interval(plain["volume_predicted"].to_numpy(), plain["volume"].to_numpy())
    np.testing.assert_allclose(found["volume_high"] - found["volume_predicted"], whole.reach)


def test_a_fold_without_a_measured_value_leaves_each_other_fold_its_own_model() -> None:
    known = predictions(90, folds=3).drop(columns="volume_spread")
    known["volume_predicted"] = known["volume"]
    known.loc[known["fold"] == "1", "volume"] = np.nan
    new = predictions(1).drop(columns="volume_spread")
    models = [PredictionsTable(new.assign(volume_predicted=value)) for value in (0.0, 100.0, 0.0)]
    found = extend_intervals(PredictionsTable(new), models, PredictionsTable(known), "volume").interval("volume")
    assert found is not None and np.array(found).tolist() == [[0.0], [0.0]]


def test_too_few_patients_leave_the_ends_empty_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = predictions(20)
    table.loc[8:, "volume"] = np.nan
    table.to_csv(tmp_path / "predictions.csv", index=False)
    with caplog.at_level(logging.WARNING):
        fit_intervals(str(tmp_path), str(tmp_path / "intervals.json"), ["volume"])
    assert "volume: no prediction intervals: expected at least 9 measured values" in caplog.text
    assert pd.read_csv(tmp_path / "predictions.csv")["volume_low"].isna().all()
    assert json.loads((tmp_path / "intervals.json").read_text()) == {"volume": None}
    assert read_intervals(tmp_path / "intervals.json", ["volume"]) == [None]
    few, new = (PredictionsTable(rows) for rows in (predictions(12, folds=3), table))
    assert crossfit_intervals(few, "volume").frame["volume_low"].isna().all()
    assert extend_intervals(new, [new], PredictionsTable(predictions(8)), "volume").frame["volume_low"].isna().all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"volume": {"reach": 1.0}}', r"intervals.json: volume.confidence: expected a value, got nothing"),
        ('{"age": null}', r"intervals.json: expected the intervals of \['volume'\], got none of \['volume'\]"),
        ("[]", r"intervals.json: expected entries, name: value"),
    ],
)
def test_a_file_of_something_else_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "intervals.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_intervals(tmp_path / "intervals.json", ["volume"])

"""The report of a time to event: its numbers are those of the metrics, and what it says follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_mvreg.calibration import Baseline, read_part
from monai_mvreg.metrics.survival import concordance
from monai_mvreg.report.risk import fit_curves, report_on, summarise_risk

TARGET = ["days_left", "event"]
HORIZONS = [300.0, 900.0]


def predictions(patients: int = 120, *, worth: float = 1.0) -> pd.DataFrame:
    """Weibull times of a risk that is known as well as ``worth`` says; the last patient has no measured time."""
    generator = np.random.default_rng(0)
    risk = generator.normal(size=patients)
    day = 1000 * (-np.log(generator.uniform(size=patients)) * np.exp(-risk)) ** (1 / 1.5)
    censored = generator.uniform(200, 3000, size=patients)
    table = pd.DataFrame({"patient": [f"ZZPHI-{i}" for i in range(patients)], "fold": "0"})
    table["days_left"], table["event"] = np.minimum(day, censored), (day <= censored).astype(int)
    table["log_risk"] = worth * risk + (1 - worth) * generator.normal(size=patients)
    table = table.assign(unit="d", scans=2, days="0;9", weights="0.5;0.5")
    table.loc[patients - 1, TARGET] = np.nan
    return table


def reported(folder: Path, table: pd.DataFrame) -> tuple[dict[str, object], str]:
    table.to_csv(folder / "predictions.csv", index=False)
    fit_curves(str(folder), str(folder / "models/survival.json"), target=TARGET, horizons=HORIZONS)
    return json.loads((folder / "metrics.json").read_text())["days_left"], (folder / "report.html").read_text()


def test_the_numbers_are_those_of_the_metrics_on_patients_with_a_measured_time(tmp_path: Path) -> None:
    table = predictions()
    found, page = reported(tmp_path, table)
    known = table[table["event"].notna()]
    assert (found["patients"], found["left_out"], found["events"]) == (119, 1, int(known["event"].sum()))
    expected = concordance(known["log_risk"].to_numpy(), known[TARGET].to_numpy())
    assert found["harrell"]["value"] == pytest.approx(expected, rel=1e-9)  # type: ignore[index]
    assert "better than chance" in page and "ZZPHI" not in page and "1 more had no measured time" in page
    baseline = read_part(Baseline, tmp_path / "models/survival.json")
    written = pd.read_csv(tmp_path / "predictions.csv")
    assert list(written.columns[2:8]) == [*TARGET, "log_risk", "median_days", "risk_300", "risk_900"]
    chances = 1 - baseline.survival(table["log_risk"].to_numpy(), np.array(HORIZONS))
    np.testing.assert_allclose(written[["risk_300", "risk_900"]], chances, rtol=1e-5)
    assert summarise_risk(written, baseline, target=TARGET, horizons=HORIZONS)["days_left"]["events"] == found["events"]


def test_a_risk_without_worth_is_said_to_have_none(tmp_path: Path) -> None:
    _, page = reported(tmp_path, predictions(worth=0.0))
    assert "It is not shown that the risks order patients better" in page and "at none of these days" in page


def test_an_evaluation_reads_the_curves_and_changes_no_prediction(tmp_path: Path) -> None:
    found, _ = reported(tmp_path, predictions())
    before = (tmp_path / "predictions.csv").read_bytes()
    report_on(str(tmp_path), str(tmp_path / "models/survival.json"), target=TARGET, horizons=HORIZONS)
    assert (tmp_path / "predictions.csv").read_bytes() == before
    again = json.loads((tmp_path / "metrics.json").read_text())["days_left"]
    assert again["brier_300"]["value"] == pytest.approx(found["brier_300"]["value"], rel=1e-6)  # type: ignore[index]


def test_patients_without_events_or_times_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an event among"):
        reported(tmp_path, predictions().assign(event=0))
    with pytest.raises(ValueError, match="patients with a measured time"):
        summarise_risk(
            predictions().assign(days_left=np.nan), Baseline((1.0,), (0.1,), 1, 0), target=TARGET, horizons=[9]
        )

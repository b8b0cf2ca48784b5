"""The report of a time to event: its numbers are those of the metrics, and what it says follows from them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_mvreg.cache.typed_json import read_json
from monai_mvreg.metrics.survival import Forecast, auc_over_time, concordance, survival_metrics
from monai_mvreg.report.survival import figure_curves, fit_curves, report_on, summarise_risk
from monai_mvreg.results.calibration import Baseline
from monai_mvreg.results.predictions_table import PredictionsTable

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
    baseline = read_json(Baseline, tmp_path / "models/survival.json")
    written = pd.read_csv(tmp_path / "predictions.csv")
    assert list(written.columns[2:8]) == [*TARGET, "log_risk", "median_days", "risk_300", "risk_900"]
    chances = 1 - baseline.survival(table["log_risk"].to_numpy(), np.array(HORIZONS))
    np.testing.assert_allclose(written[["risk_300", "risk_900"]], chances, rtol=1e-5)
    read = PredictionsTable.read(tmp_path / "predictions.csv")
    assert summarise_risk(read, baseline, horizons=HORIZONS)["days_left"]["events"] == found["events"]


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


def test_a_report_of_a_thousand_patients_and_groups_takes_less_than_half_a_minute(tmp_path: Path) -> None:
    table, draw = predictions(1000), np.random.default_rng(0)
    for number in range(3):
        table[f"group_{number}"] = draw.choice(list("abcd"), 1000)
    start = time.process_time()
    _, page = reported(tmp_path, table)
    assert time.process_time() - start < 30
    assert page.count("<img") == 4 and "What the model must not be used for" in page


def test_patients_at_risk_stand_under_the_curves() -> None:
    label = np.array([[100.0, 1], [250, 0], [300, 1], [400, 0], [400, 1], [400, 1]])
    groups, risk = np.array([0.0, 0, 1, 1, 2, 2]), np.linspace(-1, 1, 6)
    _, below = figure_curves(label, groups, Baseline((100.0, 300.0), (0.2, 0.7), 1.0, 0.0), risk).axes
    shown = {(note.xy[0], note.xy[1]): note.get_text() for note in below.texts}
    # Who has the event or is censored on a day was at risk on it.
    assert shown[(0, 0)] == "2" and shown[(200, 0)] == "1" and shown[(300, 0)] == "0"
    assert shown[(300, 1)] == "2" and shown[(350, 1)] == "1" and shown[(400, 2)] == "2"


def test_the_order_over_time_is_the_auc_of_the_metrics(tmp_path: Path) -> None:
    table = predictions()
    known = table[table["event"].notna()]
    risk, label = known["log_risk"].to_numpy(), known[TARGET].to_numpy()
    same = survival_metrics(Forecast(risk, [300, 900]), label)
    assert auc_over_time(risk, label, [300, 900]) == [same["auc_300"], same["auc_900"]]
    _, page = reported(tmp_path, table)
    assert "<h2>Order over time</h2>" in page


def test_curves_of_risk_are_told_apart_by_their_width_and_not_by_colour_alone() -> None:
    label = np.array([[100.0, 1], [300, 1], [400, 1]])
    axes, _ = figure_curves(label, np.array([0.0, 1, 2]), Baseline((100.0,), (0.2,), 1.0, 0.0), np.zeros(3)).axes
    widths = [line.get_linewidth() for line in axes.lines if line.get_linestyle() == "-"]
    assert len(set(widths)) == 3 and widths == sorted(widths)


def test_patients_without_events_or_times_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an event among"):
        reported(tmp_path, predictions().assign(event=0))
    with pytest.raises(ValueError, match="patients with a measured time"):
        unmeasured = PredictionsTable(predictions().assign(days_left=np.nan))
        summarise_risk(unmeasured, Baseline((1.0,), (0.1,), 1, 0), horizons=[9])


def test_patients_without_an_event_have_predictions_and_an_empty_concordance(tmp_path: Path) -> None:
    reported(tmp_path, predictions(40))
    table = predictions(40).assign(event=0)
    table.to_csv(tmp_path / "predictions.csv", index=False)
    report_on(str(tmp_path), str(tmp_path / "models/survival.json"), target=TARGET, horizons=HORIZONS)
    found = json.loads((tmp_path / "metrics.json").read_text())["days_left"]
    assert found["events"] == 0 and found["harrell"]["value"] is None
    assert "no two can be compared" in (tmp_path / "report.html").read_text()


def test_horizons_beyond_the_follow_up_are_empty_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictions(80).to_csv(tmp_path / "predictions.csv", index=False)
    curves = str(tmp_path / "survival.json")
    fit_curves(str(tmp_path), curves, target=TARGET, horizons=[300, 9000])
    table = PredictionsTable.read(tmp_path / "predictions.csv")
    assert np.isfinite(table.risks[:, 0]).all() and np.isnan(table.risks[:, 1]).all()
    assert "got 9000: probabilities by then are left empty" in caplog.text
    found = json.loads((tmp_path / "metrics.json").read_text())["days_left"]
    assert "brier_300" in found and "brier_9000" not in found
    with pytest.raises(ValueError, match=r"got 8000, 9000: is the time in days\?"):
        report_on(str(tmp_path), curves, target=TARGET, horizons=[8000, 9000])

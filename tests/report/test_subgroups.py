"""Groups of patients in a report: who is in which, what is said of them, and that nobody stands alone."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from monai_mvreg.metrics.regression import cohort_metrics
from monai_mvreg.report.subgroups import error_subgroups, find_subgroups, risk_subgroups
from monai_mvreg.results.predictions_table import PredictionsTable
from tests.results.tables import table_of


def rows_of(patients: int = 120, **columns: Any) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    measured = draw.normal(100, 20, patients)
    fixed = {"fold": "0", "scans": 2, "days": "0;30", "volume": measured}
    predicted = measured + draw.normal(0, 8, patients)
    return pd.DataFrame({**fixed, "volume_predicted": predicted, **columns})


def table(patients: int = 120, **columns: Any) -> PredictionsTable:
    return table_of(rows_of(patients, **columns))


def names(**columns: Any) -> list[str]:
    return find_subgroups(table(12, **columns)).names


def test_a_patient_alone_is_never_shown() -> None:
    sites = ["North"] * 60 + ["South"] * 59 + ["Castle of Dr Frankenstein"]
    section = error_subgroups(table(group_site=sites), "volume", unit="mL")
    assert section.table is not None and "Castle" not in section.text + section.table.to_string()
    assert "Not shown are values of fewer than 5 patients of: site." in section.text


def test_groups_called_na_or_none_are_groups_and_not_unknown() -> None:
    assert names(group_site=["NA"] * 6 + ["None"] * 6) == ["site: NA", "site: None"]


def test_folds_and_days_from_first_to_last_scan_are_groups_too() -> None:
    found = names(fold=["a", "b"] * 6, days=["0;300;20"] * 6 + ["0"] * 6)
    assert found == ["days spanned: 0", "days spanned: 300", "fold: a", "fold: b"]


def test_what_is_the_same_in_all_patients_is_no_group_and_the_report_says_what_to_do() -> None:
    section = error_subgroups(table(group_sex="F"), "volume", unit="mL")
    assert section.table is None and "with the setting subgroups" in section.text


def test_the_table_holds_the_errors_of_each_group_with_their_intervals_and_marks_few_patients() -> None:
    rows = rows_of(group_sex=["F"] * 110 + ["M"] * 10)
    found = error_subgroups(table_of(rows), "volume", unit="mL").table
    assert found is not None and found["Patients"].tolist() == ["110", "10 (few)"]
    women = rows[:110]
    mae = cohort_metrics(women["volume_predicted"].to_numpy(), women["volume"].to_numpy())["mae"]
    cell = f"{mae.value:.2f} ({mae.low:.2f} to {mae.high:.2f})"
    assert found["Mean absolute error [mL] (95 % interval)"].iloc[0] == cell


def test_a_group_with_a_bias_is_shown_to_differ_and_one_drawn_by_chance_is_not() -> None:
    draw = np.random.default_rng(5)
    rows = rows_of(group_sex=draw.choice(["F", "M"], 120), group_site=draw.choice(["N", "S"], 120))
    assert "Shown to differ: none." in error_subgroups(table_of(rows), "volume", unit="mL").text
    rows.loc[rows["group_sex"] == "M", "volume_predicted"] += 10
    section = error_subgroups(table_of(rows), "volume", unit="mL")
    assert "any of these 8 looks" in section.text and "Shown to differ: sex: F; sex: M." in section.text


def test_groups_of_few_patients_are_open_circles_and_all_patients_a_dashed_line() -> None:
    rows = rows_of(group_sex=["F"] * 110 + ["M"] * 10)
    figure = error_subgroups(table_of(rows), "volume", unit="mL").figure
    assert figure is not None
    mae, bias = figure.axes
    assert [line.get_markerfacecolor() for line in mae.lines if line.get_marker() == "o"][1] == "white"
    apart = rows["volume_predicted"] - rows["volume"]
    assert mae.lines[0].get_xdata()[0] == pytest.approx(apart.abs().mean())
    assert bias.lines[0].get_xdata()[0] == pytest.approx(apart.mean()) and bias.get_xlabel() == "bias [mL]"


def test_more_events_than_expected_in_a_group_are_found() -> None:
    draw = np.random.default_rng(0)
    risk, more = draw.normal(size=300), draw.integers(0, 2, 300).astype(bool)
    day = draw.exponential(1 / (0.001 * np.exp(risk + 1.2 * more)))
    label = np.stack([np.minimum(day, 1500), day <= 1500], 1).astype(np.float64)
    rows = table(300, group_sex=np.where(more, "M", "F"), group_site=draw.choice(["N", "S"], 300))
    true = 0.001 * np.exp(risk + 1.2 * more) * label[:, 0]
    calm = risk_subgroups(rows, risk, label=label, expected=true)
    assert "Shown to differ: none." in calm.text
    blind = 0.001 * np.exp(risk + 0.6) * label[:, 0]
    section = risk_subgroups(rows, risk, label=label, expected=blind)
    assert "Shown to differ: sex: F; sex: M." in section.text and section.table is not None
    ratio = section.table["Observed over expected events (95 % interval)"].str.split().str[0].astype(float)
    assert ratio[0] == pytest.approx(np.exp(-0.6), rel=0.2) and ratio[1] == pytest.approx(np.exp(0.6), rel=0.2)
    assert section.table["Events"].astype(int).sum() == 2 * label[:, 1].sum()

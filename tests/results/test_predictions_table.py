"""The table of predictions: what is written is read again, numbers and texts alike, and wrong files are refused."""

from __future__ import annotations

import csv
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_mvreg.metrics.survival import concordance
from monai_mvreg.results.calibration import Baseline
from monai_mvreg.results.predictions_table import PredictionsTable, average, check_target_names
from tests.results.tables import table_of

TEXTS = ["NA", "None", "nan", "1e5", "007", "TRUE", "", "9007199254740993", "a,b", 'say "hi"', " padded ", "Ünal\n2"]
NUMBERS = st.floats(allow_nan=False)
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
EACH_EXAMPLE = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def numbers(**columns: Any) -> PredictionsTable:
    """Two patients with a predicted volume."""
    frame = {"patient": ["a", "b"], "volume": [50.0, np.nan], "volume_predicted": [52.5, 61.0], "unit": "mL"}
    rest = {"fold": ["0", "1"], "scans": [1, 3], "days": ["0", "0;30.5;90"], "weights": ["1", "0.25;0.25;0.5"]}
    return PredictionsTable(pd.DataFrame({**frame, **rest, **columns}))


def times(log_risk: Any, **columns: Any) -> PredictionsTable:
    """Patients with a time to event."""
    frame = pd.DataFrame({"days_left": 100.0, "event": 1, "log_risk": log_risk, **columns})
    return table_of(frame.assign(unit="d"))


def again(table: PredictionsTable, folder: Path) -> PredictionsTable:
    table.write(folder / "predictions.csv")
    return PredictionsTable.read(folder / "predictions.csv")


def bits(values: Any) -> list[bytes]:
    return [struct.pack("<d", value) for value in values]


def header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def file_of(folder: Path, text: str) -> Path:
    (folder / "predictions.csv").write_text(text, encoding="utf-8")
    return folder / "predictions.csv"


# ---- What is written is read again -----------------------------------------------------------------------------------


@EACH_EXAMPLE
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_every_float64_is_read_again_to_the_last_bit(tmp_path: Path, cells: list[tuple[float, float]]) -> None:
    measured, predicted = zip(*cells, strict=True)
    table = again(table_of(pd.DataFrame({"volume": measured, "volume_predicted": predicted})), tmp_path)
    assert bits(table.measured("volume")) == bits(measured) and bits(table.predicted("volume")) == bits(predicted)


def test_random_bit_patterns_denormals_and_ends_of_the_range_are_read_again(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64)
    edges = [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -0.0, 2.0**53 + 2, 0.1 + 0.2, 1 - 2**-53]
    values = np.concatenate([drawn[~np.isnan(drawn)], edges])
    table = again(table_of(pd.DataFrame({"volume": np.nan, "volume_predicted": values})), tmp_path)
    assert bits(table.predicted("volume")) == bits(values) and np.isnan(table.measured("volume")).all()


def test_whole_numbers_are_written_without_a_point_and_unknown_ones_as_nothing(tmp_path: Path) -> None:
    numbers().write(tmp_path / "predictions.csv")
    assert (tmp_path / "predictions.csv").read_text().splitlines() == [
        "patient,volume,volume_predicted,unit,fold,scans,days,weights",
        "a,50,52.5,mL,0,1,0,1",
        "b,,61,mL,1,3,0;30.5;90,0.25;0.25;0.5",
    ]


@EACH_EXAMPLE
@given(st.lists(CELLS, min_size=1, max_size=10, unique=True), st.data())
def test_every_text_is_read_again(tmp_path: Path, keys: list[str], data: st.DataObject) -> None:
    cells = st.lists(CELLS, min_size=len(keys), max_size=len(keys))
    fold, site, note = (data.draw(cells) for _ in range(3))
    columns = {"patient": keys, "volume": 1.0, "volume_predicted": 1.0, "fold": fold, "group_site": site, "note": note}
    table = again(table_of(pd.DataFrame(columns)), tmp_path)
    assert table.patient.tolist() == keys and table.fold.tolist() == fold
    assert table.groups["site"].tolist() == site and table.frame["note"].tolist() == note


def test_patients_folds_groups_and_units_stay_the_texts_that_they_are(tmp_path: Path) -> None:
    columns = {"patient": TEXTS, "fold": TEXTS[::-1], "group_site": TEXTS, "volume": 1.0, "volume_predicted": 1.0}
    for unit in ("NA", "1e5", "None", "1"):
        table = again(table_of(pd.DataFrame(columns).assign(unit=unit)), tmp_path)
        assert table.patient.tolist() == TEXTS and table.fold.tolist() == TEXTS[::-1] and table.unit == unit
        assert table.groups["site"].tolist() == TEXTS


def test_a_table_that_other_programs_saved_is_read(tmp_path: Path) -> None:
    names = "\N{ZERO WIDTH NO-BREAK SPACE}patient,fold,volume,volume_predicted,unit,scans,days,weights"
    rows = ["007,NA,NA,1E2,mL,1,0,1", "8,0,nan,.5,mL,2,0;7,0;1", ""]
    table = PredictionsTable.read(file_of(tmp_path, "\n".join([names, *rows, ""])))
    assert table.patient.tolist() == ["007", "8"] and table.predicted("volume").tolist() == [100.0, 0.5]
    assert np.isnan(table.measured("volume")).all()


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers().write(tmp_path / "predictions.csv")
    before = (tmp_path / "predictions.csv").read_bytes()

    def full(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        numbers(unit="L").write(tmp_path / "predictions.csv")
    assert (tmp_path / "predictions.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


# ---- Columns by name -------------------------------------------------------------------------------------------------


def test_columns_have_names() -> None:
    table = numbers(group_sex=["F", "M"])
    assert len(table) == 2 and not table.is_time_to_event and table.targets == ("volume",)
    assert table.patient.tolist() == ["a", "b"] and table.fold.tolist() == ["0", "1"] and table.unit == "mL"
    assert table.scans.tolist() == [1, 3] and table.groups["sex"].tolist() == ["F", "M"]
    assert table.days == ((0.0,), (0.0, 30.5, 90.0)) and table.weights == ((1.0,), (0.25, 0.25, 0.5))
    assert table.spread("volume").tolist() == [1.0, 1.0] and table.interval("volume") is None
    assert table.known("volume").patient.tolist() == ["a"]


@pytest.mark.parametrize(("days", "spanned"), [("0", 0.0), ("0;30;400", 400.0), ("-5;2.5", 7.5)])
def test_days_are_spanned_from_the_first_scan_to_the_last(days: str, spanned: float) -> None:
    assert numbers(days=days).days_spanned.tolist() == [spanned, spanned]


def test_a_target_may_be_called_predicted() -> None:
    table = table_of(pd.DataFrame({"fev1_predicted": [80.0], "fev1_predicted_predicted": [82.0]}))
    assert table.targets == ("fev1_predicted",) and table.predicted("fev1_predicted").tolist() == [82.0]


def test_an_interval_is_put_behind_the_spread_and_replaces_an_older_one(tmp_path: Path) -> None:
    low, high = np.array([1.0, 2.0]), np.array([3.0, np.nan])
    table = numbers(volume_spread=[2.0, 4.0]).with_interval("volume", low, high)
    frame = table.frame[["patient", "volume", "volume_predicted", "volume_spread", "volume_low", "volume_high", "unit"]]
    assert list(frame.columns[2:6]) == ["volume_predicted", "volume_spread", "volume_low", "volume_high"]
    assert table.spread("volume").tolist() == [2.0, 4.0]
    other = again(table.with_interval("volume", low - 1, high), tmp_path)
    assert list(other.frame) == list(table.frame) and other.interval("volume")[0].tolist() == [0.0, 1.0]  # type: ignore[index]
    assert table.interval("volume")[0].tolist() == [1.0, 2.0]  # type: ignore[index]


def test_a_time_to_event_has_its_columns_and_curves_their_place(tmp_path: Path) -> None:
    table = times([0.5, -0.5], group_event=["x", "y"])
    table = PredictionsTable(table.frame[["patient", "fold", *list(table.frame.columns.drop(["patient", "fold"]))]])
    assert table.is_time_to_event and table.targets == () and table.outcome == ("days_left", "event")
    assert table.horizons == () and table.label.tolist() == [[100.0, 1.0], [100.0, 1.0]]
    risks = {300: np.array([0.1, 0.2]), 900.5: np.array([0.3, 1.0])}
    table = table.with_curves(np.array([700.0, np.inf]), risks, log_hazard=np.array([-1.0, 60.0]))
    table = again(table, tmp_path)
    expected = ["log_risk", "median_days", "risk_300", "risk_900.5", "log_hazard"]
    assert header(tmp_path / "predictions.csv")[2:9] == ["days_left", "event", *expected]
    assert table.horizons == (300.0, 900.5) and table.risks.tolist() == [[0.1, 0.3], [0.2, 1.0]]
    assert table.median_days[0] == 700 and np.isnan(table.median_days[1]) and table.log_hazard.tolist() == [-1.0, 60.0]
    assert (table.measured("event") == 1).all() and table.log_risk.tolist() == [0.5, -0.5]


# ---- Several models --------------------------------------------------------------------------------------------------


def curves_of(risk: Any, baseline: Baseline, horizon: float = 1095) -> PredictionsTable:
    chance = 1 - baseline.survival(risk, np.array([horizon]))[:, 0]
    hazard = baseline.log_hazard(risk, horizon)
    return times(risk).with_curves(baseline.median_days(risk), {horizon: chance}, log_hazard=hazard)


def test_large_risks_of_several_folds_are_judged_as_the_risks_themselves(tmp_path: Path) -> None:
    """True log risks with a standard deviation of 2: a fifth of the probabilities round to 1 in seven digits."""
    draw = np.random.default_rng(0)
    for _ in range(5):
        risk = 2 * draw.normal(size=300)
        day, censored = draw.exponential(365 * np.exp(-risk)), draw.uniform(0, 1500, 300)
        label = np.stack([np.minimum(day, censored), day <= censored], axis=1).astype(np.float64)
        # The model of each fold has a zero of its own, which its curve takes back.
        zeros = {"0": 40.0, "1": -7.0, "2": 0.0}
        parts = []
        for at, (fold, zero) in enumerate(zeros.items()):
            part = curves_of(risk[at::3] + zero, Baseline((1.0, 1000.0), (0.1, 3.0), 1.0, zero))
            parts.append(again(part, tmp_path).frame.assign(fold=fold, patient=[f"{at} {n}" for n in range(100)]))
        together = again(PredictionsTable(pd.concat(parts, ignore_index=True)), tmp_path)
        label = np.concatenate([label[at::3] for at in range(3)])
        order = concordance(np.concatenate([risk[at::3] for at in range(3)]), label)
        assert concordance(together.log_hazard, label) == order
        ties = together.risks[:, 0] == 1
        assert ties.sum() > 20 and concordance(together.risks[:, 0], label) < order  # what probabilities alone lose


def test_the_mean_of_models_is_that_of_their_probabilities() -> None:
    first, second = (curves_of(np.array(risk), Baseline((9.0,), (0.5,), 1.0, 0.0)) for risk in ([0.0, 1], [2.0, -3]))
    mean = average([first, second])
    np.testing.assert_allclose(mean.risks, (first.risks + second.risks) / 2)
    np.testing.assert_allclose(mean.log_hazard, np.log(-np.log(1 - mean.risks[:, 0])), rtol=1e-12)
    assert mean.log_risk.tolist() == [1.0, -1.0] and "median_days" not in mean.frame


def test_models_are_averaged_without_their_intervals_whatever_the_order_of_their_patients() -> None:
    first = numbers(volume_spread=[1.0, 2.0]).with_interval("volume", np.zeros(2), np.ones(2))
    second = PredictionsTable(numbers(volume_predicted=[0.5, 0.0], volume_spread=[3.0, 4.0]).frame[::-1])
    mean = average([first, second])
    assert mean.predicted("volume").tolist() == [26.5, 30.5] and mean.spread("volume").tolist() == [2.0, 3.0]
    assert mean.interval("volume") is None and mean.scans.tolist() == [1, 3] and mean.measured("volume")[0] == 50
    with pytest.raises(ValueError, match="the same patients"):
        average([first, first.select(np.array([True, False]))])


# ---- What is refused -------------------------------------------------------------------------------------------------

GOOD = {"patient": "Erika", "fold": "0", "ef": "50", "ef_predicted": "51", "unit": "%", "scans": "2", "days": "0;9"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ef_predicted": "high"}, "row 2, column ef_predicted: expected a number, got 'high'"),
        ({"ef": "1_000"}, "row 2, column ef: expected a number, got '1_000'"),
        ({"ef": "1,5"}, "row 2, column ef: expected a number, got '1,5'"),
        ({"patient": "Erika"}, "row 2: expected one row per patient, got the patient of row 1"),
        ({"unit": "mL"}, "row 2: expected the unit % of row 1, got 'mL'"),
        ({"scans": "1.5"}, "row 2, column scans: expected a whole number from 1, got 1.5"),
        ({"scans": ""}, "row 2, column scans: expected a whole number from 1, got nan"),
        ({"days": "0;later"}, "row 2, column days: expected numbers joined by ;, got '0;later'"),
        ({"weights": ""}, "row 2, column weights: expected numbers joined by ;, got ''"),
    ],
)
def test_a_wrong_cell_is_named_with_its_row_and_value(change: dict[str, str], message: str, tmp_path: Path) -> None:
    first = {**GOOD, "weights": "1;0"}
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        writer.writerows([first, {**first, "patient": "Max", **change}])
    with pytest.raises(ValueError) as caught:
        PredictionsTable.read(tmp_path / "predictions.csv")
    assert str(caught.value) == f"{tmp_path / 'predictions.csv'}: predictions {message}"
    assert "Erika" not in str(caught.value) and "Max" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a column patient, got none"),
        ("fold,ef\n0,50\n", "expected a column patient, got fold, ef"),
        ("patient,fold,unit,scans,days,weights,unit\n", "expected each column once, got unit twice"),
        ("patient,fold,unit,scans,days,weights\na,0,%,1,0\n", "row 1: expected 6 cells as in the header, got 5"),
        ("patient,fold,unit,scans,days,weights\na,0,%,1,0,1,7\n", "row 1: expected 6 cells as in the header, got 7"),
        ("patient,fold,unit,scans,days,weights\na,0,,1,0,1\n", "row 1: expected a unit, got none"),
        (
            "patient,fold,time,log_risk,unit,scans,days,weights\n",
            "expected two columns before log_risk, time and event, got time",
        ),
    ],
)
def test_a_file_that_is_no_table_of_predictions_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        PredictionsTable.read(file_of(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 'predictions.csv'}: ") and str(caught.value).endswith(message)


def test_a_file_in_another_encoding_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_bytes("patient\nÜnal".encode("latin-1"))
    with pytest.raises(ValueError, match=r"predictions\.csv: .*utf-8"):
        PredictionsTable.read(tmp_path / "predictions.csv")


def test_what_a_table_does_not_hold_is_asked_for_in_vain() -> None:
    with pytest.raises(ValueError, match="expected one of volume, got 'age'"):
        numbers().measured("age")
    with pytest.raises(ValueError, match="expected a time to event, got volume"):
        _ = numbers().label
    with pytest.raises(ValueError, match="expected a column log_hazard, got "):
        _ = times([0.0]).log_hazard


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["days"], ["days"]),
        (["fev1", "fev1_predicted"], ["fev1_predicted"]),
        (["x", "x_low"], ["x_low"]),
        (["time", "log_hazard"], ["log_hazard"]),
        (["group_size"], ["group_size"]),
    ],
)
def test_targets_named_as_other_columns_are_refused(names: list[str], taken: list[str]) -> None:
    check_target_names([names[0]] if names[0] not in taken else ["fev1_predicted"])
    with pytest.raises(ValueError) as caught:
        check_target_names(names)
    assert str(caught.value).endswith(f"got {taken}")

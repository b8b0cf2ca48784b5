import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from monai_mvreg.predict.prediction import (
    ModelIdentity,
    NoPrediction,
    PredictedNumber,
    Prediction,
    PredictionWarning,
    SurvivalCurve,
    UnusedScan,
    UsedScan,
    as_rows,
    in_words,
    prediction_schema,
    read_predictions,
    to_json,
)

SCHEMA = prediction_schema()
HASH = "0" * 64


@pytest.fixture
def volume() -> Prediction:
    return Prediction(
        patient="p1",
        numbers=(PredictedNumber("volume", "mL", 120.5, low=110.0, high=131.0, confidence=0.9),),
        survival=None,
        scans=(
            UsedScan("a.nii.gz", 0.0, None, "MR", 0.25, (1.5,), HASH),
            UsedScan("b.nii.gz", 30.0, None, "MR", 0.75, (-2.0,), HASH),
        ),
        newest_visit=(-2.0,),
        left_out=(UnusedScan("c.nii.gz", "damaged"),),
        warnings=(PredictionWarning("spacing", "5 mm, training saw 1 to 2 mm", scan=1),),
        model=ModelIdentity("Multi-scan regression", "0.1.0", "monai-mvreg 0.1.0", (HASH,), HASH),
    )


@pytest.fixture
def risk(volume: Prediction) -> Prediction:
    curve = SurvivalCurve(None, (365.0,), (0.2,), (100.0, 365.0), (0.9, 0.8))
    return replace(volume, numbers=(PredictedNumber("log_risk", "1", 0.3),), survival=curve)


def test_what_is_written_follows_the_schema(volume: Prediction, risk: Prediction) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(to_json([volume, risk], unpredicted=[NoPrediction("p2", "no scan")])), SCHEMA)


def test_the_schema_refuses_what_is_missing_or_too_much(volume: Prediction) -> None:
    whole = json.loads(to_json([volume]))
    del whole["predictions"][0]["numbers"][0]["unit"]
    with pytest.raises(jsonschema.ValidationError, match="unit"):
        jsonschema.validate(whole, SCHEMA)
    whole = json.loads(to_json([volume]))
    whole["predictions"][0]["name_of_patient"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="name_of_patient"):
        jsonschema.validate(whole, SCHEMA)


def test_predictions_are_read_back_as_they_were_written(volume: Prediction, risk: Prediction, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(to_json([volume, risk]), encoding="utf-8")
    assert read_predictions(tmp_path / "p.json") == [volume, risk]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other"}', '{"format": "monai-mvreg predictions 1"}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"p\.json: expected predictions"):
        read_predictions(tmp_path / "p.json")


def test_an_entry_of_another_kind_is_named_without_its_value(volume: Prediction, tmp_path: Path) -> None:
    whole = json.loads(to_json([volume]))
    whole["predictions"][0]["patient"] = 4711
    (tmp_path / "p.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"p\.json: .* entry predictions 1\.patient is missing or of another") as error:
        read_predictions(tmp_path / "p.json")
    assert "4711" not in str(error.value)


def test_a_number_that_is_not_finite_is_not_written(volume: Prediction) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json([replace(volume, numbers=(PredictedNumber("volume", "mL", float("nan")),))])


def test_a_row_has_one_entry_per_scan(volume: Prediction) -> None:
    row = as_rows([volume]).iloc[0]
    assert row["volume_predicted"] == 120.5
    assert (row["days"], row["weights"], row["volume_contributions"]) == ("0;30", "0.2500;0.7500", "1.5;-2")
    assert (row["left_out"], row["warnings"]) == (1, "spacing")


def test_a_row_of_a_time_to_event_has_the_columns_of_the_bundle(risk: Prediction) -> None:
    row = as_rows([risk]).iloc[0]
    assert (row["log_risk"], row["risk_365"]) == (0.3, 0.2)
    assert row["median_days"] is None


def test_a_number_is_told_with_its_unit_and_interval() -> None:
    assert (
        in_words(PredictedNumber("volume", "mL", 52.314, 49.0, 55.5, 0.9))
        == "volume: 52.31 mL (90% interval 49 to 55.5)"
    )
    assert in_words(PredictedNumber("log_risk", "1", -0.5)) == "log_risk: -0.5"

"""Files of a run as a record, and the tables of patients that a card makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from monai_mvreg.report.card_data import RunRecord, evaluation_data, read_record, training_data, whose
from tests.report.test_card import evaluated, model


def read(models: Path, evaluation: Path | None) -> RunRecord:
    return read_record(models, evaluation=evaluation, metadata=None, answers=None)


def test_the_training_table_has_a_column_for_each_part_and_says_what_was_left_out(tmp_path: Path) -> None:
    section = training_data(read(model(tmp_path / "models"), None))
    assert section.table is not None
    table = section.table.set_index("")
    assert table.loc["Patients"].tolist() == ["40", "20"] and table.loc["sex: F"].tolist() == ["20", "10"]
    assert "learned from: 1 (40)" in section.text and "fitted on: 0 (20); left out: 2." in section.text


@pytest.mark.parametrize(
    ("fold", "sentence"),
    [("2", "The training never saw"), ("0", "These patients chose the epoch"), ("1", "cross-validation, in which")],
)
def test_it_is_said_how_far_the_evaluated_patients_were_from_the_training(
    fold: str, sentence: str, tmp_path: Path
) -> None:
    run = read(model(tmp_path / "models"), evaluated(tmp_path / "test", fold=fold))
    assert whose(run).startswith(sentence) or sentence in whose(run)
    assert run.learned_from == (fold == "1")


def test_the_evaluation_stands_beside_the_training(tmp_path: Path) -> None:
    section = evaluation_data(read(model(tmp_path / "models"), evaluated(tmp_path / "test")))
    assert section.table is not None and list(section.table.columns) == ["", "Evaluation", "Training"]
    table = section.table.set_index("")
    known = pd.read_csv(tmp_path / "test/predictions.csv")
    assert table.loc["Patients", "Evaluation"] == "60" and table.loc["Scans", "Evaluation"] == str(known["scans"].sum())
    assert not (table == "not recorded").any(axis=None)


def test_a_model_of_an_older_version_without_a_record_is_said_to_have_none(tmp_path: Path) -> None:
    models = model(tmp_path / "models")
    (models / "training.json").unlink()
    run = read(models, evaluated(tmp_path / "test"))
    assert "left no record" in training_data(run).text and "not recorded" in whose(run)
    assert evaluation_data(run).table is not None


@pytest.mark.parametrize("name", ["model.pt", "settings.json"])
def test_a_folder_without_a_model_is_named_with_what_it_lacks(name: str, tmp_path: Path) -> None:
    models = model(tmp_path / "models")
    (models / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected (a )?trained .*{name}"):
        read(models, None)


def test_an_evaluation_without_metrics_and_a_broken_file_are_named(tmp_path: Path) -> None:
    models, place = model(tmp_path / "models"), evaluated(tmp_path / "test")
    (place / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json: expected JSON"):
        read(models, place)
    (place / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no metrics\.json"):
        read(models, place)
    (tmp_path / "answers.yaml").write_text("- a list")
    with pytest.raises(ValueError, match="answers: expected a text for each item"):
        read_record(models, evaluation=None, metadata=None, answers=tmp_path / "answers.yaml")


def test_a_time_to_event_is_known_by_its_horizons(tmp_path: Path) -> None:
    models = model(tmp_path / "models")
    settings = json.loads((models / "settings.json").read_text())
    (models / "settings.json").write_text(json.dumps({**settings, "horizons": [365]}))
    assert read(models, None).survival and read(models, None).unit == "d"

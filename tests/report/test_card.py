"""The model card: filled from the files of the run, the same in HTML and Markdown, and nothing in it is invented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from monai_mvreg.report import tripod
from monai_mvreg.report.card import write_card
from monai_mvreg.report.evaluation import write_evaluation
from monai_mvreg.report.survival import fit_curves
from monai_mvreg.trained.training_record import save_training
from tests.report.test_evaluation import Page, predictions
from tests.report.test_survival import HORIZONS, TARGET
from tests.report.test_survival import predictions as risks
from tests.trained.test_training_record import items, trainer

METADATA = Path(__file__).parents[2] / "bundle/configs/metadata.json"
SETTINGS: dict[str, Any] = {
    "target": ["volume"],
    "channels": 1,
    "spatial_size": [64, 64, 64],
    "grid": [{"_target_": "monai.transforms.Orientationd", "keys": "image", "axcodes": "RAS", "labels": None}],
    "intensity": [{"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image", "nonzero": True}],
    "encoder": {"_target_": "monai.networks.nets.resnet10", "spatial_dims": 3, "n_input_channels": "@channels"},
    "pool": {"_target_": "monai_mvreg.networks.pools.GatedAttentionPool", "size": "@embedding_size"},
    "outputs": 1,
    "columns#covariates": {"age": "number", "sex": ["F", "M"]},
    "columns#views": None,
    "unit": "mL",
    "reader": {"_target_": "monai_mvreg.scans.reader.ScanReader"},
    "loss": {"_target_": "torch.nn.HuberLoss"},
    "horizons": None,
    "dated": True,
    "own": {"imports": []},
}


def model(place: Path, **settings: Any) -> Path:
    """A folder as a training leaves it: 40 patients of fold 1 were learned from, 20 of fold 0 chose, fold 2 is new."""
    place.mkdir(parents=True)
    torch.save({"weight": torch.ones(2)}, place / "model.pt")
    (place / "settings.json").write_text(json.dumps({**SETTINGS, **settings}))
    (place / "intervals.json").write_text("{}")
    recorded = {"epochs": 9, "seed": 3, "processes": 1, "test_folds#0": "2", "loss#_target_": "torch.nn.HuberLoss"}
    save_training(
        str(place / "training.json"),
        {"training": items(40, "1"), "validation": items(20, "0")},
        names={"target": ["volume"], "covariates": ["age", "sex=M"]},
        settings={**recorded, "learning_rate": 0.001, "encoder_learning_rate": "@learning_rate"},
        trainer=trainer(),
        best_epoch=5,
    )
    return place


def evaluated(place: Path, *, fold: str = "2") -> Path:
    place.mkdir(parents=True)
    draw = np.random.default_rng(0)
    table = predictions(60).assign(fold=fold, scans=draw.integers(1, 4, 60), days="0;100", group_age=np.arange(60))
    table.assign(group_sex=["F", "M"] * 30).to_csv(place / "predictions.csv", index=False)
    write_evaluation(str(place), ["volume"], training_mean=[120.0])
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an evaluation and the card of both."""
    folder = tmp_path_factory.mktemp("whole")
    models, place = model(folder / "models"), evaluated(folder / "test")
    write_card(models, folder / "card", evaluation=place, metadata=METADATA)
    return folder


@pytest.fixture
def card(whole: Path) -> tuple[str, str]:
    """The card as Markdown and as HTML."""
    return (whole / "card/MODEL_CARD.md").read_text("utf-8"), (whole / "card/model_card.html").read_text("utf-8")


def headings(markdown: str) -> list[str]:
    return re.findall("^## (.*)$", markdown, re.MULTILINE)


def test_the_headings_are_those_of_model_cards_and_a_table_of_tripod(card: tuple[str, str]) -> None:
    found = headings(card[0])
    expected = [
        "Model details",
        "Intended use",
        "Out-of-scope uses",
        "Factors",
        "Training data",
        "Evaluation data",
        "Metrics",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
        "How to reproduce",
        "To be filled in by the authors",
        "TRIPOD+AI",
    ]
    assert [heading for heading in found if heading in expected] == expected
    assert {"Summary", "Comparison", "Groups of patients", "Too high, too low"} <= set(found)
    assert {item.where for item in tripod.ITEMS} - {""} <= set(found)


def test_markdown_and_html_say_the_same(card: tuple[str, str]) -> None:
    markdown, html = card
    assert re.findall("<h2>(.*)</h2>", html) == headings(markdown)
    for row in re.findall(r"^\| (\S.*?) \|", markdown, re.MULTILINE):
        assert row in ("---",) or row in html or "Picture" in row


def test_numbers_are_those_of_the_run(card: tuple[str, str], whole: Path) -> None:
    markdown = card[0]
    stored = json.loads((whole / "test/metrics.json").read_text())["volume"]["mae"]
    assert f"| Mean absolute error | {stored['value']:.3g}\N{NO-BREAK SPACE}mL | {stored['low']:.3g} to" in markdown
    training = json.loads((whole / "models/training.json").read_text())
    assert f"| SHA-256 of the weights | {training['weights']} |" in markdown
    assert "| Patients | 40 | 20 |" in markdown and "| epochs run | 7, the best was 5 |" in markdown
    assert "| encoder_learning_rate | 0.001 |" in markdown and "| Parameters | 5, 4 of them learned |" in markdown
    assert "Turned so that the axes point to R, A, S." in markdown
    assert "resnet10 (spatial_dims 3, n_input_channels 1)" in markdown


def test_the_card_needs_nothing_else_and_asks_for_nothing_from_outside(card: tuple[str, str]) -> None:
    page = Page(card[1])
    assert page.images and "script" not in page.seen
    assert not re.search(r"https?:|src=\"(?!data:)|href|url\(|@import", re.sub('base64,[^"]*', "", card[1]))


def test_no_patient_and_no_scan_is_named(card: tuple[str, str]) -> None:
    assert not any(key in text for text in card for key in ("KEY-", "Smith", "Mustermann", "SCANKEY", ".nii"))


def test_what_the_authors_alone_know_is_asked_and_not_invented(card: tuple[str, str]) -> None:
    left = card[0].split("## To be filled in by the authors")[1].split("## TRIPOD")[0]
    assert len(re.findall("^- ", left, re.MULTILINE)) == len(tripod.open_questions([]))
    assert "- 17, ethical approval:" in left and "From the authors" not in card[0]


def test_an_answer_of_the_authors_stands_in_the_card_and_closes_its_item(tmp_path: Path) -> None:
    (tmp_path / "answers.yaml").write_text('5b: "2011 to 2019"\n17: Committee <1>\n')
    path = write_card(model(tmp_path / "models"), tmp_path / "card", answers=tmp_path / "answers.yaml")
    markdown = path.read_text("utf-8")
    assert "- 5b, dates of data: 2011 to 2019" in markdown and "- 5b, dates of data: first and last" not in markdown
    assert "| 5b | Dates of data | “From the authors” |" in markdown
    assert "Committee &lt;1&gt;" in (tmp_path / "card/model_card.html").read_text("utf-8")


def test_without_an_evaluation_the_card_says_that_there_is_none(tmp_path: Path) -> None:
    markdown = write_card(model(tmp_path / "models"), tmp_path / "card").read_text("utf-8")
    assert "how good it is, is not known" in markdown and "The model was not evaluated." in markdown
    assert "| 23a | Performance, also of groups | open: there is no evaluation |" in markdown
    assert "| Name | not recorded |" in markdown


def test_other_weights_than_those_of_the_training_are_pointed_out(tmp_path: Path) -> None:
    models = model(tmp_path / "models")
    assert "not those" not in write_card(models, tmp_path / "card").read_text("utf-8")
    torch.save({"weight": torch.zeros(2)}, models / "model.pt")
    assert "(not those that the training wrote)" in write_card(models, tmp_path / "card").read_text("utf-8")


def test_a_model_without_any_record_of_its_training_has_a_card_too(tmp_path: Path) -> None:
    models = model(tmp_path / "models")
    (models / "training.json").unlink()
    markdown = write_card(models, tmp_path / "card", evaluation=evaluated(tmp_path / "test")).read_text("utf-8")
    assert "| Software | not recorded |" in markdown and "left no record of its settings" in markdown


def survival(folder: Path) -> Path:
    models = model(folder / "models", target=["days_left"], unit="1", horizons=HORIZONS)
    (folder / "test").mkdir()
    risks().assign(fold="2").to_csv(folder / "test/predictions.csv", index=False)
    fit_curves(str(folder / "test"), str(models / "survival.json"), target=TARGET, horizons=HORIZONS)
    return models


def test_a_time_to_event_has_its_curves_and_horizons(tmp_path: Path) -> None:
    markdown = write_card(survival(tmp_path), tmp_path / "card", evaluation=tmp_path / "test").read_text("utf-8")
    assert {"Curves", "Order over time", "Calibration"} <= set(headings(markdown))
    assert "the chance of the event by a day (300, 900)" in markdown and "Concordance (Harrell)" in markdown
    events = int(pd.read_csv(tmp_path / "test/predictions.csv")["event"].sum())
    assert f"| event, share | {events} (" in markdown


def test_a_cross_validation_of_a_time_to_event_has_its_metrics_as_a_table(tmp_path: Path) -> None:
    models = survival(tmp_path)
    metrics = json.loads((tmp_path / "test/metrics.json").read_text())
    del metrics["days_left"]["d_calibration_p"], metrics["days_left"]["left_out"]
    (tmp_path / "test/metrics.json").write_text(json.dumps(metrics))
    markdown = write_card(models, tmp_path / "card", evaluation=tmp_path / "test").read_text("utf-8")
    assert f"| harrell | {metrics['days_left']['harrell']['value']:.3f} |" in markdown


def test_the_scans_of_the_training_are_told_where_they_were_recorded(tmp_path: Path) -> None:
    models = model(tmp_path / "models")
    assert "modalities of the training scans: not recorded" in write_card(models, tmp_path / "card").read_text("utf-8")
    (models / "domain.json").write_text(json.dumps({"modalities": ["MR"], "spacing": [[0.5, 1.0]]}))
    markdown = write_card(models, tmp_path / "card").read_text("utf-8")
    assert "modalities of the training scans: MR; spacing" in markdown and "0.500 to 1.00 mm" in markdown

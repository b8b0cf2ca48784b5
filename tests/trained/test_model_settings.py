"""What a trained model depends on: written, read and compared in one place, with both values where they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import SETTINGS

from monai_mvreg.cohort.table import Columns
from monai_mvreg.trained.model_settings import (
    FORMAT,
    OF_EVALUATION,
    OF_SPLIT,
    ModelSettings,
    differences,
    expect_same,
    read_settings,
    settings_of,
    write_settings,
)

PARTS = ("channels", "reader", "spatial_size", "grid", "intensity", "encoder", "pool", "outputs", "loss")
CONFIG: dict[str, Any] = {
    **{name: SETTINGS[name] for name in PARTS},
    "horizons": [365, 1095],
    "folds": 5,
    "split_seed": 0,
    "task": {"_target_": "monai_mvreg.networks.task.Number"},
    "imports": [],
}
COLUMNS = Columns(
    day="day",
    view="side",
    views=["left", "right"],
    target=["time"],
    event="died",
    covariates={"age": "number", "sex": ["F", "M"]},
    fold="fold",
)
ALL = [*OF_EVALUATION, *OF_SPLIT]


def settings(config: dict[str, Any] | None = None, *, unit: str = "mL", **columns: Any) -> ModelSettings:
    return settings_of({**CONFIG, **(config or {})}, replace(COLUMNS, **columns), unit=unit)


def told(now: ModelSettings, trained: ModelSettings | None = None) -> str:
    """The refusal, without what every refusal begins with."""
    with pytest.raises(ValueError, match="settings differ from those the model was trained with: ") as caught:
        expect_same(trained or settings(), now, ALL)
    return str(caught.value).partition("trained with: ")[2]


def test_what_was_written_is_read_and_is_the_same(tmp_path: Path) -> None:
    write_settings(settings(), tmp_path / "settings.json")
    found = read_settings(tmp_path / "settings.json")
    assert found == settings() and found.format == FORMAT
    expect_same(found, settings(), ALL)
    assert (found.target, found.unit, found.dated, found.horizons) == (("time",), "mL", True, (365.0, 1095.0))
    assert (found.covariates, found.channels, found.spatial_size) == (dict(COLUMNS.covariates), 1, (6, 6, 4))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"event": "relapse"}, "columns#event (trained: died, now: relapse)"),
        ({"event": None}, "columns#event (trained: died, now: None)"),
        ({"target": ["days"]}, "target (trained: [time], now: [days])"),
        ({"day": None}, "dated, by columns#day or columns#date (trained: True, now: False)"),
        ({"views": ["right", "left"]}, "columns#views (trained: [left, right], now: [right, left])"),
        ({"fold": "part"}, "columns#fold (trained: fold, now: part)"),
        (
            {"covariates": {"age": "number", "sex": ["M", "F"]}},
            "columns#covariates (trained: [{age: number}, {sex: [F, M]}], now: [{age: number}, {sex: [M, F]}])",
        ),
        (  # the same covariates, but the network would take the one for the other
            {"covariates": {"sex": ["F", "M"], "age": "number"}},
            "columns#covariates (trained: [{age: number}, {sex: [F, M]}], now: [{sex: [F, M]}, {age: number}])",
        ),
    ],
)
def test_a_column_that_differs_is_named_with_both_values(columns: dict[str, Any], sentence: str) -> None:
    assert told(settings(**columns)) == sentence


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"pool": {"_target_": "own.MeanPool"}}, "pool (trained: GatedAttentionPool, now: MeanPool)"),
        ({"pool": {**SETTINGS["pool"], "size": 3}}, "pool#size (trained: @embedding_size, now: 3)"),
        ({"horizons": [365]}, "horizons (trained: [365, 1095], now: [365])"),
        ({"spatial_size": [6, 6, 5]}, "spatial_size (trained: [6, 6, 4], now: [6, 6, 5])"),
        ({"channels": "1"}, "channels (trained: 1, now: '1')"),
        ({"grid": []}, "grid (trained: [Orientationd, Resized], now: [])"),
        (
            {"intensity": [{**SETTINGS["intensity"][0], "a_max": 200}]},
            "intensity#0#a_max (trained: 100, now: 200)",
        ),
        ({"loss": {"_target_": "torch.nn.MSELoss"}}, "loss (trained: HuberLoss, now: MSELoss)"),
        (
            {"task": {"_target_": "monai_mvreg.networks.task.TimeToEvent"}},
            "task (trained: Number, now: TimeToEvent)",
        ),
    ],
)  # fmt: skip
def test_an_entry_that_differs_is_named_with_both_values(config: dict[str, Any], sentence: str) -> None:
    assert told(settings(config)) == sentence


@pytest.mark.parametrize(("name", "value"), [("folds", 4), ("split_seed", 1)])
def test_how_patients_are_split_counts_where_the_table_does_not_say_it(name: str, value: int) -> None:
    sentence = f"{name} (trained: {CONFIG[name]}, now: {value})"
    assert told(settings({name: value}, fold=None), settings(fold=None)) == sentence
    expect_same(settings(), settings({name: value}), ALL)


def test_all_that_differs_stands_in_one_sentence() -> None:
    assert told(settings({"horizons": None}, unit="L")) == (
        "horizons (trained: [365, 1095], now: None), unit (trained: mL, now: L)"
    )


def test_what_an_entry_refers_to_is_compared_too() -> None:
    grid = [{"_target_": "monai.transforms.Resized", "spatial_size": "@mine"}]
    trained = settings({"grid": grid, "mine": "$[@width] * 3", "width": 8, "dataset_dir": "here"})
    assert trained.own == {"mine": "$[@width] * 3", "width": 8}
    assert told(settings({"grid": grid, "mine": "$[@width] * 3", "width": 9}), trained) == "width (trained: 8, now: 9)"


def test_a_config_without_loss_and_task_is_compared_by_what_it_says() -> None:
    short = {name: entry for name, entry in CONFIG.items() if name not in ("loss", "task")}
    expect_same(settings(), settings_of(short, COLUMNS, unit="mL"), ALL)


def test_settings_of_version_0_1_are_compared_by_what_they_hold(tmp_path: Path) -> None:
    old = {**SETTINGS, "target": ["time"], "horizons": [365, 1095]}
    old |= {"columns#views": "@sides", "columns#covariates": {"age": "number", "sex": ["F", "M"]}}
    old["own"] = {"sides": ["left", "right"], "imports": []}
    (tmp_path / "settings.json").write_text(json.dumps(old))
    trained = read_settings(tmp_path / "settings.json")
    assert trained.format == 1
    # It knew neither the event nor the folds; outputs may be spelled in another way today.
    expect_same(trained, settings({"outputs": "$@task.outputs"}, event="other", fold="other"), ALL)
    assert told(settings(unit="L"), trained) == "unit (trained: mL, now: L)"
    assert told(settings(views=["right", "left"]), trained).startswith("columns#views (trained: [left, right]")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "expected JSON"),
        ("[]", "expected the settings of a trained model, got a list"),
        (
            json.dumps({**SETTINGS, "format": 3}),
            f"expected settings of format 1 or {FORMAT}, got 3: update monai_mvreg",
        ),
        (json.dumps({**SETTINGS, "target": "$names"}), r"expected target as a list of names, got \$names"),
        (json.dumps({**SETTINGS, "own": {}}), "expected own to hold entries and their imports, got {}"),
        (json.dumps({"target": ["volume"]}), "found no channels: train again"),
    ],
)
def test_another_file_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=f"settings.json: .*{sentence}"):
        read_settings(tmp_path / "settings.json")
    with pytest.raises(FileNotFoundError, match=r"absent\.json, found no such file: train first"):
        read_settings(tmp_path / "absent.json")


def test_values_whose_short_forms_are_the_same_are_told_apart() -> None:
    assert differences({"pool": {"_target_": "a.Pool"}}, {"pool": {"_target_": "b.Pool"}}) == [
        "pool (trained: {'_target_': 'a.Pool'}, now: {'_target_': 'b.Pool'})"
    ]
    assert differences({"a": 1}, {"b": 2}) == ["a (trained: 1, now: not given)", "b (trained: not given, now: 2)"]
    assert differences({"a": "x" * 200}, {"a": 1}) == [f"a (trained: {'x' * 97}..., now: 1)"]

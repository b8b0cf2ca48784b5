"""A bundle's run: a mistyped setting is refused, and an error a user can mend is one line."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mistakes import cause, failing
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_mvreg import bundle_folder
from monai_mvreg.training import workflow
from monai_mvreg.training.workflow import explain_errors, refuse_unread_settings, set_seed

CONFIG: dict[str, Any] = {
    "bundle_root": ".",
    "epochs": 3,
    "learning_rate": 0.1,
    "network": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": "@epochs"},
    "imports": ["$import monai_mvreg.training.workflow as workflow"],
    "initialize": ["$workflow.refuse_unread_settings(@bundle_root + '/configs')"],
    "run": ["$@epochs * 2"],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with two configs; ``beta`` is a setting of the second alone."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/train.yaml").write_text(yaml.safe_dump({**CONFIG, "bundle_root": str(tmp_path)}))
    (tmp_path / "configs/evaluate.yaml").write_text(yaml.safe_dump({"beta": 1}))
    return tmp_path


def start(bundle: Path, **overrides: Any) -> list[Any]:
    run = ConfigWorkflow(
        config_file=str(bundle / "configs/train.yaml"),
        meta_file=None,
        logging_file=False,
        workflow_type="train",
        **overrides,
    )
    run.initialize()
    return list(run.run())


# ---- Settings that nothing reads -------------------------------------------------------------------------------------


def test_a_config_without_overrides_starts(bundle: Path) -> None:
    assert start(bundle) == [6]


def test_a_known_setting_may_be_overridden(bundle: Path) -> None:
    assert start(bundle, epochs=5) == [10]


@pytest.mark.parametrize(("typo", "meant"), [("epoch", "epochs"), ("learning_rat", "learning_rate")])
def test_a_mistyped_setting_is_refused_with_the_nearest_name(bundle: Path, typo: str, meant: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        start(bundle, **{typo: 1})
    assert cause(caught.value) == f"expected a setting of the bundle, got {typo!r}: did you mean {meant!r}?"


def test_a_setting_that_resembles_none_is_refused_too(bundle: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        start(bundle, zzzzzz=1)
    assert cause(caught.value) == "expected a setting of the bundle, got 'zzzzzz'"


def test_a_setting_of_another_config_of_the_bundle_is_allowed(bundle: Path) -> None:
    assert start(bundle, beta=2) == [6]


@pytest.mark.parametrize("reference", ["@wide", "$@wide + 1"])
def test_a_new_setting_that_is_referred_to_is_allowed(bundle: Path, reference: str) -> None:
    assert start(bundle, wide=4, network={"_target_": "torch.nn.Linear", "in_features": 2, "out_features": reference})


def test_a_nested_override_is_allowed(bundle: Path) -> None:
    assert start(bundle, **{"network#in_features": 7}) == [6]


def test_a_plain_parser_is_checked_as_well(bundle: Path) -> None:
    parser = ConfigParser({**CONFIG, "bundle_root": str(bundle), "epoch": 1})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("initialize")
    assert "did you mean 'epochs'" in cause(caught.value)


def test_a_call_from_elsewhere_is_refused(bundle: Path) -> None:
    with pytest.raises(RuntimeError, match="called from a config"):
        refuse_unread_settings(str(bundle / "configs"))


def test_a_folder_without_configs_takes_the_settings_of_the_package(tmp_path: Path) -> None:
    parser = ConfigParser({**CONFIG, "bundle_root": str(tmp_path), "patience": 3})
    parser.get_parsed_content("initialize")
    parser = ConfigParser({**CONFIG, "bundle_root": str(tmp_path), "patienc": 3})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("initialize")
    assert "did you mean 'patience'" in cause(caught.value)


@pytest.mark.parametrize("name", ["train", "evaluate", "inference", "multi_gpu_train", "federated"])
def test_every_config_refuses_to_write_to_the_installed_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_folder, "_PACKAGE", tmp_path / "monai_mvreg")
    config = yaml.safe_load((Path(__file__).parents[2] / f"bundle/configs/{name}.yaml").read_text())
    shared = {"imports": CONFIG["imports"], "initialize": config["initialize"][:2]}
    parser = ConfigParser({**shared, "bundle_root": str(tmp_path / "monai_mvreg/bundle")})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("initialize")
    told = f"expected a folder of your own for data, models and results, got {tmp_path}/monai_mvreg/bundle in the"
    assert cause(caught.value).startswith(told)
    ConfigParser({**shared, "bundle_root": str(tmp_path / "study")}).get_parsed_content("initialize")


# ---- Errors ----------------------------------------------------------------------------------------------------------


def shown(error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What an uncaught error prints."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    explain_errors()
    sys.excepthook(type(error), error, error.__traceback__)
    return capsys.readouterr().err


def test_an_error_of_ours_is_printed_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MVREG_TRACEBACK", raising=False)
    error = failing("$table.read_cohort('nowhere.csv', table.Columns(), images='.')")
    assert shown(error, monkeypatch, capsys).strip() == "error: expected a table, found no file nowhere.csv"


@pytest.mark.parametrize(
    ("expression", "kind"), [("$1 / 0", "ZeroDivisionError"), ("$int('x')", "ValueError"), ("$[1][2]", "IndexError")]
)
def test_a_foreign_error_in_a_config_is_its_cause_in_one_line(
    expression: str, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MVREG_TRACEBACK", raising=False)
    text = shown(failing(expression), monkeypatch, capsys)
    assert "Traceback" not in text and text.strip().count("\n") == 0
    assert f"({kind} in " in text and expression in text and "; MVREG_TRACEBACK=1 shows all of it)" in text


def test_an_error_outside_a_config_is_printed_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MVREG_TRACEBACK", raising=False)
    text = shown(ZeroDivisionError("division by zero"), monkeypatch, capsys)
    assert "ZeroDivisionError" in text and "error: " not in text


def test_everything_is_printed_whole_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MVREG_TRACEBACK", "1")
    error = failing("$table.read_cohort('nowhere.csv', table.Columns(), images='.')")
    assert "Traceback" in shown(error, monkeypatch, capsys)


def test_a_hook_that_is_in_use_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: Any) -> None: ...

    monkeypatch.setattr(sys, "excepthook", other)
    workflow.explain_errors()
    assert sys.excepthook is other


@pytest.mark.parametrize("expression", ["$table.read_cohort('x', table.Columns(), images='.')", "$1 / 0"])
def test_a_log_shows_no_traceback(expression: str) -> None:
    error = failing(expression)
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "x", (), (type(error), error, error.__traceback__))
    assert not workflow._no_traceback(record)
    assert workflow._no_traceback(logging.LogRecord("x", logging.INFO, "x", 1, "x", (), None))


# ---- What a prediction needs later -----------------------------------------------------------------------------------


def test_settings_are_saved_with_all_that_they_refer_to_and_nothing_else(bundle: Path) -> None:
    parts: dict[str, Any] = {name: [] for name in ("target", "channels", "spatial_size", "encoder", "pool", "outputs")}
    config = {
        **CONFIG,
        **parts,
        "columns": {"_target_": "monai_mvreg.cohort.table.Columns", "day": "day"},
        "unit": "$@dataset_dir",
        "dataset_dir": "elsewhere",
        "reader": {"dtype": "$pathlib.Path"},
        "grid": [{"size": "@size"}],
        "size": "$@margin * 2",
        "margin": 3,
        "unused": 4,
        "intensity": [],
        "loss": {"delta": "%margin"},
        "task": {"loss": "@loss"},
        "imports": [*CONFIG["imports"], "$import pathlib", "$import shutil"],
        "run": ["$workflow.save_settings(@bundle_root + '/settings.json', columns=@columns, unit='mL')"],
        "bundle_root": str(bundle),
    }
    (bundle / "configs/train.yaml").write_text(yaml.safe_dump(config))
    start(bundle)
    saved = json.loads((bundle / "settings.json").read_text())
    assert saved["own"] == {"size": "$@margin * 2", "margin": 3, "imports": ["$import pathlib"]}
    assert (saved["unit"], saved["dated"], saved["horizons"], saved["loss"]) == ("mL", True, None, {"delta": 3})


# ---- Seeds -----------------------------------------------------------------------------------------------------------


def test_deterministic_algorithms_are_used_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        set_seed(3, deterministic=False)
        assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        drawn = torch.rand(1)
        set_seed(3, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.rand(1) == drawn
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)

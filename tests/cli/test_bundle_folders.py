"""The verbs ``bundle`` and ``init``, and where verbs look for the bundle that nobody named."""

from __future__ import annotations

import re
import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import yaml
from mistakes import mistake
from monai.bundle import ConfigParser

from monai_mvreg import bundle_folder
from monai_mvreg.cli.bundle_folders import (
    add_bundle_option,
    add_trained_options,
    bundle_of_model,
    bundle_to_train,
)
from monai_mvreg.cli.main import main
from monai_mvreg.cli.trainings import _plan

BUNDLE = Path(__file__).parents[2] / "bundle"


def trained(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    add_trained_options(parser)
    return parser.parse_args(arguments)


def to_train(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    add_bundle_option(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and in it."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


# ---- mvreg bundle ----------------------------------------------------------------------------------------------------


def test_bundle_prints_the_path_and_nothing_else(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle"]) == 0
    assert capsys.readouterr().out == f"{BUNDLE.resolve()}\n"


def test_the_help_of_bundle_says_where_results_go(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bundle", "--help"])
    assert "--bundle_root" in capsys.readouterr().out


# ---- mvreg init ------------------------------------------------------------------------------------------------------


def test_init_writes_the_bundle_and_a_file_of_settings(empty: Path) -> None:
    assert main(["init", "study"]) == 0
    assert {path.name for path in (empty / "study").iterdir()} == {"configs", "docs", "LICENSE", "mine.yaml"}
    for config in (BUNDLE / "configs").iterdir():
        assert (empty / "study/configs" / config.name).read_bytes() == config.read_bytes()


def test_init_prints_commands_whose_files_are_there(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "my study"]) == 0
    told = capsys.readouterr().out
    assert "  cd 'my study'\n" in told
    commands = re.findall(r'python -m monai\.bundle run --config_file "(\[.*\])" --dataset_dir', told)
    files = [yaml.safe_load(command) for command in commands]
    assert [Path(first).stem for first, _ in files] == ["train", "evaluate", "inference"]
    assert all((empty / "my study" / file).is_file() for pair in files for file in pair)


def test_init_refuses_a_folder_that_is_not_empty(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty / "notes.txt").touch()
    assert mistake(capsys, "init", ".") == "error: expected a new or an empty folder, got .: choose a different name\n"
    assert [path.name for path in empty.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_the_file_of_settings_changes_only_what_the_config_declares(empty: Path, name: str) -> None:
    main(["init", "study"])
    configs = {file.stem: yaml.safe_load(file.read_text()) for file in (empty / "study/configs").glob("*.yaml")}
    mine = yaml.safe_load((empty / "study/mine.yaml").read_text())
    for setting in mine:
        group, _, entry = setting.partition("#")
        declared = [config for config in configs.values() if group in config]
        assert declared and (not entry or entry in configs[name][group]), setting
    parser = ConfigParser()
    parser.read_config([str(empty / f"study/configs/{name}.yaml"), str(empty / "study/mine.yaml")])
    columns = parser.get_parsed_content("columns")
    assert (list(columns.target), columns.day, columns.fold, columns.unit) == (["target"], "day", "fold", None)


def test_commented_settings_can_be_taken_as_they_are(empty: Path) -> None:
    main(["init", "study"])
    text = (empty / "study/mine.yaml").read_text()
    every = yaml.safe_load(re.sub(r"^# (?=[\w#]+: [\[{\d])", "", text, flags=re.MULTILINE))
    assert {"columns#covariates", "spatial_size", "pool", "epochs"} <= set(every) - set(yaml.safe_load(text))
    (empty / "study/mine.yaml").write_text(yaml.safe_dump(every))
    parser = ConfigParser()
    parser.read_config([str(empty / "study/configs/train.yaml"), str(empty / "study/mine.yaml")])
    assert parser.get_parsed_content("columns").covariate_names == ("age", "sex=M")
    assert type(parser.get_parsed_content("pool")).__name__ == "TrendPool"


# ---- The bundle that nobody named ------------------------------------------------------------------------------------


def test_a_bundle_that_is_named_is_taken(empty: Path) -> None:
    (empty / "bundle/configs").mkdir(parents=True)
    assert bundle_to_train(to_train("--bundle", "mine")) == Path("mine")
    assert bundle_of_model(trained("--bundle", "mine")) == Path("mine")
    assert bundle_of_model(trained("--bundle", "mine", "--models", "m")) == Path("mine")


def test_the_folder_bundle_comes_before_that_of_the_package(empty: Path) -> None:
    (empty / "bundle/configs").mkdir(parents=True)
    assert bundle_to_train(to_train()) == Path("bundle")
    assert bundle_of_model(trained()) == bundle_of_model(trained("--models", "m")) == Path("bundle")


def test_without_a_folder_bundle_that_of_the_package_is_taken(empty: Path) -> None:
    assert bundle_to_train(to_train()) == bundle_of_model(trained("--models", "m")) == BUNDLE.resolve()


def test_no_model_is_taken_that_nobody_named(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = mistake(capsys, "predict", ".")
    assert told.startswith(f"error: expected a trained bundle in {empty / 'bundle'}, found none: give --bundle FOLDER")
    assert "--models" in told


@pytest.mark.parametrize("named", [True, False])
def test_trainings_with_the_bundle_of_a_wheel_write_to_the_folder_of_their_results(
    named: bool, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = empty.parent / "site-packages/monai_mvreg"
    shutil.copytree(BUNDLE / "configs", package / "bundle/configs")
    monkeypatch.setattr(bundle_folder, "_PACKAGE", package)
    bundle = package / "bundle" if named else None
    options = Namespace(bundle=bundle, set=["epochs=2"], configs=[], out=Path("cv"), dataset_dir=Path("data"))
    plan = _plan(options)
    assert plan.bundle == package / "bundle"
    assert plan.settings == {"bundle_root": str(empty / "cv"), "epochs": 2}
    arguments = plan.arguments("train")
    assert arguments.count("--bundle_root") == 1
    assert arguments[arguments.index("--bundle_root") + 1] == str(empty / "cv")
    assert plan.parser().get_parsed_content("output_dir") == str(empty / "cv/eval")

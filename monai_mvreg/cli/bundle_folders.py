"""The folder of the bundle on the command line: the option --bundle, and the verbs that name it and copy it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from monai_mvreg.bundle_folder import copy_bundle, find_bundle

# As in a clone, and after `mvreg init bundle`.
_HERE = Path("bundle")


def add_folder_verbs(verbs: Any) -> None:
    """Add them to the parser of the command line."""
    description = (
        "Print the folder of the installed bundle. Only read it: models and results go to --bundle_root, by default to "
        'the current folder. Example: python -m monai.bundle run --config_file "$(mvreg bundle)/configs/train.yaml" '
        "--bundle_root STUDY --dataset_dir DATA"
    )
    bundle = verbs.add_parser("bundle", help="print the folder of the installed bundle", description=description)
    bundle.set_defaults(verb=_bundle)

    init = verbs.add_parser("init", help="write a copy of the bundle to edit, with a file for your own settings")
    init.add_argument("folder", type=Path, metavar="FOLDER", help="a new or an empty folder")
    init.set_defaults(verb=_init)


def add_bundle_option(verb: argparse.ArgumentParser) -> None:
    """Add the option of every verb that trains."""
    default = "default: the folder bundle; where there is none, the bundle of the package"
    verb.add_argument("--bundle", type=Path, metavar="FOLDER", help=default)


def add_trained_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of every verb that needs a trained model."""
    default = "default: the folder bundle; where there is none and --models is given, the bundle of the package"
    verb.add_argument("--bundle", type=Path, metavar="FOLDER", help=default)
    verb.add_argument("--models", type=Path, metavar="FOLDER", help="of a training or a cross-validation")


def bundle_to_train(options: argparse.Namespace) -> Path:
    """The bundle whose configs are trained."""
    if options.bundle is not None:
        return Path(options.bundle)
    return _HERE if (_HERE / "configs").is_dir() else find_bundle()


def bundle_of_model(options: argparse.Namespace) -> Path:
    """The bundle of a trained model; that of the package only with ``--models``: no model is chosen unasked.

    Raises:
        FileNotFoundError: if neither option is given and there is no folder ``bundle``.
    """
    if options.bundle is None and options.models is None and not (_HERE / "configs").is_dir():
        raise FileNotFoundError(
            f"expected a trained bundle in {_HERE.absolute()}, found none: give --bundle FOLDER, or --models FOLDER of "
            "a training"
        )
    return bundle_to_train(options)


def _bundle(options: argparse.Namespace) -> None:
    print(find_bundle())


def _init(options: argparse.Namespace) -> None:
    folder = options.folder
    copy_bundle(folder)
    settings = Path(__file__).with_name("mine.yaml").read_text(encoding="utf-8")
    (folder / "mine.yaml").write_text(settings, encoding="utf-8")
    run = "python -m monai.bundle run --config_file"
    print(f"{folder}: a copy of the bundle (configs, docs, LICENSE), and mine.yaml for the settings of your table")
    print("\nNext: name the columns of your table in mine.yaml. DATA is the folder with cohort.csv and the scans; then")
    print(f"  cd {shlex.quote(str(folder))}")
    print(f"  {run} \"['configs/train.yaml','mine.yaml']\" --dataset_dir DATA")
    print(f"  {run} \"['configs/evaluate.yaml','mine.yaml']\" --dataset_dir DATA")
    print(f"  {run} \"['configs/inference.yaml','mine.yaml']\" --dataset_dir NEW_DATA")
    print("models/, eval/ and predictions/ are written to this folder. docs/README.md explains all commands.")

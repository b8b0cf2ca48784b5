"""A bundle's run: what ``monai.bundle run`` lacks, a mistyped setting refused and an error in one line."""

import difflib
import hashlib
import inspect
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from monai.apps import get_logger
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from monai_mvreg.bundle_folder import find_bundle, is_installed
from monai_mvreg.cohort.split import Folds, fold_names, select
from monai_mvreg.cohort.table import Cohort, Columns
from monai_mvreg.errors import config_error, user_error
from monai_mvreg.trained.model_files import PATIENTS_FILE, check_files
from monai_mvreg.trained.model_settings import (
    OF_EVALUATION,
    OF_SPLIT,
    ModelSettings,
    expect_same,
    read_settings,
    settings_of,
    write_settings,
)
from monai_mvreg.trained.training_patients import read_training_patients
from monai_mvreg.trained.training_record import training_folds
from monai_mvreg.trained.weights import WEIGHTS_FILES, read_weights, weights_hash
from monai_mvreg.training.setting_kinds import expect_kinds

_log = logging.getLogger(__name__)
_READ_BY_MONAI = {"imports", "initialize", "run", "finalize", "_meta_"}
# Entries that change no number: where things lie, and how they are computed.
_PLACES = {"bundle_root", "dataset_dir", "output_dir", "model_dir", "trained_dir", "cohort_file", "outcomes_file"}
_PLACES |= {"device", "workers", "cache_rate", "cache_dir", "embedding_cache", "embedding_cache_bytes"}
_PLACES |= {"main_process", "resume", "subgroups", "imports", "initialize", "run", "finalize"}


def refuse_unread_settings(configs: str) -> None:
    """Refuse a setting that nothing reads; for the list ``initialize`` of a config.

    MONAI adds an override of an unknown name (``--epoch 1``) as a new entry and goes on with the default. A setting, or
    an entry of ``train`` and ``validate`` (``--validate#handler``), is known if a config of the bundle declares it, or
    if the running config refers to it. Arguments of components are checked by the components.

    Args:
        configs: the folder of the bundle's configs; where it holds none, those of the package's bundle are taken.

    Raises:
        FileNotFoundError: naming the setting of a file of pretrained weights that is not there.
        ValueError: naming the setting and the nearest known one, or a setting whose value is the text "false", which
            would be taken for true.
        RuntimeError: if not called from a config.
    """
    config = _calling_config()
    files = list(Path(configs).glob("*.yaml")) or list((find_bundle() / "configs").glob("*.yaml"))
    # While a config runs, MONAI writes "@train::trainer".
    text = yaml.safe_dump(config).replace("::", "#")
    declared = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    expect_kinds(config, declared)
    known = {name for entries in declared for name in _names(entries)}
    known |= _READ_BY_MONAI | set(re.findall(r"[@%](\w+)", text)) | set(re.findall(r"[@%](\w+#\w+)", text))
    # Nobody reads "train" as a whole, so each of its entries must be known; "metrics" is read whole, with any entry.
    whole = set(re.findall(r"[@%](\w+)\b(?!#)", text))
    for setting in _names(config):
        group, nested, _ = setting.partition("#")
        if setting not in known and not (nested and group in whole):
            near = difflib.get_close_matches(setting, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected a setting of the bundle, got {setting!r}{hint}")
    for setting, value in _leaves(config):
        loads = "train" in config and config.get("pretrained") is not False  # evaluation has the trained weights
        if loads and setting.endswith("pretrained_cfg_overlay#file") and not Path(str(value)).is_file():
            raise FileNotFoundError(f"{setting}: expected pretrained weights in {value}, found no such file")
        if value in ("true", "false", "null"):
            raise ValueError(f"{setting}: the command line takes True, False and '$None', got the text {value!r}")


def expect_own_folder(bundle_root: str) -> None:
    """Refuse the installed package as ``bundle_root``; for the list ``initialize`` of a config.

    Args:
        bundle_root: the folder where data, models and results lie by default.

    Raises:
        ValueError: if it lies in the package, where an update or an uninstallation would delete them.
    """
    if is_installed(Path(bundle_root)):
        raise ValueError(
            f"expected a folder of your own for data, models and results, got {bundle_root} in the installed package: "
            "give another --bundle_root"
        )


def _leaves(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Name every single value of a config: ``columns#fold``."""
    if not isinstance(config, (dict, list)):
        yield name, config
        return
    for key, entry in config.items() if isinstance(config, dict) else enumerate(config):
        yield from _leaves(entry, f"{name}#{key}".lstrip("#"))


def _names(config: dict[str, Any]) -> list[str]:
    """Name every setting, and every entry of a setting that is a group and not a component: ``train#trainer``."""
    groups = {name: entry for name, entry in config.items() if isinstance(entry, dict) and "_target_" not in entry}
    return [*config, *(f"{name}#{entry}" for name, group in groups.items() for entry in group)]


def _calling_config() -> dict[str, Any]:
    """Find the config being parsed: MONAI hands it to no expression, but its parser stands on the call stack."""
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return {key: value for key, value in parser.config.items() if key != "_meta_"}
        frame = frame.f_back
    raise RuntimeError("expected to be called from a config of a bundle")


def save_settings(path: str, *, columns: Columns, unit: str) -> None:
    """Write what a trained model depends on, its preprocessing and parts; for the list ``run`` of training.

    Args:
        path: the JSON file.
        columns: which column of the table holds what.
        unit: unit of the target.

    """
    write_settings(settings_of(_calling_config(), columns, unit=unit), Path(path))


def same_settings(path: str, *, columns: Columns, unit: str | None = None) -> ModelSettings:
    """Read what the model was trained with and refuse a config that differs, such as one without the preset.

    Args:
        path: what :func:`save_settings` wrote, beside the other files of the model.
        columns: which column of the table at hand holds what.
        unit: unit of the target in that table; None where no target is read.

    Returns:
        The settings of the training.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the settings that differ, with both values, or files that are of another training.
    """
    trained = read_settings(Path(path))
    expect_same(trained, settings_of(_calling_config(), columns, unit=unit), OF_EVALUATION)
    folder = Path(path).parent
    if trained.files and any((folder / name).is_file() for name in WEIGHTS_FILES):
        check_files(folder, trained.files, weights=weights_hash(read_weights(folder)))
    return trained


def expect_new_patients(folder: str, cohort: Cohort, *, columns: Columns, folds: Folds, allowed: bool = False) -> str:
    """Refuse to evaluate a model on patients that it has learned from; for the list ``run`` of evaluation.

    Patients are recognised by their keys. Where the training left no hashes of them, as version 0.1, its folds are
    compared by name; a model from a pack knows neither, which a warning says.

    Args:
        folder: of the trained model.
        cohort: the patients at hand.
        columns: which column of their table holds what.
        folds: those to evaluate.
        allowed: evaluate such patients on purpose.

    Returns:
        A sentence for the report if the model has learned from some of them, else nothing.

    Raises:
        ValueError: if the model has learned from some of them and this is not allowed, or patients of the training are
            split into other folds than there.
    """
    trained = read_settings(Path(folder) / "settings.json")
    known = read_training_patients(Path(folder) / PATIENTS_FILE)
    evaluated = select(cohort, folds)
    learned = training_folds(Path(folder) / "training.json")
    if known is not None:
        if not allowed and known.has_any(patient.key for patient in cohort.patients):
            expect_same(trained, settings_of(_calling_config(), columns, unit=None), OF_SPLIT)
        count = known.learned_from(patient.key for patient in evaluated)
    elif trained.format == 1:
        count = sum(patient.fold in learned for patient in evaluated)
    else:
        _log.warning("the model does not know its training patients: whether these are new to it cannot be checked")
        return ""
    if count and not allowed:
        raise ValueError(
            f"expected patients that the model has not learned from, got {count} of {len(evaluated)} that it has "
            f"(folds of its training: {sorted(learned)}, folds to evaluate: {fold_names(folds)}): evaluate other "
            "folds, or give allow_training_patients True to evaluate these on purpose"
        )
    if not count:
        return ""
    notice = (
        f"The model has learned from {count} of the {len(evaluated)} evaluated patients: these numbers do not say how "
        "well it predicts new patients."
    )
    _log.warning(notice)
    return notice


def expect_target_names(columns: Columns) -> None:
    """Refuse a target with the name of another column of ``predictions.csv``.

    Args:
        columns: which column of the table holds what.

    Raises:
        ValueError: naming the first such target.
    """
    targets = [*columns.target, *([columns.event] if columns.event else [])]
    taken = ["patient", "fold", "unit", "scans", "days", "weights", "log_risk", "median_days", "log_hazard"]
    taken += [name + end for name in columns.target for end in ("_predicted", "_spread", "_low", "_high")]
    for name in targets:
        if name in taken or re.match(r"group_|risk_\d", name) or targets.count(name) > 1:
            raise ValueError(
                f"expected a target that is not named like another column of predictions.csv, got {name!r}: rename the "
                f"column of the table (taken: {', '.join(taken)}, and what begins with group_ or risk_ and a day)"
            )


def describe_run(
    patients: Sequence[Mapping[str, Any]], root: str, *, unit: str = "1", processes: int = 1
) -> dict[str, Any]:
    """Describe what the numbers of a training depend on, for a checkpoint to compare: every setting, and the cohort.

    Where things lie may change (folders, the device, workers, what is kept in memory): none of it changes a number.

    Args:
        patients: the items of the datasets for training and validation.
        root: the folder that their scans lie in.
        unit: unit of the target.
        processes: how many train together.

    Returns:
        Each setting by its name, ``cohort`` (a hash), ``unit of the target`` and ``processes``.
    """
    settings = {name: value for name, value in _leaves(_calling_config()) if name.split("#")[0] not in _PLACES}
    seen = [{name: entry for name, entry in item.items() if name != "groups"} for item in patients]  # for reports only
    found = {**json.loads(json.dumps(settings)), "cohort": cohort_hash(seen, root)}
    return {**found, "unit of the target": unit, "processes": processes}


def cohort_hash(patients: Sequence[Mapping[str, Any]], root: str) -> str:
    """Hash all that is known of patients, without where their scans lie.

    Args:
        patients: items of a dataset.
        root: the folder that their scans lie in.
    """
    cohort = hashlib.sha256()
    for patient in patients:
        scans = [os.path.relpath(scan, root) for scan in patient["image"]]
        cohort.update(json.dumps({**patient, "image": scans}, sort_keys=True).encode())
    return cohort.hexdigest()[:16]


def expect_validation(epochs: int, interval: int) -> None:
    """Refuse a training that would end before its first validation, and so without a model.

    Raises:
        ValueError: if ``interval`` is larger than ``epochs``.
    """
    if interval > epochs:
        raise ValueError(f"expected val_interval of at most epochs, {epochs}, got {interval}: no model would be saved")


def expect_share(patients: int, processes: int) -> None:
    """Refuse a validation in which a process would have no patient: the others would wait for it without end.

    Raises:
        ValueError: if there are fewer patients than processes.
    """
    if patients < processes:
        raise ValueError(f"expected a validation patient for each of {processes} processes, got {patients} patients")


def explain_errors() -> None:
    """Print what a user can mend in one line instead of the nested traceback of a config.

    Applies to uncaught errors of this process that :func:`~monai_mvreg.errors.user_error` finds, and to what a config
    wraps, of which the first cause and the expression are named; all others, and all when the environment variable
    ``MVREG_TRACEBACK`` is set, are shown whole.
    """
    if os.environ.get("MVREG_TRACEBACK"):
        return
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_cause
    get_logger("monai.handlers.StatsHandler").addFilter(_no_traceback)


def _no_traceback(record: logging.LogRecord) -> bool:
    """Leave out MONAI's traceback of an error, which is printed at the end of a run, and of a stop on request."""
    return not (record.exc_info and record.exc_info[1])


def set_seed(seed: int, *, deterministic: bool) -> None:
    """Seed Python, numpy and torch; for the list ``initialize`` of a config.

    Args:
        seed: the seed.
        deterministic: also use deterministic algorithms throughout, so that the same training on the same GPU gives
            the same bits; it is slower, and torch refuses a network with an operation that has none.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    set_determinism(seed, use_deterministic_algorithms=deterministic or None)


def _print_cause(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = user_error(error) or config_error(error)
    if cause is None:
        sys.__excepthook__(kind, error, trace)
    else:
        # A progress bar may stand on the line.
        print(f"\nerror: {cause}", file=sys.stderr)
    for thread in threading.enumerate():
        # A pool's thread that still loads a scan when Python ends would abort the process.
        if isinstance(thread, DummyProcess):
            thread.join(timeout=60)

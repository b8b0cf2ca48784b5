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

from monai_mvreg.errors import user_error
from monai_mvreg.trained.moved_names import with_current_names

_READ_BY_MONAI = {"imports", "initialize", "run", "finalize", "_meta_"}


def refuse_unread_settings(configs: str) -> None:
    """Refuse a setting that nothing reads; for the list ``initialize`` of a config.

    MONAI adds an override of an unknown name (``--epoch 1``) as a new entry and goes on with the default. A setting, or
    an entry of ``train`` and ``validate`` (``--validate#handler``), is known if a config of the bundle declares it, or
    if the running config refers to it. Arguments of components are checked by the components.

    Args:
        configs: the folder of the bundle's configs.

    Raises:
        ValueError: naming the setting and the nearest known one, or a setting whose value is the text "false", which
            would be taken for true.
        RuntimeError: if not called from a config.
    """
    config = _calling_config()
    if not list(Path(configs).glob("*.yaml")):
        raise ValueError(f"expected the configs of the bundle in {configs}, found none: give --bundle_root")
    # While a config runs, MONAI writes "@train::trainer".
    text = yaml.safe_dump(config).replace("::", "#")
    known = {name for file in Path(configs).glob("*.yaml") for name in _names(yaml.safe_load(file.read_text()))}
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
        if value in ("true", "false", "null"):
            raise ValueError(f"{setting}: the command line takes True, False and '$None', got the text {value!r}")


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


def _model_settings() -> dict[str, Any]:
    """Pick from the running config what a trained model depends on."""
    config = _calling_config()
    settings = {name: config[name] for name in ("target", "channels", "reader", "spatial_size", "grid", "intensity")}
    settings |= {name: config[name] for name in ("encoder", "pool", "outputs")}
    columns = config["columns"]
    settings |= {f"columns#{name}": columns.get(name) or None for name in ("views", "covariates")}
    return dict(json.loads(json.dumps(settings)))


def save_settings(path: str, *, unit: str) -> None:
    """Write what a trained model depends on, its preprocessing and parts, beside it; for the list ``run`` of training.

    Beside the settings that :func:`same_settings` compares, the file holds what a prediction needs without the files
    of the training: ``unit``, ``loss``, ``horizons``, whether scans were ``dated``, and in ``own`` every other entry
    and import that these refer to.

    Args:
        path: the JSON file.
        unit: unit of the target.
    """
    config, columns = _calling_config(), _calling_config()["columns"]
    settings: dict[str, Any] = {**_model_settings(), "unit": unit, "loss": config.get("loss")}
    settings |= {"horizons": config.get("horizons"), "dated": bool(columns.get("day") or columns.get("date"))}
    settings["own"] = _needed(config, [name for name in settings if name not in ("unit", "dated")])
    text = json.dumps(settings, indent=1).replace("::", "#")  # while a config runs, MONAI writes "@train::trainer"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _needed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The entries that these refer to, directly or not, and the imports that any of all these use."""
    found, left = {name: config[name] for name in names if name in config}, list(names)
    while left:
        for name in re.findall(r"[@%](\w+)", json.dumps(found.get(left.pop(), ""))):
            if name in config and name not in found:
                found[name] = config[name]
                left.append(name)
    text = json.dumps(found)
    lines = [line for line in config.get("imports", []) if re.search(rf"\b{re.split(r'[ .]', line)[-1]}\b", text)]
    return {**{name: entry for name, entry in found.items() if name not in names}, "imports": lines}


def same_settings(path: str) -> dict[str, Any]:
    """Read what the model was trained with and refuse a config that differs, such as one without the preset.

    Args:
        path: what :func:`save_settings` wrote.

    Returns:
        The settings and the ``unit`` of the target.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the settings that differ.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected the settings of a trained model in {path}, found no such file: train first")
    trained: dict[str, Any] = with_current_names(json.loads(Path(path).read_text(encoding="utf-8")))
    now = _model_settings()
    differ = [name for name, value in now.items() if trained.get(name) != value]
    if differ:
        raise ValueError(
            f"expected the settings the model was trained with, other ones are {differ}: give the same files"
        )
    return trained


def describe_run(patients: Sequence[Mapping[str, Any]], root: str, *, processes: int = 1) -> dict[str, Any]:
    """Describe what the numbers of a training depend on, for a checkpoint to compare: every setting, and the cohort.

    Where things lie may change (folders, the device, workers, what is kept in memory): none of it changes a number.

    Args:
        patients: the items of the datasets for training and validation.
        root: the folder that their scans lie in.
        processes: how many train together.

    Returns:
        Each setting by its name, ``cohort`` (a hash) and ``processes``.
    """
    places = {"bundle_root", "dataset_dir", "output_dir", "model_dir", "cohort_file", "outcomes_file", "device"}
    places |= {
        "workers",
        "cache_rate",
        "cache_dir",
        "embedding_cache",
        "embedding_cache_bytes",
        "main_process",
        "resume",
        "subgroups",
    }
    places |= {"imports", "initialize", "run", "finalize"}
    settings = {name: value for name, value in _leaves(_calling_config()) if name.split("#")[0] not in places}
    cohort = hashlib.sha256()
    for patient in patients:
        scans = [os.path.relpath(scan, root) for scan in patient["image"]]
        seen = {name: entry for name, entry in patient.items() if name != "groups"}  # a report alone reads these
        cohort.update(json.dumps({**seen, "image": scans}, sort_keys=True).encode())
    return {**json.loads(json.dumps(settings)), "cohort": cohort.hexdigest()[:16], "processes": processes}


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

    Applies to uncaught errors of this process that :func:`~monai_mvreg.errors.user_error` finds; all others, and all
    when the environment variable ``MVREG_TRACEBACK`` is set, are shown whole.
    """
    if os.environ.get("MVREG_TRACEBACK"):
        return
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_cause
    get_logger("monai.handlers.StatsHandler").addFilter(_no_traceback)


def _no_traceback(record: logging.LogRecord) -> bool:
    """Leave out MONAI's traceback of an error, which is printed at the end of a run, and of a stop on request."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not (isinstance(error, SystemExit) or user_error(error))


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
    cause = user_error(error)
    if cause is None:
        sys.__excepthook__(kind, error, trace)
    else:
        # A progress bar may stand on the line.
        print(f"\nerror: {cause}", file=sys.stderr)
    for thread in threading.enumerate():
        # A pool's thread that still loads a scan when Python ends would abort the process.
        if isinstance(thread, DummyProcess):
            thread.join(timeout=60)

"""``settings.json`` of a trained model: the one place that writes, reads and compares what its numbers depend on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.cohort.table import Columns
from monai_mvreg.trained.moved_names import with_current_names

FORMAT = 2
"""Of the files that this version writes; a file of version 0.1 says no format and is read as 1."""

_PARTS = ("channels", "reader", "spatial_size", "grid", "intensity", "encoder", "pool", "outputs", "horizons")
_TASK = ("loss", "task")  # evaluation and inference need not declare them
_OF_COLUMNS = ("target", "columns#event", "columns#views", "columns#covariates", "dated")
OF_PREDICTION = (*_OF_COLUMNS, *_PARTS, *_TASK)
"""What a predicted number depends on."""
OF_EVALUATION = (*OF_PREDICTION, "unit")
"""What the numbers of an evaluation depend on."""
OF_SPLIT = ("columns#fold", "folds", "split_seed")
"""Which patient is in which fold."""

# What other entries may refer to without a change of the number; columns are compared one by one.
_NOT_COMPARED = {"bundle_root", "dataset_dir", "output_dir", "model_dir", "trained_dir", "cohort_file", "outcomes_file"}
_NOT_COMPARED |= {"device", "pretrained", "columns", "subgroups", "chunk_size", "workers", "cache_dir"}
_SHOWN = {"dated": "dated, by columns#day or columns#date"}
_ABSENT = object()
_TASKS = "monai_mvreg.networks.task"


@dataclass(frozen=True)
class ModelSettings:
    """What a trained model depends on.

    Args:
        format: 1 for a file of version 0.1.
        entries: by the names in ``OF_EVALUATION`` and ``OF_SPLIT``, as JSON; components as a config spells them. A
            name that is missing is not known: it is not compared.
        own: the other entries of the config that these refer to.
        imports: lines of the config's ``imports`` that any of all these use.
        files: a hash for each file that the training wrote; empty where that was not recorded.
    """

    format: int
    entries: Mapping[str, Any]
    own: Mapping[str, Any]
    imports: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> tuple[str, ...]:
        """Names of the predicted numbers."""
        return tuple(self.entries["target"])

    @property
    def unit(self) -> str:
        """Unit of the targets, ``"1"`` for none."""
        return str(self.entries["unit"])

    @property
    def dated(self) -> bool:
        """Whether the training read the days of scans."""
        return bool(self.entries["dated"])

    @property
    def covariates(self) -> dict[str, Any]:
        """Covariates by column: ``"number"``, or the list of levels."""
        return dict(_plain(self.entries["columns#covariates"], self.own) or {})

    @property
    def horizons(self) -> tuple[float, ...]:
        """Days at which probabilities are predicted; empty where no time to event is predicted."""
        found = _plain(self.entries["horizons"], self.own) or ()
        return tuple(map(float, [found] if isinstance(found, (int, float)) else found))

    @property
    def channels(self) -> int:
        """Channels of a prepared scan."""
        return int(_plain(self.entries["channels"], self.own))

    @property
    def spatial_size(self) -> tuple[int, ...]:
        """Voxels of a prepared scan along each axis."""
        return tuple(map(int, _plain(self.entries["spatial_size"], self.own)))

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        own = {**self.own, "imports": list(self.imports)}
        return {"format": self.format, **self.entries, "own": own, "files": dict(self.files)}


def settings_of(config: Mapping[str, Any], columns: Columns, *, unit: str | None) -> ModelSettings:
    """Pick from a config what a trained model depends on.

    Args:
        config: the entries of the config as they were read, with references and expressions.
        columns: its entry of that name.
        unit: unit of the target; None where no target is read.

    Raises:
        ValueError: if the config lacks an entry.
    """
    if missing := sorted(name for name in _PARTS if name not in config and name != "horizons"):
        raise ValueError(f"expected a config with the entries {list(_PARTS[:-1])}, got one without {missing}")
    entries: dict[str, Any] = {
        "target": list(columns.target),
        "columns#event": columns.event,
        "columns#views": list(columns.views) or None,
        "columns#covariates": dict(columns.covariates) or None,
        "columns#fold": columns.fold,
        "folds": config.get("folds") if columns.fold is None else None,
        "split_seed": config.get("split_seed") if columns.fold is None else None,
        "dated": columns.day is not None or columns.date is not None,
        **({} if unit is None else {"unit": unit}),
        **{name: config.get(name) for name in _PARTS},
        **{name: config[name] for name in _TASK if name in config},
    }
    # While a config runs, MONAI writes "@train::trainer".
    entries, whole = (json.loads(json.dumps(part).replace("::", "#")) for part in (entries, dict(config)))
    own, imports = _referred_to(whole, [name for name in (*_PARTS, *_TASK) if name in whole])
    return ModelSettings(FORMAT, entries, own, tuple(imports))


def write_settings(settings: ModelSettings, path: Path) -> None:
    """Write ``settings.json``, whole or not at all."""
    atomic_write_text(path, json.dumps(settings.content(), indent=1))


def read_settings(path: Path) -> ModelSettings:
    """Read what :func:`write_settings` wrote, or version 0.1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or is of a later version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected the settings of a trained model in {path}, found no such file: train first")
    return parse_settings(path.read_bytes(), where=str(path))


def parse_settings(text: bytes, *, where: str) -> ModelSettings:
    """Read the content of ``settings.json``.

    Args:
        text: the content, in UTF-8.
        where: the file or the member of a pack, for errors.

    Raises:
        ValueError: as :func:`read_settings`.
    """
    try:
        content = with_current_names(json.loads(text.decode("utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{where}: expected JSON, got something else") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected the settings of a trained model, got a {type(content).__name__}")
    written = content.get("format", 1)
    if written not in (1, FORMAT):
        raise ValueError(f"{where}: expected settings of format 1 or {FORMAT}, got {written!r}: update monai_mvreg")
    needed = [*_PARTS, "columns#views", "columns#covariates", "target", "unit", "dated", "loss", "own"]
    if missing := [name for name in needed if name not in content and not (name == "loss" and "task" in content)]:
        raise ValueError(
            f"{where}: expected the settings of a training by version 0.1 or later, found no {missing[0]}: train again"
        )
    own = content["own"]
    if not (isinstance(own, dict) and isinstance(own.get("imports"), list)):
        raise ValueError(f"{where}: expected own to hold entries and their imports, got {_shown(own)}")
    target = content["target"]
    if not (isinstance(target, list) and all(isinstance(name, str) for name in target)):
        raise ValueError(f"{where}: expected target as a list of names, got {_shown(target)}")
    if "task" not in content:
        content["task"] = _task_of_0_1(content["loss"])
    return ModelSettings(
        format=written,
        entries={name: content[name] for name in (*OF_EVALUATION, *OF_SPLIT) if name in content},
        own={name: entry for name, entry in own.items() if name != "imports"},
        imports=tuple(own["imports"]),
        files=content.get("files", {}),
    )


def expect_same(trained: ModelSettings, now: ModelSettings, names: Sequence[str]) -> None:
    """Refuse settings that differ from those of the training.

    Args:
        trained: those of the model.
        now: those of the config at hand.
        names: which entries are compared, where both know them.

    Raises:
        ValueError: naming each entry that differs, with both values.
    """
    if found := setting_differences(trained, now, names):
        raise ValueError(f"settings differ from those the model was trained with: {', '.join(found)}")


def setting_differences(
    trained: ModelSettings, now: ModelSettings, names: Sequence[str], *, labels: tuple[str, str] = ("trained", "now")
) -> list[str]:
    """Name the entries in which the settings of two models differ, with both values.

    Args:
        trained: settings of one.
        now: settings of the other.
        names: which entries are compared, where both know them.
        labels: what the sentence calls the two.
    """
    both = [{name: _plain(entry, part.own) for name, entry in part.entries.items()} for part in (trained, now)]
    known = [name for name in names if all(name in part for part in both)]
    for name in ("target", "columns#views", "columns#covariates"):
        # Version 0.1 wrote down columns as the config spells them: what an expression came to is not known.
        known = [other for other in known if other != name or not any(_is_expression(part[name]) for part in both)]
    if trained.format != now.format:
        # How a config spells it may have changed since; the shapes of the weights tell a real difference.
        known = [name for name in known if name not in ("outputs", "task")]
    if all(str(part.get("outputs")).startswith("$@task.outputs(") for part in both):
        known = [name for name in known if name != "outputs"]  # they follow from task and target
    for part in both:
        if isinstance(part.get("horizons"), (int, float)):  # one value is a list of one
            part["horizons"] = [part["horizons"]]
        if isinstance(part.get("columns#covariates"), dict):  # their order is that of the network's inputs
            part["columns#covariates"] = [{name: kind} for name, kind in part["columns#covariates"].items()]
    found = differences(*({name: part[name] for name in known} for part in both), labels=labels)
    if not set(names) & set(_PARTS):
        return found
    # Only what stands there literally: an expression may be spelled otherwise by another version of the bundle.
    shared = (set(trained.own) & set(now.own)) - _NOT_COMPARED - set(names)
    literal = sorted(name for name in shared if "$" not in json.dumps([trained.own[name], now.own[name]]))
    return found + differences(*({name: part.own[name] for name in literal} for part in (trained, now)), labels=labels)


def differences(
    trained: Mapping[str, Any], now: Mapping[str, Any], *, labels: tuple[str, str] = ("trained", "now")
) -> list[str]:
    """Name the entries in which two mappings differ, with both values.

    Args:
        trained: values as JSON holds them, by name.
        now: the others.
        labels: what the sentence calls the two.

    Example:
        >>> differences({"pool": {"_target_": "a.MaxPool"}, "seed": 1}, {"pool": {"_target_": "a.MeanPool"}, "seed": 1})
        ['pool (trained: MaxPool, now: MeanPool)']
    """
    names = [*trained, *(name for name in now if name not in trained)]
    found = [part for name in names for part in _compare(name, trained.get(name, _ABSENT), now.get(name, _ABSENT))]
    shown = [(name, *_told_apart(before, after)) for name, before, after in found]
    return [f"{name} ({labels[0]}: {old}, {labels[1]}: {new})" for name, old, new in shown]


def inference_config(settings: ModelSettings, config: Path) -> ConfigParser:
    """The config of inference with the settings of a training in it.

    Args:
        settings: of the training.
        config: ``configs/inference.yaml`` of a bundle.
    """
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.set(with_current_names(parser.get()))
    known = set(parser.get())
    imports = [line for line in settings.imports if line not in parser["imports"]]
    parser.update({"bundle_root": str(config.parents[1]), "imports": parser["imports"] + imports})
    parser.update({name: entry for name, entry in settings.own.items() if name not in known})
    # Patients to predict have neither event nor fold, and whether days are read is not spelled by an entry.
    used = [name for name in OF_PREDICTION if name not in ("columns#event", "dated")]
    parser.update({name: settings.entries[name] for name in used if settings.entries.get(name) is not None})
    return parser


def with_files(settings: ModelSettings, files: Mapping[str, str]) -> ModelSettings:
    """The same settings with the hashes of the files that belong to them."""
    return replace(settings, files=dict(files))


def _task_of_0_1(loss: Mapping[str, Any] | str) -> dict[str, str]:
    """Find the task of a model trained by version 0.1, whose settings name the loss alone."""
    kind = str(loss["_target_"]).rpartition(".")[2] if isinstance(loss, Mapping) else ""
    if kind in ("CoxLoss", "DiscreteHazardLoss", "WeibullLoss", "LogNormalLoss"):
        return {"_target_": f"{_TASKS}.TimeToEvent", "loss": "@loss", "horizons": "@horizons"}
    return {
        "_target_": f"{_TASKS}.{'NumberWithSpread' if kind in ('GaussianLoss', 'QuantileLoss') else 'Number'}",
        "loss": "@loss",
    }


def _referred_to(config: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The entries that these refer to, directly or not, and the imports that any of all these use."""
    found, left = {name: config[name] for name in names}, list(names)
    while left:
        for name in re.findall(r"[@%](\w+)", json.dumps(found.get(left.pop(), ""))):
            if name in config and name not in found:
                found[name] = config[name]
                left.append(name)
    text = json.dumps(found)
    lines = [line for line in config.get("imports", []) if re.search(rf"\b{re.split(r'[ .]', line)[-1]}\b", text)]
    apart = {*names, *_OF_COLUMNS, "imports"}
    return {name: entry for name, entry in found.items() if name not in apart}, lines


def _plain(entry: Any, own: Mapping[str, Any]) -> Any:
    """Follow an entry that is nothing but a reference to another one."""
    seen: set[str] = set()
    while isinstance(entry, str) and entry[:1] == "@" and entry[1:] in own and entry not in seen:
        seen.add(entry)
        entry = own[entry[1:]]
    return entry


def _is_expression(entry: Any) -> bool:
    return isinstance(entry, str) and entry[:1] in ("$", "@", "%")


def _compare(name: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Find the smallest parts that differ: an argument of a component, or the whole if it is another component."""
    if before == after:
        return
    both = (before, after)
    if all(isinstance(part, Mapping) for part in both) and before.get("_target_") == after.get("_target_"):
        for key in dict.fromkeys([*before, *after]):
            yield from _compare(f"{name}#{key}", before.get(key, _ABSENT), after.get(key, _ABSENT))
    elif all(isinstance(part, list) for part in both) and len(before) == len(after) and _has_components(*both):
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _compare(f"{name}#{place}", old, new)
    else:
        yield _SHOWN.get(name, name), before, after


def _has_components(*lists: list[Any]) -> bool:
    return all(isinstance(part, Mapping) and "_target_" in part for entries in lists for part in entries)


def _told_apart(before: Any, after: Any) -> tuple[str, str]:
    """Two values that differ, in full where their short forms are the same, as of ``"1"`` and ``1``."""
    old, new = _shown(before), _shown(after)
    return (old, new) if old != new else (repr(before), repr(after))


def _shown(value: Any) -> str:
    """A value for a sentence: a component by its class, a long text by its beginning."""
    if value is _ABSENT:
        return "not given"
    if isinstance(value, Mapping):
        if "_target_" in value:
            return str(value["_target_"]).rpartition(".")[2]
        return f"{{{', '.join(f'{key}: {_shown(part)}' for key, part in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."

"""Settings of a trained model -> sentences: what was done to every scan, and what the network is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_BY_WHAT = {"bilinear": "linearly", "trilinear": "linearly", "nearest": "by the nearest voxel", "area": "by averaging"}


def steps_in_words(transforms: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """Say in a sentence what each transform does; one that is not known is named with its arguments.

    Args:
        transforms: components of a config, such as the setting ``grid``.
        settings: what references (``@spatial_size``) are looked up in.
    """
    return [_step({name: resolve(entry, settings) for name, entry in step.items()}) for step in transforms]


def part_in_words(part: Mapping[str, Any] | str, settings: Mapping[str, Any]) -> str:
    """Name a component of a config with its arguments: ``MaxPool (size 8)``; an expression stays as it is."""
    if isinstance(part, str):
        return part.removeprefix("$")
    return _call({name: resolve(entry, settings) for name, entry in part.items()})


def resolve(entry: Any, settings: Mapping[str, Any]) -> Any:
    """Look up a setting that another one refers to; expressions stay as they are written."""
    if isinstance(entry, str) and entry.startswith("@") and entry[1:] in settings:
        return resolve(settings[entry[1:]], settings)
    if isinstance(entry, str) and entry.startswith("$@") and entry.endswith("[0]") and entry[2:-3] in settings:
        return settings[entry[2:-3]][0]
    return entry


def _step(step: Mapping[str, Any]) -> str:
    kind = str(step.get("_target_", "")).rpartition(".")[2]
    size = _size(step.get("spatial_size"))
    by = _BY_WHAT.get(str(step.get("mode")), f"by {step.get('mode')}")
    within = f"from {step.get('a_min')} to {step.get('a_max')}"
    onto = f"from {step.get('b_min')} to {step.get('b_max')}"
    clipped = "; what lies outside is set to the ends" if step.get("clip") else ""
    some = " of the voxels that are not 0" if step.get("nonzero") else ""
    longest = step.get("size_mode") == "longest"
    known = {
        "Orientationd": f"Turned so that the axes point to {', '.join(str(step.get('axcodes')))}.",
        "Spacingd": f"Resampled to {_size(step.get('pixdim'))} mm, {by}.",
        "ResizeWithPadOrCropd": f"Cut or padded around the middle to {size} voxels.",
        "CenterSpatialCropd": f"Cut around the middle to {size} voxels.",
        "Resized": f"Resized to {size} voxels{' on the longest side' if longest else ''}, {by}.",
        "NormalizeIntensityd": f"Intensities brought to mean 0 and standard deviation 1{some}.",
        "ScaleIntensityd": "Intensities of each scan brought from its least and largest to 0 and 1.",
        "ScaleIntensityRanged": f"Intensities {within} brought to {onto.removeprefix('from ')}{clipped}.",
        "ScaleIntensityRangePercentilesd": (
            f"Intensities from percentile {step.get('lower')} to {step.get('upper')} of each scan brought to "
            f"{onto.removeprefix('from ')}{clipped}."
        ),
        "CropForegroundd": "Cut to the part that is not background.",
    }
    return known.get(kind, f"{_call(step)}.")


def _call(part: Mapping[str, Any]) -> str:
    name = str(part.get("_target_", "")).rpartition(".")[2]
    # What is computed while a config runs says nothing to a reader.
    told = {key: entry for key, entry in part.items() if not str(entry).startswith(("@", "$"))}
    arguments = [f"{key} {_argument(entry)}" for key, entry in told.items() if key not in {"_target_", "keys"}]
    return f"{name} ({', '.join(arguments)})" if arguments else name


def _argument(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return _call(entry)
    if isinstance(entry, list):
        return f"[{', '.join(map(_argument, entry))}]"
    return str(entry)


def _size(size: Any) -> str:
    if isinstance(size, list):
        return " \N{MULTIPLICATION SIGN} ".join(
            f"{number:g}" if isinstance(number, (int, float)) else str(number) for number in size
        )
    return str(size)

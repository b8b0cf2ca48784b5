"""Settings of a model in words: the presets of the bundle are told whole, and nothing unknown is hidden."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from monai_mvreg.report.settings_in_words import part_in_words, resolve, steps_in_words

CONFIGS = Path(__file__).parents[2] / "bundle/configs"


def preset(name: str) -> dict[str, Any]:
    train = yaml.safe_load((CONFIGS / "train.yaml").read_text())
    return {**train, **(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) if name != "mr" else {})}


def test_the_preset_for_ct_is_told_with_its_numbers() -> None:
    settings = preset("ct")
    assert steps_in_words([*settings["grid"], *settings["intensity"]], settings) == [
        "Turned so that the axes point to R, A, S.",
        "Resampled to 3 \N{MULTIPLICATION SIGN} 3 \N{MULTIPLICATION SIGN} 3 mm, linearly.",
        "Cut or padded around the middle to 64 \N{MULTIPLICATION SIGN} 64 \N{MULTIPLICATION SIGN} 64 voxels.",
        "Intensities from -160 to 240 brought to -1 to 1; what lies outside is set to the ends.",
    ]


@pytest.mark.parametrize("name", ["mr", "ct", "radiograph"])
def test_every_step_of_a_preset_has_a_sentence_of_its_own(name: str) -> None:
    settings = preset(name)
    told = steps_in_words([*settings["grid"], *settings["intensity"]], settings)
    assert not any("None" in step or "@" in step or "(" in step for step in told), told


def test_an_unknown_step_is_named_with_its_arguments() -> None:
    step = {"_target_": "monai.transforms.MedianSmoothd", "keys": "image", "radius": 2}
    assert steps_in_words([step], {}) == ["MedianSmoothd (radius 2)."]


def test_a_part_is_named_with_its_own_parts_and_without_what_is_computed_while_it_runs() -> None:
    part = {
        "_target_": "a.b.Pool",
        "size": "@embedding_size",
        "heads": 4,
        "time_encoding": {"_target_": "a.Time"},
        "steps": "$1 + 1",
    }
    assert part_in_words(part, {}) == "Pool (heads 4, time_encoding Time)"
    assert part_in_words({"_target_": "a.Encoder", "channels": "@channels"}, {"channels": 3}) == "Encoder (channels 3)"
    assert part_in_words("$torch.nn.Flatten()", {}) == "torch.nn.Flatten()"


def test_references_are_followed_to_their_end() -> None:
    assert resolve("@a", {"a": "@b", "b": [1, 2]}) == [1, 2] and resolve("$@b[0]", {"b": [1, 2]}) == 1
    assert resolve("@c", {}) == "@c" and resolve(5, {}) == 5

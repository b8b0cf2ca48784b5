"""Fingerprints: the same in every process, another for every setting, tensor and line of code that counts."""

from __future__ import annotations

import enum
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_mvreg.cache.fingerprint import fingerprint
from monai_mvreg.networks.encoders import PretrainedEncoder
from monai_mvreg.scans.read import Choices
from monai_mvreg.scans.reader import ScanReader

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundle/configs"


def test_a_package_of_another_place_for_packages_is_not_read_as_own_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "class Step:\n    def __call__(self, image): return image{}\n"
    for folder, counts in (("site-packages", False), ("mine", True)):
        place, name = tmp_path / folder, f"thing_{folder[:4]}"
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text(code.format(""))
        monkeypatch.syspath_prepend(str(place))
        step = importlib.import_module(name).Step()
        before = fingerprint(step)
        (place / name / "__init__.py").write_text(code.format(" * 2"))
        assert (fingerprint(step) != before) == counts, folder


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def network(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, **settings), nn.BatchNorm2d(2), nn.ReLU())


def buffer() -> nn.Module:
    net = network()
    net[1].running_var += 1e-6
    return net


def unsaved() -> nn.Module:
    net = network()
    net.register_buffer("window", torch.ones(2), persistent=False)
    return net


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a number": (lambda: mt.Spacingd("image", (1.0, 1.0, 1.0)), lambda: mt.Spacingd("image", (1.0, 1.0, 1.5))),
    "a mode": (lambda: mt.Spacingd("image", 1.0, mode="bilinear"), lambda: mt.Spacingd("image", 1.0, mode="nearest")),
    "an order": (lambda: [mt.Flip(0), mt.Flip(1)], lambda: [mt.Flip(1), mt.Flip(0)]),
    "a type of number": (lambda: 1, lambda: 1.0),
    "true and one": (lambda: True, lambda: 1),
    "text and bytes": (lambda: "a", lambda: b"a"),
    "nesting": (lambda: [["a"], "b"], lambda: ["a", ["b"]]),
    "a class": (lambda: nn.ReLU(), lambda: nn.GELU()),
    "an enum": (lambda: Colour.RED, lambda: Colour.BLUE),
    "an argument bound to a function": (lambda: partial(np.clip, a_min=0), lambda: partial(np.clip, a_min=1)),
    "a value that a function holds": (lambda: (lambda k: lambda x: x * k)(2), lambda: (lambda k: lambda x: x * k)(3)),
    "a choice of the reader": (lambda: ScanReader(), lambda: ScanReader(choices=Choices(padding=0.0))),
    "an array": (lambda: np.arange(6).reshape(2, 3), lambda: np.arange(6).reshape(3, 2)),
    "a dtype": (lambda: torch.zeros(2, dtype=torch.float16), lambda: torch.zeros(2, dtype=torch.bfloat16)),
    "a setting of a layer without weights": (network, lambda: network(padding=1)),
    "a statistic of normalisation": (network, buffer),
    "a buffer that is not saved": (network, unsaved),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_what_counts_changes_it_and_a_twin_does_not(pair: str) -> None:
    one, other = PAIRS[pair]
    assert fingerprint(one()) == fingerprint(one()) != fingerprint(other())


def test_the_mode_of_a_network_does_not_count() -> None:
    net = network()
    assert fingerprint(net.train()) == fingerprint(net.eval())


def test_one_object_held_twice_is_like_two_equal_ones() -> None:
    shared = [1, 2]
    assert fingerprint([shared, shared]) == fingerprint([[1, 2], [1, 2]])


def test_an_object_that_holds_itself_has_one() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert fingerprint(circle)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected settings that can be pickled, got _io\.TextIOWrapper"):
        fingerprint(mt.Lambda(partial(print, file=sys.__stdout__)))


PROGRAM = """
from monai.bundle import ConfigParser
from monai_mvreg.cache.fingerprint import fingerprint
import torch
for preset in ("ct", "radiograph"):
    parser = ConfigParser()
    parser.read_config([f"{configs}/{{name}}.yaml" for name in ("train", preset)])
    parser.update({{"pretrained": False}})
    torch.manual_seed(0)
    parts = [parser.get_parsed_content(name) for name in ("validate#preprocessing#transforms", "encoder")]
    print("fingerprint", fingerprint(parts, {{"b", "a", "c"}}))
"""


def test_it_is_the_same_in_every_process() -> None:
    command = [sys.executable, "-c", PROGRAM.format(configs=CONFIGS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**environment, "PYTHONHASHSEED": seed})
        for seed in "12"
    ]
    said = [process.communicate(timeout=300)[0].splitlines() for process in both]
    found = [[line for line in lines if line.startswith("fingerprint")] for lines in said]
    assert found[0] == found[1] and len(set(found[0])) == 2


def parsed(**settings: Any) -> Any:
    parser = ConfigParser({"factor": 2.0, "step": "$lambda x: x * @factor", **settings})
    return parser.get_parsed_content("step")


def test_a_function_written_in_a_config_counts_with_what_it_refers_to() -> None:
    assert fingerprint(parsed()) == fingerprint(parsed()) == fingerprint(parsed(unused=1))
    assert fingerprint(parsed()) != fingerprint(parsed(factor=3.0))
    assert fingerprint(parsed()) != fingerprint(parsed(step="$lambda x: x + @factor"))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own code: a transform, in a package, whose module imports another one inside a function."""
    package = tmp_path / "zz_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "steps.py").write_text(
        "class Step:\n    def __call__(self, image):\n        from .deep import FACTOR\n        return image * FACTOR\n"
    )
    (package / "deep.py").write_text("from zz_mine import deeper\nFACTOR = deeper.VALUE\n")
    (package / "deeper.py").write_text("VALUE = 2\n")
    (package / "other.py").write_text("VALUE = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("zz_mine")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    return package


@pytest.mark.parametrize(
    ("file", "counts"), [("steps", True), ("deep", True), ("deeper", True), ("__init__", True), ("other", False)]
)
def test_own_code_counts_with_all_own_code_that_it_imports(file: str, counts: bool, mine: Path) -> None:
    step = importlib.import_module("zz_mine.steps").Step()
    before = fingerprint(step)
    assert fingerprint(step) == before
    (mine / f"{file}.py").write_text((mine / f"{file}.py").read_text() + "OTHER = 1\n")
    assert (fingerprint(step) != before) == counts


@pytest.mark.parametrize(
    ("package", "counts"), [("monai", True), ("torch", True), ("pydicom", True), ("jinja2", False)]
)
def test_the_version_of_a_package_counts_where_its_code_is_used(
    package: str, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import monai_mvreg.cache.fingerprint as module

    things = [mt.LoadImaged("image", reader=ScanReader()), PretrainedEncoder(network())]
    before, plain = fingerprint(*things), module._version
    monkeypatch.setattr(module, "_version", lambda top: plain(top) + " and newer" * (top == package))
    assert (fingerprint(*things) != before) == counts

"""What the package promises: every public name is importable in one step, typed, described, and its example runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import public_program
import pytest
from example_files import state_of

import monai_mvreg

PACKAGES = ["monai_mvreg"] + [
    f"monai_mvreg.{room.name}" for room in pkgutil.iter_modules(monai_mvreg.__path__) if room.ispkg
]
NAMES = [
    (package, name) for package in PACKAGES for name in importlib.import_module(package).__dict__.get("__all__", [])
]
OBJECTS = {name: package for package, name in reversed(NAMES) if not name.startswith("__")}
# What 3D Slicer and MONAI Label run cannot be imported without them.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(monai_mvreg.__path__, "monai_mvreg.")
    if not module.ispkg and not module.name.startswith(("monai_mvreg.label", "monai_mvreg.__main__"))
)
# What examples need beyond the package's own dependencies.
EXTRAS = {
    "monai_mvreg.dicom_results.evidence": ("highdicom",),
    "monai_mvreg.dicom_results.parametric_map": ("highdicom",),
    "monai_mvreg.dicom_results.read_report": ("highdicom",),
    "monai_mvreg.dicom_results.structured_report": ("highdicom",),
    "monai_mvreg.share.exporting": ("onnx", "onnxruntime"),
}


def public(name: str) -> Any:
    return getattr(importlib.import_module(OBJECTS[name]), name)


def test_what_a_user_needs_first_is_at_the_top() -> None:
    assert {
        "fit",
        "find_scans",
        "read_scan",
        "read_cohort",
        "MultiScanNet",
        "MeanPool",
        "Number",
        "TimeToEvent",
    } <= set(monai_mvreg.__all__)
    assert {"Predictor", "Prediction", "__version__"} <= set(monai_mvreg.__all__)


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_is_imported_in_one_step(package: str, name: str) -> None:
    module = importlib.import_module(package)
    assert name in dir(module)
    assert getattr(module, name) is not None


def test_one_name_is_one_thing() -> None:
    things: dict[str, set[int]] = {}
    for package, name in NAMES:
        things.setdefault(name, set()).add(id(getattr(importlib.import_module(package), name)))
    assert {name for name, ids in things.items() if len(ids) > 1} == set()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="MeenPool"):
        _ = monai_mvreg.MeenPool  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_a_public_name_says_what_it_takes_gives_and_raises(name: str) -> None:
    thing = public(name)
    text = inspect.getdoc(thing) or ""
    assert text.splitlines()[0].endswith("."), "expected one sentence first"
    assert ">>>" in text, "expected an example"
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return
    parameters = inspect.signature(thing).parameters.values()
    if parameters:
        assert "Args:" in text or all(f"``{p.name}``" in text for p in parameters), "expected its arguments"
    if inspect.isfunction(thing):
        if inspect.signature(thing).return_annotation not in (None, "None"):
            assert "Returns:" in text or text.startswith(("Give", "Read", "Find")), "expected what it returns"
        if "raise " in inspect.getsource(thing):
            assert "Raises:" in text


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module: str, example_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in EXTRAS.get(module, ()):
        pytest.importorskip(extra, reason=f"the examples of {module} need {extra}")
    monkeypatch.chdir(example_files)
    before = state_of(example_files)
    failed, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
    assert state_of(example_files) == before, "expected an example that writes to a temporary folder"


def test_the_import_is_instant_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import monai_mvreg; took = time.perf_counter() - start; "
        "print(took); assert not {'torch', 'numpy', 'monai', 'pandas'} & set(sys.modules)"
    )
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert min(times) < 0.1


def test_the_program_of_a_user_runs(
    example_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(example_files)
    public_program.main()
    shown = capsys.readouterr().out
    assert "'patient/2015-03-23': (24, 24, 16)" in shown
    assert "expected a folder or file with scans, there is none at '3'" in shown

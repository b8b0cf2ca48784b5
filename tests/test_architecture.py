"""The house: imports point downward, files stay small, names stay our own. Sources are read, not imported."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monai_mvreg"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

# The rooms by layer: a module imports from its own room and from the layers below.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["service", "experiments"],
    ["dicom_results", "label", "report"],
    ["explain", "share"],
    ["predict"],
    ["training"],
    ["trained"],
    ["cohort", "losses", "results"],
    ["cache"],
    ["scans", "networks", "metrics"],
    ["errors", "bundle_folder"],
]
# What each room imports of the layers below, and no more than it needs.
ROOMS: dict[str, str] = {
    "__main__": "cli",
    "cli": (
        "bundle_folder cache cohort dicom_results errors experiments explain label predict report results service share"
    ),
    "service": "dicom_results predict scans cache",
    "experiments": (
        "bundle_folder cache cohort errors losses metrics predict report results scans share trained training"
    ),
    "dicom_results": "cache cohort explain predict scans",
    "label": "cohort errors explain predict scans",
    "report": "cache cohort explain metrics networks predict results scans trained",
    "explain": "cache cohort networks predict scans",
    "share": "cache predict trained",
    "predict": "cache cohort errors metrics networks results scans trained",
    "training": "bundle_folder cache cohort errors metrics networks results trained",
    "trained": "cache cohort metrics networks results scans",
    "cohort": "cache scans",
    "cache": "networks scans",
    "losses": "networks",
    "results": "cache metrics networks",
    "scans": "",
    "networks": "",
    "metrics": "",
    "errors": "",
    "bundle_folder": "",
}
PLAIN = {"networks", "losses", "metrics"}
EXTRAS = {"dicom_results", "label", "service", "share", "experiments"}

# Distributions whose import name differs.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "ignite": "pytorch-ignite", "sklearn": "scikit-learn"}

# What 3D Slicer's own Python has; the module for it imports nothing else.
SLICER = {"slicer", "vtk", "qt", "ctk", "requests", "MVRegLib"}

MONAI = [
    "transforms",
    "data",
    "networks.nets",
    "networks.blocks",
    "networks.layers",
    "networks.utils",
    "losses",
    "metrics",
    "handlers",
    "engines",
    "utils",
    "bundle",
    "inferers",
    "optimizers",
    "visualize",
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """Dotted names of what a file imports, also inside functions."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name_of(path)}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def foreign(path: Path) -> set[str]:
    """Names of the third-party packages that a file imports."""
    names = {name.partition(".")[0] for name in imports_of(path)}
    return names - set(sys.stdlib_module_names) - {"monai_mvreg"}


def public_definitions(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in tree_of(path).body if isinstance(node, kinds) and not node.name.startswith("_")}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def rooms_used(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("monai_mvreg.")} - {room_of(path)}


def test_the_table_of_rooms_points_only_downward() -> None:
    depth = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    assert set(ROOMS) == set(depth)
    for room, below in ROOMS.items():
        assert [name for name in below.split() if depth[name] <= depth[room]] == [], room


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_the_rooms_below(path: Path) -> None:
    assert room_of(path) in ROOMS, f"{name_of(path)} is a room that the table does not know"
    assert rooms_used(path) <= set(ROOMS[room_of(path)].split())


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_names_no_room_that_is_not_needed(room: str) -> None:
    used = [rooms_used(path) for path in MODULES if room_of(path) == room]
    assert set(ROOMS[room].split()) == set().union(*used)


def test_few_modules_lie_outside_of_the_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) in PLAIN], ids=name_of)
def test_networks_losses_and_metrics_import_torch_and_numpy_alone(path: Path) -> None:
    assert foreign(path) <= {"torch", "numpy"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_has_more_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_first_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


def defines(path: Path) -> bool:
    """Whether a module holds more than imports, as an entry point does not."""
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AnnAssign)) for node in tree_of(path).body)


@pytest.mark.parametrize("path", [path for path in MODULES if defines(path)], ids=name_of)
def test_every_module_has_its_tests_in_the_same_folder_of_the_tests(path: Path) -> None:
    assert (ROOT / "tests" / path.relative_to(PACKAGE).parent / f"test_{path.stem}.py").is_file()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=name_of)
def test_a_package_hands_out_names_by_its_stub_alone(path: Path) -> None:
    code = [ast.unparse(node) for node in tree_of(path).body if not isinstance(node, ast.Expr)]
    if path.with_suffix(".pyi").exists():
        assert "import lazy_loader" in code and any("attach_stub" in line for line in code)
    else:
        assert code == [], "expected a docstring or nothing"


def test_no_public_name_is_one_of_monai() -> None:
    theirs: dict[str, str] = {}
    for package in MONAI:
        module = importlib.import_module(f"monai.{package}")
        for name in dir(module):
            # Modules alone (monai.transforms.io) are no names that a config or an import could confuse.
            if not name.startswith("_") and not inspect.ismodule(getattr(module, name)):
                theirs[name] = package
    ours = {name: name_of(path) for path in MODULES for name in public_definitions(path)}
    assert {name: (where, theirs[name]) for name, where in ours.items() if name in theirs} == {}


def test_every_import_of_the_package_is_a_declared_dependency() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("dependencies = [", 1)[1].split("\n]", 1)[0]
    extras = text.split("[project.optional-dependencies]", 1)[1].split("\ndocs", 1)[0]
    beside = re.findall(r"^[\w-]+", (ROOT / "requirements-label.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    needed = {path: foreign(path) for path in MODULES}
    for path, names in needed.items():
        # Adapters and experiments need what an extra installs.
        declared = re.findall(r'"([A-Za-z0-9_.-]+)', block + (extras if room_of(path) in EXTRAS else ""))
        declared += beside if room_of(path) == "label" else []
        declared += SLICER if path.is_relative_to(PACKAGE / "label/slicer") else set()
        known = {name.lower().replace("_", "-") for name in declared}
        missing = {name for name in names if DISTRIBUTIONS.get(name, name).lower().replace("_", "-") not in known}
        assert missing == set(), name_of(path)


def test_no_tracked_file_holds_a_path_of_a_machine() -> None:
    homes = "|".join(["home", "Users", "root", "work", "mnt", "scratch", "tmp"])
    pattern = re.compile(rf"(?<![\w.:/$}}~<>*-])/(?:{homes})/\w|\b[A-Z]:\\\\?Users\\".encode())
    found = [
        f"{name_of(path)}: {line[:100]!r}"
        for path in tracked()
        for line in path.read_bytes().splitlines()
        if pattern.search(line)
    ]
    assert found == []


def run_tool(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    run_tool("ruff", "check", "monai_mvreg", "tests")


def test_the_format_is_that_of_ruff() -> None:
    run_tool("ruff", "format", "--check", "monai_mvreg", "tests")


def test_mypy_finds_nothing() -> None:
    run_tool("mypy")

"""The package as others get it: a wheel holds all that is needed, and works in an empty folder outside of a clone."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
RESULTS = shutil.ignore_patterns("__pycache__", "eval", "models", "predictions", "embeddings")
# Small enough for a few seconds.
TINY: dict[str, Any] = {
    "target": ["volume"],
    "columns#unit": "unit",
    "spatial_size": [16, 16, 16],
    "encoder": {
        "_target_": "monai.networks.nets.Regressor",
        "in_shape": [1, 16, 16, 16],
        "out_shape": [8],
        "channels": [4, 8],
        "strides": [4, 2],
        "norm": None,
    },
    "epochs": 1,
}


@dataclass(frozen=True)
class Installed:
    """A wheel in a separate environment, and how to run what it brings."""

    environment: Path

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return next(self.environment.glob("*/python"), self.environment / "Scripts" / "python.exe")

    @property
    def packages(self) -> Path:
        """The folder of its packages."""
        return next(self.environment.rglob("site-packages"))

    def run(self, *command: str, where: Path, fails: bool = False) -> str:
        """Run a command as a user does in a folder; what it prints on stdout, or of a failure on stderr."""
        path = os.pathsep.join([str(self.python.parent), os.environ["PATH"]])
        own = {"PATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            command, cwd=where, env={**inherited, **own}, capture_output=True, text=True, timeout=600, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    def files(self) -> dict[str, bytes]:
        """All files of the package, without those that Python writes."""
        files = [file for file in (self.packages / "monai_mvreg").rglob("*") if file.is_file()]
        return {str(file): file.read_bytes() for file in files if file.suffix != ".pyc"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, since a build leaves files among them; with results of a training in its bundle."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("monai_mvreg", "bundle"):
        shutil.copytree(ROOT / folder, source / folder, ignore=RESULTS)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    for result in ("eval/predictions.csv", "models/model.pt"):
        (source / "bundle" / result).parent.mkdir()
        (source / "bundle" / result).touch()
    return source


def pip_wheel(source: Path, folder: Path) -> Path:
    """Build a wheel as pip does, with the setuptools that is installed: no network is needed."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, cwd=folder)
    (wheel,) = folder.glob("monai_mvreg-*.whl")
    return wheel


def build(kind: str, source: Path, folder: Path) -> Path:
    """Build an ``sdist`` or what ``pip install -e`` installs, ``editable``."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, cwd=source, capture_output=True, text=True
    )
    return folder / done.stdout.split()[-1]


def content(wheel: Path) -> dict[str, bytes]:
    """What a wheel installs into the package, by the name that it has in the repository."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    named = {re.sub("^monai_mvreg/bundle/", "bundle/", name): data for name, data in files.items()}
    return {name: data for name, data in named.items() if ".dist-info/" not in name}


def tracked() -> dict[str, bytes]:
    """The files of the package and of the bundle in this checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "monai_mvreg", "bundle"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return {name: (ROOT / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pip_wheel(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a new environment, which borrows from this one what it depends on, not the package under test."""
    made = Installed(tmp_path_factory.mktemp("environment"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made.environment)], check=True)
    # A folder in a .pth file is searched; its own .pth files, such as that of an editable installation, are not read.
    (made.packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    command = [sys.executable, "-m", "pip", "--python", str(made.python), "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--no-compile", str(wheel)], check=True, cwd=made.environment)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small table of NIfTI files: 9 patients in 3 folds, two scans each."""
    folder = tmp_path_factory.mktemp("data")
    draw, rows = np.random.default_rng(0), []
    for patient in range(9):
        level = draw.uniform(20, 80)
        for day in (0, 90):
            name = f"{patient}_{day}.nii.gz"
            voxels = draw.normal(level, 5, (12, 11, 10)).astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0])), folder / name)
            row = {"patient": f"p{patient}", "path": name, "day": day, "volume": f"{level:.2f}", "unit": "mL"}
            rows.append({**row, "fold": patient % 3})
    with (folder / "cohort.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


# ---- What is in it ---------------------------------------------------------------------------------------------------


def test_a_wheel_holds_the_package_and_the_bundle_and_no_results(wheel: Path) -> None:
    assert content(wheel) == tracked()
    names = content(wheel).keys()
    assert {"bundle/LICENSE", "bundle/docs/README.md", "bundle/configs/train.yaml", "monai_mvreg/cli/main.py"} <= names


def test_a_wheel_from_the_sdist_is_the_wheel(wheel: Path, source: Path, tmp_path: Path) -> None:
    sdist = build("sdist", source, tmp_path)
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"LICENSE", "bundle/LICENSE", "bundle/configs/train.yaml", "bundle/docs/README.md"} <= set(names)
    assert [name for name in names if name.startswith(("bundle/eval", "bundle/models"))] == []
    assert content(pip_wheel(sdist, tmp_path)) == content(wheel)


def test_an_editable_installation_takes_the_bundle_of_the_clone(source: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build("editable", source, tmp_path)) as archive:
        archive.extractall(tmp_path / "site")
    code = "import site, sys; site.addsitedir(sys.argv[1]); sys.path.append(sys.argv[2])\n"
    code += "from monai_mvreg.bundle_folder import find_bundle; print(find_bundle())"
    # Isolated from the package that is installed here; what it depends on is found.
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "site"), sysconfig.get_path("purelib")]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == (source / "bundle").resolve()


# ---- What it does in an empty folder ---------------------------------------------------------------------------------


def test_bundle_and_init_work_from_a_wheel(installed: Installed, tmp_path: Path) -> None:
    bundle = Path(installed.run("mvreg", "bundle", where=tmp_path).strip())
    assert bundle == (installed.packages / "monai_mvreg/bundle").resolve()
    assert (bundle / "LICENSE").is_file() and (bundle / "docs/README.md").is_file()
    installed.run("mvreg", "init", "study", where=tmp_path)
    for name, data in tracked().items():
        if name.startswith("bundle/"):
            assert (tmp_path / "study" / name.removeprefix("bundle/")).read_bytes() == data


def test_the_types_of_the_package_reach_a_program_that_uses_the_wheel(installed: Installed, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "tests/public_program.py", tmp_path / "program.py")
    command = ["mypy", "--strict", "--python-executable", str(installed.python), "program.py"]
    assert "no issues" in installed.run(sys.executable, "-m", *command, where=tmp_path)


def training(bundle: str, data: Path, bundle_root: str) -> list[str]:
    """The command that trains the installed bundle with the settings of ``tiny.yaml``."""
    command = ["python", "-m", "monai.bundle", "run", "--config_file", f"['{bundle}/configs/train.yaml','tiny.yaml']"]
    return [*command, "--bundle_root", bundle_root, "--dataset_dir", str(data)]


def test_the_installed_bundle_trains_into_another_folder(installed: Installed, data: Path, tmp_path: Path) -> None:
    bundle = installed.run("mvreg", "bundle", where=tmp_path).strip()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    before = installed.files()
    installed.run(*training(bundle, data, "OUT"), where=tmp_path)
    assert len(pd.read_csv(tmp_path / "OUT/eval/predictions.csv")) == 3
    assert (tmp_path / "OUT/models/model.pt").is_file() and (tmp_path / "OUT/eval/report.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "OUT"}
    assert installed.files() == before


@pytest.mark.slow
def test_the_installed_bundle_never_trains_into_itself(installed: Installed, data: Path, tmp_path: Path) -> None:
    bundle = installed.run("mvreg", "bundle", where=tmp_path).strip()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    before = installed.files()
    refused = installed.run(*training(bundle, data, bundle), where=tmp_path, fails=True)
    assert refused.splitlines()[-1].startswith("error: expected a folder of your own for data, models and results")
    assert installed.files() == before


@pytest.mark.slow
def test_a_study_goes_from_init_to_predictions_by_the_printed_commands(
    installed: Installed, data: Path, tmp_path: Path
) -> None:
    told = installed.run("mvreg", "init", "study", where=tmp_path)
    study = tmp_path / "study"
    mine = {**yaml.safe_load((study / "mine.yaml").read_text()), **TINY}
    (study / "mine.yaml").write_text(yaml.safe_dump(mine))
    commands = [line.strip() for line in told.splitlines() if line.startswith("  python")]
    assert len(commands) == 3
    for command in commands:
        installed.run("bash", "-c", re.sub("(NEW_)?DATA$", str(data), command), where=study)
    assert set(pd.read_csv(study / "eval/predictions.csv")["fold"]) == {1}
    assert len(pd.read_csv(study / "predictions/predictions.csv")) == 9
    told = installed.run("mvreg", "predict", str(data / "0_0.nii.gz"), "--bundle", "study", "--json", where=tmp_path)
    assert json.loads(told)["predictions"]


@pytest.mark.slow
def test_the_demo_and_what_it_names_next_work_from_a_wheel(installed: Installed, tmp_path: Path) -> None:
    before = installed.files()
    told = installed.run("mvreg", "demo", "--patients", "16", "--epochs", "1", where=tmp_path)
    assert (tmp_path / "mvreg-demo/report.html").is_file()
    (report,) = re.findall("^One patient: (.*)$", told, re.MULTILINE)
    installed.run(*report.split(), where=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mvreg-demo", "patient.html"}
    assert installed.files() == before


@pytest.mark.slow
def test_a_cross_validation_from_a_wheel_writes_to_its_own_folder(
    installed: Installed, data: Path, tmp_path: Path
) -> None:
    encoder = {"_target_": "monai_mvreg.networks.encoders.PretrainedEncoder", "encoder": TINY["encoder"], "learn": []}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "encoder": encoder}))
    before = installed.files()
    frozen = installed.packages / "monai_mvreg/bundle/configs/frozen.yaml"
    command = ["mvreg", "crossval", "tiny.yaml", str(frozen), "--dataset_dir", str(data), "--out", "cv"]
    installed.run(*command, where=tmp_path)
    assert len(pd.read_csv(tmp_path / "cv/predictions.csv")) == 9
    assert (tmp_path / "cv/embeddings").is_dir()
    assert installed.files() == before


@pytest.mark.slow
def test_the_python_of_the_readme_works_from_a_wheel(installed: Installed, data: Path, tmp_path: Path) -> None:
    script = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n", 1)[1].split("```", 1)[0]
    assert len([line for line in script.splitlines() if line]) < 10
    settings = repr({name: value for name, value in TINY.items() if name not in ("target", "columns#unit")})
    script = script.replace('"epochs": 20}', f"**{settings}}}").replace("/data/", f"{data}/")
    (tmp_path / "script.py").write_text(script.replace("/new/patient", str(data / "0_0.nii.gz")))
    before = installed.files()
    told = installed.run("python", "script.py", where=tmp_path)
    assert re.search(r"PredictedNumber\(name='volume', unit='mL', value=[\d.]+, low=", told)
    assert {path.name for path in tmp_path.iterdir()} == {"script.py", "study", "volume-model"}
    assert installed.files() == before

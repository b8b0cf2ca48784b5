"""MONAI Label for the tests: its own two packages, unpacked where no other test sees them, and a running server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_model import BUNDLE, write_model, write_scan

if TYPE_CHECKING:
    import requests  # not on every machine that runs tests/gpu

ROOT = Path(__file__).parents[1]
PINS = ROOT / "requirements-label.txt"
DATES = ("2020-01-01", "2020-03-01", "2020-10-27")


@dataclass(frozen=True)
class LabelServer:
    """A running server: where it is, its images and its model, MONAI Label's own files and what it logged."""

    url: str
    studies: Path
    models: Path
    packages: Path
    work: Path
    log: Path

    def infer(self, params: Mapping[str, Any] | str, *, image: str = "", **query: str) -> requests.Response:
        import requests

        text = params if isinstance(params, str) else json.dumps(params)
        query = {"image": image, "output": "json", **query}
        return requests.post(f"{self.url}/infer/mvreg", params=query, files={"params": (None, text)}, timeout=120)


def unpack_monailabel(folder: Path) -> Path:
    """Fetch the wheels that are pinned and unpack them: they are Python alone; skips where there is no index."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder / "wheels")]
    done = subprocess.run([*command, "-r", str(PINS)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip("pip could not fetch MONAI Label (requirements-label.txt): no package index in reach?")
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "packages")
    return folder / "packages"


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
    return port


@contextlib.contextmanager
def serve(packages: Path, place: Path, command: list[str], port: int) -> Iterator[None]:
    """Run a server as a user does until the end of the block."""
    paths = os.pathsep.join([str(ROOT), str(packages)])
    settings = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with (place / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=place, env=settings, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_for_server(place, port, lambda: process.poll() is None)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


@contextlib.contextmanager
def serve_fork(
    packages: Path, place: Path, start: Callable[[], object], port: int, **environment: str
) -> Iterator[None]:
    """Run a server in a fork of this process, which has most modules already: a new one takes a quarter of a minute."""
    child = os.fork()
    if not child:
        code = 1
        try:
            log = os.open(place / "server.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            logging.getLogger().handlers.clear()
            sys.path.append(str(packages))
            os.chdir(place)
            os.environ.update(environment)
            start()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        wait_for_server(place, port, lambda: os.waitpid(child, os.WNOHANG) == (0, 0))
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def wait_for_server(place: Path, port: int, alive: Callable[[], bool]) -> None:
    """It takes a quarter of a minute, and on a busy machine many times that."""
    import requests

    end = time.monotonic() + 300
    while time.monotonic() < end and alive():
        try:
            if requests.get(f"http://127.0.0.1:{port}/info/", timeout=60).ok:
                return
        except requests.RequestException:
            time.sleep(0.5)
    pytest.fail("the server does not answer: " + (place / "server.log").read_text()[-3000:])


def write_studies(folder: Path) -> Path:
    """Two patients in a folder, three dated volumes each, all of them different."""
    for patient in range(2):
        for at, date in enumerate(DATES):
            write_scan(folder / f"P00{patient + 1}_{date}.nii.gz", seed=10 * patient + at)
    return folder


@pytest.fixture(scope="session")
def monailabel_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for needed in ("fastapi", "uvicorn", "girder_client", "timeloop"):
        pytest.importorskip(needed, reason="the extra label is not installed")
    return unpack_monailabel(tmp_path_factory.mktemp("monailabel"))


@pytest.fixture(scope="session")
def label_server(monailabel_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    """The server as ``mvreg label`` starts it, once for all tests."""
    place = tmp_path_factory.mktemp("server")
    models, studies = write_model(place / "model" / "models"), write_studies(place / "studies")
    port = free_port()
    verb = "import sys; from monai_mvreg.cli.main import main; sys.exit(main())"
    command = ["-c", verb, "label", "--bundle", str(BUNDLE), "--models", str(models), "--studies", str(studies)]
    command += ["--port", str(port), "--work", str(place / "work")]
    with serve(monailabel_packages, place, command, port):
        yield LabelServer(
            f"http://127.0.0.1:{port}", studies, models, monailabel_packages, place / "work", place / "server.log"
        )


def pins() -> list[str]:
    return re.findall(r"^[\w.-]+==[\w.]+$", PINS.read_text(), flags=re.MULTILINE)

"""A real Orthanc, and a listener in a process of its own, for the tests of the archive; both on free ports here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset
from pynetdicom import AE
from tiny_model import write_visit

from monai_mvreg.cli.main import main
from monai_mvreg.service.run import listen  # so that a fork has it already

PLUGIN = next(Path("/usr").glob("*/orthanc/plugins/libOrthancDicomWeb.so"), None)
needs_orthanc = pytest.mark.skipif(
    shutil.which("Orthanc") is None or PLUGIN is None, reason="Orthanc with its DICOMweb plugin is not installed"
)
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(what: Callable[[], Any], *, seconds: float = 30.0, step: float = 0.05) -> Any:
    """What it gives, as soon as that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := what():
                return found
        time.sleep(step)
    raise TimeoutError(f"not within {seconds} s")


class Orthanc:
    """Its process; stopped and started again it has what it had."""

    def __init__(self, home: Path, *, listener_port: int) -> None:
        self.home, self.web_port, self.port = home, free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.web_port}"
        home.mkdir(parents=True)
        settings = {
            "Name": "test",
            "StorageDirectory": str(home / "storage"),
            "IndexDirectory": str(home / "storage"),
            "HttpPort": self.web_port,
            "DicomPort": self.port,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "DicomModalities": {
                "listener": {"AET": "MVREG", "Host": "127.0.0.1", "Port": listener_port},
                "mover": {"AET": "MVREG", "Host": "127.0.0.1", "Port": listener_port},
            },
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowMove": True,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "StableAge": 1,
            "OverwriteInstances": False,
        }
        del settings["DicomModalities"]["mover"]
        (home / "orthanc.json").write_text(json.dumps(settings))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = (self.home / "log").open("ab")
        self.process = subprocess.Popen(["Orthanc", str(self.home / "orthanc.json")], stdout=log, stderr=log)
        wait_for(lambda: self.get("/system"))

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
            return json.load(answer)

    def put(self, *folders: Path) -> None:
        """Store the files of folders in it."""
        for folder in folders:
            for file in folder.iterdir():
                self.post("/instances", file.read_bytes())

    def reports(self) -> list[Dataset]:
        """All structured reports that it holds, found by QIDO."""
        found = self.get("/dicom-web/instances?Modality=SR&includefield=00080018&limit=10000")
        uids = [one["00080018"]["Value"][0] for one in found]
        return [self.read(uid) for uid in uids]

    def read(self, uid: str) -> Dataset:
        at = self.post("/tools/lookup", uid.encode())[0]["ID"]
        with urllib.request.urlopen(f"{self.url}/instances/{at}/file", timeout=20) as answer:
            return pydicom.dcmread(pydicom.filebase.DicomBytesIO(answer.read()))


class Child:
    """A forked process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 60) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.running():
                return int(self.code or 0)
            time.sleep(0.005)
        raise TimeoutError("the process does not end")

    def running(self) -> bool:
        if self.code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if found else None
        return self.code is None


class ListenerProcess:
    """``mvreg listen`` as a user starts it; killed, it is started again with the same settings."""

    def __init__(self, home: Path, **settings: Any) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.port, self.health = home, settings.pop("port", None) or free_port(), free_port()
        given = {
            "folder": str(home / "queue"),
            "port": self.port,
            "health_port": self.health,
            "peers": [{"ae_title": "SENDER", "address": "127.0.0.1"}, {"ae_title": "ORTHANC", "address": "127.0.0.1"}],
            "quiet": 0.3,
            "min_free_mb": 1,
            "max_wait": 2,
            **settings,
        }
        (home / "listen.yaml").write_text(yaml.safe_dump(given))
        self.process: Child | None = None

    def start(self) -> None:
        self.launch()
        wait_for(lambda: self.metrics(), seconds=60)

    def launch(self) -> None:
        """Start it without waiting: a fork has all modules already, which takes a new process ten seconds."""
        assert callable(listen)
        child = os.fork()
        if child:
            self.process = Child(child)
            return
        code = 1
        try:
            with (self.home / "log").open("a") as log:
                sys.stdout = sys.stderr = log
                code = main(["listen", "--settings", str(self.home / "listen.yaml")])
        except BaseException as error:
            (self.home / "died").write_text(repr(error))
        finally:
            os._exit(code)

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.process = None
        return code

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/metrics", timeout=5) as answer:
            lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if line[0] != "#"]
        return {name: float(value) for name, _, value in lines}

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/healthz", timeout=5) as answer:
                return bool(json.load(answer)["well"])
        except urllib.error.HTTPError:
            return False

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.home / "log").read_text().splitlines()]

    def memory(self) -> int:
        """Resident megabytes."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def in_a_fork(work: Callable[[], Any]) -> Child:
    """Do it in a process of its own; exit code 0 if it was done."""
    child = os.fork()
    if child:
        return Child(child)
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


@contextlib.contextmanager
def running(*things: Orthanc | ListenerProcess) -> Iterator[None]:
    """Start them, and kill them whatever happens."""
    try:
        for thing in things:
            thing.start()
        yield
    finally:
        for thing in things:
            if thing.process is not None:
                thing.process.kill()
                thing.process.wait()


def study(folder: Path, *, number: int, date: str = "20210301", patient: str = "Mustermann", **tags: Any) -> Path:
    """A study of one MR series with three slices."""
    uid = f"1.2.826.0.1.3680043.8.498.{number}.{date}"
    own = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1", "PatientID": patient, "StudyTime": "101112"}
    blank = {"PatientBirthDate": "", "PatientSex": "", "StudyID": "", "AccessionNumber": ""}
    return write_visit(folder, date=date, seed=number, **{**own, **blank, **tags})


def send(
    port: int, files: Sequence[Path | Dataset], *, title: str = "SENDER", called: str = "MVREG", wait: float = 30
) -> list[int]:
    """Send by C-STORE over one association; the status of each, -1 where there was none."""
    entity = AE(title)
    entity.add_requested_context(MR, [EXPLICIT])
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = wait
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return [-1] * len(files)
    statuses = []
    for file in files:
        try:
            statuses.append(int(association.send_c_store(file).get("Status", -1)))
        except (RuntimeError, ValueError):  # the association has ended
            statuses.append(-1)
    if association.is_established:
        association.release()
    return statuses


def send_until_accepted(port: int, folders: Sequence[Path], *, pause: float = 0.0, seconds: float = 600) -> None:
    """What a modality does: each study again and again until every object of it is accepted."""
    end = time.monotonic() + seconds
    for folder in folders:
        files = sorted(folder.iterdir())
        while any(send(port, files, wait=2)):
            if time.monotonic() > end:
                raise TimeoutError("a study is never accepted")
            time.sleep(0.05)
        time.sleep(pause)


def values(report: Dataset) -> list[float]:
    """All numbers of a report, in their order."""
    found: list[float] = []

    def walk(item: Dataset) -> None:
        for below in item.get("ContentSequence", []):
            if below.ValueType == "NUM":
                measured = below.MeasuredValueSequence[0]
                found.append(float(measured.get("FloatingPointValue", measured.NumericValue)))
            walk(below)

    walk(report)
    return found


def referenced_studies(report: Dataset) -> set[str]:
    names = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
    return {str(one.StudyInstanceUID) for name in names for one in report.get(name, [])}

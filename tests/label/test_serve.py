"""Starting MONAI Label: its own command line with safer defaults, and the app without the guard before it."""

from __future__ import annotations

import hashlib
import io
import json
import logging.config
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from label_server import DATES, ROOT, LabelServer, free_port, pins, serve_fork, write_studies
from tiny_model import BUNDLE, write_model

from monai_mvreg.label import request as request_module
from monai_mvreg.label import serve
from monai_mvreg.label.serve import APP, prepare_work, run_label_server
from monai_mvreg.predict.predictor import Predictor


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for MONAI Label is gone after the test."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    for name in ("TMPDIR", "MVREG_LABEL_HOSTS", "MONAI_LABEL_SESSION_PATH", "MONAI_LABEL_DICOMWEB_CACHE_PATH"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for MONAI Label's command line, which writes down how it was called."""
    called: list[str] = []
    stand_in = types.ModuleType("monailabel.main")
    stand_in.Main = lambda: types.SimpleNamespace(run=lambda: called.extend(sys.argv))  # type: ignore[attr-defined]
    package = types.ModuleType("monailabel")
    package.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "monailabel", package)
    monkeypatch.setitem(sys.modules, "monailabel.main", stand_in)
    monkeypatch.setattr(serve, "find_spec", lambda name: object())
    return called


def test_the_server_listens_to_this_machine_alone_and_is_guarded(started: list[str]) -> None:
    run_label_server(["start_server", "--app", "a", "--studies", "s"])
    assert started[started.index("--host") + 1] == "127.0.0.1"
    assert started[started.index("--uvicorn_app") + 1] == "monai_mvreg.label.guard:app"
    assert os.environ["MVREG_LABEL_HOSTS"] == "127.0.0.1,localhost,[::1]"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_page_of_another_name_cannot_reach_a_server_of_this_machine(started: list[str], host: str) -> None:
    run_label_server(["start_server", "--host", host])
    assert "localhost" in os.environ["MVREG_LABEL_HOSTS"].split(",")


@pytest.mark.parametrize("asked", [["-i", "0.0.0.0"], ["--host", "0.0.0.0"], ["--host=0.0.0.0"]])
def test_another_host_is_what_was_asked_for(started: list[str], asked: list[str]) -> None:
    run_label_server(["start_server", *asked])
    assert "127.0.0.1" not in started and "MVREG_LABEL_HOSTS" not in os.environ


def test_other_commands_are_monailabels_own(started: list[str]) -> None:
    run_label_server(["apps"])
    assert started == ["monailabel", "apps"]


def test_without_monailabel_the_two_commands_that_install_it_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as found:
        run_label_server(["start_server"])
    assert "monai-mvreg[label]" in str(found.value)
    assert f"pip install --no-deps {' '.join(pins())}" in str(found.value)


def test_what_the_server_keeps_of_patients_lies_in_one_closed_folder(tmp_path: Path) -> None:
    app = prepare_work(tmp_path / "work")
    assert (app / "main.py").read_text() == (APP / "main.py").read_text()
    for place in (tmp_path / "work", *(path for path in (tmp_path / "work").iterdir() if path.is_dir())):
        assert place.stat().st_mode & 0o077 == 0
    kept = [os.environ[f"MONAI_LABEL_{name}_PATH"] for name in ("SESSION", "DICOMWEB_CACHE")]
    for place in [*kept, tempfile.gettempdir(), os.environ["TMPDIR"]]:
        assert Path(place).parent == tmp_path / "work"


def test_a_place_that_the_user_chose_for_sessions_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_SESSION_PATH", "elsewhere")
    prepare_work(tmp_path / "work")
    assert os.environ["MONAI_LABEL_SESSION_PATH"] == "elsewhere"


def test_monailabels_own_lines_are_not_logged(tmp_path: Path) -> None:
    prepare_work(tmp_path / "work")
    settings = json.loads((tmp_path / "work" / "logging.json").read_text())
    logging.config.DictConfigurator(settings)  # is understood
    assert settings["root"]["level"] == "ERROR"
    assert not [name for name in settings["loggers"] if name.startswith("monailabel")]
    assert not [one for one in settings["handlers"].values() if "File" in one["class"]]


@pytest.fixture(scope="module")
def plain_server(monailabel_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    """MONAI Label's own service, without the guard, on a copy of the app's folder."""
    place = tmp_path_factory.mktemp("plain")
    models, studies = write_model(place / "model" / "models"), write_studies(place / "studies")
    (place / "app").mkdir()
    (place / "app" / "main.py").write_text((APP / "main.py").read_text())
    port = free_port()
    command = ["start_server", "--app", str(place / "app")]
    command += ["--studies", str(studies), "--port", str(port), "--uvicorn_app", "monailabel.app:app"]
    command += ["--conf", "bundle", str(BUNDLE), "--conf", "models", str(models)]
    settings = {"MONAI_LABEL_SESSION_PATH": str(place / "sessions")}
    with serve_fork(monailabel_packages, place, lambda: run_with_a_fault(command), port, **settings):
        yield LabelServer(f"http://127.0.0.1:{port}", studies, models, monailabel_packages, place, place / "server.log")


def run_with_a_fault(command: list[str]) -> None:
    """Run the server, with one covariate at which a library fails as nobody expects."""
    read = request_module.read_question

    def faulty(request: dict[str, Any], *, session: bool = False) -> request_module.Question:
        if "fault" in request:
            raise KeyError("P001_secret.nii.gz")
        return read(request, session=session)

    request_module.read_question = faulty
    run_label_server(command)


IMAGE = f"P001_{DATES[0]}"


def test_what_nobody_expects_is_told_by_its_kind_alone(plain_server: LabelServer) -> None:
    reply = plain_server.infer({"fault": 1}, image=IMAGE)
    assert reply.status_code == 500 and reply.json() == {"detail": "the prediction failed (KeyError)"}
    log = plain_server.log.read_text()
    assert '"event": "prediction failed", "error": "KeyError", "at": "test_serve.py:' in log and "secret" not in log


def test_the_app_starts_by_monailabels_own_command_line(plain_server: LabelServer) -> None:
    reply = plain_server.infer({}, image=IMAGE).json()
    predictor = Predictor.from_bundle(BUNDLE, models=plain_server.models)
    expected = predictor.predict_folder(plain_server.studies / f"{IMAGE}.nii.gz")
    assert reply["predictions"][0]["numbers"][0]["value"] == pytest.approx(expected.numbers[0].value, rel=1e-6)


@pytest.mark.parametrize(
    ("image", "params"),
    [
        ("/etc/hostname", {}),
        ("../model/training/0.nii", {}),
        (IMAGE, {"image": "/etc/hostname"}),
        (IMAGE, {"image": ["/etc/hostname"]}),
        (IMAGE, {"images": ["/etc/hostname"]}),
        (IMAGE, {"session": {"name": "../.."}}),
        (IMAGE, {"session": {"name": 5}}),
        (IMAGE, {"session": "x"}),
    ],
)
def test_without_the_guard_too_a_path_is_no_image(
    plain_server: LabelServer, image: str, params: dict[str, Any]
) -> None:
    assert plain_server.infer(params, image=image).status_code in (400, 404)


def test_without_the_guard_too_the_path_of_an_image_that_is_there_is_refused(plain_server: LabelServer) -> None:
    path = plain_server.studies / f"{IMAGE}.nii.gz"
    assert path.is_file() and plain_server.infer({}, image=str(path)).status_code == 400


def test_a_forged_session_leads_nowhere(plain_server: LabelServer) -> None:
    """MONAI Label trusts a file meta.info of any folder, which a client may upload, and deletes the folder else."""
    forged = json.dumps({"image": "/etc", "name": "x", "path": "/etc"}).encode()
    files = [("files", ("meta.info", forged)), ("files", ("b.nii", b"x"))]
    session = requests.put(f"{plain_server.url}/session/", files=files, timeout=60).json()
    inside = Path(session["session_info"]["image"])
    name = f"{session['session_id']}/{inside.name}"
    assert plain_server.infer({}, session_id=name).status_code in (400, 404)
    assert (inside / "meta.info").read_bytes() == forged


def test_a_tar_is_not_unpacked_anywhere(plain_server: LabelServer) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("../escaped.nii")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    files = {"files": ("a.tar", packed.getvalue())}
    answer = requests.put(f"{plain_server.url}/session/", params={"uncompress": "true"}, files=files, timeout=60)
    assert answer.status_code == 400
    assert not list(plain_server.work.rglob("escaped*")) and not list(Path(tempfile.gettempdir()).glob("escaped*"))


def test_the_weights_can_be_neither_taken_nor_replaced(plain_server: LabelServer) -> None:
    before = hashlib.sha256((plain_server.models / "model.pt").read_bytes()).hexdigest()
    assert requests.get(f"{plain_server.url}/model/mvreg", timeout=60).status_code == 404
    assert (
        requests.put(f"{plain_server.url}/model/mvreg", files={"file": ("a.pt", b"x")}, timeout=60).status_code == 500
    )
    assert requests.delete(f"{plain_server.url}/model/mvreg", timeout=60).status_code == 404
    assert hashlib.sha256((plain_server.models / "model.pt").read_bytes()).hexdigest() == before


def test_the_pathologists_door_opens_no_file(plain_server: LabelServer) -> None:
    answer = requests.post(
        f"{plain_server.url}/infer/wsi/mvreg", params={"image": "/etc/hostname"}, json={}, timeout=10
    )
    assert answer.status_code == 404


_MEND = "from monai_mvreg.label.serve import restore_pydicom_names; restore_pydicom_names()"


@pytest.mark.parametrize(("before", "works"), [("", False), (_MEND, True)])
def test_pydicom_seg_can_be_imported_once_the_name_is_back(monailabel_packages: Path, before: str, works: bool) -> None:
    paths = os.pathsep.join([str(ROOT), str(monailabel_packages)])
    done = subprocess.run(
        [sys.executable, "-c", f"{before}\nimport pydicom_seg"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) == works, done.stderr

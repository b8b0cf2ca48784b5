"""The whole service against a real Orthanc: studies in, reports back, nothing lost and nothing twice."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from orthanc import (
    ListenerProcess,
    Orthanc,
    free_port,
    in_a_fork,
    needs_orthanc,
    referenced_studies,
    running,
    send,
    send_until_accepted,
    study,
    values,
    wait_for,
)
from tiny_model import BUNDLE, write_model

from monai_mvreg.predict.predictor import Predictor

pytestmark = needs_orthanc


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "models")


def pair(home: Path, models: Path, *, dimse: bool = False, **settings: object) -> tuple[Orthanc, ListenerProcess]:
    port = free_port()
    archive = Orthanc(home / "orthanc", listener_port=port)
    place = (
        {"dimse": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": archive.port, "timeout": 5}}
        if dimse
        else {"web": {"url": f"{archive.url}/dicom-web", "timeout": 5}}
    )
    given = {"bundle": str(BUNDLE), "models": str(models), "port": port, **place, **settings}
    return archive, ListenerProcess(home / "listener", **given)


@pytest.mark.parametrize("dimse", [False, True], ids=["DICOMweb", "DIMSE"])
def test_the_report_of_two_studies_comes_back_with_the_number_of_mvreg_predict(
    tmp_path: Path, models: Path, dimse: bool
) -> None:
    old = study(tmp_path / "patient" / "old", number=1, date="20200110")
    new = study(tmp_path / "patient" / "new", number=2, date="20210301")
    archive, listener = pair(tmp_path, models, dimse=dimse)
    with running(archive, listener):
        archive.put(old, new)
        assert send(listener.port, sorted(new.iterdir())) == [0, 0, 0]
        (report,) = wait_for(archive.reports)
        wait_for(lambda: listener.metrics()['mvreg_studies{state="sent"}'] == 1)
        assert listener.end(signal.SIGTERM) == 0
    assert len(referenced_studies(report)) == 2
    prediction = Predictor.from_bundle(BUNDLE, models=models).predict_folder(tmp_path / "patient")
    assert values(report)[0] == pytest.approx(prediction.numbers[0].value, rel=1e-6)
    assert report.PatientID == "Mustermann"
    log = (tmp_path / "listener" / "log").read_text()
    assert "Mustermann" not in log and "1.2.826" not in log


def survive_kills(
    home: Path, models: Path, *, studies: int, kills: int, pause: tuple[float, float], quiet: float
) -> Counter[str]:
    """Send studies while the listener is killed at random points; say in the middle of what it was killed."""
    folders = [study(home / "sent" / str(at), number=at + 1, patient=f"P{at}") for at in range(studies)]
    archive, listener = pair(home, models, quiet=quiet, max_crashes=50)  # these crashes are not the fault of a study
    draw = random.Random(studies)
    killed: Counter[str] = Counter()
    with running(archive):
        listener.start()
        sender = in_a_fork(lambda: send_until_accepted(listener.port, folders, pause=0.3))
        queue = home / "listener" / "queue"

        def all_sent() -> bool:
            metrics = listener.metrics()
            waiting = metrics['mvreg_studies{state="receiving"}'] + metrics['mvreg_studies{state="predicted"}']
            return not waiting and metrics['mvreg_studies{state="sent"}'] == studies

        try:
            for _ in range(kills):
                time.sleep(draw.uniform(*pause))
                listener.end(signal.SIGKILL)
                killed["kills"] += 1
                killed["storing"] += any((queue / "incoming").glob("*.part"))
                killed["predicting"] += any((queue / "work").iterdir())
                killed["sending"] += any((queue / "outbox").iterdir())
                listener.launch()
            sender.wait(120 + studies)
            assert sender.code == 0
            wait_for(all_sent, seconds=60 + studies)
            assert listener.metrics()['mvreg_studies{state="failed"}'] == 0
            reports = archive.reports()
        finally:
            for process in (sender, listener.process):
                if process is not None and process.running():
                    process.kill()
                    process.wait()
    of_study = Counter(uid for report in reports for uid in referenced_studies(report))
    assert len(reports) == studies and set(of_study.values()) == {1} and len(of_study) == studies
    assert not [report for report in reports if "PredecessorDocumentsSequence" in report]
    return killed


def test_every_accepted_study_has_one_report_though_the_listener_is_killed(tmp_path: Path, models: Path) -> None:
    killed = survive_kills(tmp_path, models, studies=6, kills=3, pause=(0.2, 3.0), quiet=1.0)
    assert killed["kills"] == 3


@pytest.mark.slow
def test_two_hundred_studies_have_one_report_each_though_the_listener_is_killed(tmp_path: Path, models: Path) -> None:
    print(survive_kills(tmp_path, models, studies=200, kills=60, pause=(0.2, 8.0), quiet=3.0))


@pytest.mark.parametrize(
    "reserve", [pytest.param(0, id="to the last byte"), pytest.param(0.3, id="with a reserve", marks=pytest.mark.slow)]
)
def test_on_a_full_disk_objects_are_refused_and_what_was_accepted_is_answered(
    tmp_path: Path, models: Path, reserve: float
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    archive, listener = pair(tmp_path, models, folder=str(disk / "queue"), min_free_mb=reserve, quiet=1.0)
    large = {"Rows": 160, "Columns": 160, "PixelData": random.Random(1).randbytes(51_200)}
    folders = [study(tmp_path / str(at), number=at + 1, patient=f"P{at}", **large) for at in range(9)]
    try:
        with running(archive, listener):
            statuses = {folder: send(listener.port, sorted(folder.iterdir())) for folder in folders}
            refused = [folder for folder, found in statuses.items() if any(found)]
            assert {status for found in statuses.values() for status in found} == {0x0000, 0xA700}
            assert 0 < len(refused) < len(folders)
            if reserve:  # there is space for reports
                wait_for(lambda: len(archive.reports()) >= len(folders) - len(refused), seconds=60)
                assert not listener.healthy()
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            send_until_accepted(listener.port, refused, seconds=60)
            wait_for(lambda: len(archive.reports()) >= len(folders), seconds=60)
            wait_for(lambda: listener.metrics()['mvreg_studies{state="sent"}'] == len(folders))
            reports = archive.reports()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    answered = Counter(uid for report in reports for uid in referenced_studies(report))
    assert len(answered) == len(folders)


@pytest.mark.slow
def test_a_minute_without_the_archive_is_caught_up_with(tmp_path: Path, models: Path) -> None:
    archive, listener = pair(tmp_path, models, max_wait=300)
    folders = [study(tmp_path / str(at), number=at + 1, patient=f"P{at}") for at in range(30)]
    with running(archive, listener):
        send_until_accepted(listener.port, folders[:10])
        wait_for(lambda: len(archive.reports()) >= 5)
        archive.stop()
        stopped = time.monotonic()
        send_until_accepted(listener.port, folders[10:])
        time.sleep(max(0, 60 - (time.monotonic() - stopped)))
        assert listener.healthy()
        archive.start()
        back = time.monotonic()
        wait_for(lambda: listener.metrics()['mvreg_studies{state="sent"}'] == 30, seconds=200)
        print(f"all sent {time.monotonic() - back:.1f} s after the archive was back")
        assert len(archive.reports()) == 30 and listener.metrics()['mvreg_studies{state="failed"}'] == 0


@pytest.mark.slow
def test_eight_senders_at_once_are_served_in_flat_memory(tmp_path: Path, models: Path) -> None:
    archive, listener = pair(tmp_path, models, quiet=2.0)
    pixels = {"Rows": 256, "Columns": 256, "PixelData": bytes(131_072)}
    with running(archive, listener):
        senders = [in_a_fork(partial(_send_many, listener.port, tmp_path / f"s{at}", at, pixels)) for at in range(8)]
        began, memory = time.monotonic(), list[int]()
        while any(sender.running() for sender in senders):
            memory.append(listener.memory())
            time.sleep(0.5)
        took = time.monotonic() - began
        assert all(sender.code == 0 for sender in senders)
        wait_for(lambda: listener.metrics()['mvreg_studies{state="sent"}'] == 8 * 25, seconds=300)
        after = listener.memory()
        stored = listener.metrics()['mvreg_objects_total{result="stored"}']
    early, late = max(memory[: len(memory) // 4]), max(memory[-len(memory) // 4 :])
    print(f"{stored:.0f} objects, {stored / took:.0f} a second; MB early {early}, late {late}, after {after}")
    assert stored == 8 * 25 * 20 and late < early + 150


def _send_many(port: int, home: Path, sender: int, pixels: dict[str, object]) -> None:
    for at in range(25):
        number = 1 + sender * 100 + at
        folder = study(home, number=number, patient=f"P{number}", heights=tuple(range(20)), **pixels)
        send_until_accepted(port, [folder])
        shutil.rmtree(folder)

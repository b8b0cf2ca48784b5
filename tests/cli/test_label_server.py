"""The verb ``mvreg label``."""

from __future__ import annotations

import itertools
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from mistakes import mistake
from tiny_model import BUNDLE

from monai_mvreg.cli.main import main
from monai_mvreg.label import serve


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for MONAI Label, which writes down how it was called."""
    called: list[str] = []
    monkeypatch.setattr(serve, "run_label_server", called.extend)
    monkeypatch.setattr(serve, "prepare_work", lambda work: work / "app")
    return called


def test_the_verb_becomes_monailabels_command_line(started: list[str], tmp_path: Path) -> None:
    options = ["--bundle", str(BUNDLE), "--models", str(tmp_path), "--work", str(tmp_path), "--port", "8123"]
    assert main(["label", "--studies", str(tmp_path), *options, "--", "--workers", "2"]) == 0
    assert started[:5] == ["start_server", "--app", str(tmp_path / "app"), "--studies", str(tmp_path)]
    pairs = list(itertools.pairwise(started))
    assert ("--host", "127.0.0.1") in pairs and ("--port", "8123") in pairs and ("--verbose", "ERROR") in pairs
    assert ("bundle", str(BUNDLE)) in pairs and ("models", str(tmp_path)) in pairs
    assert started[-2:] == ["--workers", "2"]


def test_an_address_of_an_archive_is_taken_as_it_is(started: list[str], tmp_path: Path) -> None:
    options = ["--bundle", str(BUNDLE), "--models", str(tmp_path)]
    assert main(["label", "--studies", "http://127.0.0.1:8042/dicom-web", *options]) == 0
    assert started[started.index("--studies") + 1] == "http://127.0.0.1:8042/dicom-web"


@pytest.mark.parametrize("option", ["--studies", "--bundle", "--models"])
def test_a_folder_that_is_not_there_is_one_line(
    option: str, tmp_path: Path, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--studies": str(tmp_path), "--bundle": str(BUNDLE), "--models": str(tmp_path)} | {
        option: str(tmp_path / "none")
    }
    told = mistake(capsys, "label", *(part for pair in options.items() for part in pair))
    assert told.startswith("error: expected a ") and started == []


def test_a_port_in_use_is_one_line_before_anything_is_loaded(
    started: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        options = ["--bundle", str(BUNDLE), "--models", str(tmp_path), "--port", port]
        assert f"expected a free port, got 127.0.0.1:{port}" in mistake(
            capsys, "label", "--studies", str(tmp_path), *options
        )
    assert started == []


def test_what_the_server_kept_is_deleted_when_it_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def end(arguments: list[str]) -> None:
        seen.append(Path(arguments[arguments.index("--app") + 1]).parent)
        assert (seen[0] / "sessions").is_dir()
        (seen[0] / "sessions" / "scan.nii").write_text("a patient's")
        os.kill(os.getpid(), signal.SIGTERM)

    for name in ("TMPDIR", "MONAI_LABEL_SESSION_PATH", "MONAI_LABEL_DICOMWEB_CACHE_PATH"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(serve, "run_label_server", end)
    with pytest.raises(SystemExit):
        main(["label", "--studies", str(tmp_path), "--bundle", str(BUNDLE), "--models", str(tmp_path)])
    assert not seen[0].exists()

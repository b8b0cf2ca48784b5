"""Files that are whole or not there."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.errors import user_error


def test_the_file_takes_its_place_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    for content in ("first", "second"):
        with atomic_write(path) as unfinished:
            unfinished.write_text(content)
            assert not path.exists() or path.read_text() == "first"
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(OSError, match="disk"), atomic_write(path) as unfinished:
        unfinished.write_text("hal")
        raise OSError("no space left on disk")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_what_was_there_and_the_next_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    killed = (
        "import os, pathlib, signal, sys\n"
        "from monai_mvreg.cache.atomic import atomic_write\n"
        "with atomic_write(pathlib.Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_text('hal')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(path)], check=False).returncode == -9
    assert path.read_text() == "before"
    with atomic_write(path) as unfinished:
        unfinished.write_text("after")
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("sync"), sync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda own, target: (order.append("name"), replace(own, target))[1])
    with atomic_write(tmp_path / "table.csv") as unfinished:
        unfinished.write_text("whole")
    assert order == ["sync", "name"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), FileNotFoundError("x"), RuntimeError("enforce fail")])
def test_a_full_disk_is_named_with_its_folder(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_write(tmp_path / "file"):
        raise error
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    assert user_error(caught.value) is caught.value and list(tmp_path.iterdir()) == []


def test_an_error_with_room_on_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="theirs"), atomic_write(tmp_path / "file"):
        raise RuntimeError("theirs")

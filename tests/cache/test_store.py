"""The store under both caches: what a name depends on, what is seen of a writer, what damage and pruning do."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from monai_mvreg.cache.store import ContentStore, DamagedEntryError, entry_name

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "cache", ".entry")


def files(store: ContentStore) -> list[str]:
    return sorted(path.name for path in store.folder.rglob("*") if path.is_file())


# ---- Names -----------------------------------------------------------------------------------------------------------


def test_the_same_content_has_the_same_name_and_anything_else_another() -> None:
    names = [entry_name(key, content) for key in "ab" for content in "cd"]
    assert len(set(names)) == 4 and names == [entry_name(key, content) for key in "ab" for content in "cd"]


def test_what_is_written_is_read_back_from_wherever_the_folder_is(store: ContentStore, tmp_path: Path) -> None:
    store.write_bytes("one", b"")
    store.write_array("two", ARRAY)
    moved = ContentStore(store.folder.rename(tmp_path / "moved"), store.suffix)
    mapped = moved.map_array("two")
    assert moved.read_bytes("one") == b"" and mapped is not None and mapped.dtype == ARRAY.dtype
    np.testing.assert_array_equal(mapped, ARRAY)


def test_what_was_never_written_is_absent(store: ContentStore) -> None:
    assert store.read_bytes("one") is None and store.map_array("one") is None


def test_changing_a_mapped_array_does_not_change_the_entry(store: ContentStore) -> None:
    store.write_array("one", ARRAY)
    for _ in range(2):
        mapped = store.map_array("one")
        assert mapped is not None
        np.testing.assert_array_equal(mapped, ARRAY)
        mapped += 1


# ---- Damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 31, 32, 40])
def test_truncated_bytes_are_found(size: int, store: ContentStore) -> None:
    store.write_bytes("one", b"123456789")
    path = store.path("one")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedEntryError, match=r"one\.entry: cache entry is damaged, .* delete it"):
        store.read_bytes("one")


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_a_flipped_bit_is_found(at: int, store: ContentStore) -> None:
    store.write_bytes("one", b"123456789")
    whole = bytearray(store.path("one").read_bytes())
    whole[at] ^= 1
    store.path("one").write_bytes(whole)
    with pytest.raises(DamagedEntryError):
        store.read_bytes("one")


def test_bytes_under_the_name_of_another_entry_are_found(store: ContentStore) -> None:
    store.write_bytes("one", b"123456789")
    store.path("one").rename(store.path("one").with_name("on2.entry"))
    with pytest.raises(DamagedEntryError):
        store.read_bytes("on2")


@pytest.mark.parametrize("size", [0, 5, 70, 200])
def test_a_truncated_array_is_found(size: int, store: ContentStore) -> None:
    store.write_array("one", ARRAY)
    path = store.path("one")
    assert path.stat().st_size == 128 + ARRAY.nbytes
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedEntryError, match=r"one\.entry: cache entry is damaged, .* delete it"):
        store.map_array("one")


# ---- Writers that fail, are killed, or meet --------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from monai_mvreg.cache.store import ContentStore
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store = ContentStore(Path(sys.argv[1]), ".entry")
store.write_bytes("one", b"new") if sys.argv[2] == "bytes" else store.write_array("one", np.zeros(3))
"""


@pytest.mark.parametrize("what", ["bytes", "array"])
def test_a_killed_writer_leaves_no_entry_and_the_next_one_writes(what: str, store: ContentStore) -> None:
    command = [sys.executable, "-c", KILLED, str(store.folder), what]
    assert subprocess.run(command, check=False).returncode == -9
    assert [Path(name).suffix for name in files(store)] == [".part"]
    assert store.read_bytes("one") is None and store.map_array("one") is None
    store.write_bytes("one", b"next")
    assert store.read_bytes("one") == b"next"


def test_a_writer_that_fails_leaves_nothing_and_an_earlier_entry_stays(store: ContentStore) -> None:
    store.write_array("one", ARRAY)
    with pytest.raises(ValueError, match="pickle"):
        store.write_array("one", np.array([object()]))
    assert files(store) == ["one.entry"]
    np.testing.assert_array_equal(store.map_array("one"), ARRAY)  # type: ignore[arg-type]


def test_an_array_is_on_the_disk_before_it_has_its_name(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("sync"), sync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda own, target: (order.append("name"), replace(own, target))[1])
    store.write_array("one", ARRAY)
    assert order == ["sync", "name"]


def write_often(folder: Path, value: int) -> None:
    store, array = ContentStore(folder, ".entry"), np.full(50_000, value)
    for _ in range(60):
        store.write_bytes("bytes", array.tobytes())
        store.write_array("array", array)


def one_value(array: npt.NDArray[Any]) -> bool:
    return array.size == 50_000 and len(set(array.tolist())) == 1


def test_two_processes_that_write_the_same_entry_never_show_a_mixture(store: ContentStore) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(store.folder, value)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content, array = store.read_bytes("bytes"), store.map_array("array")
        assert content is None or one_value(np.frombuffer(content, int))
        assert array is None or one_value(array)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0] and files(store) == ["array.entry", "bytes.entry"]


# ---- Pruning ---------------------------------------------------------------------------------------------------------


def filled(store: ContentStore, names: Sequence[str] = ("ee", "dd", "cc", "bb", "aa")) -> None:
    """Entries of 40 bytes each, the first the oldest."""
    for age, name in enumerate(names):
        store.write_bytes(name, bytes(8))
        os.utime(store.path(name), (age, age))


def test_the_least_recently_used_entries_are_deleted_but_none_in_use(store: ContentStore) -> None:
    filled(store)
    assert store.read_bytes("ee") is not None  # used now
    assert store.prune(3 * 40, keep={"dd"}) == 3 * 40
    assert files(store) == ["aa.entry", "dd.entry", "ee.entry"]


def test_entries_in_use_stay_even_if_they_are_larger_than_the_limit(store: ContentStore) -> None:
    filled(store)
    assert store.prune(50, keep={"ee", "cc"}) == 2 * 40
    assert files(store) == ["cc.entry", "ee.entry"]


def test_nothing_is_deleted_below_the_limit(store: ContentStore) -> None:
    filled(store)
    assert store.prune(5 * 40, keep=()) == 5 * 40 and len(files(store)) == 5


def test_an_unfinished_file_is_deleted_after_a_day_and_no_other_file_is(store: ContentStore) -> None:
    folder = store.folder / "ab"
    folder.mkdir(parents=True)
    for path, hours in (("new", 1), ("old", 25), ("ab/new", 1), ("ab/old", 25)):
        (store.folder / f"{path}.part").write_bytes(b"half")
        os.utime(store.folder / f"{path}.part", (time.time() - 3600 * hours,) * 2)
    (store.folder / "notes.txt").write_text("not ours")
    assert store.prune(0, keep=()) == 0
    assert files(store) == ["new.part", "new.part", "notes.txt"]


def test_entries_that_version_0_1_wrote_without_subfolders_are_pruned_too(store: ContentStore) -> None:
    filled(store, ["aa"])
    store.path("aa").rename(store.folder / "aa.entry")
    assert store.prune(0, keep=()) == 0 and files(store) == []

"""Prepared scans on disk: the same voxels as without, and never those of a file, transform or value that changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from make_dicom import write_series
from monai.bundle import ConfigParser
from monai.transforms import EnsureTyped, LoadImaged, MapTransform, NormalizeIntensityd, RandFlipd
from monai.transforms import ResizeWithPadOrCropd as Resized
from torch.testing import assert_close

from monai_mvreg.cache.prepared_scans import CachedScand, find_entries, prepare_once
from monai_mvreg.scans.read import Choices
from monai_mvreg.scans.reader import ScanReader
from monai_mvreg.training.transforms import UnpackScansd

COUNTED: list[str] = []


class Counted(MapTransform):
    """Says what it is asked to prepare."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        COUNTED.append(str(data["image"]))
        return dict(data)


def write_scan(path: Path, seed: int = 0) -> str:
    voxels = np.random.default_rng(seed).normal(50, 9, (7, 6, 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return str(path)


def chain(*, size: int = 8, reader: ScanReader | None = None) -> list[Any]:
    return [
        Counted("image"),
        LoadImaged("image", reader=reader or ScanReader(), ensure_channel_first=True),
        Resized("image", [size] * 3),
        NormalizeIntensityd("image", nonzero=True),
        EnsureTyped("image", track_meta=False),
    ]


def kept(folder: Path, **choices: Any) -> CachedScand:
    """As a new run would have it."""
    COUNTED.clear()
    return CachedScand("image", chain(**choices), str(folder))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


def test_a_scan_is_prepared_once_for_all_runs_and_is_the_same(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii.gz")
    expected = {"image": scan}
    for transform in chain():
        expected = transform(expected)
    for prepared_now in (1, 0):
        found = kept(tmp_path / "kept")({"image": scan, "patient": "p"})
        assert len(COUNTED) == prepared_now and found["patient"] == "p" and type(found["image"]) is torch.Tensor
        assert_close(found["image"], expected["image"], rtol=0, atol=0)
    found["image"] += 1  # what a random transform does in place
    assert_close(kept(tmp_path / "kept")({"image": scan})["image"], expected["image"], rtol=0, atol=0)


def test_a_file_with_other_bytes_is_prepared_anew_though_path_size_and_date_stay(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii")
    before, stat = kept(tmp_path / "kept")({"image": scan})["image"], Path(scan).stat()
    write_scan(tmp_path / "a.nii", seed=1)
    os.utime(scan, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    now = Path(scan).stat()
    assert (now.st_size, now.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    after = kept(tmp_path / "kept")({"image": scan})["image"]
    assert len(COUNTED) == 1 and (before - after).abs().max() > 0.1


def test_one_changed_slice_of_a_dicom_series_is_seen_and_a_moved_series_is_known(tmp_path: Path) -> None:
    write_series(tmp_path / "series")
    kept(tmp_path / "kept")({"image": str(tmp_path / "series")})
    (tmp_path / "series").rename(tmp_path / "moved")
    kept(tmp_path / "kept")({"image": str(tmp_path / "moved")})
    assert not COUNTED
    file = sorted(path for path in (tmp_path / "moved").rglob("*") if path.is_file())[1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    kept(tmp_path / "kept")({"image": str(tmp_path / "moved")})
    assert len(COUNTED) == 1 and len(entries(tmp_path / "kept")) == 2


@pytest.mark.parametrize("other", [{"size": 9}, {"reader": ScanReader(choices=Choices(nonfinite=0.0))}])
def test_another_value_of_a_transform_or_of_the_reader_is_another_entry(tmp_path: Path, other: Any) -> None:
    scan = write_scan(tmp_path / "a.nii")
    kept(tmp_path / "kept")({"image": scan})
    kept(tmp_path / "kept", **other)({"image": scan})
    assert len(COUNTED) == 1 and len(entries(tmp_path / "kept")) == 2


def test_a_scan_that_is_changed_during_the_run_is_refused_and_not_kept(tmp_path: Path) -> None:
    scan, run = write_scan(tmp_path / "a.nii"), kept(tmp_path / "kept")
    run.look_at([scan])
    write_scan(tmp_path / "a.nii", seed=1)
    with pytest.raises(ValueError, match=r"a\.nii: file changed on disk while it was being read"):
        run({"image": scan})
    assert entries(tmp_path / "kept") == []


def test_writers_that_are_killed_or_write_at_once_leave_whole_entries(tmp_path: Path) -> None:
    scans = [write_scan(tmp_path / f"{number}.nii", seed=number) for number in range(30)]
    program = "import sys; sys.path += ['tests']; from tests.cache import test_prepared_scans as t; "
    program += "k = t.kept(t.Path(sys.argv[1]), size=128); "
    program += "print('ready', flush=True); [k({'image': scan}) for scan in sys.argv[2:]]"
    command = [sys.executable, "-c", program, str(tmp_path / "kept"), *scans]
    runs = [
        subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for run in runs:
        assert run.stdout is not None and b"ready" in run.stdout.readline()
    deadline = time.monotonic() + 60
    while not entries(tmp_path / "kept") and time.monotonic() < deadline:
        time.sleep(0.01)
    for run in runs[:2]:
        os.killpg(run.pid, signal.SIGKILL)
    for run in runs:
        run.communicate()
    assert [run.returncode for run in runs] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert len(entries(tmp_path / "kept")) == 30
    found = kept(tmp_path / "kept", size=128)
    alone = kept(tmp_path / "alone", size=128)
    for scan in scans:
        assert_close(found({"image": scan})["image"], alone({"image": scan})["image"], rtol=0, atol=0)
    assert len(COUNTED) == 30  # the ones alone


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii")
    kept(tmp_path / "kept")({"image": scan})
    (entry,) = entries(tmp_path / "kept")
    entry.write_bytes(entry.read_bytes()[:-8])
    with pytest.raises(ValueError, match=rf"{entry.name}: cache entry is damaged, .* delete it"):
        kept(tmp_path / "kept")({"image": scan})


def test_an_entry_holds_voxels_alone(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "Mustermann.nii")
    kept(tmp_path / "kept")({"image": scan, "patient": "Mustermann", "label": [3.0]})
    (entry,) = entries(tmp_path / "kept")
    assert b"Mustermann" not in entry.read_bytes() and "Mustermann" not in str(entry.relative_to(tmp_path))
    assert np.load(entry).shape == (1, 8, 8, 8)


def test_without_a_folder_the_transforms_stay_and_with_one_a_list_of_scans_is_prepared(tmp_path: Path) -> None:
    whole = [UnpackScansd("image"), *chain()]
    assert prepare_once(whole, None) == whole
    patient = {"image": [write_scan(tmp_path / f"{number}.nii", seed=number) for number in range(2)], "time": [0, 1]}
    unpack, keep = prepare_once(whole, str(tmp_path / "kept"))
    find_entries([unpack, keep], [patient])
    assert set(keep.entries) == set(patient["image"])
    assert [keep(scan)["image"].shape for scan in unpack(patient)] == [(1, 8, 8, 8)] * 2


def test_how_many_scans_are_prepared_already_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    scans = [write_scan(tmp_path / f"{number}.nii", seed=number) for number in range(3)]
    keep = kept(tmp_path / "kept")
    keep({"image": scans[1]})
    find_entries([keep], [{"image": scans}])
    assert "prepared scans: 1 cached, 2 to prepare" in caplog.messages


def test_training_and_evaluation_share_the_entries_and_see_the_scans_they_see_without(tmp_path: Path) -> None:
    bundle = Path(__file__).parents[2] / "bundle"
    scans = [write_scan(tmp_path / f"{number}.nii.gz", seed=number) for number in range(2)]
    seen = []
    for config, name in (("train", "validate#preprocessing"), ("evaluate", "preprocessing")):
        for folder in (None, str(tmp_path / "kept")):
            parser = ConfigParser()
            parser.read_config(str(bundle / f"configs/{config}.yaml"))
            parser.update({"cache_dir": folder})
            seen.append(parser.get_parsed_content(name)({"image": scans})["image"])
    assert len(entries(tmp_path / "kept")) == 2
    for other in seen[1:]:
        assert_close(other, seen[0], rtol=0, atol=0)


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    folder = str(tmp_path / "kept")
    with pytest.raises(ValueError, match="got RandFlipd: move it to augmentation"):
        CachedScand("image", [*chain(), RandFlipd("image", prob=1.0)], folder)
    more = CachedScand("image", [*chain(), AddKey("image")], folder)
    with pytest.raises(ValueError, match=r"one tensor under 'image', got \['affine', 'image'\]"):
        more({"image": write_scan(tmp_path / "a.nii")})
    assert entries(tmp_path / "kept") == []


class AddKey(MapTransform):
    """Gives more than the scan."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, "affine": 1}

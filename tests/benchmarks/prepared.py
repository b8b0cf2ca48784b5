"""What a prepared scan costs from disk, beside MONAI's datasets: ``python tests/benchmarks/prepared.py``.

One NIfTI volume of 192 x 224 x 192 with noise, prepared as the bundle does to 96 x 96 x 96. Milliseconds of one thread
until the scan is copied into a batch, the median of alternating rounds, files in a warm cache. The last lines say what
each does when a file is changed behind its path, and with an entry that is cut off, as by a copy that was killed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import json_hashing
from monai.transforms import (
    Compose,
    EnsureTyped,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ResizeWithPadOrCropd,
    Spacingd,
)

from monai_mvreg.cache.prepared_scans import find_entries, prepare_once
from monai_mvreg.scans.reader import ScanReader
from monai_mvreg.training.transforms import PackScansd, UnpackScansd

SCANS, ROUNDS = 8, 15


def write_scan(path: Path, seed: int) -> str:
    voxels = np.random.default_rng(seed).normal(300, 80, (192, 224, 192)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return str(path)


def chain() -> list[Any]:
    return [
        UnpackScansd("image"),
        LoadImaged("image", reader=ScanReader(), ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=[2.0, 2.0, 2.0]),
        ResizeWithPadOrCropd("image", [96, 96, 96]),
        NormalizeIntensityd("image", nonzero=True),
        EnsureTyped("image", track_meta=False),
    ]


def milliseconds(dataset: Sequence[Any], batch: torch.Tensor) -> float:
    began = time.perf_counter()
    for number in range(SCANS):
        batch[number].copy_(dataset[number]["image"][0])
    return 1000 * (time.perf_counter() - began) / SCANS


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = [{"image": [write_scan(folder / f"{number}.nii.gz", number)]} for number in range(SCANS)]
        ours = prepare_once(chain(), str(folder / "ours"))
        began = time.perf_counter()
        find_entries(ours, data)
        looked = 1000 * (time.perf_counter() - began) / SCANS
        pack = PackScansd("image")
        plain, kept = Compose([*chain(), pack]), Compose([*ours, pack])

        def persistent() -> PersistentDataset:
            return PersistentDataset(data, plain, folder / "theirs", hash_transform=json_hashing)

        datasets: dict[str, Any] = {
            "prepared every time": Dataset(data, plain),
            "PersistentDataset": persistent(),
            "cache_dir": Dataset(data, kept),
            "CacheDataset (memory)": CacheDataset(data, plain, progress=False, copy_cache=False),
        }
        batch = torch.empty(SCANS, 1, 96, 96, 96)
        spent: dict[str, list[float]] = {label: [] for label in datasets}
        for round_number in range(ROUNDS + 1):
            for label, dataset in datasets.items():
                if label == "prepared every time" and round_number > 2:
                    continue
                taken = milliseconds(dataset, batch)
                if round_number:  # the first fills the folders
                    spent[label].append(taken)
        for label, taken_all in spent.items():
            print(f"{label:<24} {statistics.median(taken_all):8.2f} ms")
        print(f"{'cache_dir, once a run':<24} {looked:8.2f} ms to look at the bytes of a scan")

        def again() -> Dataset:
            return Dataset(data, Compose([*prepare_once(chain(), str(folder / "ours")), pack]))

        makers: dict[str, Callable[[], Any]] = {"PersistentDataset": persistent, "cache_dir": again}
        before = {label: make()[0]["image"].clone() for label, make in makers.items()}
        write_scan(folder / "0.nii.gz", 99)
        for label, make in makers.items():
            stale = bool((make()[0]["image"] == before[label]).all())
            print(f"{label}, a file changed behind its path: {'the OLD scan' if stale else 'prepared anew'}")
        for label, place in {"PersistentDataset": "theirs", "cache_dir": "ours"}.items():
            for entry in [path for path in (folder / place).rglob("*") if path.suffix in (".pt", ".npy")]:
                entry.write_bytes(entry.read_bytes()[:-1000])
            try:
                makers[label]()[1]
                print(f"{label}, entries cut off: prepared anew")
            except Exception as error:
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                print(f"{label}, entries cut off: {type(cause).__name__}: {str(cause).split('/')[-1][:150]}")


if __name__ == "__main__":
    main()

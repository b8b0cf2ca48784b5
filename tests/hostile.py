"""Read mutated files, as a program of its own that a test may kill: ``python tests/hostile.py FOLDER FIRST LAST``.

Every number gives the same mutation of the same file. What comes out is one line of JSON; anything but an array or our
own error is in it, and the file of the last number lies in FOLDER.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from make_dicom import at, dose, enhanced, item, mosaic, save, write_series
from PIL import Image

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import Choices, read_scan

PYDICOM = Path(pydicom.__file__).parent / "data/test_files"
SMALL = 300_000
# Elements that a reader believes, and lengths that lie.
BELIEVED = [
    bytes.fromhex(tag)
    for tag in (
        "28001000",
        "28001100",
        "28000200",
        "28000800",
        "28000001",
        "28000101",
        "28000201",
        "28000301",
        "28000400",
        "20003200",
        "20003700",
        "28003000",
        "0200100055",
        "20000e00",
        "e07f1000",
        "29001010",
        "00523092",
        "00522992",
        "04300c00",
        "feff00e0",
        "feff0de0",
        "feffdde0",
        "28005210",
        "28005310",
        "28000030",
    )
]
EXTREMES = [
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\0\0\0\0",
    b"\xfe\xff\xff\xff",
    b"\0\0\1\0",
    b"\1\0\0\0",
]


def originals(folder: Path) -> list[tuple[str, bytes]]:
    """Small files of every kind that is read."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = [{"PlanePositionSequence": at(z), "FrameContentSequence": item(TemporalPositionIndex=1)} for z in range(4)]
    for name, image in (("enhanced", enhanced(frames)), ("mosaic", mosaic()), ("dose", dose())):
        save(image, folder / f"{name}.dcm")
    voxels = np.random.default_rng(0).integers(0, 999, (9, 8, 7)).astype(np.int16)
    for suffix in ("nii", "nii.gz"):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"a.{suffix}")
    for suffix in ("nrrd", "mha"):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / f"a.{suffix}"), suffix == "nrrd")
    for suffix in ("png", "tif", "jpg"):
        Image.fromarray((voxels[0] // 4).astype(np.uint8)).save(folder / f"a.{suffix}")
    (folder / "a.zip").write_bytes(b"")
    write_series(folder / "series")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "series").iterdir()):
            archive.write(path, path.name)
    made = [path for path in sorted(folder.iterdir()) if path.is_file()]
    real = [path for path in sorted(PYDICOM.rglob("*")) if path.is_file() and 0 < path.stat().st_size < SMALL]
    return [(path.name, path.read_bytes()) for path in (*made, *real) if is_readable(path)]


def is_readable(path: Path) -> bool:
    try:
        return read_scan(path).array.size > 0
    except ScanError:
        return path.suffix == ".zip" or path.name == "DICOMDIR"  # several scans


def mutate(raw: bytes, rng: random.Random, other: bytes) -> bytes:
    """One to four of: bits flipped, cut off, extreme numbers, edited elements, lying lengths, pieces lost, doubled."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        place = rng.randrange(min(len(data), rng.choice((600, 4000, len(data)))))
        kind = rng.randrange(7)
        if kind == 0:
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(place, len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        elif kind == 2:
            data[place : place + 4] = rng.choice(EXTREMES)
        elif kind in (3, 4):
            tag = rng.choice(BELIEVED)
            found = data.find(tag)
            if found >= 0:
                start = found + (rng.choice((4, 6)) if kind == 4 else 8)
                data[start : start + rng.choice((2, 4))] = rng.choice(EXTREMES)[: rng.choice((2, 4))]
        elif kind == 5:
            end = place + rng.randint(1, 200)
            data[place:end] = data[place:end] * rng.choice((0, 2, 3))
        else:
            end = rng.randrange(len(other))
            data[place:] = other[end : end + len(data)]
    return bytes(data)


def peak_megabytes() -> float:
    """Peak memory since this program began (getrusage counts the one that started it too)."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def main(folder: Path, first: int, last: int) -> None:
    warnings.simplefilter("ignore")
    files = originals(folder / "originals")
    told = {"read": 0, "refused": 0, "slowest": 0.0, "megabytes": 0.0}
    wrong: list[str] = []
    for number in range(first, last):
        rng = random.Random(number)
        name, raw = rng.choice(files)
        path = folder / f"{number}-{name}"
        path.write_bytes(mutate(raw, rng, rng.choice(files)[1]))
        started = time.monotonic()
        try:
            find_scans(path)
            data = read_scan(path, choices=rng.choice((Choices(), Choices(resample=True, padding=0, suv=True))))
            told["read"] += 1
            if data.array.dtype != np.float32 or not data.array.size:
                wrong.append(f"{path.name}: {data.array.dtype} {data.array.shape}")
        except ScanError as error:
            told["refused"] += 1
            if len(str(error)) < 10:
                wrong.append(f"{path.name}: {error}")
        except Exception as error:
            wrong.append(f"{path.name}: {type(error).__name__}: {error}")
        told["slowest"] = max(told["slowest"], time.monotonic() - started)
        if not (wrong and wrong[-1].startswith(path.name)):
            path.unlink()
    told["megabytes"] = peak_megabytes()
    print(json.dumps({**told, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

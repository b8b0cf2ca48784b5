"""Scan -> prepared scan, once for all runs: what the deterministic transforms make of a scan, kept in a folder on disk.

An entry is named by a hash of everything that it is made from: the bytes of the scan's files, the transforms with all
their values and their source, and the releases of the libraries. What is changed is therefore prepared anew; nothing
ever has to be thrown away to be right. Entries hold voxels alone, and no name of a patient, file or folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import uuid
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, RandomizableTrait, Transform
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.scans.files import read_whole
from monai_mvreg.scans.read import scan_at
from monai_mvreg.scans.reader import ScanReader

# What reads, unpacks and computes; another release of any of them may give other voxels.
_LIBRARIES = (
    *("monai-mvreg", "monai", "torch", "numpy", "nibabel", "isal", "SimpleITK", "pillow"),
    *("pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "python-gdcm"),
)


def prepare_once(transforms: Sequence[Transform], reader: object, cache_dir: str | None) -> list[Transform]:
    """Put a folder of prepared scans in front of deterministic transforms; for a config's list of transforms.

    Args:
        transforms: :class:`~monai_mvreg.transforms.UnpackScansd` and what prepares one scan, with nothing random.
        reader: the reader among them, which knows what files a scan is made of.
        cache_dir: the folder; None leaves the transforms as they are.

    Returns:
        Transforms with the same result.

    Raises:
        ValueError: for a reader that is not :class:`~monai_mvreg.scans.reader.ScanReader`, or as
            :class:`KeptScand` does.
    """
    if cache_dir is None:
        return list(transforms)
    if not isinstance(reader, ScanReader):
        raise ValueError(f"expected a ScanReader with cache_dir, got {type(reader).__name__}: leave cache_dir out")
    unpack, *others = transforms
    return [unpack, KeptScand(unpack.keys, others, reader, cache_dir)]


def find_entries(transforms: Sequence[Transform], data: Sequence[Mapping[str, Any]]) -> None:
    """Look at the bytes of all scans before there are workers, each of which would have to; for a config's ``run``.

    Args:
        transforms: what :func:`prepare_once` returned.
        data: patients with the addresses of their scans.
    """
    for transform in transforms:
        if isinstance(transform, KeptScand):
            transform.look_at([scan for patient in data for scan in patient[transform.first_key(patient)]])


class KeptScand(MapTransform):
    """Replace the address of a scan by the prepared scan: from the folder, or prepared now and put there.

    A scan counts as what its files held when this process first looked at them. Processes may share a folder: an entry
    is written under a name of its own and then renamed, so it is there whole or not at all, whenever one is killed.

    Args:
        keys: the one key of the scan.
        transforms: what turns ``{key: address}`` into a tensor ``(C, *spatial)`` under the same key.
        reader: the reader among them.
        cache_dir: the folder; made if there is none.

    Raises:
        ValueError: if a transform is random, or cannot be told from another one, such as a lambda.
    """

    def __init__(self, keys: Any, transforms: Sequence[Transform], reader: ScanReader, cache_dir: str) -> None:
        super().__init__(keys)
        for transform in transforms:
            if isinstance(transform, RandomizableTrait) or not isinstance(transform, Transform):
                raise ValueError(
                    f"expected deterministic MONAI transforms to be kept in cache_dir, got {type(transform).__name__}: "
                    "move it to augmentation"
                )
        self.transforms, self.reader, self.folder = Compose(transforms), reader, Path(cache_dir)
        self.preparation = preparation_key(transforms)
        self.entries: dict[str, Path] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def look_at(self, scans: Sequence[str]) -> None:
        """Find the entries of scans by their bytes, in as many threads as there are cores.

        Raises:
            ScanError: if one cannot be opened.
        """
        new = [scan for scan in dict.fromkeys(scans) if scan not in self.entries]
        with ThreadPool(os.cpu_count()) as threads:
            found = threads.imap(self._entry, new)
            self.entries |= dict(zip(new, tqdm(found, "scans", len(new), disable=None), strict=True))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the prepared scan ``(C, *spatial)`` in the place of its address.

        Raises:
            ValueError: if the scan was changed during the run, the transforms give anything but one tensor under the
                key, or an entry is damaged.
        """
        key = self.first_key(data)
        address = str(data[key])
        entry = self.entries.get(address)
        if entry is None:
            entry = self.entries[address] = self._entry(address)
        try:
            # Mapped copy-on-write: only the collation copies it, and nobody can change the entry.
            array = np.load(entry, mmap_mode="c", allow_pickle=False)
        except FileNotFoundError:
            array = self._prepare(address, key)
            if self._entry(address) != entry:
                raise ValueError(
                    f"{Path(address).name}: expected a scan that stays as it is, got other bytes"
                ) from None
            _write(entry, array)
        except (ValueError, EOFError):
            raise ValueError(f"{entry}: expected a whole entry of cache_dir, got a damaged one: delete it") from None
        return {**data, key: torch.from_numpy(array)}

    def _entry(self, address: str) -> Path:
        name = scan_key(address, self.reader, self.preparation)
        return self.folder / name[:2] / f"{name}.npy"

    def _prepare(self, address: str, key: Hashable) -> np.ndarray[Any, Any]:
        # Nothing else of the patient goes in, so nothing else can be in what comes out.
        done = self.transforms({key: address})
        if not isinstance(done, dict) or set(done) != {key} or not isinstance(done[key], torch.Tensor):
            got = sorted(map(str, done)) if isinstance(done, dict) else type(done).__name__
            raise ValueError(f"expected one tensor under {key!r} to be kept in cache_dir, got {got}")
        array: np.ndarray[Any, Any] = done[key].detach().cpu().contiguous().numpy()
        return array


def scan_key(address: str, reader: ScanReader, preparation: str) -> str:
    """The name of a prepared scan: a hash of the bytes of its files and of how it is prepared.

    Args:
        address: the scan.
        reader: as it will be read.
        preparation: what :func:`preparation_key` gives.

    Raises:
        ScanError: if there is not exactly one scan at the address, or a file cannot be read.
    """
    scan = scan_at(address, resample=reader.choices.resample)
    digest = hashlib.sha256(f"{preparation} {scan.key}".encode())
    for file in scan.files:
        data = read_whole(file)
        digest.update(f" {file.suffix} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


def preparation_key(transforms: Sequence[Transform]) -> str:
    """A hash of how scans are prepared: transforms, their values and source, and the releases of the libraries.

    Raises:
        ValueError: naming a transform that cannot be pickled.
    """
    digest = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in _LIBRARIES).encode())
    # The reader's own modules do not all stand in a pickle of it.
    files = set((Path(__file__).parent / "scans").glob("*.py"))
    for transform in transforms:
        text = io.BytesIO()
        pickler = _Sources(text, protocol=5)
        try:
            pickler.dump(transform)
        except (pickle.PicklingError, AttributeError, TypeError):
            raise ValueError(
                f"expected transforms that can be pickled with cache_dir, got {type(transform).__name__} with a value "
                "that cannot, such as a lambda: name a function of a module instead"
            ) from None
        digest.update(text.getvalue())
        files |= pickler.files
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class _Sources(pickle.Pickler):
    """Note the source files of all classes and functions that an object is made of."""

    def __init__(self, file: io.BytesIO, *, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self.files: set[Path] = set()

    def reducer_override(self, obj: Any) -> Any:
        """Look, and leave the pickling to pickle."""
        module = sys.modules.get(str(getattr(obj, "__module__", "")))
        source = getattr(module, "__file__", None)
        if source and source.endswith(".py"):
            self.files.add(Path(source))
        return NotImplemented


def _write(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write a whole entry or none, whoever else writes the same one."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
    try:
        with unfinished.open("xb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)

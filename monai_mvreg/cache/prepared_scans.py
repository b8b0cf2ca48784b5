"""Scan -> prepared scan, once for all runs: what the deterministic transforms make of a scan, kept in a folder on disk.

An entry is named by a hash of everything that it is made from: the bytes of the scan's files, and the transforms with
their code. What is changed is therefore prepared anew; nothing ever has to be thrown away to be right. Entries hold
voxels alone, and no name of a patient, file or folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, MapTransform, RandomizableTrait, Transform
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cache.fingerprint import fingerprint
from monai_mvreg.scans.content_hash import codec_releases, content_hashes

logger = logging.getLogger(__name__)


def prepare_once(transforms: Sequence[Transform], cache_dir: str | None) -> list[Transform]:
    """Put a folder of prepared scans in front of deterministic transforms; for a config's list of transforms.

    Args:
        transforms: :class:`~monai_mvreg.training.transforms.UnpackScansd` and what prepares one scan, with nothing
            random.
        cache_dir: the folder; None leaves the transforms as they are.

    Returns:
        Transforms with the same result.

    Raises:
        ValueError: as :class:`CachedScand` does.
    """
    if cache_dir is None:
        return list(transforms)
    unpack, *others = transforms
    return [unpack, CachedScand(unpack.keys, others, cache_dir)]


def find_entries(transforms: Sequence[Transform], data: Sequence[Mapping[str, Any]]) -> None:
    """Look at the bytes of all scans before there are workers, each of which would have to; for a config's ``run``.

    Args:
        transforms: what :func:`prepare_once` returned.
        data: patients with the addresses of their scans.
    """
    for transform in transforms:
        if isinstance(transform, CachedScand):
            transform.look_at([scan for patient in data for scan in patient[transform.first_key(patient)]])
            entries = set(transform.entries.values())
            kept = sum(entry.exists() for entry in entries)
            logger.info("prepared scans: %d are in cache_dir, %d are not yet", kept, len(entries) - kept)


class CachedScand(MapTransform):
    """Replace the address of a scan by the prepared scan: from the folder, or prepared now and put there.

    A scan counts as what its files held when this process first looked at them. Processes may share a folder: an entry
    is written under a name of its own and then renamed, so it is there whole or not at all, whenever one is killed.

    Args:
        keys: the one key of the scan.
        transforms: what turns ``{key: address}`` into a tensor ``(C, *spatial)`` under the same key.
        cache_dir: the folder; made if there is none.

    Raises:
        ValueError: if a transform is random, or holds what cannot be told from something else, such as an open file.
    """

    def __init__(self, keys: Any, transforms: Sequence[Transform], cache_dir: str) -> None:
        super().__init__(keys)
        for transform in transforms:
            if isinstance(transform, RandomizableTrait) or not isinstance(transform, Transform):
                raise ValueError(
                    f"expected deterministic MONAI transforms to be kept in cache_dir, got {type(transform).__name__}: "
                    "move it to augmentation"
                )
        self.transforms, self.folder = Compose(transforms), Path(cache_dir)
        self.preparation = fingerprint(list(transforms), codec_releases())
        self.entries: dict[str, Path] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def look_at(self, scans: Sequence[str]) -> None:
        """Find the entries of scans by their bytes.

        Raises:
            ScanError: if there is no file at an address.
        """
        new = [scan for scan in dict.fromkeys(scans) if scan not in self.entries]
        contents = content_hashes(tqdm(new, "contents", unit="scan", disable=None))
        self.entries |= {scan: self._place(content) for scan, content in contents.items()}

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
            entry = self.entries[address] = self._place(content_hashes([address])[address])
        try:
            # Mapped copy-on-write: only the collation copies it, and nobody can change the entry.
            array = np.load(entry, mmap_mode="c", allow_pickle=False)
        except FileNotFoundError:
            array = self._prepare(address, key)
            if self._place(content_hashes([address])[address]) != entry:
                raise ValueError(
                    f"{Path(address).name}: expected a scan that stays as it is, got other bytes"
                ) from None
            _write(entry, array)
        except (ValueError, EOFError):
            raise ValueError(f"{entry}: expected a whole entry of cache_dir, got a damaged one: delete it") from None
        return {**data, key: torch.from_numpy(array)}

    def _place(self, content: str) -> Path:
        name = hashlib.sha256(f"{self.preparation} {content}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.npy"

    def _prepare(self, address: str, key: Hashable) -> np.ndarray[Any, Any]:
        # Nothing else of the patient goes in, so nothing else can be in what comes out.
        done = self.transforms({key: address})
        if not isinstance(done, dict) or set(done) != {key} or not isinstance(done[key], torch.Tensor):
            got = sorted(map(str, done)) if isinstance(done, dict) else type(done).__name__
            raise ValueError(f"expected one tensor under {key!r} to be kept in cache_dir, got {got}")
        array: np.ndarray[Any, Any] = done[key].detach().cpu().contiguous().numpy()
        return array


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

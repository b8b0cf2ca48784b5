"""Scan -> prepared scan: the output of the deterministic transforms, kept on disk for all runs.

The name of an entry is a hash of what it is made from: the bytes of the scan's files, and the transforms with their
code. A scan or transform that changed has another entry, so no entry is ever out of date. Entries hold only voxels: no
name of a patient, file or folder.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Compose, MapTransform, RandomizableTrait, Transform
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cache.fingerprint import fingerprint
from monai_mvreg.cache.store import ContentStore, entry_name
from monai_mvreg.scans.content_hash import codec_releases, content_hashes

logger = logging.getLogger(__name__)


def prepare_once(transforms: Sequence[Transform], cache_dir: str | None) -> list[Transform]:
    """Cache the output of deterministic transforms on disk; for the list of transforms in a config.

    Args:
        transforms: :class:`~monai_mvreg.training.transforms.UnpackScansd`, then the deterministic transforms of a scan.
        cache_dir: the folder of the cache; None leaves the transforms as they are.

    Returns:
        Transforms with the same output.

    Raises:
        ValueError: as :class:`CachedScand` does.
    """
    if cache_dir is None:
        return list(transforms)
    unpack, *others = transforms
    return [unpack, CachedScand(unpack.keys, others, cache_dir)]


def find_entries(transforms: Sequence[Transform], data: Sequence[Mapping[str, Any]]) -> None:
    """Hash all scans before the workers start, each of which would have to do so; for ``run`` in a config.

    Files that killed runs left unfinished are deleted.

    Args:
        transforms: what :func:`prepare_once` returned.
        data: patients with the addresses of their scans.
    """
    for transform in transforms:
        if isinstance(transform, CachedScand):
            transform.look_at([scan for patient in data for scan in patient[transform.first_key(patient)]])
            names = set(transform.entries.values())
            kept = sum(transform.store.path(name).exists() for name in names)
            logger.info("prepared scans: %d cached, %d to prepare", kept, len(names) - kept)
            transform.store.remove_abandoned()


class CachedScand(MapTransform):
    """Replace the address of a scan by the prepared scan, from the cache or prepared now and added to it.

    The files of a scan are hashed once per process, when it is first seen. Processes may share the folder.

    Args:
        keys: the one key of the scan.
        transforms: from ``{key: address}`` to a tensor ``(C, *spatial)`` under the same key.
        cache_dir: the folder of the cache; made if it does not exist.

    Raises:
        ValueError: if a transform is random, or holds an object without a fingerprint, such as an open file.
    """

    def __init__(self, keys: Any, transforms: Sequence[Transform], cache_dir: str) -> None:
        super().__init__(keys)
        for transform in transforms:
            if isinstance(transform, RandomizableTrait) or not isinstance(transform, Transform):
                raise ValueError(
                    f"cache_dir: expected deterministic MONAI transforms, got {type(transform).__name__}: "
                    "move it to augmentation"
                )
        self.transforms, self.store = Compose(transforms), ContentStore(Path(cache_dir), ".npy")
        self.preparation = fingerprint(list(transforms), codec_releases())
        self.entries: dict[str, str] = {}  # names in the store, by address
        self.store.folder.mkdir(parents=True, exist_ok=True)

    def look_at(self, scans: Sequence[str]) -> None:
        """Find the entries of scans by the hashes of their files.

        Args:
            scans: addresses.

        Raises:
            ScanError: if there is no file at an address.
        """
        new = [scan for scan in dict.fromkeys(scans) if scan not in self.entries]
        contents = content_hashes(tqdm(new, "contents", unit="scan", disable=None))
        self.entries |= {scan: entry_name(self.preparation, content) for scan, content in contents.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the address of a scan by the prepared scan ``(C, *spatial)``.

        Raises:
            ValueError: if a file changed during the run, the transforms return anything but one tensor under the key,
                or an entry is damaged.
        """
        key = self.first_key(data)
        address = str(data[key])
        if address not in self.entries:
            self.entries[address] = self._name(address)
        name = self.entries[address]
        array = self.store.map_array(name)
        if array is None:
            array = self._prepare(address, key)
            if self._name(address) != name:
                raise ValueError(f"{Path(address).name}: file changed on disk while it was being read")
            self.store.write_array(name, array)
        return {**data, key: torch.from_numpy(array)}

    def _name(self, address: str) -> str:
        return entry_name(self.preparation, content_hashes([address])[address])

    def _prepare(self, address: str, key: Hashable) -> npt.NDArray[Any]:
        # Only the address goes in, so nothing else about the patient can come out.
        done = self.transforms({key: address})
        if not isinstance(done, dict) or set(done) != {key} or not isinstance(done[key], torch.Tensor):
            got = sorted(map(str, done)) if isinstance(done, dict) else type(done).__name__
            raise ValueError(f"cache_dir: expected transforms that return one tensor under {key!r}, got {got}")
        array: npt.NDArray[np.generic] = done[key].detach().cpu().contiguous().numpy()
        return array

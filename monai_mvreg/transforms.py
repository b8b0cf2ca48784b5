"""Patient -> item: what MONAI's transforms lack, a list of scans unpacked to scans and packed to one tensor.

Between :class:`UnpackScansd` and :class:`PackScansd` any dictionary transform of MONAI works on one scan at a time.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, MapTransform, MultiSampleTrait, ReduceTrait
from monai.utils import convert_to_tensor

from monai_mvreg.scans import ScanReader


class UnpackScansd(MapTransform, MultiSampleTrait):
    """Turn one patient into a list of scans, each a dictionary with one entry of the list under the key.

    Args:
        keys: the key that holds a list with one entry per scan.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Unpack a patient; everything else is handed to every scan."""
        key = self.first_key(data)
        return [{**data, key: scan} for scan in data[key]]


class LoadScand(MapTransform):
    """Load a scan, channel first, with :class:`~monai_mvreg.scans.ScanReader` and no other reader behind it.

    ``monai.transforms.LoadImaged`` tries its other readers when one refuses a file, and these read what was refused.

    Args:
        keys: the key that holds the address of a scan.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)
        self.reader = ScanReader()
        self.channel_first = EnsureChannelFirst()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the address by a tensor ``(C, *spatial)`` with its affine."""
        scan = dict(data)
        for key in self.key_iterator(scan):
            array, meta = self.reader.get_data(self.reader.read(scan[key]))
            scan[key] = self.channel_first(MetaTensor.ensure_torch_and_prune_meta(array, meta))
        return scan


class PackScansd(MapTransform, ReduceTrait):
    """Stack the scans of a patient to one tensor ``(N, C, *spatial)``.

    Args:
        keys: the key that holds a scan ``(C, *spatial)``.
    """

    def __call__(self, data: Sequence[Mapping[Hashable, Any]]) -> dict[Hashable, Any]:
        """Pack the scans of one patient.

        Raises:
            ValueError: if the scans have different shapes.
        """
        key = self.first_key(data[0])
        shapes = [tuple(scan[key].shape) for scan in data]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"expected scans of one shape (C, *spatial) per patient, got {shapes}: crop, pad or resize them to one "
                "grid before PackScansd"
            )
        # Metadata of one scan would not be true for the others.
        return {**data[0], key: torch.stack([convert_to_tensor(scan[key], track_meta=False).float() for scan in data])}

"""Patient -> item: what MONAI's transforms lack, a list of scans unpacked to scans and packed to one tensor.

Between :class:`UnpackScansd` and :class:`PackScansd` any dictionary transform of MONAI works on one scan at a time.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform, MultiSampleTrait, ReduceTrait
from monai.utils import convert_to_tensor


class UnpackScansd(MapTransform, MultiSampleTrait):
    """Turn one patient into a list of scans, each a dictionary with one entry of the list under the key.

    Args:
        keys: the key that holds a list with one entry per scan.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Unpack a patient; everything else is handed to every scan."""
        key = self.first_key(data)
        return [{**data, key: scan} for scan in data[key]]


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

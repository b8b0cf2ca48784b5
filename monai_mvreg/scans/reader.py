"""Scan -> MONAI: one scan by its address, for MONAI's own ``LoadImaged``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys

from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import AS_STORED, Choices, Frame, ScanData, check_frame, read_turned, scan_at

Array = npt.NDArray[Any]


class ScanReader(ImageReader):
    """Read one scan by its address for ``monai.transforms.LoadImage``: one 2D or 3D image, float32, affine in RAS mm.

    Use it as ``LoadImaged(keys, reader=ScanReader())``. MONAI tries its other readers when ``read`` fails, so here
    ``read`` only takes the address and ``get_data`` does the work: what it refuses is not read by another reader.

    Args:
        frame: of a scan with several time points, the number of one, from 0, or ``"mean"``; None refuses such scans.
        colour: read colours, channel last. Otherwise they are refused, unless all three channels are equal.
        choices: how to read what a file leaves open.

    Raises:
        ScanError: if ``frame`` is none of these.

    Example:
        >>> from monai.transforms import LoadImage
        >>> LoadImage(reader=ScanReader(), ensure_channel_first=True)("patient/2015-03-23").shape
        torch.Size([1, 24, 24, 16])
    """

    def __init__(self, frame: Frame = None, colour: bool = False, choices: Choices = AS_STORED) -> None:
        check_frame(frame)
        self.frame, self.colour, self.choices = frame, colour, choices

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:
        """Accept every address: what is there is decided by content."""
        return True

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> str:
        """Take the address of a scan.

        Args:
            data: the address, or a sequence of exactly one, as ``LoadImage`` hands it over.
            kwargs: part of MONAI's signature; none is accepted.

        Raises:
            ScanError: if it is not one address.
        """
        addresses = [data] if isinstance(data, (str, Path)) else list(data)
        if len(addresses) != 1 or kwargs:
            raise ScanError(f"expected the address of one scan, got {len(addresses)} and the options {sorted(kwargs)}")
        return str(addresses[0])

    def get_data(self, img: str) -> tuple[Array, dict[str, Any]]:
        """Read the scan and the metadata that MONAI's transforms need; the rest of a header may identify a patient.

        Args:
            img: what ``read`` returned.

        Raises:
            ScanError: if the scan cannot be read right, or has time points or colours that were not asked for.
        """
        scan = scan_at(img, resample=self.choices.resample)
        if scan.frames > 1 and self.frame is None:
            raise ScanError(
                f"{Path(img).name}: expected one image, got {scan.frames} {scan.frames_are}: choose one by its "
                f"number{', or the mean' if scan.frames_are == 'time points' else ''} (frame of ScanReader; "
                f"--reader#frame {'mean' if scan.frames_are == 'time points' else '0'})"
            )
        data = read_turned(scan, frame=self.frame, choices=self.choices)
        array = data.array
        if scan.colour and not self.colour:
            if (array[..., :1] != array).any():
                raise ScanError(
                    f"{Path(img).name}: expected grey values, got colours (--reader#colour True reads them)"
                )
            array = array[..., 0]
        colour = scan.colour and self.colour
        affine = _plane_affine(data) if array.ndim - colour == 2 else data.affine
        if affine is None:  # spacing is known without a place too
            affine = np.diag([*(data.facts["spacing"] or (1.0, 1.0, 1.0)), 1.0])
        array = np.ascontiguousarray(array)
        return array, {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:-1] if colour else array.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if colour else "no_channel",
            **{name: data.facts[name] for name in ("modality", "unit", "tilt_degrees", "inverted")},
        }


def _plane_affine(data: ScanData) -> Array:
    """The affine of a 2D image: each axis along the nearest axis of the patient within the nearest main plane."""
    plane = np.diag([*(data.facts["spacing"][:2] or (1.0, 1.0)), 1.0, 1.0])
    if data.affine is not None:
        (first, first_sign), (second, second_sign) = nib.io_orientation(data.affine)[:2]
        plane[:2, :2] = np.diag([first_sign, second_sign]) @ plane[:2, :2]
        if first > second:
            plane[:2] = plane[1::-1]
    return plane

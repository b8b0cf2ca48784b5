"""A map on the network's grid -> the scan's own grid, by MONAI's inverse transforms, and into a NIfTI file."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, InvertibleTransform, Lambda, Lambdad
from torch import Tensor

from monai_mvreg.scans.read import scan_at

Array = npt.NDArray[Any]


def to_native_space(saliency: Tensor, image: MetaTensor, transform: Compose) -> MetaTensor:
    """Bring a map back to the voxels of the scan as it was read.

    Args:
        saliency: a map ``(*spatial)`` on the grid of the prepared scan.
        image: the prepared scan ``(C, *spatial)`` with its metadata and the operations that were applied.
        transform: what prepared it, on the key ``image``; transforms that are not invertible must leave every voxel
            where it is.

    Returns:
        The map on the scan's own grid, with the scan's affine; 0 where the network saw nothing of the scan.

    Raises:
        ValueError: if a transform cannot be inverted; it is named.
    """
    steps = transform.flatten().transforms
    for step in steps[1:]:  # the first reads the file
        if _may_move(step) and _moves(step, image):
            raise ValueError(
                f"expected transforms that can be inverted, to bring saliency back to the scan: {type(step).__name__} "
                "moves voxels, and is no InvertibleTransform of MONAI"
            )
    applied = deepcopy(image.applied_operations)
    data = {"image": MetaTensor(saliency[None].cpu(), meta=deepcopy(image.meta), applied_operations=applied)}
    for step in reversed([step for step in steps if isinstance(step, InvertibleTransform)]):
        try:
            data = step.inverse(data)
        except Exception as error:  # whatever a user's transform raises
            raise ValueError(
                f"expected transforms that can be inverted, to bring saliency back to the scan: {type(step).__name__} "
                f"cannot ({type(error).__name__}: {error})"
            ) from error
    back = data["image"][0]
    shape, affine = tuple(int(size) for size in image.meta["spatial_shape"]), np.asarray(image.meta["original_affine"])
    if tuple(back.shape) != shape or not np.allclose(_full(back.affine), _full(affine), atol=1e-3):
        raise ValueError(
            f"expected the inverse of {[type(step).__name__ for step in steps]} to give the scan's own grid {shape}, "
            f"got {tuple(back.shape)}, or another affine"
        )
    return MetaTensor(back.as_tensor().contiguous(), affine=torch.as_tensor(_full(affine)))


def _may_move(step: Any) -> bool:
    """Whether MONAI does not know how to invert a transform, or takes anything for invertible, as Lambda."""
    if isinstance(step, (Lambda, Lambdad)):
        return True
    still = type(step).__module__.startswith(("monai.transforms.intensity.", "monai.transforms.utility."))
    return not still and not isinstance(step, InvertibleTransform)


def _moves(step: Any, image: MetaTensor) -> bool:
    """Whether a transform that cannot be inverted puts voxels elsewhere: a bright block must stay where it is."""
    quiet = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    block = tuple(slice(size // 8, max(size // 8 + 1, size // 3)) for size in image.shape[1:])
    bright = quiet.clone()
    bright[(slice(None), *block)] += 1
    seen = []
    for probe in (quiet, bright):
        after = step({"image": MetaTensor(probe, meta=deepcopy(image.meta))})["image"]
        if tuple(after.shape[1:]) != tuple(image.shape[1:]) or not np.allclose(
            _full(after.affine), _full(image.affine)
        ):
            return True
        seen.append(torch.as_tensor(after).double().sum(0))
    change = (seen[1] - seen[0]).abs()
    inside = torch.zeros_like(change, dtype=torch.bool)
    inside[block] = True
    return bool(change[inside].mean() <= 2 * change[~inside].mean()) and bool(change.any())


def _full(affine: Any) -> Array:
    """An affine ``(4, 4)``, also of an image whose own has fewer axes."""
    affine = np.asarray(affine, dtype=np.float64)
    whole = np.eye(4)
    axes = len(affine) - 1
    whole[:axes, :axes], whole[:axes, 3] = affine[:-1, :-1], affine[:-1, -1]
    return whole


def write_map(saliency: MetaTensor, address: str, path: Path) -> None:
    """Write a map on a scan's own grid as NIfTI, float32; it lies over the scan in every viewer.

    Args:
        saliency: ``(*spatial)`` with the affine of the scan.
        address: the scan; a single slice of a volume has its place in the patient in its header alone.
        path: the file, ``.nii`` or ``.nii.gz``.
    """
    array, affine = np.asarray(saliency.as_tensor(), dtype=np.float32), _full(saliency.affine)
    if array.ndim == 2:
        own = scan_at(address).content.affine
        affine, array = affine if own is None else own, array[:, :, None]
    file = nib.Nifti1Image(array, affine)
    file.header.set_xyzt_units("mm")
    nib.save(file, path)

"""Back onto the scan's own grid: a blob at a known place in mm is found there again, whatever the file and the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from make_dicom import write_series
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    Flipd,
    Lambdad,
    LoadImaged,
    MapTransform,
    NormalizeIntensityd,
    Orientationd,
    Resized,
    ResizeWithPadOrCropd,
    Rotate90d,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from PIL import Image

from monai_mvreg.explain.native_space import to_native_space, write_map
from monai_mvreg.scans.reader import ScanReader

Array = npt.NDArray[Any]
KEY: dict[str, Any] = {"keys": "image"}
SHAPE = (40, 52, 23)
PLACE = np.array([13.0, 30.0, 14.0])  # of the blob, in voxels


def turned(axis: int, degrees: float) -> Array:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    turn[first, first] = turn[second, second] = cos
    turn[first, second], turn[second, first] = -sin, sin
    return turn


def affine_of(axes: Array, spacing: tuple[float, float, float]) -> Array:
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(spacing)
    affine[:3, 3] = (-31.3, 12.7, -55.1)
    return affine


AFFINES = {
    "RAS": affine_of(np.eye(3), (1.0, 1.0, 1.0)),
    "LPS, thick slices": affine_of(np.diag([-1.0, -1.0, 1.0]), (0.83, 0.83, 4.7)),
    "sagittal": affine_of(np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]]), (1.1, 0.9, 3.3)),
    "oblique": affine_of(turned(0, 21) @ turned(2, -14), (0.9, 1.3, 2.6)),
    "oblique, flipped": affine_of(turned(1, 33) @ np.diag([1.0, -1, -1]), (1.37, 1.37, 2.2)),
}
WAYS: dict[str, list[Any]] = {
    "bundle": [
        Orientationd(**KEY, axcodes="RAS", labels=None),
        Spacingd(**KEY, pixdim=(2.0, 2.0, 2.0), mode="bilinear"),
        ResizeWithPadOrCropd(**KEY, spatial_size=(36, 40, 44)),
        NormalizeIntensityd(**KEY, nonzero=True),
    ],
    "crop and resize": [
        Orientationd(**KEY, axcodes="LPS", labels=None),
        CropForegroundd(**KEY, source_key="image", select_fn=lambda x: x > 0.02, margin=5, allow_smaller=True),
        Resized(**KEY, spatial_size=(30, 28, 32), mode="trilinear"),
        ScaleIntensityRangePercentilesd(**KEY, lower=1, upper=99, b_min=0, b_max=1, clip=True),
    ],
    "turned": [
        Flipd(**KEY, spatial_axis=1),
        Rotate90d(**KEY, spatial_axes=(0, 1)),
        Spacingd(**KEY, pixdim=(1.5, 1.5, 3.0), mode="bilinear"),
    ],
}


def blob(shape: tuple[int, ...], place: Array, widths: Array) -> Array:
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in shape], indexing="ij"), -1)
    return np.exp(-((((grid - place) / widths) ** 2).sum(-1)) / 2)


def centroid(array: Array, affine: Array) -> Array:
    weight = np.where(array > 0.3 * array.max(), array, 0)
    grid = np.stack(np.meshgrid(*[np.arange(size) for size in array.shape], indexing="ij"), -1)
    voxel = (grid * weight[..., None]).reshape(-1, array.ndim).sum(0) / weight.sum()
    return affine[:3, : array.ndim] @ voxel + affine[:3, 3]


def pipeline(way: list[Any]) -> Compose:
    return Compose([LoadImaged(**KEY, reader=ScanReader(), ensure_channel_first=True), *way])


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("way", WAYS)
def test_what_the_network_saw_lies_on_the_scan_it_was_seen_in(affine: str, way: str, tmp_path: Path) -> None:
    own = AFFINES[affine]
    spacing = np.linalg.norm(own[:3, :3], axis=0)
    path = tmp_path / "a.nii.gz"
    array = blob(SHAPE, PLACE, 4.0 / spacing).astype(np.float32)
    nib.save(nib.Nifti1Image(array, own), path)
    transform = pipeline(WAYS[way])
    image = transform({"image": str(path)})["image"]
    saliency = image[0].as_tensor() - image[0].as_tensor().min()  # the blob as the network sees it
    back = to_native_space(saliency, image, transform)
    write_map(back, str(path), tmp_path / "map.nii.gz")
    file, written = nib.load(path), nib.load(tmp_path / "map.nii.gz")
    assert written.shape == file.shape and written.get_data_dtype() == np.float32
    np.testing.assert_allclose(written.affine, file.affine, atol=1e-4)
    values = np.asarray(written.dataobj)
    truth = own[:3, :3] @ PLACE + own[:3, 3]
    assert np.linalg.norm(centroid(values, written.affine) - truth) < 0.35  # mm, of voxels of 1 to 4.7
    assert np.corrcoef(values.ravel(), array.ravel())[0, 1] > 0.95


def test_a_map_of_a_dicom_series_lies_on_its_voxels(tmp_path: Path) -> None:
    address = write_series(tmp_path, RescaleSlope=1, RescaleIntercept=0)
    transform = pipeline([Orientationd(**KEY, axcodes="RAS", labels=None), ResizeWithPadOrCropd(**KEY, spatial_size=8)])
    image = transform({"image": str(address)})["image"]
    write_map(to_native_space(image[0].as_tensor(), image, transform), str(address), tmp_path / "map.nii.gz")
    own = pipeline([])({"image": str(address)})["image"]
    written = nib.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(written.affine, own.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(written.dataobj), own[0].numpy())


def test_a_map_of_a_picture_lies_on_its_pixels(tmp_path: Path) -> None:
    array = (255 * blob((60, 90), np.array([15.0, 70.0]), np.array([5.0, 5.0]))).astype(np.uint8)  # columns, rows
    Image.fromarray(array.T).save(tmp_path / "a.png")
    transform = pipeline([Resized(**KEY, spatial_size=(32, 32), mode="bilinear"), NormalizeIntensityd(**KEY)])
    image = transform({"image": str(tmp_path / "a.png")})["image"]
    back = to_native_space(image[0].as_tensor() - image[0].as_tensor().min(), image, transform)
    write_map(back, str(tmp_path / "a.png"), tmp_path / "map.nii.gz")
    written = nib.load(tmp_path / "map.nii.gz")
    assert written.shape == (60, 90, 1)
    np.testing.assert_array_equal(written.affine, np.eye(4))
    np.testing.assert_allclose(centroid(np.asarray(written.dataobj)[..., 0], np.eye(4))[:2], [15, 70], atol=0.5)


def test_a_single_slice_keeps_its_place_in_the_patient(tmp_path: Path) -> None:
    own = AFFINES["oblique"]
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 30, 1), np.float32), own), path)
    transform = pipeline([Resized(**KEY, spatial_size=(16, 16), mode="bilinear")])
    image = transform({"image": str(path)})["image"]
    write_map(to_native_space(image[0].as_tensor(), image, transform), str(path), tmp_path / "map.nii.gz")
    written = nib.load(tmp_path / "map.nii.gz")
    assert written.shape == (20, 30, 1)
    np.testing.assert_allclose(written.affine, own, atol=1e-5)


def test_what_the_network_did_not_see_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.float32), np.eye(4)), path)
    transform = pipeline([ResizeWithPadOrCropd(**KEY, spatial_size=(10, 10, 10))])
    image = transform({"image": str(path)})["image"]
    back = to_native_space(torch.ones(10, 10, 10), image, transform)
    assert back.sum() == 1000 and back[5:15, 5:15, 5:15].min() == 1


class Mirrored(MapTransform):
    """Moves voxels, and says so to nobody."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "image": MetaTensor(data["image"].as_tensor().flip(1), meta=data["image"].meta)}


class Cut(Mirrored):
    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "image": data["image"][:, 2:]}


class Windowed(Mirrored):
    """Changes values alone."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "image": (data["image"] * 2 - 1).clip(-0.9, 3).sqrt().nan_to_num(0.0)}


class Broken(Flipd):
    def inverse(self, data: Any) -> Any:
        raise NotImplementedError("no way back")


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (Mirrored(**KEY), "Mirrored moves voxels"),
        (Cut(**KEY), "Cut moves voxels"),
        (Lambdad(**KEY, func=lambda image: image.flip(2)), "Lambdad moves voxels"),
        (Broken(**KEY), "Broken cannot .*no way back"),
    ],
)
def test_a_transform_without_a_way_back_is_named(step: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((12, 14, 10), np.float32), np.eye(4)), path)
    transform = pipeline([NormalizeIntensityd(**KEY), step])
    image = transform({"image": str(path)})["image"]
    with pytest.raises(ValueError, match=name):
        to_native_space(image[0].as_tensor(), image, transform)


@pytest.mark.parametrize("step", [Windowed(**KEY), Lambdad(**KEY, func=lambda image: image.exp())])
def test_a_transform_of_values_alone_needs_no_way_back(step: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((12, 14, 10), np.float32), np.eye(4)), path)
    transform = pipeline([step, Flipd(**KEY, spatial_axis=0)])
    image = transform({"image": str(path)})["image"]
    back = to_native_space(image[0].as_tensor(), image, transform)
    torch.testing.assert_close(back.as_tensor(), image[0].as_tensor().flip(0))

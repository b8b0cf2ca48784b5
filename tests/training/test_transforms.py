"""Patient to item: MONAI's transforms work scan by scan between unpacking and packing."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import (
    Compose,
    LoadImaged,
    Orientationd,
    RandGaussianNoised,
    ResizeWithPadOrCropd,
    ScaleIntensityd,
)
from torch.testing import assert_close

from monai_mvreg.scans.reader import ScanReader
from monai_mvreg.training.transforms import PackScansd, UnpackScansd

LOAD = LoadImaged(keys="image", reader=ScanReader(), ensure_channel_first=True)
SHAPES = [(4, 5, 6), (5, 5, 5), (3, 7, 6)]
AFFINE = np.array([[0.0, -2.0, 0.0, 9.0], [1.5, 0.0, 0.0, -3.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture
def patient(tmp_path: Path) -> dict[str, Any]:
    """A patient with three volumes on disk."""
    paths = []
    for index, shape in enumerate(SHAPES):
        voxels = np.random.default_rng(index).normal(size=shape).astype(np.float32)
        paths.append(str(tmp_path / f"{index}.nii.gz"))
        nib.save(nib.Nifti1Image(voxels, AFFINE), paths[-1])
    return {"patient": "a", "image": paths, "time": [0.0, 10.0, 20.0], "view": [0, 0, 1], "label": [3.0]}


def prepared(*random: Any) -> Compose:
    keys = {"keys": "image"}
    grid = [Orientationd(**keys, axcodes="RAS", labels=None), ResizeWithPadOrCropd(**keys, spatial_size=(5, 5, 5))]
    return Compose([UnpackScansd(**keys), LOAD, *grid, ScaleIntensityd(**keys), *random, PackScansd(**keys)])


def test_a_patient_becomes_one_tensor_and_keeps_the_rest(patient: dict[str, Any]) -> None:
    item = prepared()(patient)
    assert item["image"].shape == (3, 1, 5, 5, 5)
    assert {key: item[key] for key in ("patient", "time", "view", "label")} == {
        key: patient[key] for key in ("patient", "time", "view", "label")
    }


def test_scans_are_prepared_one_by_one_and_stay_in_order(patient: dict[str, Any]) -> None:
    together = prepared()(patient)["image"]
    for index, path in enumerate(patient["image"]):
        assert_close(prepared()({**patient, "image": [path]})["image"][0], together[index])


def test_packed_scans_are_plain_float_tensors(patient: dict[str, Any]) -> None:
    image = prepared()(patient)["image"]
    assert type(image) is torch.Tensor and image.dtype == torch.float32


def test_two_epochs_over_a_cache_see_the_same_scans(patient: dict[str, Any]) -> None:
    dataset = CacheDataset([patient], prepared(), copy_cache=False, progress=False)
    first = dataset[0]["image"].clone()
    assert_close(dataset[0]["image"], first)
    assert_close(first, prepared()(patient)["image"])


def test_random_transforms_differ_by_scan_and_epoch_and_leave_the_cache_alone(patient: dict[str, Any]) -> None:
    noise = RandGaussianNoised(keys="image", prob=1.0, std=1.0, sample_std=False)
    dataset = CacheDataset([patient], prepared(noise), copy_cache=False, progress=False)
    clean = prepared()(patient)["image"]
    first, second = dataset[0]["image"] - clean, dataset[0]["image"] - clean
    assert len({round(float(scan.sum()), 4) for scan in [*first, *second]}) == 6
    # Noise piles up if an epoch is added to what the cache holds.
    many = torch.stack([dataset[0]["image"] - clean for _ in range(30)])
    assert float(many[-5:].std()) == pytest.approx(1.0, abs=0.1)


def test_a_cache_reads_each_file_once(patient: dict[str, Any]) -> None:
    noise = RandGaussianNoised(keys="image", prob=1.0)
    dataset = CacheDataset([patient], prepared(noise), progress=False)
    for path in patient["image"]:
        Path(path).unlink()
    assert dataset[0]["image"].shape == (3, 1, 5, 5, 5)


def test_scans_of_two_shapes_are_refused_with_the_shapes() -> None:
    with pytest.raises(ValueError, match=r"got \[\(1, 2, 2\), \(1, 2, 3\)\]: crop, pad or resize"):
        PackScansd(keys="image")([{"image": torch.zeros(1, 2, 2)}, {"image": torch.zeros(1, 2, 3)}])


def test_unpacking_leaves_the_patient_as_it_was(patient: dict[str, Any]) -> None:
    scans = UnpackScansd(keys="image")(patient)
    assert [scan["image"] for scan in scans] == patient["image"]
    assert all(scan["label"] == [3.0] for scan in scans) and len(patient["image"]) == 3


def test_a_nifti_file_gives_the_voxels_and_affine_of_nibabel(patient: dict[str, Any]) -> None:
    scan = LOAD({"image": patient["image"][0]})["image"]
    reference = nib.load(patient["image"][0])
    assert isinstance(scan, MetaTensor)
    np.testing.assert_array_equal(scan[0], reference.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(scan.affine, reference.affine)


def test_a_refused_file_is_not_read_by_another_reader(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3, 2), np.float32), np.eye(4)), tmp_path / "moving.nii.gz")
    with pytest.raises(ValueError, match="got 2 time points"):
        LOAD({"image": str(tmp_path / "moving.nii.gz")})

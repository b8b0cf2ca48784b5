"""Read: stock LoadImaged gets what the files say, from this reader alone, and every real series is right or refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from make_dicom import CANARY, PACK, at, enhanced, item, needs_pack, new_image, refusal, save, write_series, write_slice
from monai.data import DataLoader, Dataset
from monai.networks.nets import resnet10
from monai.transforms import Compose, LoadImage, LoadImaged, Orientation, Orientationd, ResizeWithPadOrCropd, Spacing
from PIL import Image
from scipy.ndimage import map_coordinates

from monai_mvreg.data import collate_scans
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.pools import MeanPool
from monai_mvreg.scans.files import ScanError
from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import Choices, ScanReader, read_scan
from monai_mvreg.transforms import PackScansd, UnpackScansd

EXPECTED: dict[str, Any] = json.loads((PACK / "expected.json").read_text()) if PACK.is_dir() else {}
LOAD = LoadImage(reader=ScanReader(), ensure_channel_first=True)
PACKAGED = (Path(pydicom.__file__).parent / "data", Path(nib.__file__).parent)


def test_stock_load_image_gives_one_contiguous_tensor_with_its_affine(tmp_path: Path) -> None:
    image = LOAD(write_series(tmp_path, RescaleSlope=1, RescaleIntercept=-5))
    assert image.shape == (1, 4, 3, 3) and image.dtype == torch.float32 and image.is_contiguous()
    assert image[0, 0, 0].tolist() == [-5, 15, 35]
    np.testing.assert_allclose(image.affine, [[-0.25, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert image.meta["modality"] == "MR" and image.meta["tilt_degrees"] == 0
    assert CANARY not in str(image.meta)


def test_a_refused_scan_is_not_read_by_another_reader_of_monai(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", (0, 2, 4, 8))
    assert LoadImage()(tmp_path / "gap").shape == (4, 3, 4)  # what MONAI does on its own: a step of 2.67 mm
    with pytest.raises(ScanError, match="1 missing"):
        LOAD(tmp_path / "gap")
    with pytest.raises(ScanError, match="none at"):
        LOAD(tmp_path / "nothing")
    with pytest.raises(ScanError, match="expected the address of one scan"):
        ScanReader().read(["a", "b"])


def test_several_time_points_are_refused_until_one_or_the_mean_is_chosen(tmp_path: Path) -> None:
    frames = [
        {"PlanePositionSequence": at(z), "FrameContentSequence": item(TemporalPositionIndex=t)}
        for t in (1, 2)
        for z in (0, 1)
    ]
    path = save(enhanced(frames), tmp_path / "a")
    with pytest.raises(ScanError, match="got 2 time points: choose one by its number, or the mean"):
        LOAD(path)
    for frame, expected in ((0, [0, 1]), (1, [2, 3]), ("mean", [1, 2])):
        assert LoadImage(reader=ScanReader(frame=frame))(path)[0, 0].tolist() == expected  # type: ignore[arg-type]
    assert "time point from 0 to 1, got 2" in refusal(path, frame=2)
    # A scan with one time point is its own mean.
    assert LoadImage(reader=ScanReader(frame="mean"))(write_series(tmp_path / "b")).shape == (4, 3, 3)


def test_colours_are_refused_unless_asked_for_or_grey_in_truth(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey, grey, grey + 1], -1)).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(LOAD(tmp_path / "grey.png")[0], grey.T)
    with pytest.raises(ScanError, match="expected grey values, got colours"):
        LOAD(tmp_path / "colour.png")
    colour = LoadImage(reader=ScanReader(colour=True), ensure_channel_first=True)
    assert colour(tmp_path / "colour.png").shape == (3, 4, 3)


@pytest.mark.parametrize(
    ("axes", "diagonal"), [([1, 0, 0, 0, 1, 0], [-0.25, -0.5]), ([1, 0, 0, 0, 0, -1], [-0.25, -0.5])]
)
def test_a_single_slice_is_a_2d_image_with_the_direction_of_its_axes(
    axes: list[float], diagonal: list[float], tmp_path: Path
) -> None:
    path = write_slice(tmp_path / "a", ImageOrientationPatient=axes)
    image = LOAD(path)
    assert image.shape == (1, 4, 3) and image.affine.diagonal().tolist() == [*diagonal, 1, 1]
    assert Compose([Orientation("RA", labels=None), Spacing((0.25, 0.25))])(image).shape == (1, 4, 5)
    assert read_scan(path).affine is not None  # where it lies in the patient stays known
    coronal = np.array([[-2.0, 0, 0, 5], [0, 0, 7, 6], [0, 3, 0, 7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 1), np.float32), coronal), tmp_path / "a.nii")
    assert LOAD(tmp_path / "a.nii").affine.diagonal().tolist() == [-2, 3, 1, 1]


def test_a_tilted_volume_is_straightened_by_monai_where_a_grid_is_needed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    slices, tilt = rng.integers(0, 1000, (12, 24, 20)).astype(np.float32), 0.4
    smooth = np.cumsum(np.cumsum(slices, 1), 2)
    smooth = (smooth / smooth.max() * 4000).astype("<u2")
    for z, picture in enumerate(smooth):
        image = new_image(Rows=24, Columns=20, PixelSpacing=[1, 1], ImagePositionPatient=[0, tilt * 2 * z, 2 * z])
        image.PixelData = picture.tobytes()
        save(image, tmp_path / f"{z}")
    tilted = LOAD(tmp_path)
    straight = Compose([Orientation("RAS", labels=None), Spacing((1, 1, 1), padding_mode="zeros", mode="bilinear")])(
        tilted
    )
    axes = straight.affine[:3, :3].numpy()
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in straight.shape[1:]], indexing="ij"), -1)
    world = grid @ axes.T + straight.affine[:3, 3].numpy()
    voxels = (world - tilted.affine[:3, 3].numpy()) @ np.linalg.inv(tilted.affine[:3, :3].numpy()).T
    expected = map_coordinates(tilted[0].numpy(), voxels.reshape(-1, 3).T, order=1, cval=0).reshape(straight.shape[1:])
    inside = ((voxels > 0.01) & (voxels < np.array(tilted.shape[1:]) - 1.01)).all(-1)
    assert inside.sum() > 1000
    np.testing.assert_allclose(straight[0].numpy()[inside], expected[inside], rtol=1e-3, atol=1)


def test_the_same_volume_as_dicom_and_as_nifti_gives_the_same_prediction(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 4000, (20, 18, 10)).astype("<u2")
    affine = np.diag([-1.0, -1.2, 3, 1])
    affine[:3, 3] = [12, -8, 40]
    for z in range(10):
        image = new_image(Rows=18, Columns=20, PixelSpacing=[1.2, 1], ImagePositionPatient=[-12, 8, 40 + 3 * z])
        image.PixelData = np.ascontiguousarray(volume[:, :, z].T).tobytes()
        save(image, tmp_path / f"dicom/{9 - z}")
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "a.nii.gz")
    steps = [
        UnpackScansd("image"),
        LoadImaged("image", reader=ScanReader(), ensure_channel_first=True),
        Orientationd("image", "RAS", labels=None),
        ResizeWithPadOrCropd("image", (16, 16, 16)),
        PackScansd("image"),
    ]
    items = [{"image": [str(tmp_path / name)], "time": [0.0], "view": [0]} for name in ("dicom", "a.nii.gz")]
    batch = next(iter(DataLoader(Dataset(items, Compose(steps)), batch_size=2, collate_fn=collate_scans)))
    torch.manual_seed(0)
    encoder = resnet10(spatial_dims=3, n_input_channels=1, feed_forward=False, shortcut_type="B", bias_downsample=False)
    net = MultiScanNet(encoder, MeanPool(512)).eval()
    with torch.no_grad():
        one, other = (net(batch["image"][[at]], batch["mask"][[at]], batch["time"][[at]]) for at in (0, 1))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_addresses_that_name_no_one_scan_list_what_is_there(tmp_path: Path) -> None:
    write_series(tmp_path)
    for z in (0, 1, 2):
        write_slice(tmp_path / f"sub/other{z}", z, SeriesInstanceUID="1.2.4", BodyPartExamined="HEAD")
    message = refusal(tmp_path)
    assert "expected one scan, got 2: #...1.2.3, sub" in message
    assert read_scan(f"{tmp_path}#1.2.3").array.shape == (4, 3, 3)
    affine = read_scan(tmp_path / "sub").affine
    assert affine is not None and affine[2, 2] == 1
    assert "expected series ...9.9, found none" in refusal(f"{tmp_path}#9.9")
    (tmp_path / "sub/other1").unlink()
    assert "series ...1.2.4" not in refusal(f"{tmp_path}#1.2.3:nothing")
    write_slice(tmp_path / "sub/other5", 5, SeriesInstanceUID="1.2.4")
    message = refusal(tmp_path)  # one of the two can be read, and which of them was meant is not said
    assert "got 2" in message and "series ...1.2.4: expected slices every" in message
    assert read_scan(f"{tmp_path}#1.2.3").array.shape == (4, 3, 3)


def test_a_folder_with_junk_beside_a_series_is_read_and_one_without_a_series_is_told(tmp_path: Path) -> None:
    for name in ("notes.txt", ".DS_Store", "a.dcm"):
        (tmp_path / "junk" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "junk" / name).write_bytes(b"x" * 200)
    assert "found none; no DICOM image: .DS_Store (no scan: another format)" in refusal(tmp_path / "junk")
    assert read_scan(write_series(tmp_path / "junk")).array.shape == (4, 3, 3)


def test_files_that_changed_since_they_were_found_are_refused(tmp_path: Path) -> None:
    (scan,), _ = find_scans(write_series(tmp_path))
    (tmp_path / "im1").write_bytes(b"gone")
    with pytest.raises(ScanError, match="im1"):
        read_scan(scan)
    (tmp_path / "im1").unlink()
    with pytest.raises(ScanError, match="im1"):
        read_scan(scan)


def test_the_contiguous_copy_is_the_view(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 4, 3), (17, 33, 40), (1, 1, 1), (64, 2, 16)):
        nib.save(nib.Nifti1Image(rng.normal(size=shape).astype(np.float32), np.eye(4)), tmp_path / "a.nii")
        view, tensor = read_scan(tmp_path / "a.nii").array, LOAD(tmp_path / "a.nii")[0]
        np.testing.assert_array_equal(view, tensor.numpy().reshape(view.shape))


def corners(affine: Any, shape: Any) -> np.ndarray:
    """Where the corner voxels lie in mm: the geometry of a volume, which for a single slice no step takes part in."""
    ends = np.stack(np.meshgrid(*[[0, n - 1] for n in shape[:3]], indexing="ij"), -1).reshape(-1, 3)
    return np.asarray(ends @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3])


def is_right(scan: Any, volume: dict[str, Any], **options: Any) -> bool:
    """Whether a scan is a volume that the pack expects: within 1e-3 mm, and values within 1e-5."""
    data = read_scan(scan, **options)
    array, affine = data.array, data.affine
    dose = 1e-6 if data.facts["modality"] == "RTDOSE" else 1.0  # the pack gives stored integers, of 1e-6 Gy each
    if (
        array.ndim - (volume["shape"][-1] == 3 and len(volume["shape"]) > 3) == 2
        or volume["shape"][2] == 1 < array.ndim
    ):
        array = array[:, :, None] if array.shape != tuple(volume["shape"]) else array
    if (affine is None) != (volume["affine"] is None):
        return False
    if affine is not None:
        image = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
        array = np.asarray(image.dataobj)
        if array.shape[:3] != tuple(volume["shape"][:3]):
            return False
        if np.abs(corners(image.affine, array.shape) - corners(volume["affine"], array.shape)).max() > 1e-3:
            return False
    if array.size != np.prod(volume["shape"]):
        return False
    array = array.reshape(volume["shape"])
    probes = [np.isclose(array[tuple(index)], value * dose, rtol=1e-5) for index, value in volume.get("probes", [])]
    mean, spread = array.mean(dtype=np.float64), array.std(dtype=np.float64)
    moments = np.isclose([mean, spread], [volume["mean"] * dose, volume["std"] * dose], rtol=1e-5)
    return bool(all(probes) and moments.all())


def pack_items() -> list[Any]:
    return [
        pytest.param(item, id=item["id"]) for part in ("series", "broken", "nifti") for item in EXPECTED.get(part, [])
    ]


@needs_pack
@pytest.mark.parametrize("item", pack_items())
def test_an_item_of_the_pack_is_right_or_refused_as_expected(
    item: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    address = PACK / (item["folder"] if "folder" in item else item["file"])
    with caplog.at_level(logging.DEBUG):
        if item["expect"] == "error":
            message = refusal(address)
            assert all(word in message for word in item["error_must_contain"]), message
        elif "step_mm" in item:
            data = read_scan(address)
            assert data.array.shape[2] == item["n_slices"] and data.affine is not None
            assert abs(np.linalg.norm(data.affine[:3, 2]) - item["step_mm"]) < 0.01
        elif len(item["volumes"]) > 1:
            scans, left_out = find_scans(address)
            scans += [entry.scan for entry in left_out if entry.scan is not None]
            assert len(scans) == len(item["volumes"])
            for volume in item["volumes"]:
                assert any(is_right(scan, volume) for scan in scans)
            assert all(word in refusal(address) for word in item.get("error_must_contain", []))
        elif item["volumes"][0].get("nan_count"):
            assert f"got {item['volumes'][0]['nan_count']}" in refusal(address)
            array = read_scan(address, choices=Choices(nonfinite=0)).array
            assert np.count_nonzero(array == 0) >= item["volumes"][0]["nan_count"]
        else:
            assert is_right(address, item["volumes"][0])
            if times := item["volumes"][0].get("time_means"):
                for frame, mean in enumerate(times if len(item["volumes"][0]["shape"]) == 4 else []):
                    if not find_scans(address)[0][0].colour:
                        found = read_scan(address, frame=frame).array.mean(dtype=np.float64)
                        assert np.isclose(found, mean, rtol=1e-5)
    assert CANARY not in caplog.text
    assert all(word in caplog.text for word in item.get("warn_must_contain", []))


@needs_pack
@pytest.mark.parametrize("item", [pytest.param(item, id=item["id"]) for item in EXPECTED.get("pet", [])])
def test_the_pet_series_of_the_pack_have_their_uptake(item: dict[str, Any]) -> None:
    address, suv = PACK / item["folder"], Choices(suv=True)
    if item["expect"] == "error":
        assert all(word in refusal(address, choices=suv) for word in item["error_must_contain"])
        assert read_scan(address).array.max() > 0
        return
    assert is_right(address, item["volumes_bqml"][0])
    array = read_scan(address, choices=suv).array
    np.testing.assert_allclose(
        [array.mean(dtype=np.float64), array.max()], [item["suv_mean"], item["suv_max"]], rtol=1e-5
    )


def packaged() -> list[Any]:
    return [
        pytest.param(path, id=path.name)
        for root in PACKAGED
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]


@pytest.mark.parametrize("path", packaged())
def test_each_file_that_comes_with_pydicom_and_nibabel_is_read_or_refused_with_a_sentence(path: Path) -> None:
    try:
        data = read_scan(path)
    except ScanError as error:
        assert str(error).startswith(path.name) and len(str(error)) > len(path.name) + 10
        return
    assert data.array.dtype == np.float32 and data.array.size and np.isfinite(data.array).all()
    if path.name.endswith((".nii", ".nii.gz")):
        np.testing.assert_allclose(data.array, nib.load(path).get_fdata().reshape(data.array.shape), rtol=1e-6)
        np.testing.assert_allclose(data.affine, nib.load(path).affine, atol=1e-6)

"""The reader: stock LoadImaged gets what the files say, in the form a network needs, and from this reader alone."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from make_dicom import CANARY, at, enhanced, item, new_image, refusal, save, write_series, write_slice
from monai.data import DataLoader, Dataset
from monai.networks.nets import resnet10
from monai.transforms import Compose, LoadImage, LoadImaged, Orientation, Orientationd, ResizeWithPadOrCropd, Spacing
from PIL import Image
from scipy.ndimage import map_coordinates

from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.pools import MeanPool
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import read_scan
from monai_mvreg.scans.reader import ScanReader
from monai_mvreg.training.batches import collate_scans
from monai_mvreg.training.transforms import PackScansd, UnpackScansd

LOAD = LoadImage(reader=ScanReader(), ensure_channel_first=True)


def test_stock_load_image_gives_one_contiguous_tensor_with_its_affine(tmp_path: Path) -> None:
    image = LOAD(write_series(tmp_path, RescaleSlope=1, RescaleIntercept=-5))
    assert image.shape == (1, 4, 3, 3) and image.dtype == torch.float32 and image.is_contiguous()
    assert image[0, 0, 0].tolist() == [-5, 15, 35]
    np.testing.assert_allclose(image.affine, [[-0.25, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert image.meta["modality"] == "MR" and image.meta["tilt_degrees"] == 0
    assert CANARY not in str(image.meta)


def test_a_refused_scan_is_not_read_by_another_reader_of_monai(tmp_path: Path) -> None:
    for number, z in enumerate((0, 2, 4, 8)):
        write_slice(tmp_path / "gap" / f"im{number}", z, InstanceNumber=number)
    assert LoadImage(reader="PydicomReader")(tmp_path / "gap").shape == (4, 3, 4)  # MONAI's own: a step of 2.67 mm
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


def test_the_contiguous_copy_is_the_view(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 4, 3), (17, 33, 40), (1, 1, 1), (64, 2, 16)):
        nib.save(nib.Nifti1Image(rng.normal(size=shape).astype(np.float32), np.eye(4)), tmp_path / "a.nii")
        view, tensor = read_scan(tmp_path / "a.nii").array, LOAD(tmp_path / "a.nii")[0]
        np.testing.assert_array_equal(view, tensor.numpy().reshape(view.shape))


@pytest.mark.parametrize("frame", ["Mean", "median", "0", 1.0, True])
def test_a_frame_that_is_no_number_and_not_the_mean_is_refused(frame: object, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="expected frame to be the number of a time point or 'mean'"):
        ScanReader(frame=frame)  # type: ignore[arg-type]
    assert "expected frame" in refusal(write_series(tmp_path), frame=frame)


@pytest.mark.parametrize(
    ("keyword", "values", "said"),
    [
        ("AcquisitionTime", ("101010", "101011"), "got 2 time points: choose one by its number, or the mean"),
        ("DiffusionBValue", (0.0, 1000.0), "got 2 images at each position: choose one by its number ("),
        ("ContentTime", ("101010", "101011"), "got 2 images at each position: choose one by its number ("),
    ],
)
def test_frames_are_called_time_points_only_by_a_clock_of_the_acquisition(
    keyword: str, values: tuple[object, object], said: str, tmp_path: Path
) -> None:
    for number, value in enumerate(values):
        for z in (0, 1):
            write_slice(tmp_path / f"{number}{z}", z, **{keyword: value})
    with pytest.raises(ScanError, match=re.escape(said)):
        ScanReader().get_data(str(tmp_path))

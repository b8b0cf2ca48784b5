"""Files to scans: what is read is right, and what is not right is refused by name."""

from __future__ import annotations

import datetime
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, Spacing
from PIL import Image
from test_dicom import refusal, write_series, write_slice

from monai_mvreg.scans import ScanReader, find_scans

PACK = Path(__file__).parents[2] / "shared/data/dicom"
EXPECTED: dict[str, Any] = json.loads((PACK / "expected.json").read_text()) if PACK.is_dir() else {}
needs_pack = pytest.mark.skipif(not EXPECTED, reason=f"the DICOM pack is not at {PACK.name}: shared/data/dicom")

# What this reader refuses on purpose, and the words that say so.
REFUSED = {
    **{f"mr_enh_{name}": "multi-frame" for name in ("t1", "2echo", "phase", "rgb")},
    **{name: "multi-frame" for name in ("rtdose", "enh_no_groups", "pm_float")},
    **{f"mr_mosaic_{name}": "mosaic" for name in ("hfdl", "siemens")},
    **{name: "one orientation" for name in ("ct_two_orientations", "mr_localizer_7")},
    "ct_sc_rgb": "grey values, got RGB",
    "mr_ge_4d": "several time points",
    "07_two_series_one_folder": "got 2",
    "functional.nii": "several time points",
    "has_nan.nii.gz": "8 that are NaN",
    "pair.img": "another format",
}


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    image = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    return np.asarray(image.dataobj), image.affine


def test_a_scan_knows_its_geometry_from_headers_and_hides_its_patient(tmp_path: Path) -> None:
    write_series(tmp_path / "a b")
    (tmp_path / "notes.txt").write_text("x")
    (scan,), (left_out,) = find_scans(tmp_path)
    assert (scan.address, scan.modality, scan.shape) == ((tmp_path / "a b").as_posix(), "MR", (4, 3, 3))
    assert scan.spacing == (0.25, 0.5, 2.0) and scan.date == datetime.date(2020, 1, 31)
    assert [path.name for path in scan.files] == ["im1", "im2", "im0"]
    assert scan.patient == "ZZPHI" and "ZZPHI" not in repr(scan)
    assert left_out.path.name == "notes.txt"


def test_a_series_spread_over_folders_is_left_out_whole(tmp_path: Path) -> None:
    write_series(tmp_path / "a", (0, 2))
    write_series(tmp_path / "b", (4, 6))
    scans, left_out = find_scans(tmp_path)
    assert not scans and all("found them in 2" in item.reason for item in left_out)


def test_what_is_not_there_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a scan at"):
        ScanReader().read(tmp_path / "none.nii.gz")
    with pytest.raises(ValueError, match="expected a folder"):
        find_scans(tmp_path / "none")


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 1)])
def test_a_nifti_keeps_its_values_and_affine(shape: tuple[int, ...], tmp_path: Path) -> None:
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    values = np.arange(24, dtype=np.int16).reshape(shape)
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    array, found = ScanReader().read(tmp_path / "a.nii.gz")
    assert (
        array.dtype == np.float32 and np.array_equal(array, values.reshape(4, 3, 2)) and np.array_equal(found, affine)
    )
    assert find_scans(tmp_path)[0][0].shape == (4, 3, 2)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1)])
def test_a_nifti_slice_is_a_2d_image_with_the_direction_of_its_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    coronal = np.array([[-2.0, 0, 0, 5], [0, 0, 7, 6], [0, 3, 0, 7], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), coronal), tmp_path / "a.nii")
    array, affine = ScanReader().read(tmp_path / "a.nii")
    assert array.shape == (4, 3) and affine.diagonal().tolist() == [-2, 3, 1, 1]
    assert find_scans(tmp_path)[0][0].spacing == (2, 3)


def test_grey_pictures_are_read_and_colours_refused(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 1000).save(tmp_path / "16.png")
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb.png")
    Image.fromarray(np.stack([grey, grey, grey + 1], -1)).save(tmp_path / "colour.png")
    Image.fromarray(grey).save(tmp_path / "x.jpeg", quality=100)
    for name, scale in (("8.png", 1), ("16.png", 1000), ("rgb.png", 1)):
        assert np.array_equal(ScanReader().read(tmp_path / name)[0], grey.T * np.float32(scale))
    assert ScanReader().read(tmp_path / "x.jpeg")[0].shape == (4, 3)
    assert "expected a grey picture" in refusal(tmp_path / "colour.png")
    assert {Path(s.address).name for s in find_scans(tmp_path)[0]} == {"8.png", "16.png", "rgb.png", "x.jpeg"}


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png", "a.dcm"])
def test_a_truncated_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)
    if name == "a.dcm":
        write_slice(path, 0)
    elif name == "a.png":
        Image.fromarray(noise).save(path)
    else:
        path.write_bytes(gzip.compress(nib.Nifti1Image(noise, np.eye(4)).to_bytes()))
    path.write_bytes(path.read_bytes()[:-100] if name != "a.dcm" else path.read_bytes()[:-10])
    assert refusal(path).startswith(name)


def test_monai_transforms_take_what_the_reader_gives(tmp_path: Path) -> None:
    load = LoadImage(reader=ScanReader, image_only=True)
    chain = Compose([load, EnsureChannelFirst(), Orientation("RAS", labels=None), Spacing((0.5, 0.5, 1.0))])
    image = chain(str(write_series(tmp_path)))
    assert image.shape == (1, 2, 3, 5)
    assert image[0, :, 0, -1].tolist() == pytest.approx([50.8, 49], abs=1.5)
    slice_chain = Compose([load, EnsureChannelFirst(), Orientation("RA", labels=None), Spacing((0.25, 0.25))])
    assert slice_chain(str(tmp_path / "im0")).shape == (1, 4, 5)


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
    if item["expect"] == "error" or item["id"] in REFUSED:
        words = [REFUSED[item["id"]]] if item["id"] in REFUSED else item["error_must_contain"]
        message = refusal(address)
        assert all(word in message for word in words), message
        return
    with caplog.at_level(logging.WARNING):
        array, affine = ScanReader().read(address)
    assert "ZZPHI" not in caplog.text and all(word in caplog.text for word in item.get("warn_must_contain", []))
    if "step_mm" in item:
        assert array.shape[2] == item["n_slices"]
        assert abs(np.linalg.norm(affine[:3, 2]) - item["step_mm"]) < 0.01
        return
    (volume,) = item["volumes"]
    assert np.isclose(array.mean(dtype=np.float64), volume["mean"], rtol=1e-5)
    assert np.isclose(array.std(dtype=np.float64), volume["std"], rtol=1e-5)
    if array.ndim == 3:
        array, affine = canonical(array, affine)
        np.testing.assert_allclose(affine, volume["affine"], atol=1e-3)
        assert list(array.shape) == [n for at, n in enumerate(volume["shape"]) if at < 3 or n > 1]
    else:  # a 2D image keeps the spacing of its plane alone
        assert list(array.shape) == [n for n in volume["shape"] if n > 1]
        plane = [z for z, n in zip(volume.get("zooms", [1, 1, 1]), volume["shape"], strict=True) if n > 1]
        np.testing.assert_allclose(np.linalg.norm(affine[:2, :2], axis=0), plane, atol=1e-3)
    for index, value in volume["probes"] if array.ndim == 3 else []:
        assert np.isclose(array[tuple(index[:3])], value, rtol=1e-5)


@needs_pack
def test_a_header_scan_of_the_pack_never_fails_and_shows_no_patient(caplog: pytest.LogCaptureFixture) -> None:
    found = [find_scans(PACK / part) for part in ("broken/07_two_series_one_folder", "broken/08_junk_beside", "visits")]
    assert [len(scans) for scans, _ in found] == [2, 1, 6]
    visits = {Path(s.address).parent.name: s.date for s in found[2][0]}
    assert sorted((d, name) for name, d in visits.items() if d)[0][1] == "v_f" and visits["v_d"] is None
    assert "ZZPHI" not in caplog.text + repr(found)

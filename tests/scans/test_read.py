"""Read: every real series is right or refused, and an address names one scan or is told what is there."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from make_dicom import CANARY, PACK, needs_pack, refusal, write_series, write_slice

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import Choices, read_scan

EXPECTED: dict[str, Any] = json.loads((PACK / "expected.json").read_text()) if PACK.is_dir() else {}
PACKAGED = (Path(pydicom.__file__).parent / "data", Path(nib.__file__).parent)


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


def assert_as_pydicom(path: Path, array: np.ndarray) -> None:
    """The same values as pydicom reads, in any order of slices; what it cannot read alone is left to other tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = pydicom.dcmread(path)
        try:
            stored = image.pixel_array
        except (NotImplementedError, RuntimeError):  # JPEG of 12 bits
            return
    if image.PhotometricInterpretation == "PALETTE COLOR":
        stored = pydicom.pixels.apply_color_lut(stored, image) >> 8
    if image.PhotometricInterpretation == "MONOCHROME1":
        stored = 2**image.BitsStored - 1 - stored.astype(np.int64)
    slope = float(image.get("RescaleSlope", image.get("DoseGridScaling", 1)))
    expected = stored * slope + float(image.get("RescaleIntercept", 0))
    np.testing.assert_allclose(np.sort(array.ravel()), np.sort(expected.ravel()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", packaged())
def test_each_file_that_comes_with_pydicom_and_nibabel_is_read_or_refused_with_a_sentence(path: Path) -> None:
    try:
        data = read_scan(path)
    except ScanError as error:
        assert str(error).startswith(path.name) and len(str(error)) > len(path.name) + 10
        return
    assert data.array.dtype == np.float32 and data.array.size and np.isfinite(data.array).all()
    if path.read_bytes()[128:132] == b"DICM":
        assert_as_pydicom(path, data.array)
    if path.name.endswith((".nii", ".nii.gz")):
        np.testing.assert_allclose(data.array, nib.load(path).get_fdata().reshape(data.array.shape), rtol=1e-6)
        np.testing.assert_allclose(data.affine, nib.load(path).affine, atol=1e-6)


CT = {"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "SeriesInstanceUID": "1.2.7"}


@pytest.mark.parametrize(
    ("tags", "unit", "value"),
    [
        ({"RescaleSlope": 2, "RescaleIntercept": -1000}, "HU", -1000),
        ({"RescaleSlope": 2, "RescaleIntercept": -1000, "RescaleType": "US"}, "US", -1000),
        ({}, "", 0),
        ({"RescaleSlope": 1}, "", 0),
        ({"RescaleIntercept": 0, "RescaleType": "HU"}, "", 0),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, "", 0),
    ],
)
def test_stored_values_of_ct_are_hounsfield_units_only_where_the_header_scales_them(
    tags: dict[str, Any], unit: str, value: float, tmp_path: Path
) -> None:
    data = read_scan(write_series(tmp_path, (0, 1, 2), **CT, **tags))
    assert (data.facts["unit"], data.array[0, 0, 0]) == (unit, value)


def test_a_volume_with_a_scale_in_some_images_alone_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, (0, 1, 2), **CT, RescaleSlope=1, RescaleIntercept=-1024)
    write_slice(tmp_path / "bare", 3, **CT)
    assert "expected RescaleSlope and RescaleIntercept of every image, lacking in bare" in refusal(tmp_path)

"""NIfTI: voxels bit for bit as MONAI loads them, the affine by the rules of the standard, damage by file name."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from make_dicom import refusal
from monai.data import NibabelReader
from monai.transforms import LoadImage

from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.formats.nifti import nifti_header
from monai_mvreg.scans.read import Choices, read_scan

AFFINE = np.array([[0.0, -2.0, 0.1, 9.0], [1.5, 0.0, 0.0, -3.0], [0.0, 0.2, 3.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
KINDS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")


def write(path: Path, voxels: Any, affine: Any = AFFINE, *, slope: float | None = None, inter: float = 0.0) -> Path:
    image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    if slope is not None:
        image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("scale", [(None, 0.0), (0.37, -7.25), (1.0, 3.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_voxels_are_bit_for_bit_those_of_monai(
    kind: str, scale: tuple[float | None, float], suffix: str, tmp_path: Path
) -> None:
    voxels = (np.random.default_rng(0).normal(size=(5, 4, 3)) * 100).astype(kind)
    path = write(tmp_path / f"a{suffix}", voxels, slope=scale[0], inter=scale[1])
    expected = LoadImage(reader=NibabelReader, image_only=True)(path)
    data = read_scan(path)
    assert data.array.dtype == np.float32 and data.affine is not None
    np.testing.assert_array_equal(data.array, expected.numpy())
    np.testing.assert_array_equal(data.affine, expected.affine.numpy())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_both_versions_single_and_in_pairs(kind: Any, zipped: str, tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = tmp_path / f"a.{'img' if 'Pair' in kind.__name__ else 'nii'}{zipped}"
    nib.save(kind(voxels, AFFINE), path)
    np.testing.assert_array_equal(read_scan(path).array, voxels)
    np.testing.assert_allclose(read_scan(path).affine, AFFINE, atol=1e-6)


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(voxels, AFFINE, header), tmp_path / "a.nii")
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == ">i2"
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nii").array, voxels)


def test_the_affine_is_the_sform_else_the_qform_else_the_voxel_sizes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, shifted = np.diag([-2.0, 3, 4, 1]), np.diag([-2.0, 3, 4, 1])
    shifted[:3, 3] = 7
    for codes, expected in (((1, 1), shifted), ((1, 0), shifted), ((0, 1), straight)):
        image = nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), None)
        image.set_sform(shifted, codes[0])
        image.set_qform(straight, codes[1])
        nib.save(image, tmp_path / "a.nii")
        np.testing.assert_allclose(read_scan(tmp_path / "a.nii").affine, expected, atol=1e-6)
    assert not caplog.text
    image.set_qform(straight, 0)
    nib.save(image, tmp_path / "bare.nii")
    np.testing.assert_allclose(read_scan(tmp_path / "bare.nii").affine, nib.load(tmp_path / "bare.nii").affine)
    assert "bare.nii: neither qform nor sform" in caplog.text


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_lengths_are_brought_to_millimetres(unit: str, factor: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.diag([2.0, 2, 2, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    assert nifti_header(tmp_path / "a.nii").spacing == pytest.approx((2 * factor,) * 3)


@pytest.mark.parametrize(
    ("shape", "space", "frames"),
    [
        ((4, 3, 2, 1, 1), (4, 3, 2), 1),
        ((4, 3), (4, 3), 1),
        ((4, 3, 1), (4, 3), 1),
        ((4, 3, 2, 5), (4, 3, 2), 5),
        ((4, 3, 1, 5), (4, 3), 5),
        ((1, 3, 2), (1, 3, 2), 1),
    ],
)
def test_axes_of_length_one_at_the_end_are_no_axes(
    shape: tuple[int, ...], space: tuple[int, ...], frames: int, tmp_path: Path
) -> None:
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    header = nifti_header(write(tmp_path / "a.nii", voxels))
    assert (header.shape, header.frames) == (space, frames)
    expected = voxels.reshape(*space, *([frames] if frames > 1 else []))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nii").array, expected)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_one_time_point_or_their_mean_is_read(suffix: str, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 99, (4, 3, 2, 5)).astype(np.int16)
    path = write(tmp_path / f"a{suffix}", voxels)
    np.testing.assert_array_equal(read_scan(path, frame=3).array, voxels[..., 3])
    np.testing.assert_allclose(read_scan(path, frame="mean").array, voxels.mean(-1), rtol=1e-6)
    assert "time point from 0 to 4, got 5" in refusal(path, frame=5)


def test_colours_are_the_last_axis(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (4, 3, 2, 3)).astype(np.uint8)
    structured = np.ascontiguousarray(voxels).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    path = write(tmp_path / "a.nii", structured)
    assert nifti_header(path).colour
    np.testing.assert_array_equal(read_scan(path).array, voxels)


def test_values_that_are_not_finite_are_refused_counted_or_filled(tmp_path: Path) -> None:
    voxels = np.ones((4, 3, 2), np.float32)
    voxels[0, 0] = np.nan
    voxels[1, 1, 1] = np.inf
    path = write(tmp_path / "a.nii", voxels)
    assert "a.nii: expected finite values, got 3" in refusal(path)
    filled = read_scan(path, choices=Choices(nonfinite=-5)).array
    assert np.count_nonzero(filled == -5) == 3
    write(tmp_path / "large.nii", np.full((2, 2, 2), 1e300))  # beyond what single precision holds
    assert "expected finite values, got 8" in refusal(tmp_path / "large.nii")


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (np.zeros((2, 2, 2), np.complex64), "complex64"),
        (np.zeros((2, 2, 2, 1, 3), np.float32), "one image in space and time"),
        (np.zeros(4, np.float32), "one image in space and time"),
    ],
)
def test_what_is_no_image_is_refused(voxels: Any, words: str, tmp_path: Path) -> None:
    assert words in refusal(write(tmp_path / "a.nii", voxels))


def test_an_affine_without_three_directions_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.zeros((2, 2, 2), np.float32))
    raw = bytearray(path.read_bytes())
    raw[280:296] = raw[296:312]  # two rows of the sform alike
    path.write_bytes(raw)
    assert "three directions" in refusal(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused_by_name(suffix: str, share: float, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (40, 30, 20)).astype(np.uint8)
    path = write(tmp_path / f"cut{suffix}", voxels)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert refusal(path).startswith("cut.nii")


def test_a_wrong_checksum_is_seen_and_a_longer_file_is_not_minded(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.nii", np.arange(24, dtype=np.int16).reshape(2, 3, 4)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole + b"more"))
    assert read_scan(tmp_path / "b.nii.gz").array.sum() == 276
    bad = bytearray(gzip.compress(whole))
    bad[-6] ^= 1
    (tmp_path / "c.nii.gz").write_bytes(bad)
    assert "damaged" in refusal(tmp_path / "c.nii.gz")


def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.zeros((2, 2, 2), np.float32))
    raw = bytearray(path.read_bytes())
    raw[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(raw)
    assert "truncated: expected 108000000000352 bytes" in refusal(path)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    assert "decompression bomb" in refusal(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("content", [b"", b"x" * 400, b"\x1f\x8b" + bytes(20)])
def test_another_format_by_that_name_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(ScanError):
        nifti_header(tmp_path / "a.nii.gz")


def test_a_pair_without_its_header_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((2, 2, 2), np.float32), AFFINE), tmp_path / "a.img")
    (tmp_path / "a.hdr").unlink()
    assert "a.img: cannot be opened" in refusal(tmp_path / "a.img")


def test_the_header_of_a_pair_in_a_single_file_is_refused(tmp_path: Path) -> None:
    raw = bytearray(write(tmp_path / "a.nii", np.ones((4, 3, 2), np.int16)).read_bytes())
    raw[344:348] = b"ni1\0"
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    assert "expected a NIfTI file" in refusal(tmp_path / "a.nii")


def test_voxels_of_less_than_a_micron_are_voxels(tmp_path: Path) -> None:
    data = read_scan(write(tmp_path / "a.nii", np.ones((4, 3, 2), np.int16), np.diag([5e-4, 5e-4, 5e-4, 1])))
    assert data.facts["spacing"] == pytest.approx((5e-4,) * 3)


def test_only_the_ending_tells_a_pair_apart(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.ones((4, 3, 2), np.int16), AFFINE), tmp_path / "s.img_1.img")
    assert read_scan(tmp_path / "s.img_1.img").array.shape == (4, 3, 2)


def test_the_first_volume_of_many_is_read_without_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 9, (200, 200, 50, 18)).astype(np.int16))
    assert read_scan(path, frame=0).array.shape == (200, 200, 50)


@pytest.mark.parametrize("level", [1, 9])
def test_a_small_file_that_would_fill_a_memory_is_refused(level: int, tmp_path: Path) -> None:
    # At level 9 by the bytes that are stored, at level 1 only by the floats that they become.
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=level) as file:
        header = nib.Nifti1Header()
        header.set_data_shape((1000, 1000, 270))
        header.set_data_dtype(np.uint8)
        header["vox_offset"] = 352
        file.write(header.binaryblock + bytes(4))
        for _ in range(27):
            file.write(bytes(10_000_000))
    assert "decompression bomb" in refusal(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("kind", "least"), [(nib.Nifti1Image, 352), (nib.Nifti2Image, 544)])
@pytest.mark.parametrize("offset", [0, 16, -16, 348])
def test_voxels_of_one_file_begin_after_its_header(
    offset: int, kind: Any, least: int, suffix: str, tmp_path: Path
) -> None:
    whole = bytearray(kind(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE).to_bytes())
    place, form = (108, "<f") if least == 352 else (168, "<q")
    struct.pack_into(form, whole, place, offset)
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(whole) if suffix.endswith("gz") else whole)
    said = refusal(tmp_path / f"a{suffix}")
    assert f"expected voxels that begin at byte {least} or later, got vox_offset {offset}" in said


@pytest.mark.parametrize("offset", [352, 368, 352.5])
def test_what_extends_a_header_is_not_read_as_voxels(offset: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 40))
    whole = bytearray(image.to_bytes())
    (tmp_path / "whole.nii").write_bytes(whole)
    assert read_scan(tmp_path / "whole.nii").array.max() == 23
    struct.pack_into("<f", whole, 108, offset)
    (tmp_path / "a.nii").write_bytes(whole)
    assert "vox_offset" in refusal(tmp_path / "a.nii")

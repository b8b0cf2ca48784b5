"""Pictures and other volumes: what their libraries read, refused where it would be cut or fetched elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from make_dicom import refusal
from make_volumes import META, SHORTS, write_meta, write_nrrd
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("kind", "scale"), [("uint8", 1), ("uint16", 1000), ("float32", 0.5)])
def test_grey_pictures_keep_their_values(suffix: str, kind: str, scale: float, tmp_path: Path) -> None:
    if (suffix, kind) == ("png", "float32"):
        pytest.skip("PNG holds no floats")
    picture = (GREY.astype(np.float32) * scale).astype(kind)
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}")
    data = read_scan(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(data.array, picture.T.astype(np.float32))
    assert data.affine is None and data.facts["spacing"] == ()


def test_a_picture_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "scan.bin", "PNG")
    assert read_scan(tmp_path / "scan.bin").array.shape == (4, 3)


def test_colours_are_the_last_axis_and_palettes_are_looked_up(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (3, 4, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.png").array, colours.transpose(1, 0, 2))
    palette = Image.fromarray(colours).quantize(12)
    palette.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_scan(tmp_path / "b.png").array.transpose(1, 0, 2), palette.convert("RGB"))


def test_the_pages_of_a_tiff_are_time_points(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY + step) for step in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert read_scan(tmp_path / "a.tif").array[0, 0].tolist() == [0, 1, 2]
    assert read_scan(tmp_path / "a.tif", frame=2).array[0, 0] == 2


def test_a_photograph_lying_on_its_side_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif, quality=100)
    assert read_scan(tmp_path / "a.jpg").array.shape == (3, 4)


def test_transparency_cut_colours_and_odd_modes_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4, 4), 100, np.uint8)).save(tmp_path / "clear.png")
    assert "without transparency" in refusal(tmp_path / "clear.png")
    Image.fromarray(np.zeros((3, 4, 4), np.uint8), "CMYK").save(tmp_path / "print.jpg")
    assert "mode CMYK" in refusal(tmp_path / "print.jpg")
    deep = sitk.GetImageFromArray(np.zeros((3, 4, 3), np.uint16), isVector=True)
    sitk.WriteImage(deep, str(tmp_path / "deep.png"))
    assert "8 bits, got 16" in refusal(tmp_path / "deep.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_truncated_picture_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    assert refusal(path).startswith(f"cut.{suffix}: truncated or damaged picture")


def test_a_picture_that_would_fill_a_memory_is_refused(tmp_path: Path) -> None:
    Image.new("L", (12000, 12000)).save(tmp_path / "a.png", compress_level=9)
    assert "decompression bomb" in refusal(tmp_path / "a.png")
    Image.new("1", (30000, 30000)).save(tmp_path / "b.png", compress_level=0)
    assert "truncated or damaged picture (DecompressionBombError)" in refusal(tmp_path / "b.png")


def volume(**geometry: Any) -> sitk.Image:
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((2.0, 3.0, 5.0))
    image.SetOrigin((-7.0, 11.0, 13.0))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    return image


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("packed", [True, False])
def test_volumes_lie_where_the_same_nifti_file_does(suffix: str, packed: bool, tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / f"a.{suffix}"), packed)
    sitk.WriteImage(volume(), str(tmp_path / "a.nii"))
    one, other = read_scan(tmp_path / f"a.{suffix}"), read_scan(tmp_path / "a.nii")
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-6)
    np.testing.assert_allclose(one.facts["spacing"], nib.load(tmp_path / "a.nii").header.get_zooms())


def test_a_flat_volume_is_a_picture_and_a_moving_one_has_time_points(tmp_path: Path) -> None:
    sitk.WriteImage(volume()[:, :, :1], str(tmp_path / "flat.nrrd"))
    assert read_scan(tmp_path / "flat.nrrd").array.shape == (4, 3)
    sitk.WriteImage(sitk.JoinSeries([volume(), volume() + 1]), str(tmp_path / "moving.nrrd"))
    assert read_scan(tmp_path / "moving.nrrd").array.shape == (4, 3, 2, 2)
    assert read_scan(tmp_path / "moving.nrrd", frame=1).array[0, 0, 0] == 1


def test_voxels_are_never_taken_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(48))
    home = tmp_path / "home"
    home.mkdir()
    fields = "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = "
    for name in ("../secret", str(tmp_path / "secret"), "none", "LIST", "link"):
        (home / "a.mhd").write_text(fields + name + "\n")
        if name == "link":
            (home / "link").symlink_to(tmp_path / "secret")
        assert "in the same folder" in refusal(home / "a.mhd")
    (home / "a.nhdr").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nencoding: raw\ndata file: ../secret\n"
    )
    assert "in the same folder" in refusal(home / "a.nhdr")


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    fields = (
        "ObjectType = Image\nNDims = 3\nDimSize = 4000 3000 2000\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(fields.encode() + bytes(48))
    assert "truncated: expected 48000000000 bytes" in refusal(tmp_path / "a.mha")
    (tmp_path / "b.mha").write_bytes(fields.replace("NDims", "CompressedData = True\nNDims").encode() + bytes(48))
    assert "decompression bomb" in refusal(tmp_path / "b.mha")
    (tmp_path / "c.nrrd").write_bytes(b"NRRD0004\n nonsense")
    assert "expected the lines 'field: value'" in refusal(tmp_path / "c.nrrd")


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (np.full((3, 4), 4_000_000_000, np.uint32), {}),
        (np.full((3, 4), -1, np.int8), {}),
        (GREY.astype(np.uint16) * 1000, {262: 0}),  # the smallest value is white
    ],
)
def test_a_tiff_whose_values_pillow_would_change_is_refused(
    values: np.ndarray, tags: dict[int, Any], tmp_path: Path
) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.tif"))
    if tags:
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
    assert "expected a TIFF" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("other", [Image.new("L", (8, 8)), Image.new("RGB", (4, 3)), Image.new("L", (12_000, 12_000))])
def test_pages_of_two_sizes_or_kinds_are_refused(other: Image.Image, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.tif", save_all=True, append_images=[other], compression="tiff_deflate")
    said = refusal(tmp_path / "a.tif")
    assert "expected pages of one size and kind, got another on page 2" in said or "bomb" in said
    assert read_scan(tmp_path / "a.tif", frame=0).array.shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mha", "ElementDataFile : ../secret.raw\nElementDataFile = LOCAL\n"),
        ("a.mha", " ElementDataFile = ../secret.raw\nElementDataFile = LOCAL\n"),
        ("a.mha", "ElementDataFile = ../secret.raw\n"),
        ("a.mhd", "ElementDataFile = \n"),
        ("a.nhdr", "data file: ../secret.raw\n"),
        ("a.nrrd", "#" * 2**20 + "\ndata file: ../secret.raw\n\n"),
        ("a.nrrd", "datafile: a.nrrd\n data file: ../secret.raw\n\n"),
        ("a.nhdr", f"data file: {'x' * 300}\n"),
    ],
)
def test_no_header_reaches_a_file_of_another_folder(name: str, header: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(range(24)))
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_UCHAR\n"
    nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 3 2\nencoding: raw\n"
    (tmp_path / "in" / name).write_bytes(
        ((nrrd if "nrrd" in name or "nhdr" in name else meta) + header).encode() + bytes(24)
    )
    said = refusal(tmp_path / "in" / name)
    assert "expected" in said and "Error" not in said


@pytest.mark.parametrize(
    ("slope", "offset", "values"), [("2", "-10", (-10, 36)), (None, "0.5", (0.5, 23.5)), ("-1", None, (-23, 0))]
)
def test_the_intensity_function_of_a_metaimage_is_applied(
    slope: str | None, offset: str | None, values: tuple[float, float], tmp_path: Path
) -> None:
    fields = f"ElementToIntensityFunctionSlope = {slope}\n" if slope else ""
    fields += f"ElementToIntensityFunctionOffset = {offset}\n" if offset else ""
    array = read_scan(write_meta(tmp_path / "a.mha", fields)).array
    assert (array.min(), array.max()) == values


@pytest.mark.parametrize("slope", ["0", "nan", "two"])
def test_an_intensity_function_that_is_none_is_refused(slope: str, tmp_path: Path) -> None:
    path = write_meta(tmp_path / "a.mha", f"ElementToIntensityFunctionSlope = {slope}\n")
    assert f"elementtointensityfunctionslope, other than 0 for a slope, got '{slope}'" in refusal(path)
    assert not find_scans(path)[0]


def test_values_of_an_nrrd_that_were_quantised_are_refused(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", "encoding: raw\nold min: -3\nold max: 5.5\n")
    assert "got values quantised from oldmin '-3'" in refusal(path)


def test_a_preview_behind_a_picture_is_no_time_point(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((40, 60, 3), 200, np.uint8))
    preview = Image.fromarray(np.full((10, 15, 3), 10, np.uint8))
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview, picture])
    (scan,), _ = find_scans(tmp_path)
    assert (scan.shape, scan.frames) == ((60, 40), 1)
    assert read_scan(scan).array.min() > 190


@pytest.mark.parametrize("tags", [{254: 1}, {254: 4}, {255: 2}])
def test_a_smaller_copy_or_a_mask_in_a_tiff_is_no_time_point(tags: dict[int, int], tmp_path: Path) -> None:
    with AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
        for number, extra in enumerate(({}, tags, {254: 2})):
            size = (2, 2) if extra == tags else (3, 4)
            Image.fromarray(np.full(size, number, np.uint8)).save(file, "TIFF", tiffinfo=extra)
            file.newFrame()
    (scan,), _ = find_scans(tmp_path)
    assert (scan.shape, scan.frames) == ((4, 3), 2)
    assert read_scan(scan).array[0, 0].tolist() == [0, 2]


@pytest.mark.parametrize("name", ["./a.raw", "././a.raw", ".//a.raw", "a.raw"])
def test_voxels_in_the_same_folder_may_be_named_from_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(SHORTS)
    write_nrrd(tmp_path / "a.nhdr", f"encoding: raw\ndata file: {name}\n", b"")
    assert read_scan(tmp_path / "a.nhdr").array.max() == 23
    (tmp_path / "a.mhd").write_text(f"{META}ElementType = MET_SHORT\nElementDataFile = {name}\n")
    assert read_scan(tmp_path / "a.mhd").array.max() == 23

"""Pixels: stored values come out of every encoding as other decoders read them, and damage is refused by file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from make_dicom import at, enhanced, item, new_image, refusal, save, write_slice
from PIL import Image
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from monai_mvreg.scans import pixels
from monai_mvreg.scans.elements import read_elements, read_head
from monai_mvreg.scans.files import ScanError
from monai_mvreg.scans.layouts import read_slices
from monai_mvreg.scans.pixels import read_values
from monai_mvreg.scans.read import Choices, read_scan

PYDICOM = Path(pydicom.__file__).parent / "data/test_files"


def values_of(path: Path, **options: Any) -> np.ndarray:
    return read_values(read_slices(str(path), read_head(path)), **options)


def reference(path: Path) -> np.ndarray:
    """The rescaled values by another decoder than ours, where pydicom has one, without inversion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = pydicom.dcmread(path)
        syntax = image.file_meta.TransferSyntaxUID
        decoder = get_decoder(syntax)
        other = {"1.2.840.10008.1.2.5": "pydicom", "1.2.840.10008.1.2.4.90": "gdcm", "1.2.840.10008.1.2.4.80": "gdcm"}
        array, _ = decoder.as_array(image, decoding_plugin=other.get(syntax, ""))
    if image.PhotometricInterpretation == "PALETTE COLOR":
        array = pydicom.pixels.apply_color_lut(array, image) >> 8
    array = array.astype(np.float64) * float(image.get("RescaleSlope", 1)) + float(image.get("RescaleIntercept", 0))
    frames = int(image.get("NumberOfFrames") or 1)
    return array if frames > 1 else array[None]


GREY = (
    *("CT_small", "MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit"),
    *("MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_padded", "693_J2KI", "J2K_pixelrep_mismatch"),
    *("JPEG2000", "image_dfl", "examples_overlay", "liver_1frame"),
)
COLOURS = (
    *("SC_rgb_rle", "SC_rgb_rle_2frame", "SC_rgb_small_odd", "SC_rgb_small_odd_big_endian", "SC_rgb_jpeg_gdcm"),
    *("SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_dcmtk_+eb+cy+s2", "SC_rgb_gdcm_KY"),
    *(
        "SC_ybr_full_422_uncompressed",
        "examples_rgb_color",
        "examples_ybr_color",
        "examples_jpeg2k",
        "examples_palette",
    ),
)


@pytest.mark.parametrize("name", GREY)
def test_grey_values_are_those_of_another_decoder(name: str) -> None:
    np.testing.assert_allclose(values_of(PYDICOM / f"{name}.dcm"), reference(PYDICOM / f"{name}.dcm"), rtol=1e-6)


@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_those_of_pydicom(name: str) -> None:
    found = values_of(PYDICOM / f"{name}.dcm")
    assert found.shape[-1] == 3
    np.testing.assert_array_equal(found, reference(PYDICOM / f"{name}.dcm"))


def test_jpeg_of_twelve_bits_is_what_dcmtk_reads() -> None:
    values = values_of(PYDICOM / "JPGExtended.dcm")
    assert values.shape == (1, 1024, 256) and values.mean(dtype=np.float64) == pytest.approx(14.37, abs=5e-3)


def test_lossless_jpeg_is_what_simple_itk_reads(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 4096, (1, 30, 20)).astype(np.uint16))
    image.SetMetaData("0020|000e", "1.2.3")
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.Execute(image)
    assert str(pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID).startswith("1.2.840.10008.1.2.4.")
    (values,) = values_of(tmp_path / "a.dcm")
    np.testing.assert_array_equal(values, sitk.GetArrayFromImage(image)[0])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_native_pixels_of_every_width_and_encoding(syntax: str, bits: int, tmp_path: Path) -> None:
    stored = np.random.default_rng(bits).integers(0, 2**bits, (3, 5))
    image = new_image(Columns=5, BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1)
    image.file_meta.TransferSyntaxUID = syntax
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = stored.astype(f"{order}u{bits // 8}").tobytes()
    image.PixelData = raw + b"\0" * (len(raw) % 2)
    image["PixelData"].VR = "OB" if bits == 8 else "OW"
    pydicom.dcmwrite(
        tmp_path / "a",
        image,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=order == "<",
        enforce_file_format=True,
    )
    np.testing.assert_array_equal(values_of(tmp_path / "a")[0], stored.astype(np.float32))


@pytest.mark.parametrize(("signed", "bits", "high"), [(0, 12, 11), (1, 12, 11), (0, 10, 13), (1, 10, 13), (1, 16, 15)])
def test_bits_beside_the_value_are_not_part_of_it(signed: int, bits: int, high: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    low, top = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    value = rng.integers(low, top, 12)
    shift = high + 1 - bits
    beside = rng.integers(0, 2**16, 12) & ~(((1 << bits) - 1) << shift) & 0xFFFF
    raw = ((value & ((1 << bits) - 1)) << shift) | beside
    path = write_slice(
        tmp_path / "a",
        **{"BitsStored": bits, "HighBit": high, "PixelRepresentation": signed},
        PixelData=raw.astype("<u2").tobytes(),
    )
    np.testing.assert_array_equal(values_of(path)[0].ravel(), value)


def test_each_slice_is_rescaled_by_its_own_header(tmp_path: Path) -> None:
    write_slice(tmp_path / "a", 0, RescaleSlope=1, RescaleIntercept=0)
    write_slice(tmp_path / "b", 2, RescaleSlope=0.125, RescaleIntercept=-1)
    array = read_scan(tmp_path).array
    assert array[0, 0].tolist() == [0, 1.5] and array[1, 0, 1] == 1.625


def test_unsigned_values_beyond_the_signed_range_survive(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a", BitsStored=16, HighBit=15, PixelData=np.full(12, 65535, "<u2").tobytes())
    assert values_of(path).max() == 65535


@pytest.mark.parametrize(("signed", "expected"), [(0, [4095, 4094]), (1, [-1, -2])])
def test_monochrome1_is_inverted_over_the_stored_range_so_that_larger_is_brighter(
    signed: int, expected: list[int], tmp_path: Path
) -> None:
    path = write_slice(tmp_path / "a", PhotometricInterpretation="MONOCHROME1", PixelRepresentation=signed)
    assert values_of(path)[0, 0, :2].tolist() == expected
    assert values_of(path, invert=False)[0, 0, :2].tolist() == [0, 1]
    assert read_scan(path).facts["inverted"]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_modality_lut_is_applied_as_pydicom_does(photometric: str, tmp_path: Path) -> None:
    image = new_image(PhotometricInterpretation=photometric)
    image.ModalityLUTSequence = Sequence([item(LUTDescriptor=[8, 2, 16], ModalityLUTType="US")])
    image.ModalityLUTSequence[0].add_new("LUTData", "US", [7, 70, 11, 13, 2, 5, 1, 60000])
    path = save(image, tmp_path / "a")
    expected = apply_modality_lut(pydicom.dcmread(path).pixel_array, image)
    found = values_of(path)[0]
    np.testing.assert_array_equal(found, 65535.0 - expected if photometric == "MONOCHROME1" else expected)


def test_padding_is_replaced_where_the_header_says_so_and_left_otherwise(tmp_path: Path) -> None:
    stored = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], "<u2")
    tags = {"RescaleSlope": 2, "RescaleIntercept": 0, "PixelData": stored.tobytes()}
    path = write_slice(tmp_path / "a", PixelPaddingValue=3, **tags)
    assert read_scan(path).array.min() == 0
    padded = read_scan(path, choices=Choices(padding=-1024)).array
    assert padded.T.ravel().tolist() == [0, 2, 4, -1024, *range(8, 24, 2)]
    path = write_slice(tmp_path / "b", PixelPaddingValue=5, PixelPaddingRangeLimit=3, **tags)
    assert np.count_nonzero(read_scan(path, choices=Choices(padding=-1024)).array == -1024) == 3


def test_float_pixels_stay_as_they_are(tmp_path: Path) -> None:
    image = new_image(PixelData=None, BitsAllocated=32)
    for name in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(image, name)
    image.FloatPixelData = np.linspace(-1, 1, 12, dtype="<f4").tobytes()
    np.testing.assert_array_equal(values_of(save(image, tmp_path / "a"))[0].ravel(), np.linspace(-1, 1, 12, dtype="f4"))


def test_a_chosen_frame_is_read_without_the_others(tmp_path: Path) -> None:
    image = enhanced(
        [{"PlanePositionSequence": at(0), "FrameContentSequence": item(TemporalPositionIndex=t)} for t in (1, 2, 3)]
    )
    path = save(image, tmp_path / "a")
    assert (read_scan(path, frame=1).array == 1).all() and (read_scan(path, frame="mean").array == 1).all()
    # The last frame is missing: only who asks for it is refused.
    whole = path.read_bytes()
    path.write_bytes(whole[:-24])
    assert "truncated" in refusal(path)


def packed_file(path: Path, packed: bytes, syntax: str, **tags: Any) -> Path:
    image = new_image(BitsAllocated=8, BitsStored=8, HighBit=7, **tags)
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = packed
    image["PixelData"].is_undefined_length = True
    image["PixelData"].VR = "OB"
    return save(image, path)


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width), 7, np.uint8)).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


def test_a_stream_of_another_size_than_its_header_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = "1.2.840.10008.1.2.4.50"
    good = packed_file(tmp_path / "a", pydicom.encaps.encapsulate([jpeg(4, 3)]), baseline)
    np.testing.assert_allclose(values_of(good), 7, atol=1)
    bad = packed_file(tmp_path / "b", pydicom.encaps.encapsulate([jpeg(40, 30)]), baseline)
    monkeypatch.setattr(pixels, "get_decoder", lambda uid: get_decoder("1.2.840.10008.1.2.4.50"))
    with pytest.raises(ScanError, match=r"b: damaged: 3 rows and 4 columns, but its stream has \(30, 40\)"):
        values_of(bad)


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "JPEG-lossy"])
def test_packed_pixels_that_are_cut_off_are_refused_and_not_filled_up(name: str, tmp_path: Path) -> None:
    whole = (PYDICOM / f"{name}.dcm").read_bytes()
    start = read_elements(PYDICOM / f"{name}.dcm", read_head(PYDICOM / f"{name}.dcm"), {}).pixels
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut.dcm").write_bytes(whole[: start + int(share * (len(whole) - 1200 - start))])
        assert "cut.dcm" in refusal(tmp_path / "cut.dcm")


def test_a_frame_that_is_missing_is_refused(tmp_path: Path) -> None:
    two = packed_file(
        tmp_path / "a", pydicom.encaps.encapsulate([jpeg(4, 3)]), "1.2.840.10008.1.2.4.50", NumberOfFrames=2
    )
    assert "expected 2 frames" in refusal(two)


def test_a_codec_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        available_plugins = ("gdcm",)

    monkeypatch.setattr(pixels, "get_decoder", lambda uid: Without())
    message = refusal(PYDICOM / "MR_small_jpeg_ls_lossless.dcm")
    assert "pip install pyjpegls" in message and "JPEG-LS" in message


def test_a_run_of_bytes_that_is_no_rle_is_refused(tmp_path: Path) -> None:
    path = packed_file(tmp_path / "a", pydicom.encaps.encapsulate([b"\1\0\0\0" + bytes(100)]), RLELossless)
    assert "a: damaged" in refusal(path)

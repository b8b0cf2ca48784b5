"""Pixels: stored values come out of every encoding as other decoders read them, and damage is refused by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from make_dicom import at, enhanced, item, new_image, refusal, save, write_slice
from pydicom.pixels import apply_modality_lut
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from monai_mvreg.scans.dicom.elements import read_head
from monai_mvreg.scans.dicom.multiframe import read_slices
from monai_mvreg.scans.dicom.pixels import read_values
from monai_mvreg.scans.read import Choices, read_scan


def values_of(path: Path, **options: Any) -> np.ndarray:
    return read_values(read_slices(str(path), read_head(path)), **options)


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


def test_rescaled_values_are_exact_also_where_they_cancel(tmp_path: Path) -> None:
    stored = np.arange(60_000, 60_012)
    image = new_image(BitsStored=16, HighBit=15, RescaleSlope="0.1", RescaleIntercept="-6000.5")
    image.PixelData = stored.astype("<u2").tobytes()
    np.testing.assert_allclose(values_of(save(image, tmp_path / "a")).ravel(), stored * 0.1 - 6000.5, rtol=1e-6)


def test_a_slope_of_nothing_or_of_more_than_a_float_holds_is_refused(tmp_path: Path) -> None:
    assert "slope other than 0" in refusal(write_slice(tmp_path / "a", RescaleSlope=0))
    assert read_scan(write_slice(tmp_path / "b", RescaleSlope=0, PixelData=bytes(24))).array.max() == 0
    assert "float32 can hold" in refusal(write_slice(tmp_path / "c", RescaleSlope="1e38"))


def test_a_padding_value_in_as_many_bits_as_a_pixel_has_is_known(tmp_path: Path) -> None:
    image = new_image(PixelRepresentation=1, PixelData=np.full(12, -2000, "<i2").tobytes())
    image.add_new(0x00280120, "US", 0x0830)  # -2000 in 12 bits
    assert (read_scan(save(image, tmp_path / "a"), choices=Choices(padding=7)).array == 7).all()


def test_single_bits_are_inflated_before_they_are_counted(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (5, 3, 5))
    image = new_image(Columns=5, BitsAllocated=1, BitsStored=1, HighBit=0, NumberOfFrames=5)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    image.PixelData = packed + b"\0" * (len(packed) % 2)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(values_of(save(image, tmp_path / "a")), bits)


def test_packed_pixels_under_a_syntax_that_is_not_packed_are_refused(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a")
    raw = path.read_bytes()
    at = raw.rindex(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(raw[: at + 8] + b"\xff\xff\xff\xff" + raw[at + 12 :])
    assert "packed pixels, and the transfer syntax" in refusal(path)

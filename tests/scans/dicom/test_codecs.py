"""Packed pixels: every codec gives what another one gives, and none gets what contradicts its header or is cut off."""

from __future__ import annotations

import io
import logging
import multiprocessing
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from make_dicom import new_image, refusal, save
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRBigEndian, JPEGLosslessSV1, RLELossless

from monai_mvreg.scans.dicom import codecs
from monai_mvreg.scans.dicom.elements import read_elements, read_head
from monai_mvreg.scans.dicom.multiframe import read_slices
from monai_mvreg.scans.dicom.pixels import read_values
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import read_scan

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
    "CT_small",
    "MR_small",
    "MR_small_RLE",
    "MR_small_bigendian",
    "MR_small_expb",
    "MR_small_implicit",
    "MR_small_jp2klossless",
    "MR_small_jpeg_ls_lossless",
    "MR_small_padded",
    "693_J2KI",
    "J2K_pixelrep_mismatch",
    "JPEG2000",
    "image_dfl",
    "examples_overlay",
    "liver_1frame",
)
COLOURS = (
    "SC_rgb_rle",
    "SC_rgb_rle_2frame",
    "SC_rgb_small_odd",
    "SC_rgb_small_odd_big_endian",
    "SC_rgb_jpeg_gdcm",
    "SC_rgb_dcmtk_+eb+cr",
    "SC_rgb_dcmtk_+eb+cy+n1",
    "SC_rgb_dcmtk_+eb+cy+s2",
    "SC_rgb_gdcm_KY",
    "SC_ybr_full_422_uncompressed",
    "examples_rgb_color",
    "examples_ybr_color",
    "examples_jpeg2k",
    "examples_palette",
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


def packed_file(path: Path, packed: bytes, syntax: str, **tags: Any) -> Path:
    image = new_image(**{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, **tags})
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = packed
    image["PixelData"].is_undefined_length = True
    image["PixelData"].VR = "OB"
    return save(image, path)


def lossless(stored: np.ndarray, path: Path) -> bytes:
    """The stream of a lossless JPEG, packed by GDCM through SimpleITK."""
    image = sitk.GetImageFromArray(stored[None])
    image.SetMetaData("0020|000e", "1.2.3")
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.Execute(image)
    written = pydicom.dcmread(path)
    assert written.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    return next(pydicom.encaps.generate_frames(written.PixelData, number_of_frames=1))


@pytest.mark.parametrize(("signed", "bits"), [(0, 16), (1, 16), (0, 12), (1, 12)])
def test_lossless_jpeg_keeps_every_value_and_its_sign(signed: int, bits: int, tmp_path: Path) -> None:
    stored = np.random.default_rng(bits).integers(0, 2**bits, (3, 4)).astype(np.uint16)
    tags = {"BitsAllocated": 16, "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": signed}
    stream = lossless(stored, tmp_path / "made.dcm")
    path = packed_file(tmp_path / "a", pydicom.encaps.encapsulate([stream]), JPEGLosslessSV1, **tags)
    expected = stored.astype(np.int64) - (2**bits) * (signed and stored >= 2 ** (bits - 1))
    np.testing.assert_array_equal(values_of(path)[0], expected)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [(4, 136, "of 136 bits"), (9, 3, r"\(3, 4, 3\)"), (1, 0xC0, "of another kind \\(C0\\)"), (5, 9, r"\(2307, 4, 1\)")],
)
def test_a_stream_that_contradicts_its_header_never_reaches_a_codec(
    at: int, value: int, words: str, tmp_path: Path
) -> None:
    stream = bytearray(lossless(np.arange(12, dtype=np.uint16).reshape(3, 4), tmp_path / "made.dcm"))
    stream[stream.index(b"\xff\xc3") + at] = value
    path = packed_file(tmp_path / "a", pydicom.encaps.encapsulate([bytes(stream)]), JPEGLosslessSV1, BitsAllocated=16)
    with pytest.raises(ScanError, match=words):
        values_of(path)
    path = packed_file(tmp_path / "b", pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc4\0\2"]), JPEGLosslessSV1)
    with pytest.raises(ScanError, match="no frame header"):
        values_of(path)


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
    monkeypatch.setattr(codecs, "get_decoder", lambda uid: get_decoder("1.2.840.10008.1.2.4.50"))
    with pytest.raises(
        ScanError, match=r"b: damaged: its header has 3 rows, 4 columns .* its stream \(30, 40, 1\) of 8 bits"
    ):
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

    monkeypatch.setattr(codecs, "get_decoder", lambda uid: Without())
    message = refusal(PYDICOM / "MR_small_jpeg_ls_lossless.dcm")
    assert "pip install pyjpegls" in message and "JPEG-LS" in message


def test_a_run_of_bytes_that_is_no_rle_is_refused(tmp_path: Path) -> None:
    path = packed_file(tmp_path / "a", pydicom.encaps.encapsulate([b"\1\0\0\0" + bytes(100)]), RLELossless)
    assert "a: damaged" in refusal(path)


def test_many_threads_read_packed_files_and_leave_logs_and_warnings_as_they_were() -> None:
    paths = [PYDICOM / f"{name}.dcm" for name in ("MR_small_RLE", "MR_small_jp2klossless", "JPEG-lossy")] * 20
    expected = [values_of(path) for path in paths[:3]]
    log = logging.getLogger("pydicom")
    before, filters = log.level, list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(values_of, paths))
    for number, values in enumerate(found):
        np.testing.assert_array_equal(values, expected[number % 3])
    assert log.level == before and warnings.filters == filters


def test_bits_that_are_no_value_are_dropped_from_every_stream_that_can_hold_them(tmp_path: Path) -> None:
    stored = np.arange(12, dtype=np.uint16).reshape(3, 4)
    for at, syntax in enumerate((RLELossless, ExplicitVRBigEndian)):
        image = new_image(BitsStored=12, HighBit=15)
        image.PixelData = ((stored << 4) | 5).astype("<u2").tobytes()
        if syntax == RLELossless:
            image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            image.compress(RLELossless)
        else:
            image.PixelData = ((stored << 4) | 5).astype(">u2").tobytes()
            image.file_meta.TransferSyntaxUID = syntax
        np.testing.assert_array_equal(values_of(save(image, tmp_path / f"{at}"))[0], stored)


def test_a_stream_that_begins_as_no_codec_of_its_syntax_does_gets_none(tmp_path: Path) -> None:
    path = PYDICOM / "MR_small_jp2klossless.dcm"
    raw = path.read_bytes()
    at = raw.index(b"\xff\x4f\xff\x51")
    (tmp_path / "a").write_bytes(raw[:at] + b"\0\0\0\x0cjP  \r\n" + raw[at + 10 :])
    assert "got another beginning" in refusal(tmp_path / "a")


def test_a_forked_process_decodes_although_a_thread_of_its_parent_did(tmp_path: Path) -> None:
    path = PYDICOM / "MR_small_jp2klossless.dcm"
    context = multiprocessing.get_context("fork")
    with codecs._quiet():  # as a thread would hold it at the moment of the fork
        child = context.Process(target=values_of, args=(path,))
        child.start()
        child.join(timeout=20)
    assert child.exitcode == 0


def test_jpeg_of_twelve_bits_is_read_without_noise(capfd: pytest.CaptureFixture[str]) -> None:
    read_scan(Path(pydicom.__file__).parent / "data/test_files/JPEG-lossy.dcm")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fill", [b"", b"\0", b"\0\0\0", b"\xff", b"\xff\xff"])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"])
def test_jpeg_ls_that_is_filled_up_before_its_end_is_read(fill: bytes, syntax: str, tmp_path: Path) -> None:
    image = new_image()
    image.compress(syntax, generate_instance_uid=False)
    stream = next(generate_frames(image.PixelData, number_of_frames=1)).rstrip(b"\0")
    stream = stream[:-2] + fill + stream[-2:]
    image.PixelData = encapsulate([stream])
    image["PixelData"].is_undefined_length = True
    assert read_scan(save(image, tmp_path / "a")).array.transpose().ravel().tolist() == list(range(12))


def test_jpeg_ls_that_lacks_its_last_bytes_is_refused(tmp_path: Path) -> None:
    image = new_image()
    image.compress("1.2.840.10008.1.2.4.80", generate_instance_uid=False)
    stream = next(generate_frames(image.PixelData, number_of_frames=1)).rstrip(b"\0")
    image.PixelData = encapsulate([stream[:-5] + b"\0\0" + stream[-2:]])
    image["PixelData"].is_undefined_length = True
    assert "cannot be read" in refusal(save(image, tmp_path / "a"))

"""Headers: what a file says of its image, and one sentence where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from make_dicom import CANARY, new_image, refusal, save, write_slice
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    EnhancedCTImageStorage,
    JPEGLossless,
    MRSpectroscopyStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.elements import read_head
from monai_mvreg.scans.dicom.headers import ImageFile, NoImageError, binary, number, numbers, text, words
from monai_mvreg.scans.dicom.multiframe import read_slices
from monai_mvreg.scans.formats.byte_ranges import ScanError


def file_of(path: Path) -> ImageFile:
    return read_slices(str(path), read_head(path))[0].file


def test_a_file_says_how_its_pixels_are_stored_and_where(tmp_path: Path) -> None:
    file = file_of(write_slice(tmp_path / "a", ImageType=["ORIGINAL", "PRIMARY", "M"], SeriesNumber=7))
    assert (file.series, file.series_number, file.modality, file.frames) == ("1.2.3", "7", "MR", 1)
    assert file.image_type == ("ORIGINAL", "PRIMARY", "M") and file.shape == (4, 3)
    assert (file.pixels.allocated, file.pixels.stored, file.pixels.high, file.pixels.signed) == (16, 12, 11, False)
    assert (tmp_path / "a").read_bytes()[file.start :] == new_image().PixelData
    assert file.sliced and not file.flat and not file.refusal


def test_the_patient_is_known_and_not_shown(tmp_path: Path) -> None:
    file = file_of(write_slice(tmp_path / "a"))
    assert file.patient == CANARY and CANARY not in repr(file)
    assert not any(CANARY.encode() in value for value in file.values.values() if isinstance(value, bytes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PhotometricInterpretation": "ARGB"}, "photometric interpretation 'ARGB'"),
        ({"PhotometricInterpretation": "RGB"}, "expected 3 samples per pixel of RGB, got 1"),
        ({"SamplesPerPixel": 3}, "expected 1 samples per pixel of MONOCHROME2, got 3"),
        ({"PixelData": bytes(16)}, "truncated: expected 24 bytes of pixels, got 16"),
        ({"NumberOfFrames": 2}, "truncated: expected 48 bytes of pixels, got 24"),
        ({"NumberOfFrames": -1}, "expected 1 to 200000 frames, got -1"),
        ({"BitsAllocated": 12}, "got 12 allocated"),
        ({"BitsStored": 17}, "17 stored"),
        ({"HighBit": 3}, "high bit 3"),
        ({"Rows": 0}, "0 rows"),
        ({"SOPClassUID": VLWholeSlideMicroscopyImageStorage}, "whole slide image"),
        ({"PixelData": None}, "no pixel data"),
    ],
)
def test_pixels_that_cannot_be_read_are_refused_by_file(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    message = refusal(write_slice(tmp_path / "odd.dcm", **change))
    assert words in message and "odd.dcm" in message


def test_a_transfer_syntax_that_nobody_unpacks_is_named(tmp_path: Path) -> None:
    image = new_image()
    path = save(image, tmp_path / "a")
    for uid, name in ((MPEG2MPML, "MPEG2"), ("1.2.840.10008.1.2.4.999.9", "1.2.840.10008.1.2.4.999.9")):
        old, new = b"1.2.840.10008.1.2.1\0", uid.encode().ljust(20, b"\0")
        raw = path.read_bytes()
        length = len(new) - len(old)
        at = raw.index(b"\x02\0\x10\0UI")
        raw = raw[: at + 6] + bytes([raw[at + 6] + length, 0]) + raw[at + 8 :].replace(old, new, 1)
        group = int.from_bytes(raw[140:144], "little") + length
        (tmp_path / "b").write_bytes(raw[:140] + group.to_bytes(4, "little") + raw[144:])
        assert name in refusal(tmp_path / "b")


def test_a_size_that_no_packed_image_has_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    image = new_image(Rows=60000, Columns=60000)
    image.file_meta.TransferSyntaxUID = JPEGLossless
    image["PixelData"].is_undefined_length = True
    image.PixelData = b"\xfe\xff\0\xe0\0\0\0\0\xfe\xff\0\xe0\2\0\0\0\xff\xd8\xfe\xff\xdd\xe0\0\0\0\0"
    assert "decompression bomb" in refusal(save(image, tmp_path / "a"))


def test_a_document_is_no_image_and_an_image_without_rows_is_damaged(tmp_path: Path) -> None:
    image = new_image(Rows=None)
    with pytest.raises(ScanError, match="without Rows, Columns or BitsAllocated") as damaged:
        file_of(save(image, tmp_path / "a"))
    assert not isinstance(damaged.value, NoImageError)
    image.SOPClassUID = BasicTextSRStorage
    with pytest.raises(NoImageError, match="without pixels \\(Basic Text SR Storage\\)"):
        file_of(save(image, tmp_path / "b"))
    with pytest.raises(NoImageError, match="without pixels \\(MR Spectroscopy Storage\\)"):
        file_of(write_slice(tmp_path / "s", SOPClassUID=MRSpectroscopyStorage, BitsAllocated=None, PixelData=None))
    with pytest.raises(ScanError, match="belongs to no series") as damaged:
        file_of(write_slice(tmp_path / "c", SeriesInstanceUID=None))
    assert not isinstance(damaged.value, NoImageError)


def test_slices_are_known_by_class_and_projections_by_modality(tmp_path: Path) -> None:
    assert file_of(write_slice(tmp_path / "a", SOPClassUID=EnhancedCTImageStorage)).sliced
    assert file_of(write_slice(tmp_path / "b", Modality="DX")).flat


def test_texts_and_numbers_lose_their_padding_and_nothing_else() -> None:
    values = {tags.MODALITY: b"CT\0", tags.IMAGE_TYPE: b"A\\B \\ C ", tags.PIXEL_SPACING: b"0.5\\ 1e-1 "}
    assert text(values, tags.MODALITY) == "CT" and text(values, tags.MANUFACTURER) == ""
    assert words(values, tags.IMAGE_TYPE) == ("A", "B", "C")
    assert numbers(values, tags.PIXEL_SPACING, 2) == (0.5, 0.1)
    assert numbers({tags.SLICE_THICKNESS: b" "}, tags.SLICE_THICKNESS, 1) == ()
    assert number({}, tags.SLICE_THICKNESS) is None
    # Longer than the standard allows, as some scanners write it.
    assert number({tags.SLICE_THICKNESS: b"-91.4495864331908123"}, tags.SLICE_THICKNESS) == -91.4495864331908123
    assert binary({tags.HIGH_BIT: b"\x01\x02"}, tags.HIGH_BIT, "H", ">") == (258,)


@pytest.mark.parametrize("value", [b"1\\2\\3", b"one", b"nan", b"inf", b"\xff\xfe", b"1,5"])
def test_what_are_no_numbers_is_refused_by_name_and_not_shown(value: bytes) -> None:
    with pytest.raises(ScanError, match="expected 2 finite numbers in PixelSpacing") as error:
        numbers({tags.PIXEL_SPACING: value}, tags.PIXEL_SPACING, 2)
    assert value.decode("latin-1") not in str(error.value)
    with pytest.raises(ScanError, match="EffectiveEchoTime"):
        binary({tags.EFFECTIVE_ECHO_TIME: value[:3]}, tags.EFFECTIVE_ECHO_TIME, "d")


@pytest.mark.parametrize(
    ("sets", "identity"),
    [
        (["", "ISO 2022 IR 87"], "\u5c71\u7530"),
        (["", "ISO 2022 IR 87"], "A-\u5c71\u7530^12"),
        (["", "ISO 2022 IR 87"], "\u30b3\u30bd"),  # whose 7-bit codes hold ^ and =
        (["", "ISO 2022 IR 149"], "\uae40\ud76c\uc911"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "\u5c71\u7530"),
        (["GB18030"], "\u738b\u5c0f\u4e1c"),
        (["ISO_IR 100"], "M\u00fcller"),
        (["ISO_IR 192"], "\u5c71\u7530"),
    ],
)
def test_the_patient_is_known_in_every_character_set(sets: list[str], identity: str, tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a", SpecificCharacterSet=sets, PatientID=identity)
    assert file_of(path).patient == identity


def test_chinese_after_an_escape_is_decoded(tmp_path: Path) -> None:
    image = new_image(SpecificCharacterSet=["", "ISO 2022 IR 58"])
    written = b"\x1b$)A" + "\u738b\u5c0f\u4e1c".encode("gb2312")
    image.add(RawDataElement(Tag("PatientID"), "LO", len(written), written, 0, False, True))
    assert file_of(save(image, tmp_path / "a")).patient == "\u738b\u5c0f\u4e1c"

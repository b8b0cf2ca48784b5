"""Elements: the bytes are those that pydicom reads, for every encoding, and damage is one error."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pydicom
import pytest
from make_dicom import at, enhanced, item, new_image, save
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.elements import UNDEFINED, Elements, data_set_start, inflate, read_elements, read_head
from monai_mvreg.scans.dicom.private_blocks import in_block_10
from monai_mvreg.scans.formats.byte_ranges import ScanError

PYDICOM = Path(pydicom.__file__).parent / "data/test_files"
# pydicom decodes the character set at once.
WANTED = {tag: tag in tags.SEQUENCES for tag in tags.ALL - {tags.SPECIFIC_CHARACTER_SET}}
WANTED |= {0x00081140: True, 0x00081155: False, 0x7FE00010: False}


def elements_of(path: Path, wanted: dict[int, bool] = WANTED, **options: Any) -> Elements:
    return read_elements(path, read_head(path), wanted, **options)


def reference(dataset: Dataset, wanted: dict[int, bool]) -> dict[int, Any]:
    """The same elements as pydicom reads them, before it decodes a value."""
    found: dict[int, Any] = {}
    for tag in list(dataset.keys()):
        if int(tag) in wanted and int(tag) >> 16 != 0x7FE0:
            element = dataset.get_item(tag)
            if wanted[int(tag)]:
                found[int(tag)] = [reference(part, wanted) for part in dataset[tag].value]
            else:
                value = element.value  # pydicom decodes what other elements depend on
                value = struct.pack("<H", value) if isinstance(value, int) else value or b""
                found[int(tag)] = value
    return found


def readable() -> list[Any]:
    files = sorted(path for path in PYDICOM.rglob("*") if path.is_file() and path.suffix in ("", ".dcm"))
    return [pytest.param(path, id=path.name) for path in files if path.read_bytes()[128:132] == b"DICM"]


@pytest.mark.parametrize("path", readable())
def test_every_file_of_pydicom_gives_the_bytes_that_pydicom_reads_or_one_error(path: Path) -> None:
    try:
        found = elements_of(path)
    except ScanError:
        # Two do not keep to their own transfer syntax, two are cut off.
        assert path.name in {"SC_rgb_jpeg.dcm", "meta_missing_tsyntax.dcm", "rtplan_truncated.dcm", "DICOMDIR-nooffset"}
        return
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path, force=True)
        expected = reference(dataset, WANTED)
        in_block_10(expected)  # private elements of creators that are not asked for
        pixels = next((dataset.get_item(tag) for tag in (0x7FE00010, 0x7FE00008) if tag in dataset), None)
    values = {
        tag: value for tag, value in found.values.items() if tag >> 16 != 2 and tag != tags.SPECIFIC_CHARACTER_SET
    }
    assert values == expected
    assert found.syntax == dataset.file_meta.TransferSyntaxUID
    if pixels is not None and found.syntax != DeflatedExplicitVRLittleEndian:
        assert found.pixels == pixels.value_tell and found.length in (pixels.length, UNDEFINED)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_give_the_same_values(syntax: str, tmp_path: Path) -> None:
    image = enhanced([{"PlanePositionSequence": at(z)} for z in (0, 1)])
    one = elements_of(save(image, tmp_path / "explicit"))
    image.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        tmp_path / "other",
        image,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    other = elements_of(tmp_path / "other")
    assert other.order == (">" if syntax == ExplicitVRBigEndian else "<")
    frames = [found.values[tags.PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE] for found in (one, other)]
    assert frames[0] == frames[1] and len(frames[0]) == 2
    assert one.values[tags.SOP_INSTANCE_UID] == other.values[tags.SOP_INSTANCE_UID]


def test_sequences_without_a_length_are_read_and_stepped_over(tmp_path: Path) -> None:
    image = new_image()
    deep = item(ReferencedSOPInstanceUID="1.2.3")
    for _ in range(3):
        deep.is_undefined_length_sequence_item = True
        deep = item(ReferencedImageSequence=Sequence([deep, item(PatientID="x")]), ReferencedSOPInstanceUID="1.9")
        deep["ReferencedImageSequence"].is_undefined_length = True
    image.ReferencedImageSequence = Sequence([deep])
    image["ReferencedImageSequence"].is_undefined_length = True
    image.add_new(0x00091010, "UN", b"x" * 10)
    path = save(image, tmp_path / "a")
    found = elements_of(path).values
    inner = found[0x00081140][0][0x00081140][0][0x00081140][0][0x00081140][0]
    assert inner == {0x00081155: b"1.2.3\0"}
    bare = elements_of(path, {tags.ROWS: False}).values
    assert bare[tags.ROWS] == struct.pack("<H", 3) and 0x00081140 not in bare


def test_a_header_longer_than_the_first_read_is_read_to_its_end(tmp_path: Path) -> None:
    image = new_image()
    image.add_new(0x00091010, "OB", bytes(300_000))
    image.add_new(0x00111010, "UT", "y" * 100_000)
    found = elements_of(save(image, tmp_path / "a"))
    assert found.values[tags.ROWS] == struct.pack("<H", 3)
    assert (tmp_path / "a").read_bytes()[found.pixels : found.pixels + 2] == b"\0\0"


def test_the_walk_ends_behind_group_0028_when_that_is_enough(tmp_path: Path) -> None:
    image = new_image()
    image.add_new(0x00291010, "OB", b"abcd")
    path = save(image, tmp_path / "a")
    seen = []

    def enough(values: dict[int, Any]) -> bool:
        seen.append(dict(values))
        return True

    found = elements_of(path, enough=enough)
    assert found.pixels == -1 and len(seen) == 1 and tags.PIXEL_REPRESENTATION in seen[0]
    assert 0x00291010 not in found.values
    assert elements_of(path, enough=lambda values: False).pixels > 0


def test_a_file_cut_off_anywhere_is_one_error_or_ends_before_its_pixels(tmp_path: Path) -> None:
    image = enhanced([{"PlanePositionSequence": at(z)} for z in (0, 1)])
    image["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    whole = save(image, tmp_path / "a").read_bytes()
    start = elements_of(tmp_path / "a").pixels
    for end in range(0, start, 7):
        (tmp_path / "cut").write_bytes(whole[:end])
        try:
            assert elements_of(tmp_path / "cut").pixels == -1
        except ScanError as error:
            assert "DICM" in str(error) or "cut off" in str(error) or "damaged" in str(error)


def test_sequences_within_sequences_without_end_are_refused(tmp_path: Path) -> None:
    head = save(new_image(), tmp_path / "a").read_bytes()[: data_set_start(tmp_path / "a")]
    opened = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, UNDEFINED) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, UNDEFINED
    )
    (tmp_path / "deep").write_bytes(head + opened * 1000)
    with pytest.raises(ScanError, match="a sequence of"):
        elements_of(tmp_path / "deep")


def test_what_is_no_dicom_file_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"x" * 100, b"x" * 1000):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ScanError, match="no mark DICM"):
            elements_of(tmp_path / "a")


def test_a_deflated_part_inflates_no_further_than_asked(tmp_path: Path) -> None:
    pack = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    (tmp_path / "a").write_bytes(b"1234" + pack.compress(bytes(10**6)) + pack.flush())
    assert inflate(tmp_path / "a", 4, 1000) == bytes(1000)
    with pytest.raises(ScanError, match="cannot be inflated"):
        inflate(tmp_path / "a", 0, 1000)
    with pytest.raises(ScanError, match="decompression bomb"):
        inflate(tmp_path / "a", 4, 2**32)


def test_the_values_of_a_file_object_are_not_needed_twice(tmp_path: Path) -> None:
    path = save(new_image(), tmp_path / "a")
    stream = io.BytesIO(path.read_bytes())
    assert data_set_start(path) == pydicom.dcmread(stream, stop_before_pixels=True)[0x00080016].file_tell - 8

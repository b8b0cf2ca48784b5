"""What gives no scan: named for what it is, and missed where it may be the lost slice of a series."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from make_dicom import new_image, refusal, save, write_series, write_slice
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan
from monai_mvreg.scans.unread import is_bare_dicom, named_like_slices


@pytest.mark.parametrize("first", ["InstanceCreationDate", "SOPClassUID", "AccessionNumber", "PatientName"])
@pytest.mark.parametrize(
    "encoding", [(True, True), (False, True), (False, False)], ids=["implicit", "explicit", "big endian"]
)
@pytest.mark.parametrize("before", [b"", b"DICM", bytes(128), bytes(132)], ids=["bare", "mark", "preamble", "zeros"])
def test_slices_without_their_mark_are_missed_whatever_they_begin_with(
    first: str, encoding: tuple[bool, bool], before: bytes, tmp_path: Path
) -> None:
    write_series(tmp_path, (0, 1, 2))
    image = new_image(3, InstanceCreationDate="20200101", AccessionNumber="17")
    bare = Dataset()
    bare.update({item.tag: item for item in image})
    for item in list(bare):
        if item.tag < Tag(first):
            del bare[item.tag]
    bare.save_as(tmp_path / "last", implicit_vr=encoding[0], little_endian=encoding[1])
    whole = before + (tmp_path / "last").read_bytes()
    (tmp_path / "last").write_bytes(whole)
    assert is_bare_dicom(whole, len(whole))
    scans, left_out = find_scans(tmp_path)
    assert not scans and any("a DICOM file without its mark or preamble" in item.reason for item in left_out)


@pytest.mark.parametrize(
    "content", [b"<html><body>503</body></html>" * 20, b"MZ" + bytes(range(256)), b"\x89PNG\r\n\x1a\n" + b"x" * 300]
)
def test_another_content_under_the_name_of_a_slice_is_missed_and_notes_are_not(content: bytes, tmp_path: Path) -> None:
    for z in range(3):
        write_slice(tmp_path / f"IM{z:03}.dcm", z)
    (tmp_path / "notes.txt").write_bytes(content)
    assert read_scan(tmp_path).array.shape == (4, 3, 3)
    (tmp_path / "IM003.dcm").write_bytes(content)
    assert "a damaged file in its folder: IM003.dcm" in refusal(tmp_path)


def test_a_packed_slice_is_missed(tmp_path: Path) -> None:
    for z in range(3):
        write_slice(tmp_path / f"IM{z:03}.dcm", z)
    with gzip.open(tmp_path / "IM003.dcm.gz", "wb") as packed:
        packed.write(save(new_image(3), tmp_path.parent / f"{tmp_path.name}-last").read_bytes())
    assert "IM003.dcm.gz" in refusal(tmp_path)


def test_metadata_of_macos_is_never_a_slice(tmp_path: Path) -> None:
    for z in range(2):
        write_slice(tmp_path / f"IM{z}.dcm", z)
        (tmp_path / f"._IM{z}.dcm").write_bytes(b"\0\x05\x16\x07" + bytes(4092))
    assert read_scan(tmp_path).array.shape == (4, 3, 2)


@pytest.mark.parametrize("start", [b"", b"\x08\0", bytes(300), b"\x08\0\x12\0" * 80, b"PK\x03\x04" + b"DICM\x02\0"])
def test_what_is_no_data_set_is_not_taken_for_one(start: bytes) -> None:
    assert not is_bare_dicom(start, len(start))


def test_a_name_counts_in_its_own_folder_and_by_its_form() -> None:
    slices = [Path("a/IM0004.dcm")]
    alike = {"a/IM0005.dcm": True, "b/IM0005.dcm": False, "a/last.dcm": True, "a/last.txt": False, "a/IM9.dcm.gz": True}
    assert {name: named_like_slices(Path(name), slices) for name in alike} == alike
    assert named_like_slices(Path("b/IM0005.dcm"), slices, anywhere=True)
    assert not named_like_slices(Path("a/last.dcm"), slices, suffix=False)


def test_a_header_names_its_image_or_says_that_there_is_none(tmp_path: Path) -> None:
    for name in ("a.hdr", "B.HDR", "c.hdr.gz"):
        (tmp_path / name).write_bytes(b"x" * 348)
    for name in ("d.hdr", "d.img"):
        (tmp_path / name).write_bytes(b"x" * 348)
    reasons = {item.path.name: item.reason for item in find_scans(tmp_path)[1]}
    assert reasons["a.hdr"] == "a header without its image: there is no a.img"
    assert reasons["d.hdr"] == "the header of d.img"
    assert all("without its image" in reasons[name] for name in ("B.HDR", "c.hdr.gz"))

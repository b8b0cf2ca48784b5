"""Copies: an image that lies there twice counts once; two that differ under one identity are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from make_dicom import new_image, refusal, save, write_series, write_slice

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan


def test_an_exact_copy_of_a_slice_is_used_once_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(tmp_path)
    (tmp_path / "copy").write_bytes((tmp_path / "im1").read_bytes())
    image = new_image(2)
    image.SOPInstanceUID = "1.2.3.4"
    save(image, tmp_path / "im2")
    image.add_new(0x00091010, "LO", "other bytes, same image")
    save(image, tmp_path / "sent again")
    with caplog.at_level(logging.WARNING):
        assert read_scan(tmp_path).array.shape == (4, 3, 3)
    assert "copy and im1" in caplog.text and "2 such files" in caplog.text


@pytest.mark.parametrize("number", [1, 3])
def test_copies_are_told_once_for_a_series(number: int, tmp_path: Path) -> None:
    write_series(tmp_path / "visit")
    for place in range(number):
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / f"im{place}").write_bytes((tmp_path / "visit" / f"im{place}").read_bytes())
    scans, left_out = find_scans(tmp_path)
    assert len(scans) == 1 and scans[0].shape[-1] == 3 and len(scans[0].files) == 3
    sentence = f"no scan: again/im0 and visit/im0 are the same image twice: one is used ({number} such files)"
    assert [(item.path, item.reason) for item in left_out] == [(tmp_path / "visit" / "im0", sentence)]


@pytest.mark.parametrize("change", [{"PixelData": bytes(24)}, {"RescaleSlope": 2}, {"ImagePositionPatient": [0, 0, 9]}])
def test_two_images_with_one_identity_that_differ_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    write_series(tmp_path)
    write_slice(tmp_path / "a", 6, SOPInstanceUID="1.9")
    write_slice(tmp_path / "b", 6, SOPInstanceUID="1.9", **change)
    assert "a and b differ and have the same SOPInstanceUID" in refusal(tmp_path)

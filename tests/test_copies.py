"""Copies: an image that lies there twice counts once; two that differ under one identity are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from make_dicom import new_image, refusal, save, write_series, write_slice

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


@pytest.mark.parametrize("change", [{"PixelData": bytes(24)}, {"RescaleSlope": 2}, {"ImagePositionPatient": [0, 0, 9]}])
def test_two_images_with_one_identity_that_differ_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    write_series(tmp_path)
    write_slice(tmp_path / "a", 6, SOPInstanceUID="1.9")
    write_slice(tmp_path / "b", 6, SOPInstanceUID="1.9", **change)
    assert "a and b differ and have the same SOPInstanceUID" in refusal(tmp_path)

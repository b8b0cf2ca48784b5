"""Slices to slices: an image that lies there twice counts once; two that differ under one identity are refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

import numpy as np

from monai_mvreg.scans.dicom.pixels import read_values
from monai_mvreg.scans.dicom.slices import Slice
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_whole


def without_copies(slices: Sequence[Slice]) -> tuple[list[Slice], dict[str, str]]:
    """Part the slices of a series from copies of its images.

    Returns:
        The slices without copies, and for the file of each copy its name and that of the file that is used.

    Raises:
        ScanError: if two files claim to be the same image and differ.
    """
    files: dict[str, dict[str, list[Slice]]] = defaultdict(lambda: defaultdict(list))
    for s in slices:
        files[s.file.image or s.file.path][s.file.path].append(s)
    copies: dict[str, str] = {}
    for twins in files.values():
        first, *others = twins
        for other in others:
            names = f"{_below(first, other)} and {_below(other, first)}"
            if read_whole(first) != read_whole(other) and not _same_image(twins[first], twins[other]):
                raise ScanError(f"{names} differ and have the same SOPInstanceUID")
            copies[other] = names
    return [s for s in slices if s.file.path not in copies] if copies else list(slices), copies


def _same_image(ones: list[Slice], others: list[Slice]) -> bool:
    """Whether two files that differ in their bytes have the same pixels at the same place."""
    bare = [[replace(s, file=ones[0].file) for s in part] for part in (ones, others)]
    if ones[0].file.refusal or others[0].file.refusal or bare[0] != bare[1]:
        return False
    return ones[0].file.shape == others[0].file.shape and np.array_equal(read_values(ones), read_values(others))


def _below(path: str, other: str) -> str:
    """A path from where it parts from another one."""
    parts, apart = PurePath(path).parts, 0
    for one, two in zip(parts[:-1], PurePath(other).parts, strict=False):
        if one != two:
            break
        apart += 1
    return PurePath(*parts[apart:]).as_posix()

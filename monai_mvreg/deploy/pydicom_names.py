"""A module of pydicom 2 that pydicom-seg, which MONAI Label imports, still looks for beside pydicom 3."""

from __future__ import annotations

import sys
import types

import pydicom.uid

_NAME = "pydicom._storage_sopclass_uids"


def restore_pydicom_names() -> None:
    """Put the module in its place, with the one name that pydicom-seg 0.4.1 takes from it; needed in every process."""
    module = types.ModuleType(_NAME)
    module.SegmentationStorage = pydicom.uid.SegmentationStorage  # type: ignore[attr-defined]
    sys.modules.setdefault(_NAME, module)

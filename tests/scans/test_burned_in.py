from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from make_dicom import write_series
from pydicom.uid import SecondaryCaptureImageStorage

from monai_mvreg.scans.burned_in import may_name_patient
from monai_mvreg.scans.find import Scan, find_scans


def found(folder: Path, **tags: Any) -> Scan:
    write_series(folder, **tags)
    scans, left_out = find_scans(folder)
    return [*scans, *(item.scan for item in left_out if item.scan is not None)][0]


@pytest.mark.parametrize(
    ("tags", "risky"),
    [
        ({}, False),
        ({"BurnedInAnnotation": "NO"}, False),
        ({"BurnedInAnnotation": "YES"}, True),
        ({"Modality": "OT"}, True),
        ({"Modality": "OT", "BurnedInAnnotation": "NO"}, False),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, True),
    ],
)
def test_a_name_may_be_burned_in_if_the_header_says_so_or_the_kind_of_image(
    tags: dict[str, Any], risky: bool, tmp_path: Path
) -> None:
    assert may_name_patient(found(tmp_path / "series", **tags)) is risky

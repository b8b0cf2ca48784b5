"""Texts without the patient: names go, sentences stay."""

from __future__ import annotations

import pytest

from monai_mvreg.predict.prediction import UnusedScan
from monai_mvreg.report.privacy import cleaner
from tests.report.test_patient import prediction


@pytest.mark.parametrize(
    ("key", "address", "text", "clean"),
    [
        ("Meier", "a.dcm", "the scan of Meier is dark", "the scan of [hidden] is dark"),
        ("Meier^Anna", "Meier/a.dcm", "Meier^Anna, that is Anna", "[hidden], that is [hidden]"),
        ("OAS2_0001", "a.dcm", "OAS2_0001_MR1 is dark", "[hidden]_MR1 is dark"),
        ("1", "x/Meier/MR/a.dcm", "data/x/Meier/MR/a.dcm: 1 of 2", "[hidden]: 1 of 2"),
        ("1", "Meier_A/t1.nii.gz#1.2.3", "Meier_A: modality MR, got t1", "[hidden]: modality MR, got t1"),
        ("1", "Anna#Meier/Visit_9/t1.nii", "Visit_9 is dark", "[hidden] is dark"),
        ("1", "images/meier.nii.gz", "expected images, meier is none", "expected images, [hidden] is none"),
        ("1", "Anna Meier/a.dcm", "Anna Meier/a.dcm is damaged", "[hidden] is damaged"),
        ("12", "a.dcm", "12 of 112 mm", "12 of 112 mm"),
        ("1234567", "a.dcm", "series of 1234567: damaged", "series of [hidden]: damaged"),
        ("", "", "nothing to hide", "nothing to hide"),
        (
            "1",
            "mr",
            "series ...1497: SMITH_ANNA_05.dcm: truncated: got 7",
            "series ...1497: [hidden]: truncated: got 7",
        ),
        ("1", "mr", "2015-03-23/05.dcm and smith.nii.gz differ, 1.5 mm", "[hidden] and [hidden] differ, 1.5 mm"),
        (
            "1",
            "mr",
            "series ...1497: IM_SMITH: truncated, 5 mm/slice",
            "series ...1497: [hidden]: truncated, 5 [hidden]",
        ),
    ],
)
def test_names_are_taken_out_and_words_stay(key: str, address: str, text: str, clean: str) -> None:
    made = prediction(1, patient=key, scans=(), left_out=(UnusedScan(address, text),))
    assert cleaner(made)(text) == clean

"""Whether an evaluation sees patients that a model was trained on, without a list of their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_mvreg.trained.training_patients import read_training_patients, write_training_patients

KEY = "Erika Mustermann 1964"
PARTS = {
    "training": [{"patient": f"{KEY}-{number}"} for number in range(5)],
    "validation": [{"patient": f"{KEY}-{number}"} for number in (7, 8)],
}


def test_patients_are_recognised_and_not_named(tmp_path: Path) -> None:
    write_training_patients(tmp_path / "patients.json", PARTS)
    known = read_training_patients(tmp_path / "patients.json")
    assert known is not None
    assert known.learned_from(f"{KEY}-{number}" for number in (3, 4, 7, 9)) == 2
    assert known.has_any([f"{KEY}-9", f"{KEY}-7"]) and not known.has_any([f"{KEY}-9", KEY])
    assert KEY not in (tmp_path / "patients.json").read_text()


def test_two_trainings_of_the_same_patients_cannot_be_linked(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_training_patients(tmp_path / name, PARTS)
    one, other = (read_training_patients(tmp_path / name) for name in ("one", "other"))
    assert one is not None and other is not None and not one.training & other.training


def test_where_there_is_no_file_nothing_is_known_and_another_file_is_refused(tmp_path: Path) -> None:
    assert read_training_patients(tmp_path / "patients.json") is None
    (tmp_path / "patients.json").write_text('{"training": []}')
    with pytest.raises(ValueError, match=r"patients\.json: expected the hashed patients of a training"):
        read_training_patients(tmp_path / "patients.json")

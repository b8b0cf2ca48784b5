"""An archive and a list of patients -> scans on disk: whole studies, each once, of nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from make_dicom import CANARY
from orthanc import study

from monai_mvreg.service.archive import ArchivedStudy, ArchiveError
from monai_mvreg.service.pull import pull_patients
from monai_mvreg.service.queue import read_facts


class Shelf:
    """An archive that is a folder per study; what is named in ``broken`` ends half way."""

    def __init__(self, *folders: Path) -> None:
        self.held = {read_facts(next(folder.iterdir())): folder for folder in folders}
        self.broken: set[str] = set()
        self.fetched: list[str] = []

    def studies(self, patient: str) -> list[ArchivedStudy]:
        return [ArchivedStudy(one.study, one.date, frozenset({"MR"})) for one in self.held if one.patient == patient]

    def fetch(self, study: str, modalities: Collection[str], folder: Path) -> int:
        files = next(sorted(at.iterdir()) for one, at in self.held.items() if one.study == study)
        for file in files[:1] if study in self.broken else files:
            shutil.copy(file, folder / f"{file.name}.dcm")
        if study in self.broken:
            raise ArchiveError("the retrieval of a study failed: ConnectionError")
        self.fetched.append(study)
        return len(files)


@pytest.fixture
def archive(tmp_path: Path) -> Any:
    made = [study(tmp_path / f"a{year}", number=1, date=f"{year}0101", patient=CANARY) for year in (2019, 2021)]
    return Shelf(*made, study(tmp_path / "b", number=2, patient="B"))


def tree(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.dcm"))


def test_each_patient_has_a_numbered_folder_that_names_nobody(archive: Any, tmp_path: Path) -> None:
    found = pull_patients([CANARY, "B", "nobody"], tmp_path / "out", archive=archive)
    assert (found.studies, found.objects, found.absent, found.failed) == (3, 9, (4,), ())
    names = tree(tmp_path / "out")
    assert len(names) == 9 and {name.split("/")[0] for name in names} == {"patient-0001", "patient-0002"}
    assert CANARY not in "".join(names) and "1.2.826" not in "".join(names)


def test_what_is_there_is_not_fetched_again(archive: Any, tmp_path: Path) -> None:
    pull_patients([CANARY], tmp_path / "out", archive=archive)
    again = pull_patients([CANARY, "B"], tmp_path / "out", archive=archive)
    assert (again.studies, again.objects) == (1, 3) and len(archive.fetched) == 3


def test_a_study_that_broke_off_is_not_there_and_comes_the_next_time(archive: Any, tmp_path: Path) -> None:
    archive.broken = {one.study for one in archive.held if one.date == "20210101"}
    found = pull_patients([CANARY, "B"], tmp_path / "out", archive=archive)
    assert [row for row, _ in found.failed] == [2] and CANARY not in found.failed[0][1]
    assert len(tree(tmp_path / "out")) == 6
    archive.broken = set()
    assert pull_patients([CANARY, "B"], tmp_path / "out", archive=archive).studies == 1
    assert len(tree(tmp_path / "out")) == 9


def test_only_studies_between_the_dates_are_fetched(archive: Any, tmp_path: Path) -> None:
    found = pull_patients([CANARY, "B"], tmp_path / "out", archive=archive, since="20200101", until="20210101")
    assert found.studies == 1 and found.absent == (3,)


def test_only_studies_of_the_modality_are_fetched(archive: Any, tmp_path: Path) -> None:
    assert pull_patients(["B"], tmp_path / "out", archive=archive, modalities=["CT"]).absent == (2,)


def test_an_object_of_another_patient_is_not_kept(archive: Any, tmp_path: Path) -> None:
    (of_b,) = (folder for facts, folder in archive.held.items() if facts.patient == "B")
    for facts in list(archive.held):
        if facts.patient == CANARY:
            archive.held[facts] = of_b
    found = pull_patients([CANARY], tmp_path / "out", archive=archive)
    assert "another patient" in found.failed[0][1]
    assert tree(tmp_path / "out") == []


def test_rows_that_moved_are_refused_before_patients_are_mixed(archive: Any, tmp_path: Path) -> None:
    pull_patients([CANARY, "B"], tmp_path / "out", archive=archive)
    with pytest.raises(ValueError, match="row 2: expected the same patient as before") as error:
        pull_patients(["B", CANARY], tmp_path / "out", archive=archive)
    assert CANARY not in str(error.value)

"""Ids of a datastore -> the folder of one patient. The datastores here stand in for MONAI Label's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_mvreg.label.request import read_question
from monai_mvreg.label.stores import ArchiveStore, FolderStore, NotThereError, gather, image_at


class StandInFolder:
    """MONAI Label's datastore of a folder, as far as it is asked."""

    def __init__(self, folder: Path, info: dict[str, dict[str, Any]]) -> None:
        self.folder, self.info = folder, info

    def list_images(self) -> list[str]:
        return list(self.info)

    def get_image_info(self, image: str) -> dict[str, Any]:
        return self.info[image]

    def get_image_uri(self, image: str) -> str:
        return str(self.folder / f"{image}.nii.gz")


class StandInArchive:
    """A DICOM archive that ignores every filter, as one may; ``asked`` is what it was asked for."""

    def __init__(self, series: list[tuple[str, str, str]]) -> None:
        self._client, self.series, self.asked = self, series, []

    def search_for_series(self, *, search_filters: dict[str, str], **_: Any) -> list[dict[str, Any]]:
        self.asked.append(search_filters)
        tags = ("00100020", "0020000E", "00080060")
        return [{tag: {"Value": [value]} for tag, value in zip(tags, one, strict=True)} for one in self.series]


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    home = tmp_path / "studies"
    home.mkdir()
    info: dict[str, dict[str, Any]] = {name: {} for name in ("P1_a", "P1_b", "P10_a", "P1-2_a", "odd")}
    info["odd"] = {"patient": "P1"}
    for name in info:
        (home / f"{name}.nii.gz").write_text(name)
    return FolderStore(StandInFolder(home, info), home)


def put(tmp_path: Path, store: Any, **asked: Any) -> list[str]:
    place = tmp_path / "gathered"
    place.mkdir(exist_ok=True)
    gather(read_question(asked), store, place)
    return sorted(path.name for path in place.iterdir())


def test_an_image_alone_is_that_file(folder: FolderStore, tmp_path: Path) -> None:
    assert put(tmp_path, folder, image="P10_a") == ["P10_a.nii.gz"]
    assert (tmp_path / "gathered" / "P10_a.nii.gz").read_text() == "P10_a"


def test_all_scans_are_those_of_the_patient_and_of_none_whose_name_begins_alike(
    folder: FolderStore, tmp_path: Path
) -> None:
    names = ["P1_a.nii.gz", "P1_b.nii.gz", "odd.nii.gz"]
    assert put(tmp_path, folder, image="P1_a", scans="patient") == names


def test_a_patient_may_be_named_in_place_of_an_image(folder: FolderStore, tmp_path: Path) -> None:
    assert put(tmp_path, folder, image="P10", patient="P10") == ["P10_a.nii.gz"]


def test_an_image_of_another_patient_than_the_named_one_is_refused(folder: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another one's"):
        put(tmp_path, folder, image="P10_a", patient="P1")


@pytest.mark.parametrize(
    "asked", [{"image": "P9_a"}, {"image": "P1_a", "images": ["P9_a"]}, {"image": "x", "patient": "P9"}]
)
def test_what_is_not_there_is_said(asked: dict[str, Any], folder: FolderStore, tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="none such"):
        put(tmp_path, folder, **asked)


def test_a_link_out_of_the_folder_is_not_followed(folder: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.nii.gz").write_text("secret")
    (tmp_path / "studies" / "odd.nii.gz").unlink()
    (tmp_path / "studies" / "odd.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(NotThereError, match="inside the folder"):
        put(tmp_path, folder, image="odd")


SERIES = [("P1", "1.2.1", "MR"), ("P1", "1.2.2", "MR"), ("P1", "1.2.3", "SEG"), ("P10", "1.2.4", "MR")]


def test_an_archive_that_ignores_the_filter_gives_no_other_patient() -> None:
    assert ArchiveStore(StandInArchive(SERIES), ["MR"]).images_of("P1") == ["1.2.1", "1.2.2"]


def test_images_of_nobody_are_not_taken_for_one_patient(tmp_path: Path) -> None:
    archive = ArchiveStore(StandInArchive([("", "1.2.1", "MR"), ("", "1.2.2", "MR")]), ["MR"])
    with pytest.raises(ValueError, match="expected an image with a PatientID"):
        put(tmp_path, archive, image="1.2.1", scans="patient")


def test_a_model_that_knows_no_modalities_takes_all() -> None:
    assert ArchiveStore(StandInArchive(SERIES), []).images_of("P1") == ["1.2.1", "1.2.2", "1.2.3"]


def test_a_series_is_of_its_patient() -> None:
    assert ArchiveStore(StandInArchive(SERIES), ["MR"]).patient_of("1.2.4") == "P10"


def test_what_is_no_uid_is_never_asked_of_an_archive() -> None:
    archive = StandInArchive(SERIES)
    with pytest.raises(NotThereError):
        ArchiveStore(archive, ["MR"]).patient_of("1.2.%2e")
    assert archive.asked == []


def test_an_archive_that_names_a_path_as_a_series_is_not_believed() -> None:
    assert ArchiveStore(StandInArchive([("P1", "../../x", "MR")]), ["MR"]).images_of("P1") == []


@pytest.mark.parametrize(
    ("address", "image"),
    [
        ("P1_a.nii.gz", "P1_a"),
        (".#1.2.3", "."),
        ("1.2.3#1.2.3", "1.2.3"),
        ("1.2.3/a.dcm", "1.2.3"),
        ("s.nrrd", "s"),
        ("a.b.nii", "a.b"),
    ],
)
def test_an_address_leads_back_to_its_image(address: str, image: str) -> None:
    assert image_at(address) == image

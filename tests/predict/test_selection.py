from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_model import BUNDLE, write_model, write_scan, write_visit

from monai_mvreg.predict.selection import find_patient
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.trained.trained_model import Trained, read_trained


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return read_trained(BUNDLE, write_model(tmp_path_factory.mktemp("model") / "models"), torch.device("cpu"))


def test_dates_stand_in_the_header_the_name_or_the_folder(model: Trained, tmp_path: Path) -> None:
    write_visit(tmp_path / "p" / "mr", date="20200110", seed=1)
    write_scan(tmp_path / "p" / "ses-20200101" / "t1.nii.gz", seed=2)
    write_scan(tmp_path / "p" / "t1_2020-02-01.nii.gz", seed=3)
    found = find_patient(tmp_path / "p", model)
    assert [Path(scan).name for scan in found.patient.scans] == ["t1.nii.gz", "mr", "t1_2020-02-01.nii.gz"]
    assert found.patient.days == (0.0, 9.0, 31.0)


def test_a_date_in_the_path_to_the_folder_is_none_of_the_scans(model: Trained, tmp_path: Path) -> None:
    write_visit(tmp_path / "export-2019-01-01" / "p" / "mr", date="20200110", seed=1)
    write_scan(tmp_path / "export-2019-01-01" / "p" / "t1.nii.gz", seed=2)
    found = find_patient(tmp_path / "export-2019-01-01" / "p", model)
    assert [item.address for item in found.left_out] == ["t1.nii.gz"]


def test_a_zip_is_a_folder(model: Trained, tmp_path: Path) -> None:
    write_visit(tmp_path / "p" / "mr", date="20200110", seed=1)
    write_visit(tmp_path / "p" / "later", date="20200120", seed=2)
    shutil.make_archive(str(tmp_path / "p"), "zip", tmp_path / "p")
    assert zipfile.is_zipfile(tmp_path / "p.zip")
    found = find_patient(tmp_path / "p.zip", model)
    assert found.patient.days == (0.0, 10.0)


def test_a_model_that_reads_no_dates_takes_scans_without_one(tmp_path: Path) -> None:
    undated = read_trained(BUNDLE, write_model(tmp_path / "m" / "models", dated=False), torch.device("cpu"))
    write_visit(tmp_path / "p" / "mr", date="20200110", seed=1)
    write_scan(tmp_path / "p" / "t1.nii.gz", seed=2)
    found = find_patient(tmp_path / "p", undated)
    assert len(found.patient.scans) == 2 and not found.left_out


def test_where_no_scan_is_left_the_reasons_are_named(model: Trained, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(ValueError, match="got none: no files"):
        find_patient(tmp_path / "p", model)
    (tmp_path / "p" / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="got none: no scan: another format"):
        find_patient(tmp_path / "p", model)
    with pytest.raises(ScanError):
        find_patient(tmp_path / "q", model)


def test_files_that_could_not_be_read_are_warned_of_and_those_of_other_kinds_are_not(
    model: Trained, tmp_path: Path
) -> None:
    write_visit(tmp_path / "p" / "mr", date="20200110", seed=1)
    (tmp_path / "p" / "notes.txt").write_text("nothing")
    write_visit(tmp_path / "p" / "scout", date="20200505", seed=6, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert find_patient(tmp_path / "p", model).warnings == ()
    cut = write_visit(tmp_path / "p" / "later", date="20200120", seed=2) / "im1"
    cut.write_bytes(cut.read_bytes()[:-40])
    found = find_patient(tmp_path / "p", model)
    assert [(w.check, w.message) for w in found.warnings] == [("left_out", "files or series that could not be read: 1")]


def test_scans_that_do_not_say_whose_they_are_are_warned_of(model: Trained, tmp_path: Path) -> None:
    write_scan(tmp_path / "one" / "t1_2020-01-01.nii", seed=2)
    write_scan(tmp_path / "one" / "t1_2020-02-01.nii", seed=3)
    assert find_patient(tmp_path / "one", model).warnings == ()
    write_visit(tmp_path / "two" / "mr", date="20200110", seed=1)
    write_scan(tmp_path / "two" / "t1_2020-01-01.nii", seed=2)
    assert [w.check for w in find_patient(tmp_path / "two", model).warnings] == ["patient"]


@pytest.mark.parametrize(
    ("files", "patients"),
    [
        (["a/t1_2020-01-01.nii", "b/t1_2020-02-01.nii"], 2),
        (["a/x.nii", "b/x.nii", "c/deep/x.nii"], 3),
        (["sub-01_ses-1_T1w.nii", "sub-02_ses-1_T1w.nii"], 2),
        (["data/sub-01/ses-1/T1w.nii", "data/sub-02/ses-1/T1w.nii"], 2),
        (["2020-01-01/t1.nii", "2020-02-01/t1.nii"], 1),
        (["baseline_20200101/t1.nii", "followup_20200601/t1.nii"], 1),
        (["ses-1/t1.nii", "ses-2/t1.nii"], 1),
        (["sub-01/ses-1/T1w.nii", "sub-01/ses-2/T1w.nii"], 1),
        (["t1_2020-01-01.nii", "t1_2020-02-01.nii"], 1),
    ],
)
def test_folders_that_may_be_patients_are_refused_and_visits_are_not(
    model: Trained, tmp_path: Path, files: list[str], patients: int
) -> None:
    for seed, name in enumerate(files):
        write_scan(tmp_path / "p" / name, seed=seed)
    if patients == 1:
        assert len(find_patient(tmp_path / "p", model).patient.scans) == len(files)
        return
    with pytest.raises(ValueError, match=f"got files in {patients} folders that may be patients.*--each"):
        find_patient(tmp_path / "p", model)


def test_copies_of_images_are_left_out_and_told(model: Trained, tmp_path: Path) -> None:
    write_visit(tmp_path / "p" / "mr", date="20200110", seed=1)
    image = min((tmp_path / "p" / "mr").iterdir())
    shutil.copy(image, tmp_path / "p" / "again.dcm")
    found = find_patient(tmp_path / "p", model)
    assert len(found.patient.scans) == 1 and not found.warnings
    assert [item.reason for item in found.left_out] == [
        f"no scan: again.dcm and mr/{image.name} are the same image twice: one is used (1 such files)"
    ]

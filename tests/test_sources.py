"""Folders to rows of a cohort table."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from monai_mvreg.cohort.sources import rows_from_bids, rows_from_dicom, rows_from_nifti


def write_nifti(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), path)


def write_dicom(path: Path, patient: str, date: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    for tag in ("AcquisitionDate", "SeriesDate", "ContentDate"):
        if tag in image:
            del image[tag]
    image.PatientID, image.StudyDate = patient, date
    image.SeriesInstanceUID = pydicom.uid.generate_uid()
    image.save_as(path)


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    for session in ("ses-b", "ses-a"):
        write_nifti(tmp_path / "sub-01" / session / "anat" / f"sub-01_{session}_T1w.nii.gz")
    write_nifti(tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_acq-x_FLAIR.nii")
    write_nifti(tmp_path / "sub-02/anat/sub-02_T1w.nii.gz")
    write_nifti(tmp_path / "derivatives/sub-01/anat/sub-01_mask.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tgroup\nsub-01\t61.5\tNA\nsub-02\tn/a\tb\n")
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-b\t2011-02-01T09:30:00\nses-a\t2011-03-03T08:00:00.5\n"
    )
    return tmp_path


def test_bids_rows_carry_path_day_suffix_and_the_columns_of_participants(bids: Path) -> None:
    rows = rows_from_bids(bids)
    assert list(rows["patient"]) == ["sub-01", "sub-01", "sub-01", "sub-02"]
    assert rows["path"][0] == "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz"
    assert list(rows["day"][:3]) == [0, 30, 30] and np.isnan(rows["day"][3])
    assert list(rows["modality"]) == ["T1w", "T1w", "FLAIR", "T1w"]
    assert list(rows["age"][:3]) == [61.5] * 3 and np.isnan(rows["age"][3])
    assert list(rows["group"]) == ["NA", "NA", "NA", "b"]


def test_bids_without_sessions_file_leaves_the_day_empty(bids: Path) -> None:
    (bids / "sub-01/sub-01_sessions.tsv").unlink()
    assert rows_from_bids(bids)["day"].isna().all()


def test_bids_without_participants_is_refused(bids: Path) -> None:
    (bids / "participants.tsv").unlink()
    with pytest.raises(ValueError, match=r"participants\.tsv"):
        rows_from_bids(bids)


def test_a_participant_without_a_folder_is_named_by_row_and_not_by_name(bids: Path) -> None:
    with (bids / "participants.tsv").open("a") as file:
        file.write("sub-Jane\t1\ta\n")
    with pytest.raises(ValueError, match="rows 4") as error:
        rows_from_bids(bids)
    assert "Jane" not in str(error.value)


def test_a_repeated_participant_is_refused(bids: Path) -> None:
    with (bids / "participants.tsv").open("a") as file:
        file.write("sub-02\t1\ta\n")
    with pytest.raises(ValueError, match="repeat in rows 4"):
        rows_from_bids(bids)


def test_a_session_date_that_is_no_date_is_refused_by_row(bids: Path) -> None:
    (bids / "sub-01/sub-01_sessions.tsv").write_text("session_id\tacq_time\nses-a\tspring\n")
    with pytest.raises(ValueError, match=r"row 2: .* ISO dates") as error:
        rows_from_bids(bids)
    assert "sub-01" not in str(error.value)


def test_bids_without_an_image_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-01\n")
    with pytest.raises(ValueError, match="_<suffix>"):
        rows_from_bids(tmp_path)


def test_nifti_dates_in_file_or_folder_names_give_days(tmp_path: Path) -> None:
    write_nifti(tmp_path / "p1/2020-03-01/t1.nii.gz")
    write_nifti(tmp_path / "p1/scan_20200131.nii")
    rows = rows_from_nifti(tmp_path)
    assert rows.to_dict("list") == {
        "patient": ["p1", "p1"],
        "path": ["p1/scan_20200131.nii", "p1/2020-03-01/t1.nii.gz"],
        "day": [0.0, 30.0],
        "modality": ["", ""],
    }


def test_one_undated_nifti_leaves_all_days_of_its_patient_empty(tmp_path: Path) -> None:
    for name in ("p1/20200101_a.nii", "p1/b.nii", "p1/20209999.nii", "p2/20200101.nii", "p2/20200105.nii"):
        write_nifti(tmp_path / name)
    rows = rows_from_nifti(tmp_path).set_index("patient")["day"]
    assert rows["p1"].isna().all() and list(rows["p2"]) == [0, 4]


def test_nifti_outside_the_patient_folders_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "p1/a.nii")
    write_nifti(tmp_path / "loose.nii")
    with pytest.raises(ValueError, match="got 1 NIfTI files beside"):
        rows_from_nifti(tmp_path)


@pytest.mark.parametrize("read", [rows_from_nifti, rows_from_dicom])
def test_an_empty_folder_is_refused_with_what_was_looked_for(read: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected (NIfTI|DICOM)"):
        read(tmp_path)  # type: ignore[operator]


def test_dicom_rows_count_days_from_each_patients_first_scan_and_list_the_rest(tmp_path: Path) -> None:
    write_dicom(tmp_path / "x/1", "ZZPHI2", "20200301")
    write_dicom(tmp_path / "y/2", "ZZPHI1", "20200110")
    write_dicom(tmp_path / "x/3", "ZZPHI1", "20200120")
    write_dicom(tmp_path / "x/4", "ZZPHI1", "")
    write_dicom(tmp_path / "x/5", "", "20200120")
    write_nifti(tmp_path / "x/6.nii")
    rows, left_out = rows_from_dicom(tmp_path)
    assert list(rows["patient"]) == ["ZZPHI1"] * 3 + ["ZZPHI2"]
    assert list(rows["path"]) == ["y/2", "x/3", "x/4", "x/1"]
    assert list(rows["day"].fillna(-1)) == [0, 10, -1, 0]
    assert set(rows["modality"]) == {"MR"}
    assert sorted(item.path.name for item in left_out) == ["5", "6.nii"]
    assert "ZZPHI" not in repr(left_out)


def test_each_path_of_dicom_rows_opens_with_the_reader(tmp_path: Path) -> None:
    from monai_mvreg.scans import ScanReader

    write_dicom(tmp_path / "x/1", "a", "20200301")
    rows, _ = rows_from_dicom(tmp_path)
    assert ScanReader().read(tmp_path / rows["path"][0])[0].shape == (64, 64)

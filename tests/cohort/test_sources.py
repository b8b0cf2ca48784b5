"""Folders to rows of a cohort table."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.data import get_testdata_file

from monai_mvreg.cohort.sources import join_outcomes, pseudonym, rows_from_bids, rows_from_scans
from monai_mvreg.scans.find import LeftOut, find_scans
from monai_mvreg.scans.read import read_scan


def write_nifti(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), path)


def write_dicom(path: Path, patient: str, date: str, time: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    for tag in ("AcquisitionDate", "SeriesDate", "ContentDate"):
        if tag in image:
            del image[tag]
    image.PatientID, image.StudyDate, image.StudyTime = patient, date, time
    image.SOPInstanceUID = pydicom.uid.generate_uid()
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
    assert list(rows["age"][:3].astype(float)) == [61.5] * 3 and pd.isna(rows["age"][3])
    assert list(rows["group"]) == ["NA", "NA", "NA", "b"]


def test_texts_of_participants_stay_what_they_are(bids: Path) -> None:
    (bids / "participants.tsv").write_text("participant_id\tsite\tfold\nsub-01\t007\tTRUE\nsub-02\t1e5\tNA\n")
    rows = rows_from_bids(bids)
    assert list(rows["site"]) == ["007", "007", "007", "1e5"] and list(rows["fold"]) == ["TRUE", "TRUE", "TRUE", "NA"]


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


def rows_of(folder: Path) -> tuple[pd.DataFrame, list[LeftOut]]:
    return rows_from_scans(folder, find_scans(folder)[0])


def test_dates_in_file_or_folder_names_give_days_where_files_have_none(tmp_path: Path) -> None:
    write_nifti(tmp_path / "p1/2020-03-01/t1.nii.gz")
    write_nifti(tmp_path / "p1/scan_20200131.nii")
    rows, left_out = rows_of(tmp_path)
    assert not left_out and rows.to_dict("list") == {
        "patient": ["p1", "p1"],
        "path": ["p1/scan_20200131.nii", "p1/2020-03-01/t1.nii.gz"],
        "day": [0.0, 30.0],
        "modality": ["", ""],
        "body_part": ["", ""],
        "size": ["2x2x2", "2x2x2"],
        "spacing": ["1x1x1", "1x1x1"],
        "frames": [1, 1],
    }


def test_one_undated_file_leaves_all_days_of_its_patient_empty(tmp_path: Path) -> None:
    for name in ("p1/20200101_a.nii", "p1/b.nii", "p1/20209999.nii", "p2/20200101.nii", "p2/20200105.nii"):
        write_nifti(tmp_path / name)
    rows = rows_of(tmp_path)[0].set_index("patient")["day"]
    assert rows["p1"].isna().all() and list(rows["p2"]) == [0, 4]


def test_files_outside_the_patient_folders_belong_to_nobody(tmp_path: Path) -> None:
    write_nifti(tmp_path / "p1/a.nii")
    write_nifti(tmp_path / "loose.nii")
    rows, left_out = rows_of(tmp_path)
    assert list(rows["patient"]) == ["p1"]
    assert [(item.path.name, "no patient" in item.reason) for item in left_out] == [("loose.nii", True)]


def test_dicom_rows_count_days_from_each_patients_first_scan_in_the_order_of_the_clock(tmp_path: Path) -> None:
    write_dicom(tmp_path / "x/1", "ZZPHI2", "20200301")
    write_dicom(tmp_path / "a/2", "ZZPHI1", "20200110", "1500")
    write_dicom(tmp_path / "y/2", "ZZPHI1", "20200110", "0930")
    write_dicom(tmp_path / "x/3", "ZZPHI1", "20200120")
    write_dicom(tmp_path / "x/4", "ZZPHI1", "")
    write_dicom(tmp_path / "x/5", "", "20200120")
    rows, left_out = rows_of(tmp_path)
    assert list(rows["patient"]) == ["ZZPHI1"] * 4 + ["ZZPHI2"]
    assert list(rows["path"]) == ["y/2", "a/2", "x/3", "x/4", "x/1"]
    assert list(rows["day"].fillna(-1)) == [0, 0, 10, -1, 0]
    assert set(rows["modality"]) == {"MR"} and set(rows["size"]) == {"64x64"}
    assert [item.path.name for item in left_out] == ["5"] and "ZZPHI" not in repr(left_out)


def test_each_path_opens_with_the_reader(tmp_path: Path) -> None:
    write_dicom(tmp_path / "x/1", "a", "20200301")
    rows, _ = rows_of(tmp_path)
    assert read_scan(tmp_path / rows["path"][0]).array.shape == (64, 64)


def test_outcomes_are_joined_by_patient_and_every_row_without_a_match_is_listed(tmp_path: Path) -> None:
    rows = pd.DataFrame({"patient": ["a", "a", "b", "c"], "path": list("wxyz")})
    (tmp_path / "o.csv").write_text("id,volume,unit\nc,3,mL\na,1.50,mL\nnobody,9,mL\nno one,8,mL\n")
    joined, sentences = join_outcomes(rows, tmp_path / "o.csv", patient="id")
    assert list(joined["volume"].fillna("")) == ["1.50", "1.50", "", "3"] and list(joined["path"]) == list("wxyz")
    assert sentences == [
        "o.csv: no scan of the patients in rows 4, 5",
        "no outcome in o.csv for the scans in rows 4 of the table: fill it in or delete these rows",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,v\na,1\na,2\n", "row 3, column 'id': expected each patient once, row 2 has the same"),
        ("id,path\na,1\n", "expected no column of the cohort's own names, got ['path']"),
        ("patient,v\na,1\n", "expected a column 'id'"),
        ("id,v\n,1\n", "row 2, column 'id': expected a value"),
    ],
)
def test_outcomes_that_cannot_be_joined_are_refused(text: str, words: str, tmp_path: Path) -> None:
    rows = pd.DataFrame({"patient": ["a"], "path": ["x"]})
    (tmp_path / "o.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        join_outcomes(rows, tmp_path / "o.csv", patient="id")


def test_a_pseudonym_is_the_same_with_the_same_secret_alone() -> None:
    # RFC 4231, test case 2, with the digest cut to 16 digits.
    assert pseudonym("what do ya want for nothing?", b"Jefe") == "5bdcc146bf60754e"
    assert len({pseudonym("a", b"1"), pseudonym("a", b"2"), pseudonym("b", b"1")}) == 3

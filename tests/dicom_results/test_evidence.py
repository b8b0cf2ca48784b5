"""Which instances a prediction was made from, whose they are, and the UID of a result."""

from __future__ import annotations

import logging
import shutil
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_results import MODEL, NUMBER, predicted, scans_in, write_study
from make_dicom import CANARY, at, enhanced, item, save
from tiny_model import write_scan

from monai_mvreg.dicom_results.evidence import fitted, newest, read_header, result_uid, silent, used_instances
from monai_mvreg.predict.prediction import Prediction, SurvivalCurve, UnusedScan
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import scan_at


def referenced(prediction: Prediction, home: Path) -> set[tuple[str, tuple[int, ...]]]:
    return {(one.uid, one.frames) for source in used_instances(prediction, home=home) for one in source.instances}


def uids(folder: Path) -> set[str]:
    return {str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.rglob("im*")}


def refused(prediction: Prediction, home: Path) -> str:
    with pytest.raises(ValueError) as error:
        used_instances(prediction, home=home)
    assert CANARY not in str(error.value)
    return str(error.value)


def test_every_instance_of_the_used_scans_is_found_and_no_other(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_study(tmp_path / name, uid=f"1.2.{ord(name)}")
    used = [scan for scan in scans_in(tmp_path) if not scan.address.endswith("b")]
    assert {uid for uid, _ in referenced(predicted(tmp_path, used), tmp_path)} == uids(tmp_path / "a") | uids(
        tmp_path / "c"
    )


def test_of_a_series_with_several_volumes_those_of_the_used_one_are_found(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", EchoTime=20)
    write_study(tmp_path / "late", uid="1.2.3", EchoTime=80)
    late = uids(tmp_path / "late")
    for path in (tmp_path / "late").iterdir():
        path.rename(tmp_path / "a" / f"late_{path.name}")
    (long,) = [scan for scan in scans_in(tmp_path) if "80" in scan.key]
    assert long.address.endswith("a#1.2.3:echo-80")
    assert referenced(predicted(tmp_path, [long]), tmp_path) == {(uid, ()) for uid in late}


def two_echoes(path: Path) -> Path:
    echo = {time: {"MREchoSequence": item(EffectiveEchoTime=time)} for time in (20.0, 80.0)}
    frames = [{"PlanePositionSequence": at(z), **echo[time]} for z in (0.0, 2.0, 4.0) for time in (20.0, 80.0)]
    image = enhanced(frames, StudyInstanceUID="1.2.9", FrameOfReferenceUID="1.2.8")
    return save(image, path)


def test_of_a_multi_frame_object_the_used_frames_are_named_from_1(tmp_path: Path) -> None:
    uid = str(pydicom.dcmread(two_echoes(tmp_path / "im")).SOPInstanceUID)
    short, long = scans_in(tmp_path)
    assert referenced(predicted(tmp_path, [short]), tmp_path) == {(uid, (1, 3, 5))}
    assert referenced(predicted(tmp_path, [long]), tmp_path) == {(uid, (2, 4, 6))}


def test_of_a_multi_frame_object_that_was_used_whole_no_frame_is_named(tmp_path: Path) -> None:
    image = enhanced([{"PlanePositionSequence": at(z)} for z in (0.0, 2.0)], StudyInstanceUID="1.2.9")
    save(image, tmp_path / "im")
    assert referenced(predicted(tmp_path), tmp_path) == {(str(image.SOPInstanceUID), ())}


def test_scans_in_a_zip_are_found(tmp_path: Path) -> None:
    write_study(tmp_path / "study" / "a", uid="1.2.3")
    found = uids(tmp_path / "study")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in (tmp_path / "study").rglob("im*"):
            archive.write(path, path.relative_to(tmp_path))
    shutil.rmtree(tmp_path / "study")
    home = tmp_path / "study.zip"
    prediction = predicted(home)
    assert prediction.scans[0].address.startswith("study.zip")
    assert {uid for uid, _ in referenced(prediction, home)} == found


def test_scans_that_are_not_dicom_are_left_to_their_hash(tmp_path: Path) -> None:
    write_scan(tmp_path / "a" / "x.nii", seed=1)
    write_study(tmp_path / "b", uid="1.2.3")
    (source,) = used_instances(predicted(tmp_path), home=tmp_path)
    assert source.place == 1


def test_a_prediction_without_a_dicom_scan_is_refused(tmp_path: Path) -> None:
    write_scan(tmp_path / "x.nii", seed=1)
    assert refused(predicted(tmp_path), tmp_path).startswith("expected a DICOM scan among the 1 used, got none")


def test_scans_of_two_patients_are_refused_without_telling_who_they_are(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    write_study(tmp_path / "b", uid="1.2.4", PatientID=f"{CANARY}2")
    assert refused(predicted(tmp_path), tmp_path).startswith("expected scans with one PatientID, got 2 in 2 scans")


def test_a_scan_of_nobody_is_no_scan_of_the_patient(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    write_study(tmp_path / "b", uid="1.2.4", PatientID="")
    assert "got 2 in 2 scans" in refused(predicted(tmp_path), tmp_path)


def test_studies_without_any_patientid_are_refused_and_one_alone_is_not(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", PatientID="")
    assert len(used_instances(predicted(tmp_path), home=tmp_path)) == 1
    write_study(tmp_path / "b", uid="1.2.4", PatientID="")
    assert refused(predicted(tmp_path), tmp_path).startswith("expected a PatientID in scans of several studies")


def test_one_patientid_of_two_hospitals_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", IssuerOfPatientID="one")
    write_study(tmp_path / "b", uid="1.2.4")
    assert len(used_instances(predicted(tmp_path), home=tmp_path)) == 2
    write_study(tmp_path / "c", uid="1.2.5", IssuerOfPatientID="other")
    assert refused(predicted(tmp_path), tmp_path).startswith("expected scans with one IssuerOfPatientID, got 2")


def test_scans_that_have_changed_since_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    prediction = predicted(tmp_path)
    path = tmp_path / "a" / "im0"
    image = pydicom.dcmread(path)
    image.PixelData = (np.frombuffer(image.PixelData, "<u2") + 1).tobytes()
    image.save_as(path)
    assert refused(prediction, tmp_path).startswith("scan 1: expected the files that it was predicted from")


def test_scans_that_are_gone_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3")
    prediction = predicted(tmp_path)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ScanError):
        used_instances(prediction, home=tmp_path)


def test_an_instance_without_a_uid_cannot_be_referred_to(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", StudyInstanceUID="")
    assert refused(predicted(tmp_path), tmp_path).startswith("scan 1: expected StudyInstanceUID, SOPInstanceUID")


def test_slices_at_uneven_distances_are_found_as_the_reader_resamples_them(tmp_path: Path) -> None:
    write_study(tmp_path / "a", uid="1.2.3", heights=(0, 2, 4, 6.8, 9.6))
    scan = scan_at(str(tmp_path / "a"), resample=True)
    prediction = predicted(tmp_path, [scan])
    assert {uid for uid, _ in referenced(prediction, tmp_path)} == uids(tmp_path / "a")
    longer = replace(prediction, scans=(replace(prediction.scans[0], address="a#1.2.3"),))  # as a table may name it
    assert {uid for uid, _ in referenced(longer, tmp_path)} == uids(tmp_path / "a")


def test_the_newest_scan_is_that_of_the_last_date_in_its_header(tmp_path: Path) -> None:
    for name, date in (("a", "20210101"), ("b", "20220101"), ("c", "20200101")):
        write_study(tmp_path / name, uid=f"1.2.{ord(name)}", date=date)
    prediction = predicted(tmp_path)
    assert newest(used_instances(prediction, home=tmp_path), prediction).scan.address.endswith("b")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_study(tmp_path / "a", uid="1.2.3")
    write_study(tmp_path / "b", uid="1.2.4")
    return tmp_path


def uid_of(prediction: Prediction, home: Path) -> str:
    return result_uid("report", prediction, used_instances(prediction, home=home))


def test_the_same_result_has_the_same_uid_wherever_its_files_lie(study: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deeper"
    moved.mkdir(parents=True)
    before = uid_of(predicted(study), study)
    for name in ("a", "b"):
        shutil.move(study / name, moved / name)
    assert uid_of(predicted(moved, patient="another key"), moved) == before
    assert pydicom.uid.UID(before).is_valid and len(before) <= 64


def test_what_is_left_out_or_differs_in_the_last_digits_changes_no_uid(study: Path) -> None:
    one = predicted(study)
    number = replace(NUMBER, value=NUMBER.value * (1 + 1e-9))
    other = replace(one, numbers=(number,), left_out=(UnusedScan("report.dcm", "a DICOM file without pixels"),))
    assert uid_of(one, study) == uid_of(other, study)


@pytest.mark.parametrize(
    "change",
    [
        {"model": replace(MODEL, weights=("d" * 64,))},
        {"model": replace(MODEL, version="1.3")},
        {"numbers": (replace(NUMBER, value=12.4),)},
        {"numbers": (replace(NUMBER, high=15.3),)},
        {"numbers": (replace(NUMBER, name="area"),)},
        {"survival": SurvivalCurve(None, (365.0,), (0.2,), (), ())},
    ],
    ids=["weights", "version", "value", "interval", "name", "risk"],
)
def test_another_model_or_number_has_another_uid(study: Path, change: dict[str, object]) -> None:
    assert uid_of(predicted(study), study) != uid_of(predicted(study, **change), study)


def test_another_scan_that_is_not_dicom_has_another_uid(study: Path) -> None:
    write_scan(study / "x.nii", seed=1)
    one = predicted(study)
    write_scan(study / "x.nii", seed=2)
    assert uid_of(one, study) != uid_of(predicted(study), study)


def test_fewer_scans_have_another_uid(study: Path) -> None:
    one = predicted(study)
    assert uid_of(one, study) != uid_of(replace(one, scans=one.scans[:1]), study)


def test_a_header_is_read_without_pixels_and_has_what_every_object_has(study: Path) -> None:
    header = read_header(study / "a" / "im0")
    assert "PixelData" not in header
    assert (header.ReferringPhysicianName, header.StudyID) == ("", "7")


def test_no_library_logs_or_warns_of_what_a_header_says(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with silent():
        logging.getLogger("pydicom").error("%s", CANARY)
        logging.getLogger("highdicom.base").warning("%s", CANARY)
        warnings.warn(CANARY, stacklevel=1)
    assert CANARY not in caplog.text and not list(recwarn)
    logging.getLogger("highdicom.base").warning("afterwards")
    assert "afterwards" in caplog.text


def test_a_text_is_made_to_fit_an_attribute() -> None:
    assert fitted("a\\b" + 70 * "c") == "a/b" + 61 * "c"  # a backslash would part it in two

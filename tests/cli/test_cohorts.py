"""The command line: instant help, one line per mistake, tables that training can read."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pandas as pd
import pydicom
import pytest
from make_dicom import new_image, save, write_slice
from mistakes import mistake
from pydicom.fileset import FileSet
from pydicom.uid import BasicTextSRStorage, generate_uid

from monai_mvreg.cli.main import main
from monai_mvreg.cohort.sources import pseudonym
from monai_mvreg.cohort.split import fold_of
from monai_mvreg.cohort.table import Columns, read_cohort
from monai_mvreg.experiments.demo import draw_patient, write_dicom, write_nifti
from monai_mvreg.scans.read import read_scan


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("id,volume\na,1\n", "expected the column 'patient' with the patients' keys, got id, volume: name it with --p"),
        ("patient,volume\na,1\na,2\n", "expected each patient once, row 2 has the same"),
        ("patient,spacing\na,1\n", "expected no column of the cohort's own names, got ['spacing']"),
    ],
)
def test_a_mistake_in_the_outcomes_is_told_before_the_search(
    table: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outcomes.csv").write_text(table)
    monkeypatch.setattr("monai_mvreg.cohort.inventory.take_inventory", lambda *_, **__: pytest.fail("searched"))
    arguments = ["--out", tmp_path / "c.csv", "--outcomes", tmp_path / "outcomes.csv"]
    assert sentence in mistake(capsys, "scan", tmp_path, *arguments)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [(f"p{i // 2:02d}", f"{i}.nii", str(i), f"{i // 2}.50", "mm") for i in range(60)]
    path = tmp_path / "cohort.csv"
    pd.DataFrame(rows, columns=["patient", "path", "day", "size", "unit"]).to_csv(path, index=False)
    return path


def test_split_puts_each_patient_in_the_fold_of_its_key(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = table.read_text().splitlines()
    assert main(["split", str(table), "--seed", "3"]) == 0
    after = table.read_text().splitlines()
    for old, new in zip(before[1:], after[1:], strict=True):
        assert new == f"{old},{fold_of(old.split(',')[0], 5, seed=3)}"
    assert "30 patients" in capsys.readouterr().out


def test_split_chooses_a_balanced_seed_and_says_to_keep_it(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.with_name("split.csv")
    assert main(["split", str(table), "--target", "size", "--folds", "3", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    sizes = pd.read_csv(out).groupby("fold")["patient"].nunique()
    assert all(f"{size} in fold {fold}" in said for fold, size in sizes.items())
    assert sizes.min() >= 7 and sizes.max() <= 13
    seed = said.partition("seed ")[2].partition(":")[0]
    again = table.with_name("again.csv")
    assert main(["split", str(table), "--folds", "3", "--seed", seed, "--out", str(again)]) == 0
    assert again.read_text() == out.read_text()


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        ({}, ["--target", "volume"], "expected a column 'volume'"),
        ({}, ["--patient", "subject"], "expected a column 'subject'"),
        ({}, ["--folds", "1"], "--folds of 2 or more"),
        ({"fold": "0"}, [], "expected no column 'fold'"),
        ({"size": ""}, ["--target", "size"], "row 2, column 'size': expected a number"),
        (
            {"size": [str(i) for i in range(60)]},
            ["--target", "size"],
            "row 3, column 'size': expected the patient's value '0' as in row 2, got '1'",
        ),
        ({"patient": " "}, [], "row 2, column 'patient': expected a value"),
        ({"patient": "one"}, [], "1 patients fill 1"),
    ],
)
def test_split_refuses_in_one_line(
    table: Path,
    change: dict[str, object],
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pd.read_csv(table, dtype=str).assign(**change).to_csv(table, index=False)
    before = table.read_bytes()
    assert words in mistake(capsys, "split", table, *arguments)
    assert table.read_bytes() == before


def test_split_refuses_what_is_no_table_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "found no file" in mistake(capsys, "split", tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    assert "expected a table in UTF-8" in mistake(capsys, "split", tmp_path / "binary.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two patients in DICOM files, one series of them broken, and one in NIfTI files without a date."""
    for number, key in enumerate(("ZZPHI-a", "ZZPHI-b")):
        patient = draw_patient(number)
        for visit, volume in enumerate(patient.volumes[:2]):
            date = patient.start + datetime.timedelta(patient.days[visit])
            write_dicom(tmp_path / f"in/{number}/{visit}", volume, date=date, patient=key)
    (tmp_path / "in/1/0/08.dcm").unlink()
    write_nifti(tmp_path / "in/c/scan.nii.gz", draw_patient(2).volumes[0])
    (tmp_path / "in/notes.txt").write_text("x")
    return tmp_path / "in"


def test_scan_shows_what_is_there_and_names_no_patient(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(folder)]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert " ".join(lines[0].split()) == "patient day modality body part size spacing (mm) frames scan"
    assert lines[1].split() == ["1", "0", "MR", "-", "24x24x16", "4x4x4", "1", "0/0"]
    assert "3 patients, 4 scans" in shown.out and "1 scans have no date" in shown.out
    assert "left out: 1/0: series" in shown.out and "1 missing" in shown.out
    assert "left out: notes.txt: no scan: another format" in shown.out
    assert f"Next: mvreg scan {folder} --out cohort.csv" in shown.out
    assert "ZZPHI" not in shown.out + shown.err and "Traceback" not in shown.err
    assert main(["scan", str(folder), "--identify"]) == 0
    assert "ZZPHI-a" in capsys.readouterr().out


def test_scan_writes_the_table_that_training_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "cohort.csv"
    assert main(["scan", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "mvreg split" in said.out and "monai.bundle run" in said.out and "ZZPHI" not in said.out + said.err
    rows = pd.read_csv(out)
    assert list(rows["patient"]) == ["ZZPHI-a", "ZZPHI-a", "ZZPHI-b", "c"]
    columns = Columns(day=None, fold=None)
    cohort = read_cohort(str(out), columns, images=str(folder))
    assert [len(patient.scans) for patient in cohort.patients] == [2, 1, 1]


def test_scan_joins_outcomes_hashes_keys_and_lists_what_has_no_match(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder.parent
    (place / "outcomes.csv").write_text("id,volume\nZZPHI-b,2.5\nZZPHI-a,1.5\nZZPHI-z,9\n")
    (place / "secret").write_text("0123456789abcdef\n")
    arguments = ["--outcomes", place / "outcomes.csv", "--patient", "id", "--hash-key", place / "secret"]
    assert main(["scan", str(folder), "--out", str(place / "c.csv"), *map(str, arguments)]) == 0
    shown = capsys.readouterr()
    assert "left out: outcomes.csv" not in shown.out
    assert "outcomes.csv: no scan of the patients in rows 4" in shown.out
    rows = pd.read_csv(place / "c.csv")
    (empty,) = rows.index[rows["volume"].isna()]
    assert f"no outcome in outcomes.csv for the scans in rows {empty + 2} of the table" in shown.out
    hashed = {pseudonym(f"ZZPHI-{name}", b"0123456789abcdef"): name for name in "abc"}
    assert list(rows["patient"]) == sorted(rows["patient"])  # in an order that tells nothing
    assert [hashed[key] for key in rows["patient"][rows["volume"] == 1.5]] == ["a", "a"]
    assert "ZZPHI" not in (place / "c.csv").read_text() + shown.out + shown.err


def test_scan_prints_json_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(folder), "--json"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(shown)
    assert [scan["patient"] for scan in found["scans"]] == ["1", "1", "2", "3"] and "ZZPHI" not in shown
    assert found["scans"][0]["shape"] == [24, 24, 16] and found["scans"][3]["day"] is None
    assert {item["path"] for item in found["left_out"]} == {"1/0", "notes.txt"}


def burn_disc(place: Path) -> Path:
    """A disc as a hospital hands it out: a DICOMDIR, 5 patients, 40 series, a viewer; two series are broken."""
    disc, made = FileSet(), place / "made"
    for patient in range(5):
        for visit in range(2):
            study = generate_uid()
            about = {"StudyInstanceUID": study, "PatientID": f"ZZPHI-{patient}", "StudyDate": f"2020010{visit + 1}"}
            about |= {"StudyTime": "1200", "StudyID": "1", "AccessionNumber": "", "PatientName": f"ZZPHI^{patient}"}
            for number in range(4):
                kind = "LOCALIZER" if number == 0 and visit == 0 else "AXIAL"
                series = {"SeriesInstanceUID": generate_uid(), "SeriesNumber": number, "ImageType": ["ORIGINAL", kind]}
                for z in range(6):
                    path = write_slice(made / "slice", 2.0 * z, InstanceNumber=z, **about, **series)
                    disc.add(pydicom.dcmread(path))
    disc.write(place / "disc")
    folders = sorted({path.parent for path in (place / "disc").rglob("IM*")})
    assert len(folders) == 40
    sorted(folders[9].iterdir())[3].unlink()
    damaged = sorted(folders[30].iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-10])
    (place / "disc/VIEWER.EXE").write_bytes(b"MZ" + bytes(1000))
    (place / "disc/AUTORUN.INF").write_text("[autorun]")
    (place / "disc/REPORT").mkdir()
    save(new_image(SOPClassUID=BasicTextSRStorage, Rows=None), place / "disc/REPORT/SR000001")
    return place / "disc"


def test_scan_turns_a_disc_into_a_table_and_lists_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disc, out = burn_disc(tmp_path), tmp_path / "cohort.csv"
    assert main(["scan", str(disc), "--out", str(out), "--thumbnails"]) == 0
    shown = capsys.readouterr()
    assert "5 patients, 33 scans" in shown.out
    left_out = [line for line in shown.out.splitlines() if line.startswith("left out: ")]
    for words in (
        "and 4 more: a localizer (ORIGINAL\\LOCALIZER)",
        "1 missing",
        "truncated: expected 24 bytes of pixels, got 14",
        "DICOMDIR: a DICOMDIR, which is followed only if it is named itself",
        "SR000001: a DICOM file without pixels (Basic Text SR Storage)",
        "AUTORUN.INF and 1 more: no scan: another format",
    ):
        assert sum(words in line for line in left_out) == 1, words
    assert len(left_out) == 6
    page = out.with_suffix(".html").read_text()
    assert page.count("<img") == 33 and "truncated" in page
    assert "ZZPHI" not in shown.out + shown.err + page
    rows = pd.read_csv(out)
    assert len(rows) == 33 and list(rows["patient"].unique()) == [f"ZZPHI-{n}" for n in range(5)]
    assert set(rows["day"]) == {0, 1}
    for address in rows["path"]:
        assert read_scan(disc / address).array.shape == (4, 3, 6)
    assert main(["scan", str(disc / "DICOMDIR")]) == 0
    assert "cannot be opened (FileNotFoundError)" in capsys.readouterr().out


def test_scan_writes_one_page_of_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "cohort.csv"
    assert main(["scan", str(folder), "--out", str(out), "--thumbnails"]) == 0
    assert f"Pictures: {out.with_suffix('.html')}" in capsys.readouterr().out
    assert out.with_suffix(".html").read_text().count("<img") == 4


def test_scan_refuses_in_one_line(folder: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected a new file" in mistake(capsys, "scan", folder, "--out", table)
    assert "there is none at" in mistake(capsys, "scan", folder / "none")
    assert "--out with --outcomes" in mistake(capsys, "scan", folder, "--outcomes", table)
    (folder / "short").write_text("x")
    assert "at least 16 characters" in mistake(
        capsys, "scan", folder, "--out", folder / "o.csv", "--hash-key", folder / "short"
    )
    empty = folder.parent / "empty"
    empty.mkdir()
    assert "found none in 0 files" in mistake(capsys, "scan", empty)
    (empty / "a").write_text("x")
    assert "found none in 1 files and series: no scan: another format" in mistake(capsys, "scan", empty)


def test_bids_lists_a_data_set_and_refuses_what_is_none(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nifti(tmp_path / "study/sub-1/anat/sub-1_T1w.nii.gz", draw_patient(0).volumes[0])
    (tmp_path / "study/participants.tsv").write_text("participant_id\tage\nsub-1\t61\n")
    out = tmp_path / "out.csv"
    assert main(["bids", str(tmp_path / "study"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 patients, 1 scans" in said and "1 scans have no date" in said and "mvreg split" in said
    assert pd.read_csv(out).loc[0, ["patient", "age"]].tolist() == ["sub-1", 61]
    assert "expected a new file" in mistake(capsys, "bids", tmp_path / "study", "--out", table)
    assert "participants.tsv" in mistake(capsys, "bids", tmp_path, "--out", tmp_path / "new.csv")
    assert "expected a folder" in mistake(capsys, "bids", tmp_path / "none", "--out", tmp_path / "new.csv")

"""The command line: instant help, one line per mistake, tables that training can read."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from monai_mvreg.cli import main
from monai_mvreg.cohort.split import fold_of
from monai_mvreg.demo import draw_patient, write_dicom, write_nifti


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [(f"p{i // 2:02d}", f"{i}.nii", str(i), f"{i // 2}.50", "mm") for i in range(60)]
    path = tmp_path / "cohort.csv"
    pd.DataFrame(rows, columns=["patient", "path", "day", "size", "unit"]).to_csv(path, index=False)
    return path


def test_help_needs_no_torch_and_no_second() -> None:
    code = (
        "import sys; from monai_mvreg.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'monai', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 2
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(verb in done.stdout for verb in ("demo", "cohort", "split"))


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("mvreg 0.")


def test_an_unknown_verb_ends_with_2() -> None:
    with pytest.raises(SystemExit) as end:
        main(["train"])
    assert end.value.code == 2


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake gives, on stderr, with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err


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


def test_cohort_lists_dicom_series_and_says_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = draw_patient(0)
    for key in ("a", "b"):
        write_dicom(tmp_path / "dicom" / key / "1", patient.volumes[0], date=patient.start, patient=key)
    (tmp_path / "dicom/a/1/16.dcm").unlink()
    (tmp_path / "dicom/b/1/08.dcm").unlink()
    out = tmp_path / "cohort.csv"
    assert main(["cohort", "dicom", str(tmp_path / "dicom"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 patients, 1 scans" in said
    assert "left out: 1 x" in said and "1 missing" in said
    assert "mvreg split" in said and "monai.bundle run" in said
    assert pd.read_csv(out).loc[0, ["patient", "path", "day"]].tolist() == ["a", "a/1", 0]


def test_cohort_says_when_scans_have_no_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nifti(tmp_path / "nifti/p1/scan.nii.gz", draw_patient(0).volumes[0])
    assert main(["cohort", "nifti", str(tmp_path / "nifti"), "--out", str(tmp_path / "cohort.csv")]) == 0
    assert "1 scans have no date" in capsys.readouterr().out


def test_cohort_never_writes_over_a_table(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected a new file" in mistake(capsys, "cohort", "nifti", table.parent, "--out", table)


def test_cohort_refuses_an_empty_folder_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cohort.csv"
    for layout in ("bids", "nifti", "dicom"):
        assert "expected" in mistake(capsys, "cohort", layout, tmp_path, "--out", out)
        assert "expected a folder" in mistake(capsys, "cohort", layout, tmp_path / "none", "--out", out)
    assert not out.exists()

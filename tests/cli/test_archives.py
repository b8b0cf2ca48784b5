"""The verbs for archives: settings are checked before anything starts, and a pull ends in a table."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from orthanc import Orthanc, free_port, needs_orthanc, running, study
from tiny_model import BUNDLE, write_model

from monai_mvreg.cli.main import main
from monai_mvreg.cohort.inventory import take_inventory


@needs_orthanc
def test_pull_writes_the_scans_and_the_table_of_mvreg_scan_with_the_outcomes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Orthanc(tmp_path / "orthanc", listener_port=free_port())
    (tmp_path / "patients.csv").write_text("id,volume\nA,3.5\nB,4.5\nC,1\n")
    with running(archive):
        archive.put(
            study(tmp_path / "1", number=1, date="20200101", patient="A"),
            study(tmp_path / "2", number=2, date="20210101", patient="A"),
            study(tmp_path / "3", number=3, date="20210101", patient="B"),
        )
        command = ["pull", str(tmp_path / "patients.csv"), "--patient", "id", "--archive", f"{archive.url}/dicom-web"]
        command += ["--out", str(tmp_path / "out"), "--modality", "MR"]
        assert main(command) == 0
        assert main(command) == 0
    table = pd.read_csv(tmp_path / "out" / "cohort.csv")
    assert list(table["patient"]) == ["A", "A", "B"] and list(table["volume"]) == [3.5, 3.5, 4.5]
    assert list(table["day"]) == [0, 366, 0]
    assert all((tmp_path / "out" / path).is_dir() for path in table["path"])
    rows = take_inventory(tmp_path / "out" / "dicom").rows
    assert [f"dicom/{path}" for path in rows["path"]] == list(table["path"])
    told = capsys.readouterr().out
    assert (
        "3 studies fetched, 9 objects" in told and "0 studies fetched" in told and "row 4: the archive has no" in told
    )


def test_an_archive_that_is_away_is_an_error_that_says_to_call_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "patients.csv").write_text("patient\nZZPHI\n")
    study(tmp_path / "out" / "dicom" / "patient-0001" / "x", number=1, patient="ZZPHI")
    command = ["pull", str(tmp_path / "patients.csv"), "--archive", f"http://127.0.0.1:{free_port()}/dicom-web"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert end.value.code == 1 and "Call the same again" in told.err and "ZZPHI" not in told.err + told.out


@pytest.mark.parametrize(
    ("table", "more", "sentence"),
    [
        ("patient\nA\nA\n", [], "each patient in one row"),
        ("name\nA\n", [], "patient"),
        ("patient,day\nA,1\n", [], "no column of the cohort's own names"),
        ("patient\nA\n", ["--since", "2020"], "expected --since YYYYMMDD"),
        ("patient\nA\n", ["--user", "me"], "both user and password_file"),
    ],
)
def test_a_mistake_is_told_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, more: list[str], sentence: str
) -> None:
    (tmp_path / "patients.csv").write_text(table)
    command = ["pull", str(tmp_path / "patients.csv"), "--archive", "http://127.0.0.1:1", "--out", str(tmp_path / "o")]
    assert main([*command, *more]) == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def settings(home: Path, **changes: object) -> list[str]:
    given = {"folder": "queue", "bundle": str(BUNDLE), "web": {"url": "http://127.0.0.1:1"}, **changes}
    (home / "listen.yaml").write_text(yaml.safe_dump(given))
    return ["listen", "--settings", str(home / "listen.yaml")]


def test_settings_and_model_are_checked_without_a_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = write_model(tmp_path / "model" / "models")
    assert main([*settings(tmp_path, models=str(models)), "--check"]) == 0
    assert "well; 0 peers may send to 127.0.0.1:11112" in capsys.readouterr().out
    assert not (tmp_path / "queue").exists()


def test_a_wrong_setting_is_one_line_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(settings(tmp_path, prot=1)) == 2
    assert capsys.readouterr().err.startswith("error: listen.yaml: prot: no such entry")


def test_a_model_that_needs_views_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = write_model(tmp_path / "model" / "models", **{"columns#views": ["left", "right"]})
    assert main([*settings(tmp_path, models=str(models)), "--check"]) == 2
    assert "needs to be told their views" in capsys.readouterr().err


def test_a_model_whose_unit_no_report_can_hold_is_refused_before_it_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = write_model(tmp_path / "model" / "models", unit="mm/year")
    assert main([*settings(tmp_path, models=str(models)), "--check"]) == 2
    assert "expected a unit by UCUM" in capsys.readouterr().err


def test_without_the_extra_its_name_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*(name for name in sys.modules if name.startswith("monai_mvreg.service.")), "pynetdicom"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    assert main(settings(tmp_path)) == 2
    assert 'archives need pynetdicom: pip install "monai-mvreg[pacs]"' in capsys.readouterr().err

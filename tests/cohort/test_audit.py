"""The audit: each leak that is planted is found by its rows, and a clean cohort has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import zoom

from monai_mvreg.cli.main import main
from monai_mvreg.cohort.audit import Audited, Finding, _alike, audit

COLUMNS = Audited(target="target", covariates=("age", "stage"), index_day="index", event_day="death")
PACK = Path(__file__).parents[3] / "shared/data/growth3d"


def clean(folder: Path) -> pd.DataFrame:
    """Six patients with two scans each; every picture is noise of its own."""
    generator, rows = np.random.default_rng(0), []
    for patient in range(6):
        for visit in range(2):
            name = f"{patient}_{visit}.nii"
            nib.save(nib.Nifti1Image(generator.normal(size=(20, 18, 9)).astype(np.float32), np.eye(4)), folder / name)
            facts = {"patient": f"ZZPHI-{patient}", "path": name, "day": 100 * visit, "fold": patient % 3}
            facts |= {"target": 10 + patient, "age": (40, 44, 41, 45, 42, 43)[patient], "stage": (5 * patient) % 4}
            rows.append(facts | {"index": 150, "death": "" if patient % 2 else 900})
    return pd.DataFrame(rows)


def found(folder: Path, table: pd.DataFrame, columns: Audited = COLUMNS) -> list[Finding]:
    table.to_csv(folder / "cohort.csv", index=False)
    return audit(folder / "cohort.csv", folder, columns)


def test_a_clean_cohort_has_no_finding(tmp_path: Path) -> None:
    assert found(tmp_path, clean(tmp_path)) == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"fold": (1, 2)}, Finding("one patient is in the folds 0, 2", (2, 3))),
        ({"day": (3, 151)}, Finding("1 scans are later than the day from which it is predicted", (5,))),
        ({"death": (4, 0)}, Finding("1 scans are later than the event", (7,))),
        ({"path": (11, "0_0.nii")}, Finding("the same file under two patients", (2, 13))),
    ],
)
def test_a_planted_leak_is_found_by_its_rows(change: dict[str, Any], finding: Finding, tmp_path: Path) -> None:
    table = clean(tmp_path).astype(object)
    ((column, (row, value)),) = change.items()
    if column == "death":
        table.loc[[4, 5], "death"] = 50
    else:
        table.loc[row, column] = value
    assert found(tmp_path, table) == [finding]


def test_a_column_that_tells_the_target_is_named(tmp_path: Path) -> None:
    table = clean(tmp_path)
    (only,) = found(tmp_path, table.assign(stage=np.exp(-table["target"])))
    assert "'stage' orders patients as the target does (rank correlation -1.00)" in only.what


def test_the_same_picture_is_found_in_another_format_size_and_brightness(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    smooth = zoom(generator.normal(size=(6, 5)), 20)
    picture = ((smooth - smooth.min()) / np.ptp(smooth) * 200).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture).resize((73, 91), Image.Resampling.BILINEAR).save(tmp_path / "b.jpg", quality=80)
    Image.fromarray((picture * 0.7 + 40).astype(np.uint8)).save(tmp_path / "c.tif")
    other = zoom(generator.normal(size=(6, 5)), 20)
    Image.fromarray(((other - other.min()) / np.ptp(other) * 200).astype(np.uint8)).save(tmp_path / "d.png")
    names = ["a.png", "b.jpg", "c.tif", "d.png"]
    table = pd.DataFrame({"patient": ["1", "2", "3", "4"], "path": names})
    twins = found(tmp_path, table, Audited(day=None, fold=None))
    assert {finding.rows for finding in twins} == {(2, 3), (2, 4), (3, 4)}
    assert found(tmp_path, table.assign(patient=["1", "1", "1", "4"]), Audited(day=None, fold=None)) == []


def test_a_scan_that_cannot_be_read_is_a_finding_and_stops_nothing(tmp_path: Path) -> None:
    table = clean(tmp_path)
    (tmp_path / "0_0.nii").write_bytes(b"cut")
    (only,) = found(tmp_path, table)
    assert only.rows == (2,) and "a scan cannot be read: 0_0.nii" in only.what


def test_the_verb_ends_with_1_and_names_rows_and_no_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = clean(tmp_path)
    table.assign(path="0_0.nii").to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(SystemExit) as end:
        main(["audit", str(tmp_path / "cohort.csv"), "--dataset_dir", str(tmp_path), "--fold", "fold"])
    shown = capsys.readouterr()
    assert end.value.code == 1 and "the same file under two patients: rows 2, 3, 4" in shown.out
    assert "not searched, for no column was named: late scans, columns" in shown.out
    assert "ZZPHI" not in shown.out + shown.err
    table.to_csv(tmp_path / "clean.csv", index=False)
    assert main(["audit", str(tmp_path / "clean.csv"), "--dataset_dir", str(tmp_path)]) == 0


@pytest.mark.skipif(not PACK.is_dir(), reason="the data pack shared/data/growth3d is not beside the project")
def test_real_heads_that_two_patients_share_are_found_and_no_others() -> None:
    columns = Audited("patient_id", "image", None, "split")
    heads = pd.read_csv(PACK / "patients.csv").set_index("patient_id")["head"]
    owners = pd.read_csv(PACK / "manifest.csv")["patient_id"]
    twins = [finding.rows for finding in audit(PACK / "manifest.csv", PACK, columns)]
    assert len(twins) >= 20
    assert all(heads[owners[one - 2]] == heads[owners[other - 2]] for one, other in twins)


@pytest.mark.parametrize("kind", ["noise", "people", "one picture"])
def test_pairs_are_those_of_all_correlations(kind: str) -> None:
    draw = np.random.default_rng(1)
    pictures = draw.normal(size=(700, 343)).astype(np.float32)
    if kind == "people":  # all alike, as heads on one grid are
        pictures = draw.normal(size=343).astype(np.float32) + 0.35 * pictures
    elif kind == "one picture":
        pictures = pictures[:1] + draw.uniform(0.02, 0.15, size=(700, 1)) * pictures
    pictures[500:520] = pictures[100:120] + 0.09 * draw.uniform(0.5, 1.5, size=(20, 1)) * pictures[200:220]
    pictures[650:660] = 5.0
    pictures -= pictures.mean(1, keepdims=True)
    pictures /= np.maximum(np.linalg.norm(pictures, axis=1, keepdims=True), 1e-12)
    pictures = np.where(np.abs(pictures).max(1, keepdims=True) > 1e-3, pictures, 0).astype(np.float16)
    every = np.triu(pictures.astype(np.float64) @ pictures.T.astype(np.float64), 1)
    people = draw.integers(0, 300, size=700)
    every[people[:, None] == people] = 0
    found = set(_alike(pictures, people))
    sure, possible = (set(zip(*np.nonzero(every > limit), strict=True)) for limit in (0.995001, 0.994999))
    assert len(sure) > 5 and sure <= found <= possible

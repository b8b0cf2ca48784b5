"""A cohort ten times as large takes ten times as long: ``pytest -m slow tests/benchmarks/test_cohort_scale.py``."""

from __future__ import annotations

from pathlib import Path

import cohort_scale
import pytest

from monai_mvreg.cohort.audit import Audited, audit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    return {patients: cohort_scale.run(tmp_path_factory.mktemp("cohort"), patients) for patients in (1000, 10_000)}


def test_ten_thousand_patients_take_two_minutes_and_two_gibibytes(measured: dict[int, dict[str, float]]) -> None:
    assert measured[10_000]["sum"] < 120 and measured[10_000]["peak"] < 2


def test_time_grows_as_the_cohort_does(measured: dict[int, dict[str, float]]) -> None:
    # Of the processor: what else a machine does in a minute is not linear.
    assert measured[10_000]["cpu"] / 10_000 <= 1.3 * measured[1000]["cpu"] / 1000


def test_a_planted_copy_is_found_with_all_visits_of_its_patient_and_nothing_else(tmp_path: Path) -> None:
    cohort_scale.write_cohort(tmp_path, 300)
    voxels = bytearray((tmp_path / "scans/250/3.nii").read_bytes())
    voxels[-2] ^= 3  # nearly the same
    (tmp_path / "scans/7/1.nii").write_bytes(voxels)
    found = audit(tmp_path / "cohort.csv", tmp_path, Audited(fold=None))
    assert {finding.what for finding in found} == {"nearly the same picture under two patients"}
    assert [finding.rows for finding in found] == [(38, row) for row in range(1252, 1257)]

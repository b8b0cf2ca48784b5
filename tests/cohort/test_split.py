"""Patients to folds: decided by the patient alone, balanced by choice of the seed."""

from __future__ import annotations

import random
import string
from typing import Any

import numpy as np
import pytest

from monai_mvreg.cohort.split import balanced_seed, fold_of, held_out, leave_out, select, split_cohort
from monai_mvreg.cohort.table import Cohort, Patient


def cohort_of(keys: list[str], targets: list[float] | None = None) -> Cohort:
    values = targets or [0.0] * len(keys)
    patients = tuple(Patient(k, ("scan",), (0.0,), (0,), (t,), ()) for k, t in zip(keys, values, strict=True))
    return Cohort(patients, ("target",), "1", (), ())


def random_keys(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return list({"".join(draw.choices(string.printable + "äöü漢字", k=draw.randint(1, 20))) for _ in range(count)})


def folds_by_key(cohort: Cohort) -> dict[str, str | None]:
    return {patient.key: patient.fold for patient in cohort.patients}


@pytest.mark.parametrize(
    ("key", "seed", "fold"),
    [("patient 7", 0, "2"), ("patient 7", 3, "0"), ("sub-01", 0, "2"), ("sub-02", 0, "3"), ("Ünal", 0, "2")],
)
def test_folds_are_the_same_for_ever(key: str, seed: int, fold: str) -> None:
    assert fold_of(key, 5, seed=seed) == fold


@pytest.mark.parametrize("seed", range(10))
def test_adding_or_removing_patients_moves_nobody(seed: int) -> None:
    keys = random_keys(120, seed)
    before = folds_by_key(split_cohort(cohort_of(keys[:80]), 4, seed=seed))
    after = folds_by_key(split_cohort(cohort_of(keys[::-1]), 4, seed=seed))
    assert before.items() <= after.items()


def test_every_patient_is_in_exactly_one_part() -> None:
    cohort = split_cohort(cohort_of(random_keys(200, 0)), 5, seed=3)
    for fold in "01234":
        inside, outside = select(cohort, [fold]), leave_out(cohort, [fold])
        assert {p.key for p in inside}.isdisjoint(p.key for p in outside)
        assert len(inside) + len(outside) == len(cohort.patients)


def test_folds_of_many_patients_are_about_equal() -> None:
    folds = [fold_of(f"patient {i}", 5, seed=0) for i in range(5000)]
    assert all(900 < folds.count(fold) < 1100 for fold in "01234")


def imbalance(cohort: Cohort, seed: int) -> float:
    """How far the folds' numbers of patients with a high and with a low target are from equal, in patients."""
    split = split_cohort(cohort, 4, seed=seed)
    middle = np.median([p.target[0] for p in cohort.patients])
    high = [[p.target[0] > middle for p in select(split, [fold])] for fold in "0123"]
    return float(np.ptp([sum(fold) for fold in high]) + np.ptp([len(fold) - sum(fold) for fold in high]))


def test_the_balanced_seed_is_clearly_more_balanced_than_seed_zero() -> None:
    plain, balanced = [], []
    for study in range(12):
        draw = random.Random(study)
        cohort = cohort_of([f"{study}-{i}" for i in range(60)], [draw.gauss(50, 10) for _ in range(60)])
        plain.append(imbalance(cohort, 0))
        balanced.append(imbalance(cohort, balanced_seed(cohort, 4, tries=100)))
    assert np.mean(balanced) < 0.6 * np.mean(plain)


def test_the_balanced_seed_does_not_depend_on_the_order_of_patients() -> None:
    keys, targets = random_keys(50, 1), [float(i % 7) for i in range(50)]
    keys, targets = keys[:40], targets[:40]
    forward = balanced_seed(cohort_of(keys, targets), 4, tries=50)
    assert balanced_seed(cohort_of(keys[::-1], targets[::-1]), 4, tries=50) == forward


def test_events_are_balanced_when_they_are_what_differs() -> None:
    patients = tuple(Patient(f"{i}", ("scan",), (0.0,), (0,), (100.0, float(i % 5 != 0)), ()) for i in range(80))
    cohort = Cohort(patients, ("days", "event"), "d", (), ())
    split = split_cohort(cohort, 4, seed=balanced_seed(cohort, 4, tries=200))
    events = [sum(p.target[-1] for p in select(split, [fold])) for fold in "0123"]
    assert max(events) - min(events) <= 3


def test_a_cohort_with_folds_is_not_split_again() -> None:
    split = split_cohort(cohort_of(random_keys(50, 0)), 5)
    with pytest.raises(ValueError, match="expected patients without folds, the table has a column of folds already"):
        split_cohort(split, 5)


def test_a_fold_without_patients_is_refused() -> None:
    with pytest.raises(ValueError, match="expected patients in all 5 folds, 2 patients fill"):
        split_cohort(cohort_of(["a", "b"]), 5)


def test_an_unknown_fold_is_refused_with_the_known_ones() -> None:
    split = split_cohort(cohort_of(random_keys(50, 0)), 2)
    with pytest.raises(ValueError, match=r"expected folds among \['0', '1'\], got \['0', '7'\]"):
        select(split, ["0", 7])
    with pytest.raises(ValueError, match=r"expected folds among \['0', '1'\], got \['1 '\]"):
        leave_out(split, ["1 "])


def test_a_fold_may_be_named_by_its_number() -> None:
    split = split_cohort(cohort_of(random_keys(50, 0)), 2)
    assert select(split, [1]) == select(split, ["1"])


def test_only_folds_that_training_left_out_are_held_out() -> None:
    assert held_out(["1"], [0, 1]) == ["1"]
    with pytest.raises(ValueError, match=r"left out, \['0', '1'\], got \['2'\]: the model has learned"):
        held_out([1, 2], ["0", "1"])


def test_several_lists_of_folds_are_left_out() -> None:
    cohort = split_cohort(cohort_of(random_keys(100, 0)), 4)
    assert leave_out(cohort, ["0"], [2]) == select(cohort, ["1", "3"])
    assert held_out(["2"], ["0"], [2]) == ["2"]


@pytest.mark.parametrize("folds", ["10", 10], ids=["text", "number"])
def test_one_fold_is_a_list_of_one_and_not_taken_letter_by_letter(folds: str | int) -> None:
    cohort = split_cohort(cohort_of(random_keys(400, 0)), 11)
    assert select(cohort, folds) == select(cohort, ["10"])
    assert leave_out(cohort, "0", folds) == leave_out(cohort, ["0", "10"])
    assert held_out(folds, folds) == folds
    with pytest.raises(ValueError, match=r"got \['10'\]"):
        held_out(folds, ["0"])


@pytest.mark.parametrize("folds", [None, True, 1.0])
def test_folds_that_are_neither_a_name_nor_a_list_are_refused(folds: Any) -> None:
    cohort = split_cohort(cohort_of(random_keys(400, 0)), 11)
    for call in (lambda: select(cohort, folds), lambda: leave_out(cohort, folds), lambda: held_out(folds, ["0"])):
        with pytest.raises(ValueError, match=rf"^expected a list of folds, such as \['0'\], got {folds}"):
            call()

"""A column -> groups of patients: one for each value, thirds of many numbers, and no group of a few."""

from typing import Any

import numpy as np
import pandas as pd

from monai_mvreg.results.levels import levels_of


def sizes(values: list[Any]) -> dict[str, int]:
    return {name: int(members.sum()) for name, members in levels_of(pd.Series(values)).items()}


def test_texts_group_by_value_and_missing_ones_are_unknown() -> None:
    groups = levels_of(pd.Series(["M"] * 8 + ["F"] * 7 + [None] * 5))
    assert {name: int(members.sum()) for name, members in groups.items()} == {"F": 7, "M": 8, "unknown": 5}
    assert list(groups) == ["F", "M", "unknown"]
    assert np.sum(list(groups.values()), 0).tolist() == [1] * 20


def test_values_of_fewer_than_five_patients_are_taken_together() -> None:
    assert sizes(["North"] * 8 + ["rare one"] * 3 + ["rare two"] * 3) == {"North": 8, "others": 6}


def test_many_numbers_are_cut_into_thirds_whose_words_say_exactly_who_is_in() -> None:
    ages = pd.Series(np.random.default_rng(1).normal(60, 9, 90))
    groups = levels_of(ages)
    counts = [int(members.sum()) for members in groups.values()]
    assert max(counts) - min(counts) <= 1
    low, middle, high = groups
    edge, other = float(low.removeprefix("up to ")), float(high.removeprefix("over "))
    assert middle == f"over {edge:g}, up to {other:g}"
    assert (groups[low] == (ages <= edge)).all() and (groups[high] == (ages > other)).all()


def test_few_numbers_stand_for_themselves_in_their_order_also_where_some_are_missing() -> None:
    assert list(sizes([10] * 6 + [2] * 6)) == ["2", "10"]
    # pandas reads whole numbers with a gap as decimals.
    assert list(sizes([1.0] * 5 + [2.0] * 5 + [np.nan] * 2)) == ["1", "2"]


def test_texts_stay_what_they_are() -> None:
    groups = sizes(["NA"] * 5 + ["None"] * 5 + ["nan"] * 5 + ["1e5"] * 5 + ["007"] * 5 + ["7"] * 6 + [""] * 5)
    assert groups == {"007": 5, "1e5": 5, "7": 6, "NA": 5, "None": 5, "nan": 5, "unknown": 5}
    assert sizes(["007"] * 5 + ["7"] * 6 + ["1e5"] * 5) == {"007": 5, "7": 6, "1e5": 5}  # numbers by their size


def test_a_level_called_unknown_is_counted_with_the_patients_without_a_level() -> None:
    assert sizes(["unknown"] * 6 + [""] * 5 + ["known"] * 5) == {"known": 5, "unknown": 11}

"""The items of TRIPOD+AI: all are there, in order, and each is answered or open."""

import re

import pytest

from monai_mvreg.report import tripod
from monai_mvreg.report.tripod import ITEMS, check_answers, items_table, open_questions

# As published: 27 items, some in parts.
PARTS = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"}


def test_the_items_are_those_that_were_published_in_their_order() -> None:
    expected = [f"{number}{part}" for number in range(1, 28) for part in PARTS.get(number, [""])]
    assert [item.number for item in ITEMS] == expected and len(ITEMS) == 52


def test_every_item_names_a_section_or_asks_a_question() -> None:
    assert all(item.where or item.question for item in ITEMS)
    titles = {value for name, value in vars(tripod).items() if name.isupper() and isinstance(value, str)}
    assert {item.where for item in ITEMS} - {""} <= titles


def test_an_answer_closes_its_item_and_no_other() -> None:
    before, after = (items_table(answers, evaluated=True).set_index("Item")["Answer"] for answers in ([], ["5b"]))
    assert before["5b"].startswith("open: ") and after["5b"] == "“From the authors”"
    assert (before.drop("5b") == after.drop("5b")).all()
    assert {item.number for item in open_questions([])} - {item.number for item in open_questions(["5b"])} == {"5b"}


def test_without_an_evaluation_its_items_are_open() -> None:
    table = items_table([], evaluated=False).set_index("Item")["Answer"]
    assert table["23a"] == "open: there is no evaluation"
    assert not table.str.contains(f"“{re.escape(tripod.RESULTS)}”").any()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"5b": "2011 to 2019", "99": "x", "5z": "y"}, "such as 5b, got 5z, 99"),
        ({"5b": " "}, "expected a text for each item, got none for 5b"),
        ({"17": None}, "got none for 17"),
    ],
)
def test_answers_to_no_item_and_empty_ones_are_refused(answers: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_answers(answers)


def test_answers_become_one_line_and_numbers_of_yaml_are_items_too() -> None:
    assert check_answers({17: "Committee,\n  number 1\n"}) == {"17": "Committee, number 1"}  # type: ignore[dict-item]

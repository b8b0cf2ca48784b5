"""Units: what UCUM's own grammar and table of units allow is the truth, by way of another parser of them."""

from __future__ import annotations

import random

import pytest

from monai_mvreg.dicom_results.ucum import unit_concept

TARGETS = ["mm3", "mL", "a", "d", "mm", "1", "%", "mm/a", "kg/m2", "mm[Hg]", "{score}", "mL/min/{1.73_m2}", "10*3/uL"]
WRONG = ["years", "mmHg", "HU", "ml3x", "mm^3", "cc", "µm", "", " ", "mm 3", "(m)2", "m//s", "m.", "{größe}", "mm3\n"]
PIECES = ["m", "mm", "g", "k", "d", "%", "1", "2", "+2", "-1", ".", "/", "(", ")", "{a}", "[", "10*", "mo", "L", "[IU]"]


def accepted(unit: str) -> bool:
    try:
        unit_concept(unit, of="volume")
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("unit", TARGETS)
def test_a_unit_of_a_target_is_coded_as_it_stands(unit: str) -> None:
    code = unit_concept(unit, of="volume")
    assert (code.value, code.scheme_designator) == (unit, "UCUM")


def test_a_unit_that_the_standard_lists_has_its_name() -> None:
    assert [unit_concept(unit, of="x").meaning for unit in ("mm3", "1", "a")] == [
        "cubic millimeter",
        "no units",
        "year",
    ]


@pytest.mark.parametrize("unit", WRONG)
def test_what_is_no_unit_is_refused_with_the_number_and_where_to_mend_it(unit: str) -> None:
    with pytest.raises(ValueError, match=r"^volume: expected a unit by UCUM, as mm3.*settings\.json"):
        unit_concept(unit, of="volume")


def test_another_parser_of_ucum_allows_every_unit_that_is_allowed_here() -> None:
    ucumvert = pytest.importorskip("ucumvert")  # another reader of UCUM's grammar and of its table of units
    parser = ucumvert.get_ucum_parser()
    draw = random.Random(0)
    texts = {"".join(draw.choices(PIECES, k=draw.randint(1, 5))) for _ in range(15_000)}
    allowed = [text for text in {*texts, *TARGETS} if accepted(text)]
    assert len(allowed) > 300
    for text in allowed:
        parser.parse(text)  # raises


def test_the_examples_of_the_national_library_of_medicine_are_allowed() -> None:
    # Of the 848 codes in "Example UCUM Codes for Electronic Messaging" (NLM, 2017) a draw of each kind.
    examples = [
        "10.L/(min.m2)",
        "meq/(2.h.kg)",
        "umol/mol{creat}",
        "[IU]/(2.h)",
        "k[IU]/mL",
        "10*-6.[IU]/mL",
        "g%",
        "mo",
    ]
    examples += [
        "dyn.s/(cm.m2)",
        "g/(8.h){shift}",
        "L.s2/s",
        "m[H2O]",
        "/[HPF]",
        "{beats}/min",
        "wk",
        "[degF]",
        "daL/min/m2",
    ]
    assert [unit for unit in examples if not accepted(unit)] == []

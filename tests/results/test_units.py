"""Units as people read them."""

import pytest

from monai_mvreg.results.units import readable_unit


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("mm/a", "mm/year"),
        ("mm3/mo", "mm3/month"),
        ("mL/wk", "mL/week"),
        ("ug/d", "ug/day"),
        ("km/h", "km/hour"),
        ("mL/min/{1.73_m2}", "mL/min/1.73_m2"),
        ("a", "years"),
        ("d", "days"),
        ("1", ""),
        ("%", "%"),
        ("{score}", "score"),
        ("mm[Hg]", "mm[Hg]"),
        ("mol/dL", "mol/dL"),
        ("kg/ar", "kg/ar"),
        ("1/a", "1/year"),
        ("HU", "HU"),
    ],
)
def test_a_unit_is_spelled_out_and_nothing_else_changes(unit: str, words: str) -> None:
    assert readable_unit(unit) == words
    assert readable_unit(words) == words or unit == "1"

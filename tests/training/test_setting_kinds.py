"""A setting of the wrong kind is refused by its name."""

from typing import Any

import pytest

from monai_mvreg.training.setting_kinds import expect_kinds

DECLARED: list[dict[str, Any]] = [
    {"epochs": 50, "pool": {"_target_": "a.MeanPool"}, "spatial_size": [64, 64, 64], "schedule": {"_target_": "a.B"}},
    {"epochs": 4, "spatial_size": [224, 224], "free": 1},
    {"free": "$2"},
]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": "1e1"}, r"^epochs: expected a number such as 50, got the text '1e1' \(YAML reads 1.0e-3"),
        ({"epochs": "many"}, "^epochs: expected a number such as 50, got the text 'many'$"),
        ({"pool": "TrendPool"}, "^pool: expected a component with its _target_, such as a.MeanPool, got 'TrendPool'$"),
        ({"schedule": {"size": 8}}, r"^schedule: .* got {'size': 8}$"),
        ({"spatial_size": 32}, r"^spatial_size: expected a size for each axis, such as \[224, 224\], got 32$"),
    ],
)
def test_a_value_of_another_kind_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        expect_kinds(settings, DECLARED)


def test_the_right_kind_an_expression_and_nothing_are_taken() -> None:
    for value in (3, 2.5, "$3", "@other", None):
        expect_kinds({"epochs": value, "free": "text", "unknown": "text"}, DECLARED)
    expect_kinds({"pool": {"_target_": "b.C"}, "spatial_size": [8, 8]}, DECLARED)

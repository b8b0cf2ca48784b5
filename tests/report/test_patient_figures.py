"""The figures of a patient: they say what the numbers say, and without colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monai_mvreg.predict.prediction import PredictedNumber
from monai_mvreg.report import patient_figures as figures
from tests.report.test_patient import prediction, time_to_event


def dots(cohort: list[float]) -> np.ndarray:
    figure = figures.figure_standing(PredictedNumber("v", "mL", 50.0, 40.0, 60.0, 0.9), cohort, 1)
    return np.asarray(figure.axes[0].collections[0].get_offsets())


def test_twenty_circles_stand_for_the_training_patients_and_none_hides_another() -> None:
    places = dots(np.quantile(np.random.default_rng(0).normal(50, 10, 500), np.linspace(0, 1, 21)).tolist())
    assert places.shape == (20, 2) and len(np.unique(places, axis=0)) == 20


def test_circles_of_grades_stand_at_grades_alone() -> None:
    grades = np.quantile(np.repeat([0, 25, 50, 75, 100], 100), np.linspace(0, 1, 21), method="lower")
    places = dots(grades.tolist())
    step = 100 / 32
    assert len(np.unique(places[:, 0])) == 5
    assert np.abs(np.unique(places[:, 0]) - [0, 25, 50, 75, 100]).max() <= step


def test_a_cohort_of_one_value_can_be_drawn() -> None:
    assert len(dots([50.0] * 21)) == 20


def test_lengths_of_bars_are_weights_and_contributions_and_those_that_lower_are_hatched() -> None:
    made = prediction(3)
    days, weights, parts = figures.figure_timeline(made, [0]).axes
    assert days.lines[0].get_xdata().tolist() == [0, 30, 60]
    assert [bar.get_width() for bar in weights.patches] == pytest.approx([1 / 3] * 3)
    assert [bar.get_width() for bar in parts.patches] == pytest.approx([12.34, -5.0, -5.0])
    assert [bool(bar.get_hatch()) for bar in parts.patches] == [False, True, True]


@pytest.mark.parametrize("scans", [2, 20, 64])
def test_every_scan_has_a_row_of_its_own_and_the_figure_fits_a4(scans: int) -> None:
    figure = figures.figure_timeline(prediction(scans), [0])
    rows = figure.axes[0].lines[0].get_ydata()
    assert len(set(rows)) == scans and figure.get_figheight() <= 8


@pytest.mark.parametrize(
    ("parts", "texts"),
    [
        ([12.34, -0.012, 0.0], ["+12.3", "0.0", "0.0"]),
        ([0.5, -0.25], ["+0.500", "\N{MINUS SIGN}0.250"]),
        ([0.0, 0.0], ["0", "0"]),
    ],
)
def test_contributions_have_a_sign_and_the_same_decimals(parts: list[float], texts: list[str]) -> None:
    assert figures.signed(parts) == texts


def test_tiny_contributions_are_told_in_powers_of_ten() -> None:
    tiny = prediction(2)
    scans = [{"contributions": (part,)} for part in (3.4e-7, -1.2e-7)]
    tiny = replace(tiny, scans=tuple(replace(scan, **new) for scan, new in zip(tiny.scans, scans, strict=True)))
    lengths, unit = figures.contributions(tiny, 0)
    assert unit == " [10⁻⁷ mL]" and lengths == pytest.approx([3.4, -1.2])


def test_the_curve_passes_through_what_is_known_and_marks_the_horizons() -> None:
    made = time_to_event(812.0)
    assert made.survival is not None
    lines = figures.figure_chances(made.survival).axes[0].lines
    assert lines[0].get_ydata()[1:] == pytest.approx([95, 87, 60])
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines[2:]] == [
        (365, pytest.approx(87.7)),
        (1095, pytest.approx(99.6)),
    ]

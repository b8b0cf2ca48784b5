"""One patient's prediction as pictures: among the training patients, over time, scan by scan; no colour is needed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from monai_mvreg.predict.prediction import PredictedNumber, Prediction, SurvivalCurve
from monai_mvreg.report.page import INK, QUIET, calm, power_of_ten, rounded, value
from monai_mvreg.results.units import readable_unit

_COLUMNS, _DOT = 32, 0.17  # of the dots; inches of one


def figure_standing(number: PredictedNumber, cohort: Sequence[float], decimals: int) -> Figure:
    """The number and its interval below the training patients: each circle is 5 of 100 of them.

    Args:
        number: the number.
        cohort: percentiles 0, 5, ..., 100 of the training patients' measured values ``(21,)``, in target units.
        decimals: of the number in words.

    Source: quantile dot plots, Kay et al., CHI 2016. https://doi.org/10.1145/2858036.2858558
    """
    edges = np.asarray(cohort, dtype=np.float64)
    dots = (edges[1:] + edges[:-1]) / 2
    if (np.diff(edges) == 0).any():  # between grades and counts there is nobody
        dots = np.concatenate([edges[1:11], edges[10:20]])
    ends = [end for end in (number.low, number.high) if end is not None and math.isfinite(end)]
    left, right = min(edges[0], number.value, *ends), max(edges[-1], number.value, *ends)
    step = ((right - left) or 1.0) / _COLUMNS
    columns = np.floor((dots - left) / step)
    heights = np.array([np.count_nonzero(columns[:i] == column) for i, column in enumerate(columns)])
    above = int(heights.max()) + 1
    figure = Figure(figsize=(6.5, 1.5 + _DOT * above), layout="constrained")
    axes = figure.subplots()
    places = left + (columns + 0.5) * step
    axes.scatter(places, heights + 0.5, s=(0.8 * 72 * _DOT) ** 2, color="#d9d9d9", edgecolor=QUIET, linewidth=0.8)
    axes.plot([number.value] * 2, [-1.4, above + 1.2], color=INK, linewidth=1)
    if len(ends) == 2:
        axes.plot(ends, [-1.4, -1.4], "|-", color=INK, linewidth=3, markersize=13, markeredgewidth=2)
    axes.plot(number.value, -1.4, "D", color="white", markeredgecolor=INK, markeredgewidth=2, markersize=8)
    words, place = f"this patient: {value(number.value, number.unit, decimals)}", (number.value, above + 0.4)
    side = "left" if number.value < (left + right) / 2 else "right"
    offset = (4 if side == "left" else -4, 0)
    axes.annotate(words, place, offset, textcoords="offset points", ha=side, va="bottom", color=INK, weight="bold")
    axes.set(ylim=(-2.8, above + 1.8), xlim=(left - 1.5 * step, right + 1.5 * step), yticks=[])
    calm(axes, number.name.replace("_", " "), "", number.unit)
    axes.set_ylabel("")
    axes.spines["left"].set_visible(False)
    axes.ticklabel_format(axis="x", scilimits=(-4, 8), useMathText=True)
    return figure


def figure_chances(curve: SurvivalCurve) -> Figure:
    """The chance to be free of the event by each day, with the horizons and the median marked."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.step([0.0, *curve.days], [100.0, *(100 * chance for chance in curve.survival)], where="post", color=INK)
    if curve.median_days is not None:
        axes.plot([0, curve.median_days, curve.median_days], [50, 50, 0], ":", color=QUIET)
        axes.annotate("half", (0, 50), (4, 3), textcoords="offset points", color=QUIET)
    for day, risk in zip(curve.horizons, curve.risks, strict=True):
        place = (day, 100 * (1 - risk))
        axes.plot(*place, "o", color="white", markeredgecolor=INK, markeredgewidth=1.5, markersize=7)
        words = f"{percent(1 - risk)} at day {day:g}"
        axes.annotate(words, place, (6, 5), textcoords="offset points", color=INK)
    last = max([*curve.days, *curve.horizons], default=1.0)
    axes.set(ylim=(0, 108), xlim=(0, 1.22 * last), yticks=[0, 25, 50, 75, 100])
    calm(axes, "day", "free of the event", "1")
    axes.set_ylabel("free of the event [%]")
    return figure


def figure_timeline(prediction: Prediction, numbers: Sequence[int]) -> Figure:
    """A row for each scan: its day, its weight and what it contributes to some of the numbers.

    Args:
        prediction: with scans that have contributions.
        numbers: places of the numbers to show.
    """
    scans = prediction.scans
    rows, warned = np.arange(len(scans)), {warning.scan for warning in prediction.warnings}
    height = max(0.1, min(0.26, 6.9 / len(scans)))
    small = 9 if height > 0.17 else 6.5
    figure = Figure(figsize=(7.0, 1.0 + height * len(scans)), layout="constrained")
    panels = figure.subplots(1, 2 + len(numbers), sharey=True, width_ratios=[1.6, 0.8, *[1.6] * len(numbers)])
    days, weights, *parts = panels
    for axes in panels:
        axes.hlines(rows, 0, 1, transform=axes.get_yaxis_transform(), color="#e6e6e6", linewidth=0.6, zorder=0)
    days.plot([scan.day for scan in scans], rows, "o", color=INK, markersize=min(7.0, 40 * height))
    days.margins(x=0.06)
    if scans[0].day == scans[-1].day:
        days.set(xticks=[scans[0].day])
    shares = [scan.weight for scan in scans]
    bars = weights.barh(rows, shares, height=0.66, color="#8a8a8a")
    weights.bar_label(bars, [share(weight, len(scans)) for weight in shares], padding=2, fontsize=small, color=QUIET)
    weights.set(xlim=(0, 1.6 * (max(shares) or 1.0)), xticks=[])
    titles = ["day", "weight"]
    for axes, place in zip(parts, numbers, strict=True):
        number = prediction.numbers[place]
        lengths, unit = contributions(prediction, place)
        bars = axes.barh(rows, lengths, height=0.66, color=INK, edgecolor=INK, linewidth=0.8)
        for bar, length in zip(bars, lengths, strict=True):
            if length < 0:
                bar.set(facecolor="white", hatch="//////")
        axes.bar_label(bars, signed(lengths), padding=3, fontsize=small, color=QUIET)
        axes.axvline(0, color=QUIET, linewidth=0.8)
        low, high = min(0.0, *lengths), max(0.0, *lengths)
        room = 0.7 * ((high - low) or 1.0)
        axes.set(xlim=(low - room * (low < 0) - 0.02 * room, high + room * (high > 0) + 0.02 * room))
        axes.locator_params(axis="x", nbins=4)
        titles.append(textwrap.fill(f"contribution to {number.name.replace('_', ' ')}{unit}", 26))
    for axes, title in zip(panels, titles, strict=True):
        calm(axes, "", "")
        axes.set_title(title, fontsize=9, color=QUIET, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
    names = [f"! {i + 1}" if i in warned else str(i + 1) for i in range(len(scans))]
    days.set_yticks(rows, names, fontsize=small)
    days.set(ylim=(len(scans) - 0.4, -0.6))
    days.set_ylabel("scan", color=QUIET)
    return figure


def share(weight: float, scans: int) -> str:
    """The weight of a scan in words; shares of many scans need a digit more."""
    return f"{weight:.{2 if scans <= 10 else 3}f}"


def contributions(prediction: Prediction, place: int) -> tuple[list[float], str]:
    """What the scans contribute to a number, and the unit in brackets, with a power of ten for the tiny or huge.

    Args:
        prediction: with scans that have contributions.
        place: of the number.
    """
    parts = [scan.contributions[place] for scan in prediction.scans if scan.contributions is not None]
    unit, most = prediction.numbers[place].unit, max(map(abs, parts), default=0.0)
    words = [unit] if (unit := readable_unit(unit)) else []
    if most and not 1e-3 <= most < 1e7:
        power = math.floor(math.log10(most))
        parts, words = [part / 10.0**power for part in parts], [power_of_ten(power), *words]
    return parts, f" [{' '.join(words)}]" if words else ""


def signed(parts: Sequence[float]) -> list[str]:
    """Contributions with their signs and as many decimals as give the largest three digits."""
    most = max(map(abs, parts), default=0.0)
    decimals = 2 - math.floor(math.log10(most)) if most else 0
    return [("+" if round(part, decimals) > 0 else "") + rounded(part, decimals) for part in parts]


def percent(chance: float) -> str:
    """A chance in words; one that is not certain never looks so."""
    text = "below 1" if 0 < chance < 0.01 else "above 99" if 0.99 < chance < 1 else f"{100 * chance:.0f}"
    return f"{text}\N{NO-BREAK SPACE}%"


def scan_range(places: Sequence[int]) -> str:
    """Name scans by their numbers from 1, three or more neighbours as a range.

    Example:
        >>> scan_range([0, 1, 2, 4])
        'Scans 1 to 3 and 5'
    """
    if len(places) == 1:
        return f"Scan {places[0] + 1}"
    runs: list[list[int]] = []
    for place in sorted(places):
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    words: list[str] = []
    for run in runs:
        words += [f"{run[0] + 1} to {run[-1] + 1}"] if len(run) > 2 else [str(place + 1) for place in run]
    return f"Scans {', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else f"Scans {words[0]}"


def patients_below(known: np.ndarray[tuple[int, ...], np.dtype[np.float64]], number: float) -> float:
    """Count how many of 100 patients lie below a number, with half of those at it.

    Example:
        >>> patients_below(np.linspace(0, 100, 21), 25.0)
        25.0
    """
    width = np.diff(known)
    inside = np.divide(number - known[:-1], width, out=np.zeros(20), where=width > 0)
    at = (1 + np.sign(number - known[:-1])) / 2
    return float(5 * np.where(width > 0, np.clip(inside, 0, 1), at).sum())

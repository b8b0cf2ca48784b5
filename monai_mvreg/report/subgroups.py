"""Predictions -> the same for groups of patients: whose numbers are worse, and whether that can be chance.

Groups are those of every subgroup in the table of predictions, of the number of scans, of the days from the first scan
to the last, and of the folds. Columns with many numbers are cut into thirds. Values of fewer than 5
patients are taken together, so that nobody is shown alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from monai_mvreg.metrics.bootstrap import Array, Estimate
from monai_mvreg.metrics.groups import group_means, groups_apart
from monai_mvreg.metrics.survival import concordance_with_interval
from monai_mvreg.report.page import FEW, INK, QUIET, Section, calm, rounded, span
from monai_mvreg.results.levels import LEAST, levels_of
from monai_mvreg.results.predictions_table import PredictionsTable


@dataclass(frozen=True)
class Subgroups:
    """Groups of patients.

    Args:
        factors: what each group ``(G,)`` is one of: ``sex``.
        levels: which one: ``F``.
        members: ``(G, P)``, true where a patient belongs to the group.
    """

    factors: tuple[str, ...]
    levels: tuple[str, ...]
    members: npt.NDArray[np.bool_]

    @property
    def names(self) -> list[str]:
        """Factor and level of each group."""
        return [f"{factor}: {level}" for factor, level in zip(self.factors, self.levels, strict=True)]

    @property
    def sizes(self) -> list[int]:
        """Patients of each group."""
        return [int(size) for size in self.members.sum(1)]


def find_subgroups(table: PredictionsTable) -> Subgroups:
    """Sort patients into groups, of at least 5 each; what has only one such group is left out.

    Args:
        table: predictions of the patients.
    """
    columns: dict[str, npt.NDArray[Any]] = {**table.groups, "scans": table.scans}
    columns |= {"days spanned": table.days_spanned, "fold": table.fold}
    factors: list[str] = []
    levels: list[str] = []
    members = []
    for factor, column in columns.items():
        found = levels_of(pd.Series(column))
        if len(found) > 1:
            factors += [factor] * len(found)
            levels += found
            members += list(found.values())
    return Subgroups(tuple(factors), tuple(levels), np.array(members, dtype=bool).reshape(-1, len(table)))


def error_subgroups(table: PredictionsTable, target: str, *, unit: str) -> Section:
    """Errors of one target by groups of patients, with 95 % intervals over the patients of each.

    Args:
        table: predictions of patients with a measured value.
        target: its name.
        unit: its unit, ``"1"`` for none.
    """
    groups = find_subgroups(table)
    if not groups.factors:
        return _nothing()
    apart = table.predicted(target) - table.measured(target)
    values = {"Mean absolute error": np.abs(apart), "Bias": apart}
    found = group_means(values, groups.members)
    p = groups_apart(np.stack(list(values.values()), 1), groups.members)
    cells = pd.DataFrame({"Group": groups.names, "Patients": _patients(groups)})
    for name in values:
        cells[f"{_measure(name, unit)} (95 % interval)"] = [_cell(estimates[name]) for estimates in found]
    panels = {name: [estimates[name] for estimates in found] for name in values}
    levels = {name: float(column.mean()) for name, column in values.items()}
    figure = figure_subgroups(groups, panels, levels, unit=unit)
    return _section(groups, cells, p, figure, what="mean absolute error and bias (predicted minus measured)")


def risk_subgroups(table: PredictionsTable, risk: Array, *, label: Array, expected: Array) -> Section:
    """Truth and order of the predicted risk by groups of patients, with 95 % intervals over the patients of each.

    Args:
        table: predictions of patients with a measured time.
        risk: ``(P,)``, higher is sooner.
        label: ``(P, 2)``, time in days and event.
        expected: predicted number of events ``(P,)`` of each patient up to the own time, which is the predicted
            cumulative hazard then.

    Source: Crowson, Atkinson, Therneau, Stat Methods Med Res 2016. https://doi.org/10.1177/0962280213497434
    """
    groups = find_subgroups(table)
    if not groups.factors:
        return _nothing()
    event, ratio, order = label[:, 1], "Observed over expected events", "Concordance"
    ratios = [found[ratio] for found in group_means({ratio: event}, groups.members, over=expected)]
    orders = [concordance_with_interval(risk[mine], label[mine]) for mine in groups.members]
    p = groups_apart((event - expected)[:, None], groups.members)
    cells = pd.DataFrame({"Group": groups.names, "Patients": _patients(groups)})
    cells["Events"] = [str(int(event[mine].sum())) for mine in groups.members]
    cells[f"{ratio} (95 % interval)"] = [_cell(estimate) for estimate in ratios]
    cells[f"{order} (95 % interval)"] = [_cell(estimate) for estimate in orders]
    whole = concordance_with_interval(risk, label, resamples=1).value
    total = float(expected.sum())
    levels = {ratio: float(event.sum()) / total if total > 0 else np.nan, order: whole}
    figure = figure_subgroups(groups, {ratio: ratios, order: orders}, levels, unit="1")
    return _section(groups, cells, p, figure, what="events that were observed over those expected, and concordance")


def figure_subgroups(
    groups: Subgroups, panels: Mapping[str, Sequence[Estimate]], levels: Mapping[str, float], *, unit: str
) -> Figure:
    """Estimates of each group with their intervals, a row for each group and a panel for each measure.

    Args:
        groups: whose names stand on the left.
        panels: measure -> one estimate for each group.
        levels: measure -> that of all patients, a dashed line.
        unit: of all measures, ``"1"`` for none.
    """
    gaps = [0.6 * (one != other) for one, other in itertools.pairwise(groups.factors)]
    steps = np.cumsum([1.0, *(1 + gap for gap in gaps)])
    figure = Figure(figsize=(6.8, 0.9 + 0.24 * steps[-1]), layout="constrained")
    for place, (axes, (name, found)) in enumerate(
        zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True)
    ):
        axes.axvline(levels[name], color=QUIET, linestyle="--", linewidth=1)
        for height, size, estimate in zip(steps, groups.sizes, found, strict=True):
            face = "white" if size < FEW else INK
            axes.plot([estimate.low, estimate.high], [height, height], color=INK, linewidth=1.2)
            axes.plot(estimate.value, height, "o", color=INK, markerfacecolor=face, markersize=5)
        calm(axes, name.lower(), "")
        axes.set_xlabel(_measure(name.lower(), unit), color=QUIET)
        if place == 0:
            axes.set_yticks(steps, [_short(name) for name in groups.names], fontsize=9)
            axes.set_ylim(steps[-1] + 0.7, steps[0] - 0.7)
        axes.tick_params(axis="y", length=0)
    return figure


def _section(groups: Subgroups, cells: pd.DataFrame, p: Array, figure: Figure, *, what: str) -> Section:
    best = np.nanmin(np.where(np.isnan(p), 1.0, p), axis=1)
    cells = cells.assign(p=["< 0.001" if one < 0.001 else f"{one:.3f}" for one in best])
    looks = int(np.isfinite(p).sum())
    shown = [name for name, one in zip(groups.names, best, strict=True) if one < 0.05]
    factors = list(dict.fromkeys(groups.factors))
    text = (
        f"The same patients in {len(groups.factors)} groups by {', '.join(factors)}: {what}. Of so many intervals some "
        f"lie off the value of all patients by chance alone. So a group counts as different only where p is below "
        f"0.05: the chance that any of these {looks} looks would show a difference as large if no group mattered. "
        f"Shown to differ: {'; '.join(shown) if shown else 'none'}.\n\n"
        "No difference shown does not mean that there is none: in a small group only a large one can be seen."
    )
    if "days spanned" in factors:
        text += " Days spanned are those from a patient's first scan to the last."
    if min(groups.sizes) < FEW:
        text += f" Groups of fewer than {FEW} patients are marked as few: their intervals are too narrow."
    if hidden := _hidden(groups):
        text += f" Not shown are values of fewer than {LEAST} patients of: {', '.join(hidden)}."
    caption = (
        "A row for each group: circle and bar are value and 95 % interval, an open circle where there are few "
        "patients; on the dashed line are all patients together."
    )
    return Section("Groups of patients", text, figure, caption, cells)


def _nothing() -> Section:
    text = (
        "No groups of patients are told apart: the table names none, and number of scans, days and fold are much the "
        "same in all patients. Name columns such as sex, age, site or scanner with the setting subgroups: whether the "
        "numbers hold for all of them is not known."
    )
    return Section("Groups of patients", text)


def _hidden(groups: Subgroups) -> list[str]:
    """Factors of which some patients are in no group."""
    factors = np.array(groups.factors)
    return [name for name in dict.fromkeys(groups.factors) if not groups.members[factors == name].any(0).all()]


def _patients(groups: Subgroups) -> list[str]:
    return [f"{size} (few)" if size < FEW else str(size) for size in groups.sizes]


def _measure(name: str, unit: str) -> str:
    return name if unit == "1" else f"{name} [{unit}]"


def _cell(estimate: Estimate) -> str:
    return f"{rounded(estimate.value)} ({span(estimate)})" if np.isfinite(estimate.low) else rounded(np.nan)


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:38]}…"

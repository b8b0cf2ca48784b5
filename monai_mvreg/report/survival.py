"""Show an evaluation of a time to event: a table of risks becomes metrics with intervals, curves and one HTML file.

``predictions.csv`` has one row per patient with time in days, event (1, or 0 for censored) and ``log_risk``, higher is
sooner; rows without a measured time are left out and counted.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.cache.typed_json import read_json, write_json
from monai_mvreg.metrics.bootstrap import Array, Estimate
from monai_mvreg.metrics.survival import (
    Forecast,
    auc_over_time,
    d_calibration,
    event_curve,
    kaplan_meier,
    survival_differences,
    survival_metrics,
)
from monai_mvreg.report.page import INK, QUIET, Section, calm, caution, caveat, must_not, rounded, span, write_report
from monai_mvreg.report.subgroups import risk_subgroups
from monai_mvreg.results.calibration import Baseline, fit_baseline
from monai_mvreg.results.predictions_table import PredictionsTable

_log = logging.getLogger(__name__)
_GROUPS = ("lowest third of risk", "middle third", "highest third")
_SHADES = ("#7aa6c9", "#4a4a4a", "#9c2f2f")
_WIDTHS = (1.0, 1.8, 3.0)  # so that they are told apart without colour
_AUC_DAYS = 12
_LIMITS = (
    "Censoring is taken to tell nothing about the event. The intervals show how much the numbers would move with other "
    "patients of the same kind; they do not cover other hospitals, scanners or protocols, nor another run of the "
    "training. The numbers speak for new patients only where no patient took part in training, in choosing the model "
    "or in fitting its curves: the validation patients of a training did the latter two, so evaluate on others."
)


def fit_curves(folder: str, curves: str, *, target: Sequence[str], horizons: Sequence[float]) -> None:
    """Fit the curves of a trained model on its held-out patients, and report on them; for the end of a training.

    Args:
        folder: holds ``predictions.csv`` of patients who were not trained on; chances are added to it.
        curves: the JSON file to write.
        target: names of the columns with time and event.
        horizons: days for which chances are told, increasing.

    Raises:
        ValueError: if none of the patients has an event, or ``predictions.csv`` is of another time or event.
    """
    table = _read(folder, target)
    known = table.known(target[0])
    baseline = fit_baseline(known.log_risk, known.label)
    write_json(baseline, curves)
    risk = table.log_risk
    chance = 1 - baseline.survival(risk, np.asarray(horizons, dtype=np.float64))
    table = table.with_curves(
        baseline.median_days(risk),
        dict(zip(horizons, chance.T, strict=True)),
        log_hazard=baseline.log_hazard(risk, horizons[-1]),
    )
    table.write(Path(folder) / "predictions.csv")
    _report(table, baseline, Path(folder), horizons)


def report_on(folder: str, curves: str, *, target: Sequence[str], horizons: Sequence[float], notice: str = "") -> None:
    """Turn ``predictions.csv`` into ``metrics.json`` and ``report.html`` in the same folder; for the end of a run.

    Args:
        folder: holds ``predictions.csv`` with measured times.
        curves: what :func:`fit_curves` wrote.
        target: names of the columns with time and event.
        horizons: days at which chances are judged, increasing.
        notice: a sentence on top of the report, on what the numbers do not say; empty for none.

    Raises:
        ValueError: as :func:`summarise_risk`, or if ``predictions.csv`` is of another time or event.
    """
    _report(_read(folder, target), read_json(Baseline, curves), Path(folder), horizons, notice)


def _report(
    table: PredictionsTable, baseline: Baseline, folder: Path, horizons: Sequence[float], notice: str = ""
) -> None:
    horizons = known_horizons(baseline, horizons)
    found = summarise_risk(table, baseline, horizons=horizons)
    atomic_write_text(folder / "metrics.json", json.dumps(found, indent=1, allow_nan=False))
    time, event = table.outcome
    stored = found[time]
    _log.info(
        "%s: concordance %.3f [%.3f, %.3f], %d patients, %d events; D-calibration p %.3f",
        time,
        *(stored["harrell"][key] or math.nan for key in ("value", "low", "high")),
        stored["patients"],
        stored["events"],
        stored["d_calibration_p"],
    )
    sections = [caveat(notice)] if notice else []
    sections += survival_sections(table, baseline, stored, horizons=horizons)
    _log.info("report: %s", write_report(folder / "report.html", title=f"Time to {event}", sections=sections))


def known_horizons(baseline: Baseline, horizons: Sequence[float]) -> list[float]:
    """The horizons at which chances are known, with a warning about the others.

    Args:
        baseline: the curves.
        horizons: days, increasing.

    Raises:
        ValueError: if there are none.
    """
    knows = baseline.knows(np.asarray(horizons, dtype=np.float64)).tolist()
    known = [day for day, within in zip(horizons, knows, strict=True) if within]
    beyond = ", ".join(f"{day:g}" for day, within in zip(horizons, knows, strict=True) if not within)
    if beyond:
        last = baseline.last_day
        sentence = f"horizons: expected days within the {last:g} that held-out patients were followed, got {beyond}"
        if not known:
            raise ValueError(f"{sentence}: is the time in days?")
        _log.warning("%s: probabilities by then are left empty", sentence)
    return known


def summarise_risk(table: PredictionsTable, baseline: Baseline, *, horizons: Sequence[float]) -> dict[str, Any]:
    """What ``metrics.json`` holds: the metrics of a time to event with 95 % intervals over patients.

    Args:
        table: predictions of a time to event.
        baseline: the curves.
        horizons: days at which chances are judged, increasing.

    Returns:
        ``{time: {"unit", "patients", "left_out", "events", "d_calibration_p", "harrell": {"value", "low", "high"},
        ...}}`` with the metrics of :func:`~monai_mvreg.metrics.survival.survival_metrics`; a number that does not exist
        is None.

    Raises:
        ValueError: if numbers were predicted, or no patient has a measured time.
    """
    known = _known(table)
    risk, label = known.log_risk, known.label
    forecast = Forecast(risk, horizons, baseline.survival(risk, np.asarray(horizons, dtype=np.float64)))
    found: dict[str, Any] = {
        **{"unit": "d", "patients": len(risk), "left_out": len(table) - len(known), "events": int(label[:, 1].sum())},
        "d_calibration_p": d_calibration(_own(baseline, risk, label), label),
    }
    for name, estimate in survival_metrics(forecast, label).items():
        found[name] = {key: None if math.isnan(value) else value for key, value in asdict(estimate).items()}
    return {table.outcome[0]: found}


def survival_sections(
    table: PredictionsTable, baseline: Baseline, stored: dict[str, Any], *, horizons: Sequence[float]
) -> list[Section]:
    """The parts of a report: numbers in plain words, the comparison with no model, curves and limits.

    Args:
        table: predictions of a time to event.
        baseline: the curves.
        stored: the metrics of :func:`summarise_risk`.
        horizons: days at which chances are judged, increasing.
    """
    known = _known(table)
    risk, label = known.log_risk, known.label
    days = np.asarray(horizons, dtype=np.float64)
    forecast = Forecast(risk, horizons, baseline.survival(risk, days))
    times, chance = kaplan_meier(label)
    marginal = np.concatenate([[1.0], chance])[np.searchsorted(times, days, side="right")]
    nobody = Forecast(np.zeros(len(risk)), horizons, np.tile(marginal, (len(risk), 1)))
    apart = survival_differences(forecast, nobody, label, names=[f"brier_{day:g}" for day in horizons])
    groups = np.searchsorted(np.quantile(risk, [1 / 3, 2 / 3]), risk).astype(np.float64)
    caption = (
        "Steps: share of patients without the event, by Kaplan-Meier, for each third of predicted risk; the higher the "
        "risk, the thicker the line. Dashed lines: the mean of the predicted curves of the same patients. Where both "
        "agree the chances are true. Below: patients at risk, still under observation and without the event."
    )
    calibrated = (
        "Share of the patients with the event by a day, among patients of about the same predicted chance, corrected "
        "for censoring. On the dashed line the chances are true."
    )
    expected = -np.log(np.maximum(_own(baseline, risk, label), 1e-12))
    return [
        _summary(stored, horizons),
        _comparison(apart, horizons),
        Section("Curves", "", figure_curves(label, groups, baseline, risk), caption),
        *_over_time(risk, label),
        Section("Calibration", "", figure_calibration(forecast, label), calibrated),
        risk_subgroups(known, risk, label=label, expected=expected),
        must_not(known, table.outcome[0], unit="d", time=True),
        Section("Limits", _LIMITS),
    ]


def figure_curves(label: Array, groups: Array, baseline: Baseline, risk: Array) -> Figure:
    """Observed and mean predicted survival of groups of patients.

    Args:
        label: ``(P, 2)``, time in days and event.
        groups: ``(P,)``, 0, 1 or 2.
        baseline: the curves.
        risk: log risk ``(P,)``.
    """
    figure = Figure(figsize=(6.5, 5.0), layout="constrained")
    axes, below = figure.subplots(2, sharex=True, height_ratios=[5, 1])
    days = np.linspace(0, float(label[:, 0].max()), 200)
    for group, (name, shade, width) in enumerate(zip(_GROUPS, _SHADES, _WIDTHS, strict=True)):
        mine = groups == group
        if not mine.any():
            continue
        times, chance = kaplan_meier(label[mine])
        axes.step([0.0, *times], [1.0, *chance], where="post", color=shade, linewidth=width, label=name)
        axes.plot(days, baseline.survival(risk[mine], days).mean(0), "--", color=shade, linewidth=0.6 * width)
    axes.set(ylim=(0, 1.02), xlim=(0, days[-1]))
    axes.legend(frameon=False, fontsize=9, labelcolor=QUIET)
    calm(axes, "time [d]", "without the event")
    axes.tick_params(labelbottom=True)
    ticks = [day for day in axes.get_xticks() if 0 <= day <= days[-1]]
    below.set(ylim=(len(_GROUPS) - 0.4, -0.6), yticks=range(len(_GROUPS)), yticklabels=_GROUPS)
    for group in range(len(_GROUPS)):
        for day in ticks:
            at_risk = int((label[groups == group, 0] >= day).sum())
            below.annotate(str(at_risk), (day, group), ha="center", va="center", fontsize=9, annotation_clip=False)
    below.set_title("patients at risk", fontsize=9, loc="left", color=QUIET)
    below.tick_params(length=0, pad=16, labelbottom=False, labelsize=9, colors=QUIET)
    below.spines[:].set_visible(False)
    return figure


def figure_auc(days: Sequence[float], found: Sequence[Estimate]) -> Figure:
    """The chance that a patient with an event by a day has the higher risk than one without, over the days.

    Args:
        days: increasing.
        found: one estimate for each day.
    """
    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    axes = figure.subplots()
    low, value, high = (np.array([getattr(one, end) for one in found]) for end in ("low", "value", "high"))
    axes.fill_between(days, low, high, color=QUIET, alpha=0.2, linewidth=0)
    axes.plot(days, value, "o-", color=INK, markersize=4)
    axes.axhline(0.5, color=QUIET, linestyle="--", linewidth=1)
    axes.set(ylim=(min(0.4, float(np.nanmin(low, initial=0.4))) - 0.02, 1.02), xlim=(0, None))
    calm(axes, "time [d]", "AUC")
    return figure


def figure_calibration(forecast: Forecast, label: Array) -> Figure:
    """Observed share of events against predicted chance, a smooth curve for each horizon.

    Args:
        forecast: with chances.
        label: ``(P, 2)``, time in days and event.
    """
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    axes, styles = figure.subplots(), ["-", "-.", ":"]
    axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1)
    for place, day in enumerate(forecast.days):
        chances, shares = event_curve(forecast, label, day)
        shade, style = _SHADES[place % len(_SHADES)], styles[place % len(styles)]
        axes.plot(chances, shares, style, color=shade, label=f"day {day:g}")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(frameon=False, fontsize=9, labelcolor=QUIET)
    calm(axes, "predicted chance of the event", "observed share")
    return figure


def _over_time(risk: Array, label: Array) -> list[Section]:
    """The AUC over the days in which most events lie; nothing where all events are of one day."""
    events = label[label[:, 1] > 0, 0]
    if not len(events):
        return []
    days = np.unique(np.ceil(np.quantile(events, np.linspace(0.1, 0.9, _AUC_DAYS))))
    days = days[(days > 0) & (days < label[:, 0].max())]
    if len(days) < 2:
        return []
    found = auc_over_time(risk, label, days.tolist())
    caption = (
        "For each day, the chance that a patient with an event by then has the higher risk than one without (AUC; "
        "1: always, 0.5, dashed: no better than chance), between the days by which a tenth and nine tenths of the "
        "events were seen. Grey: 95 % interval over patients."
    )
    last = len(days) - 1
    rows = [
        (
            f"{days[i]:g}",
            str(int((events <= days[i]).sum())),
            str(int((label[:, 0] > days[i]).sum())),
            rounded(found[i].value),
            span(found[i]),
        )
        for i in sorted({0, last // 3, 2 * last // 3, last})
    ]
    columns = ["Day", "With an event by then", "Still without", "AUC", "95 % interval"]
    return [
        Section("Order over time", "", figure_auc(days.tolist(), found), caption, pd.DataFrame(rows, columns=columns))
    ]


def _own(baseline: Baseline, risk: Array, label: Array) -> Array:
    """The predicted chance ``(P,)`` of no event through each patient's own time."""
    # Who was followed for longer than those of the curve counts as free of the event until its end.
    time = label[:, 0] if baseline.last_day is None else np.minimum(label[:, 0], baseline.last_day)
    return np.array([baseline.survival(risk[i : i + 1], time[i : i + 1])[0, 0] for i in range(len(risk))])


def _summary(stored: dict[str, Any], horizons: Sequence[float]) -> Section:
    order, left = _estimate(stored["harrell"]), stored["left_out"]
    left_out = f" ({left} more had no measured time)" if left else ""
    worth = "It is not shown that the risks order patients better than chance does."
    if order.low > 0.5:
        worth = "The risks order patients better than chance does."
    p = stored["d_calibration_p"]
    truth = "contradict" if p < 0.05 else "do not contradict"
    known = (
        f"the one with the higher risk had the event first in {rounded(100 * order.value)} of 100 pairs whose order is "
        f"known; with other patients of the same kind this would probably be {span(_times(order, 100))}. {worth}"
    )
    if math.isnan(order.value):
        known = "no two can be compared, so how well the risks order patients is not known."
    text = (
        f"In {stored['patients']} patients with {stored['events']} events{left_out}, {known}\n\nThe observed times "
        f"{truth} the predicted chances (D-calibration, p = {rounded(p)}).{caution(stored['patients'])}"
    )
    rows = [("Concordance (Harrell)", "harrell"), (f"Concordance up to day {horizons[-1]:g} (Uno)", "uno")]
    for day in horizons:
        rows.append((f"AUC at day {day:g}", f"auc_{day:g}"))
        rows.append((f"Brier score at day {day:g}", f"brier_{day:g}"))
        rows.append((f"Observed over expected events by day {day:g}", f"observed_to_expected_{day:g}"))
        rows.append((f"Integrated calibration index at day {day:g}", f"ici_{day:g}"))
    rows += [("Integrated Brier score", "ibs")] if "ibs" in stored else []
    rows.append(("Slope of the log risk", "slope"))
    cells = [(name, rounded(_estimate(stored[key]).value), span(_estimate(stored[key]))) for name, key in rows]
    return Section("Summary", text, table=pd.DataFrame(cells, columns=["Measure", "Value", "95 % interval"]))


def _comparison(apart: dict[str, Estimate], horizons: Sequence[float]) -> Section:
    names = [f"brier_{day:g}" for day in horizons]
    cells = [
        (f"Brier score at day {day:g}", rounded(apart[name].value), span(apart[name]))
        for day, name in zip(horizons, names, strict=True)
    ]
    shown = [f"day {day:g}" for day, name in zip(horizons, names, strict=True) if apart[name].high < 0]
    text = (
        "The model minus one curve for all, the Kaplan-Meier curve of these very patients. A difference below zero "
        "favours the model; it counts as shown where the whole interval lies below zero: "
        f"{', '.join(shown) if shown else 'at none of these days'}."
    )
    return Section("Comparison", text, table=pd.DataFrame(cells, columns=["Measure", "Difference", "95 % interval"]))


def _known(table: PredictionsTable) -> PredictionsTable:
    """The patients with a measured time."""
    known = table.known(table.outcome[0])
    if not len(known):
        raise ValueError("predictions: expected patients with a measured time, got none")
    return known


def _read(folder: str, target: Sequence[str]) -> PredictionsTable:
    path = Path(folder) / "predictions.csv"
    table = PredictionsTable.read(path)
    if list(table.outcome) != list(target):
        raise ValueError(f"{path}: expected predictions of {', '.join(target)}, got {', '.join(table.outcome)}")
    return table


def _estimate(stored: dict[str, float | None]) -> Estimate:
    return Estimate(**{key: math.nan if value is None else value for key, value in stored.items()})


def _times(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(factor * estimate.value, factor * estimate.low, factor * estimate.high)

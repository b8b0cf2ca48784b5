"""Show an evaluation: a folder of tables becomes figures and one HTML file that needs nothing else.

The folder holds ``predictions.csv`` (one row per patient), ``metrics.json`` (made from it by :func:`summarise`) and,
where a model was trained, ``history.csv`` (one row per epoch). A report never shows who the patients are.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.metrics.bootstrap import Estimate
from monai_mvreg.metrics.regression import (
    cohort_metrics,
    difference,
    interval_metrics,
    limits_of_agreement,
    mean_absolute_error,
)
from monai_mvreg.metrics.smooth import CalibrationCurve
from monai_mvreg.report.page import (
    FEW,
    INK,
    QUIET,
    Section,
    calm,
    caution,
    caveat,
    must_not,
    rounded,
    span,
    value,
    write_report,
)
from monai_mvreg.report.subgroups import error_subgroups
from monai_mvreg.results.predictions_table import PredictionsTable

_log = logging.getLogger(__name__)
Array = npt.NDArray[np.float64]
_ERRORS = {
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "bias": "Bias (predicted minus measured)",
    "ici": "Integrated calibration index",
    "width": "Width of the prediction intervals",
}
_MEASURES = {
    **_ERRORS,
    "slope": "Calibration slope",
    "r2": "R²",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "coverage": "Coverage of the prediction intervals",
}
_LIMITS = (
    "The intervals show how much the numbers would move with other patients of the same kind. They do not cover other "
    "hospitals, scanners or protocols, nor another run of the training. The numbers speak for new patients only where "
    "no patient took part in training or choosing the model that made their own prediction, or in fitting its "
    "intervals: the validation patients of a training did the latter two, so evaluate on others."
)


def summarise(predictions: PredictionsTable, target: str) -> dict[str, Any]:
    """What ``metrics.json`` holds: the metrics of one target with 95 % intervals over patients.

    Args:
        predictions: of the patients. Rows without a measured value are left out and counted.
        target: its name.

    Returns:
        ``{target: {"unit", "patients", "left_out", "mae": {"value", "low", "high"}, ...}}``, ready for ``json.dumps``:
        a number that does not exist is None. Where all have prediction intervals also their coverage and width.

    Raises:
        ValueError: if there is no such target, a measured value has no prediction, or fewer than 2 patients have a
            measured value.

    Example:
        >>> cells = {"patient": ["a", "b"], "fold": "0", "ef": [50.0, 60.0], "ef_predicted": [52.0, 60.0], "unit": "%"}
        >>> table = PredictionsTable(pd.DataFrame(cells | {"scans": 1, "days": "0", "weights": "1"}))
        >>> summarise(table, "ef")["ef"]["mae"]["value"]
        1.0
    """
    measured, predicted = predictions.measured(target), predictions.predicted(target)
    known = ~np.isnan(measured)
    if len(wrong := np.flatnonzero(known & np.isnan(predicted))):
        raise ValueError(f"predictions row {wrong[0] + 1}: expected a prediction for a measured value, got none")
    found: dict[str, Any] = {"unit": predictions.unit, "patients": int(known.sum()), "left_out": int((~known).sum())}
    metrics = cohort_metrics(predicted[known], measured[known])
    ends = predictions.known(target).interval(target)
    if ends is not None and not np.isnan(ends).any():
        metrics |= interval_metrics(*ends, measured[known])
    for name, estimate in metrics.items():
        found[name] = {key: None if math.isnan(number) else number for key, number in asdict(estimate).items()}
    return {target: found}


def evaluation_sections(
    predictions: PredictionsTable, folder: Path, target: str, *, baselines: Mapping[str, Array] | None = None
) -> list[Section]:
    """The parts of an evaluation's report: numbers in plain words, comparisons, figures and limits.

    Args:
        predictions: of the evaluated patients.
        folder: holds ``metrics.json`` of these predictions and, where there was training, ``history.csv``.
        target: its name.
        baselines: name -> prediction ``(P,)`` in target units, in the order of the predictions; each is compared with
            the model on the same patients. None compares with nothing.

    Raises:
        FileNotFoundError: if ``metrics.json`` is missing.
        ValueError: as :func:`summarise`, or if ``metrics.json`` was made from other predictions, or a baseline does
            not have one finite value for each patient.
    """
    stored = json.loads((folder / "metrics.json").read_text(encoding="utf-8")).get(target)
    now = summarise(predictions, target)[target]
    if stored is None or not math.isclose(stored["mae"]["value"], now["mae"]["value"], rel_tol=1e-6):
        raise ValueError(f"metrics.json: expected the metrics of {target} in predictions.csv, got other ones")
    known, unit = predictions.known(target), stored["unit"]
    predicted, measured = known.predicted(target), known.measured(target)
    sections = [_summary(stored, limits_of_agreement(predicted, measured))]
    if baselines:
        sections.append(_comparison(predictions, target, baselines))
    agreement = (
        f"Each circle is one of {len(measured)} patients: predicted value to the right, measured value upwards. On "
        "the dashed line both are the same."
    )
    if len(measured) >= FEW:
        agreement += " Solid line: what was measured on average where a value was predicted."
    residuals = (
        "Each circle is one patient: mean of predicted and measured value to the right, predicted minus measured value "
        "upwards. Solid line: mean difference (bias). Dashed lines: limits of agreement, which hold 95 of 100 patients "
        "if the differences are normally distributed."
    )
    sections += [
        Section("Predicted and measured", "", figure_agreement(measured, predicted, unit=unit), agreement),
        Section("Too high, too low", "", figure_residuals(measured, predicted, unit=unit), residuals),
        error_subgroups(known, target, unit=unit),
    ]
    if (folder / "history.csv").exists():
        history = pd.read_csv(folder / "history.csv")
        curves = f"Over {len(history)} epochs, from top to bottom: {', '.join(history.columns[1:])}.".replace("_", " ")
        sections.append(Section("Training", "", figure_training(history), curves))
    return [*sections, must_not(known, target, unit=unit, time=False), Section("Limits", _LIMITS)]


def write_evaluation(folder: str, target: Sequence[str], *, training_mean: Sequence[float], notice: str = "") -> None:
    """Turn ``predictions.csv`` into ``metrics.json`` and ``report.html`` in the same folder; for the end of a run.

    Args:
        folder: holds ``predictions.csv`` and, where there was training, ``history.csv``.
        target: names of the targets.
        training_mean: mean of each target over the training patients, which the model is compared with.
        notice: a sentence on top of the report, on what the numbers do not say; empty for none.
    """
    place = Path(folder)
    predictions = PredictionsTable.read(place / "predictions.csv")
    metrics: dict[str, Any] = {}
    counts = {name: len(predictions.known(name)) for name in target}
    if min(counts.values(), default=2) < 2:
        got = ", ".join(f"{count} of {name}" for name, count in counts.items())
        sentence = f"expected at least 2 patients with a measured value, got {got}"
        _log.warning("no metrics: %s", sentence)
        for name, count in counts.items():
            metrics[name] = {"unit": predictions.unit, "patients": count, "left_out": len(predictions) - count}
        atomic_write_text(place / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False))
        sections = [*([caveat(notice)] if notice else []), Section("Summary", f"There are no metrics: {sentence}.")]
        write_report(place / "report.html", title=f"Prediction of {', '.join(target)}", sections=sections)
        return
    for name in target:
        metrics |= summarise(predictions, name)
    atomic_write_text(place / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False))
    sections = [caveat(notice)] if notice else []
    for name, mean in zip(target, training_mean, strict=True):
        baselines = {"Mean of the training patients": np.full(len(predictions), mean)}
        parts = evaluation_sections(predictions, place, name, baselines=baselines)
        if len(target) > 1:
            parts = [replace(part, title=f"{name}: {part.title.lower()}") for part in parts]
        sections += parts
        mae, r2_ = (_estimate(metrics[name][key]) for key in ("mae", "r2"))
        _log.info(
            "%s: MAE %.4g [%.4g, %.4g] %s, R2 %.3f [%.3f, %.3f], %d patients; predicting the training mean: MAE %.4g",
            name,
            mae.value,
            mae.low,
            mae.high,
            metrics[name]["unit"],
            r2_.value,
            r2_.low,
            r2_.high,
            metrics[name]["patients"],
            np.nanmean(np.abs(predictions.measured(name) - mean)),
        )
    _log.info(
        "report: %s", write_report(place / "report.html", title=f"Prediction of {', '.join(target)}", sections=sections)
    )


def figure_training(history: pd.DataFrame) -> Figure:
    """Loss and validation metric over the epochs, one panel each.

    Args:
        history: one row per epoch; ``epoch`` first, then a column per curve, empty in epochs without validation.

    Raises:
        ValueError: if the first column is not ``epoch`` or there is no other.
    """
    epoch, *names = history.columns
    if epoch != "epoch" or not names:
        raise ValueError(f"history: expected a column epoch, then curves, got {', '.join(history.columns)}")
    figure = Figure(figsize=(6.5, 0.6 + 1.7 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        known = history.dropna(subset=[name])
        axes.plot(known[epoch], known[name], color=INK, marker="o", markersize=3 if len(known) <= 40 else 0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        calm(axes, epoch if axes is panels[-1] else "", name.replace("_", " "))
    return figure


def figure_agreement(measured: Array, predicted: Array, *, unit: str) -> Figure:
    """Measured against predicted values ``(P,)`` in ``unit`` (``1``: none), and where both agree.

    From 20 patients on their smooth mean is drawn too: of fewer it follows single patients.
    """
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    axes, both = figure.subplots(), np.concatenate([measured, predicted])
    margin = 0.05 * float(np.ptp(both)) or 1.0
    ends = [both.min() - margin, both.max() + margin]
    axes.plot(ends, ends, "--", color=QUIET, linewidth=1)
    axes.plot(predicted, measured, "o", color=INK, markerfacecolor="none", markersize=5)
    if len(measured) >= FEW:
        curve = CalibrationCurve(predicted)
        axes.plot(curve.places, curve.heights(np.ones((1, len(measured))), measured)[0], color=INK)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    calm(axes, "predicted", "measured", unit)
    return figure


def figure_residuals(measured: Array, predicted: Array, *, unit: str) -> Figure:
    """Difference against mean of predicted and measured values ``(P,)`` in ``unit``, with bias and limits of agreement.

    Source: Bland, Altman, Lancet 1986. https://doi.org/10.1016/S0140-6736(86)90837-8
    """
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot((measured + predicted) / 2, predicted - measured, "o", color=INK, markerfacecolor="none", markersize=5)
    names = ("bias", "lower limit", "upper limit")
    for level, name in zip(limits_of_agreement(predicted, measured), names, strict=True):
        axes.axhline(level, color=QUIET, linestyle="-" if name == "bias" else "--", linewidth=1)
        label, place = f"{name}\n{value(level, unit)}", ("axes fraction", "data")
        axes.annotate(label, (1.02, level), xycoords=place, va="center", fontsize=9, color=QUIET)
    calm(axes, "mean of predicted and measured", "predicted minus measured", unit)
    return figure


def figure_scans(images: Sequence[npt.NDArray[Any]], days: Sequence[float], weights: Sequence[float]) -> Figure:
    """One patient's scans side by side in one grey scale, each with its day and its weight, also as a bar from 0 to 1.

    Args:
        images: one array per scan, ``(H, W)`` or ``(H, W, D)``, axes to the patient's right, then front or head (RAS+);
            shown as radiologists do, right on the left and front or head up, volumes at the middle of the last axis.
        days: time of each scan, in days.
        weights: share of each scan in the prediction, 0 to 1.

    Raises:
        ValueError: if there is no scan, the lengths differ, or an array has not 2 or 3 axes.
    """
    if not 0 < len(images) == len(days) == len(weights):
        raise ValueError(f"expected a day and a weight per scan, got {len(images)}, {len(days)}, {len(weights)}")
    if not all(np.ndim(image) in (2, 3) for image in images):
        raise ValueError(f"expected (H, W) or (H, W, D) arrays, got {[np.shape(image) for image in images]}")
    flat = [image if image.ndim == 2 else image[..., image.shape[-1] // 2] for image in images]
    dark, bright = np.percentile(np.concatenate([image.ravel() for image in flat]), [1, 99])
    columns = min(len(flat), 6)
    rows = math.ceil(len(flat) / columns)
    tallest = max(image.shape[1] / image.shape[0] for image in flat)
    figure = Figure(figsize=(1.3 * max(columns, 3), (1.25 * tallest + 0.65) * rows), layout="constrained")
    panels = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[1, 0.06] * rows)
    for axes in panels.ravel():
        axes.set_axis_off()
    for i, (image, day, weight) in enumerate(zip(flat, days, weights, strict=True)):
        top, below = panels[2 * (i // columns) :, i % columns][:2]
        top.imshow(np.rot90(image)[:, ::-1], cmap="gray", vmin=dark, vmax=bright)
        top.set_title(f"day {day:g}\nweight {weight:.2f}", fontsize=9)
        top.set_anchor("S")
        below.set_axis_on()
        below.barh(0, weight, height=1, color=INK)
        below.set(xlim=(0, 1), ylim=(-0.5, 0.5), xticks=[], yticks=[])
    return figure


def _summary(stored: dict[str, Any], limits: tuple[float, float, float]) -> Section:
    found = {name: _estimate(stored[name]) for name in _MEASURES if name in stored}
    (bias, low, high), unit, r2 = limits, stored["unit"], found["r2"]
    left_out = f" ({stored['left_out']} more had no measured value)" if stored["left_out"] else ""
    share = f"The model accounts for {rounded(100 * r2.value)} % of the variance between patients."
    if not r2.low > 0:
        share = "It is not shown that the model does better than giving every patient the mean of these patients."
    text = (
        f"In {stored['patients']} patients{left_out} the prediction missed the measured value by "
        f"{value(found['mae'].value, unit)} on average; with other patients of the same kind this would probably be "
        f"{span(found['mae'], unit)}. {share}\n\nOn average the prediction was {value(abs(bias), unit)} too "
        f"{'high' if bias > 0 else 'low'}. For about 95 of 100 patients, predicted minus measured value is expected "
        f"between {value(low)} and {value(high, unit)}.{caution(stored['patients'])}"
    )
    if "coverage" in found:
        held = _estimate({key: None if part is None else 100 * part for key, part in stored["coverage"].items()})
        text += (
            f"\n\nThe prediction intervals held the measured value of {rounded(held.value)} % of these patients "
            f"({span(held)} %); they are {value(found['width'].value, unit)} wide on average."
        )
    cells = []
    for name, estimate in found.items():
        own = unit if name in _ERRORS else "1"
        cells.append((_MEASURES[name], value(estimate.value, own), span(estimate, own)))
    return Section("Summary", text, table=pd.DataFrame(cells, columns=["Measure", "Value", "95 % interval"]))


def _comparison(predictions: PredictionsTable, target: str, baselines: Mapping[str, Array]) -> Section:
    known, unit = ~np.isnan(predictions.measured(target)), predictions.unit
    predicted, measured = predictions.predicted(target)[known], predictions.measured(target)[known]
    cells = [("Model", value(mean_absolute_error(predicted, measured), unit), "", "")]
    verdicts = []
    for name, values in baselines.items():
        if np.shape(values) != known.shape:
            raise ValueError(f"baseline {name}: expected {len(known)} values, got shape {np.shape(values)}")
        baseline = np.asarray(values, dtype=np.float64)[known]
        try:
            gap = difference(predicted, baseline, measured)
        except ValueError as error:
            raise ValueError(f"baseline {name}: {error}") from error
        error_of_it = mean_absolute_error(baseline, measured)
        cells.append((name, value(error_of_it, unit), value(gap.value, unit), span(gap, unit)))
        verdict = "better than" if gap.high < 0 else "worse than" if gap.low > 0 else "not shown to differ from"
        verdicts.append(f'{verdict} "{name}"')
    text = (
        f"By mean absolute error on the same patients the model is {'; '.join(verdicts)}. A difference below zero "
        "favours the model; it counts as shown when the whole interval lies on one side of zero."
    )
    columns = ["Prediction", "Mean absolute error", "Model minus this", "95 % interval"]
    return Section("Comparison", text, table=pd.DataFrame(cells, columns=columns))


def _estimate(stored: Mapping[str, float | None]) -> Estimate:
    return Estimate(**{key: math.nan if number is None else number for key, number in stored.items()})

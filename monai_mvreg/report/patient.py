"""A prediction -> one HTML page a clinician can read: the number, how far to trust it, and which scan did what.

Scans are shown by number; patient and paths are shown only if the user asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from monai_mvreg.cohort.thumbnails import ScanPicture, as_jpeg
from monai_mvreg.predict.prediction import PURPOSE, NoPrediction, PredictedNumber, Prediction, SurvivalCurve
from monai_mvreg.report.page import Headline, Link, Section, Tile, rounded, value, with_unit, write_report
from monai_mvreg.report.patient_figures import (
    contributions,
    figure_chances,
    figure_standing,
    figure_timeline,
    patients_below,
    percent,
    scan_range,
    share,
    signed,
)
from monai_mvreg.report.privacy import cleaner

_DAYS_PER_YEAR = 365.25
_READING = (
    "Weights say in what shares the scans went into the prediction; they sum to 1 and are no measure of importance. A "
    "contribution says how much the number would change without that one scan: with a plus it would be lower, with a "
    "minus higher. Contributions need not sum to anything: where two scans show the same, each may be dispensable."
)
_BRIGHTNESS = "Each picture has a brightness of its own: do not compare."
_OUTLINES = (
    " Outlines show what the model went by in that scan, at half of the strongest effect: regions with + raise the "
    "number, hatched regions with \N{MINUS SIGN} lower it. They do not compare between scans, and are no proof that "
    "something is there."
)
_LIMITS = (
    "It must not be used to diagnose, to choose or withhold a treatment, or to tell patients about themselves. It says "
    "nothing about kinds of scans, scanners or patients that the training did not see, nor what would happen under "
    "another treatment. Numbers of two models, or of two versions of one, do not compare."
)


def write_patient_report(
    path: str | Path,
    prediction: Prediction,
    *,
    pictures: Sequence[ScanPicture] = (),
    cohort: Mapping[str, Sequence[float]] | None = None,
    identify: bool = False,
) -> Path:
    """Write the page of one patient: one self-contained HTML file without scripts that prints on A4.

    Args:
        path: the file to write; its folder exists.
        prediction: the prediction of the patient.
        pictures: one per scan, in order, or none at all.
        cohort: name of a number -> percentiles 0, 5, ..., 100 of its measured values in the training patients
            ``(21,)``, in target units; None if unknown. Not used for a time to event, which is shown as a curve.
        identify: show the patient's key and the addresses of the scans.

    Returns:
        The path of the file.

    Raises:
        ValueError: if there are pictures but not one per scan, or percentiles are not 21 numbers in ascending order.

    Example:
        >>> import tempfile
        >>> from monai_mvreg.predict import Predictor
        >>> prediction = Predictor.from_bundle("study").predict_folder("patient")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     "Prediction for one patient" in write_patient_report(f"{folder}/p.html", prediction).read_text("utf-8")
        True
    """
    if len(pictures) not in (0, len(prediction.scans)):
        raise ValueError(f"expected a picture for each of {len(prediction.scans)} scans, got {len(pictures)}")
    clean = str if identify else cleaner(prediction)
    sections = [_result(prediction), *_warnings(prediction, clean)]
    sections += _standing(prediction, cohort or {}) if prediction.survival is None else [_chances(prediction.survival)]
    sections += _scans(prediction, identify)
    if pictures:
        text = _BRIGHTNESS + _OUTLINES * any(picture.saliency is not None for picture in pictures)
        sections.append(Section("Pictures of the scans", text, tiles=_tiles(prediction, pictures, clean)))
    sections += [*_left_out(prediction, clean, identify), _model(prediction)]
    title = f"Prediction for patient {prediction.patient}" if identify else "Prediction for one patient"
    return write_report(Path(path), title=title, sections=sections, note=PURPOSE)


def write_index(
    path: str | Path,
    patients: Sequence[Prediction | NoPrediction],
    *,
    reports: Sequence[str] = (),
    identify: bool = False,
) -> Path:
    """Write one page with a row per patient, sorted by the first number (or the risk), the highest first.

    Args:
        path: the file to write; its folder exists.
        patients: predictions of one model, and patients without one, numbered in this order, from 1.
        reports: addresses of their reports, relative to the page, in the same order, or none at all; those of patients
            without a prediction are ignored.
        identify: show the patients' keys.

    Returns:
        The path of the file.

    Raises:
        ValueError: if there is no prediction, the predicted numbers differ, or there is not one report per patient.

    Example:
        >>> import tempfile
        >>> from monai_mvreg.predict import Predictor
        >>> prediction = Predictor.from_bundle("study").predict_folder("patient")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     "1 patients, sorted by growth" in write_index(f"{folder}/p.html", [prediction]).read_text("utf-8")
        True
    """
    predictions = {at: one for at, one in enumerate(patients) if isinstance(one, Prediction)}
    if len({tuple((n.name, n.unit) for n in prediction.numbers) for prediction in predictions.values()}) != 1:
        raise ValueError("expected predictions of the same numbers in the same units, got none or several kinds")
    if len(reports) not in (0, len(patients)):
        raise ValueError(f"expected a report for each of {len(patients)} patients, got {len(reports)}")
    rows = []
    for at, found in sorted(predictions.items(), key=lambda one: -one[1].numbers[0].value):
        patient = found.patient if identify else str(at + 1)
        row: dict[str, object] = {"Patient": Link(patient, reports[at]) if reports else patient}
        for number in found.numbers:
            label = with_unit(_name(number), number.unit)
            row[label] = rounded(number.value, _decimals(number))
            if found.survival is None:
                row["Interval" + (f" of {_name(number)}" if len(found.numbers) > 1 else "")] = (
                    _span(number, "1") or "not known"
                )
        if found.survival is not None:
            median = found.survival.median_days
            row["Median time [d]"] = "not reached" if median is None else f"{median:.0f}"
            for day, risk in zip(found.survival.horizons, found.survival.risks, strict=True):
                row[f"Event by day {day:g}"] = percent(risk)
        row |= {"Scans": len(found.scans), "Left out": len(found.left_out), "Warnings": len(_grouped(found, str))}
        rows.append(row)
    text = f"{len(rows)} patients, sorted by {_name(next(iter(predictions.values())).numbers[0])}, the highest first."
    sections = [Section("Patients", text, table=pd.DataFrame(rows))]
    lost = [
        {"Patient": one.patient, "Reason": one.reason} if identify else {"Patient": str(at + 1)}
        for at, one in enumerate(patients)
        if isinstance(one, NoPrediction)
    ]
    if lost:
        why = "No scan of these patients could be used; mvreg predict --json tells why."
        sections.append(Section("Without a prediction", why, table=pd.DataFrame(lost)))
    return write_report(Path(path), title="Predictions", sections=sections, note=PURPOSE)


def _result(prediction: Prediction) -> Section:
    """The numbers in large type and how to read them."""
    curve = prediction.survival
    if curve is None:
        lines = [
            Headline(_name(number), value(number.value, number.unit, _decimals(number)), _held(number))
            for number in prediction.numbers
        ]
        text = _reading(prediction.numbers)
    else:
        told, note = "not reached", f"more than half are free of the event on day {max(curve.days, default=0):g}"
        if curve.median_days is not None:
            told = f"{curve.median_days:.0f}\N{NO-BREAK SPACE}days"
            note = f"{curve.median_days / _DAYS_PER_YEAR:.1f} years: half of such patients have the event by then"
        lines = [Headline("median time to the event", told, note)]
        lines += [
            Headline(f"chance of the event by day {day:g}", percent(risk), f"{day / _DAYS_PER_YEAR:.1f} years")
            for day, risk in zip(curve.horizons, curve.risks, strict=True)
        ]
        text = (
            "A chance of 20 % means: of 100 patients to whom the model gives the same risk, 20 are expected to have "
            "the event by that day; it cannot say which. The chances are those of the patients whom the curve was "
            f"fitted on, moved by this patient's log risk of {rounded(prediction.numbers[0].value, 2)}: higher is "
            "sooner, and 0.69 more doubles the rate of events."
        )
    text += "".join(f"\n\n{sentence}" for sentence in _newest(prediction))
    if not prediction.warnings:
        text += "\n\nNo check found anything outside what the training saw. That does not make the prediction right."
    return Section("Result", text, headlines=lines)


def _reading(numbers: Sequence[PredictedNumber]) -> str:
    """One sentence on what an interval means, or more where the numbers differ in this."""
    told: dict[str, list[str]] = {}
    for number in numbers:
        if number.low is None or number.high is None:
            sentence = "how far the true value may lie from it is not known: the model has no interval."
        elif number.confidence is None:
            sentence = "the true value is expected within the interval; how often that holds is not known."
        else:
            sentence = (
                f"for {100 * number.confidence:.3g} of 100 new patients like those the interval was fitted on, the "
                "true value lies within such an interval; it may lie outside for this one."
            )
        told.setdefault(sentence, []).append(_name(number))
    if len(told) == 1:
        (sentence,) = told
        return sentence[0].upper() + sentence[1:]
    return "\n\n".join(f"{' and '.join(names)}: {sentence}" for sentence, names in told.items())


def _newest(prediction: Prediction) -> list[str]:
    """What the scans of the newest day changed, one sentence per number."""
    if prediction.newest_visit is None:
        return []
    last = max(scan.day for scan in prediction.scans)
    those = scan_range([i for i, scan in enumerate(prediction.scans) if scan.day == last]).lower()
    told = []
    for number, change in zip(prediction.numbers, prediction.newest_visit, strict=True):
        decimals = _decimals(number)
        what = f"less than {value(10.0**-decimals, number.unit, decimals)}"
        if round(change, decimals):
            what = value(abs(change), number.unit, decimals)
            what += f": without it the prediction would be {value(number.value - change, number.unit, decimals)}"
        verb = "raised" if change > 0 else "lowered"
        told.append(f"The newest visit ({those}, day {last:g}) {verb} {_name(number)} by {what}.")
    return told


def _warnings(prediction: Prediction, clean: Callable[[str], str]) -> list[Section]:
    """All warnings in a frame; the same one of several scans once."""
    if not prediction.warnings:
        return []
    told = _grouped(prediction, clean)
    notices = [
        f"{scan_range(places)}: {message} ({check})" if places else f"{message} ({check})"
        for (check, message), places in told.items()
    ]
    title = "1 warning" if len(notices) == 1 else f"{len(notices)} warnings"
    text = (
        "Something differs from what the model was trained on, or was missing. How far off the number is in such a "
        "case, and whether its interval holds, is not known."
    )
    return [Section(title, text, notices=notices)]


def _grouped(prediction: Prediction, clean: Callable[[str], str]) -> dict[tuple[str, str], list[int]]:
    told: dict[tuple[str, str], list[int]] = {}
    for warning in prediction.warnings:
        places = told.setdefault((warning.check, clean(warning.message)), [])
        places += [] if warning.scan is None else [warning.scan]
    return told


def _standing(prediction: Prediction, cohort: Mapping[str, Sequence[float]]) -> list[Section]:
    """Where the patient stands among the training patients, for each number whose cohort is known."""
    sections = []
    for number in prediction.numbers:
        if number.name not in cohort:
            continue
        known = np.asarray(cohort[number.name], dtype=np.float64)
        if known.shape != (21,) or not np.isfinite(known).all() or (np.diff(known) < 0).any():
            raise ValueError(f"cohort {number.name}: expected 21 ascending percentiles, got {known.size} numbers")
        lower = patients_below(known, number.value)
        text = f"The predicted value is higher than what was measured in about {lower:.0f} of 100 training patients."
        if number.value < known[0] or number.value > known[-1]:
            text = f"The predicted value is {'lower' if lower == 0 else 'higher'} than that of every training patient."
        caption = (
            f"Each circle stands for 5 of 100 training patients, by measured {_name(number)}; the "
            f"median is {value(float(known[10]), number.unit)}. Line and diamond: this patient"
        )
        if number.low is not None and number.high is not None:
            within = patients_below(known, number.high) - patients_below(known, number.low)
            text += f" The interval covers the values of about {within:.0f} of 100."
            caption += f", with the interval from {_span(number, number.unit)}"
        figure = figure_standing(number, cohort[number.name], _decimals(number))
        title = "Among the training patients"
        title += f": {_name(number)}" if len(prediction.numbers) > 1 else ""
        sections.append(Section(title, text, figure, caption + "."))
    return sections


def _chances(curve: SurvivalCurve) -> Section:
    told = "; ".join(f"{percent(1 - r)} by day {d:g}" for d, r in zip(curve.horizons, curve.risks, strict=True))
    caption = f"Share of such patients who are still free of the event. Circles: {told}."
    return Section("Chance to be free of the event", "", figure_chances(curve), caption)


def _scans(prediction: Prediction, identify: bool) -> list[Section]:
    """Timeline and table of the scans, two numbers at a time so that both fit the page."""
    scans, numbers, warnings = prediction.scans, prediction.numbers, prediction.warnings
    known, sections, tables = all(scan.contributions is not None for scan in scans), [], []
    for start in range(0, len(numbers), 2):
        places = range(start, min(start + 2, len(numbers)))
        these = f": {' and '.join(_name(numbers[place]) for place in places)}" if len(numbers) > 2 else ""
        tables.append(Section("Table of the scans" + these, "", table=_table(prediction, places, identify)))
        if known:
            caption = (
                f"{len(scans)} scans from top to bottom: the day (counted from the first scan), the weight, and the "
                "contribution: full bars to the right raise the number, hatched bars to the left lower it"
            )
            caption += "; ! marks a scan with a warning." if any(w.scan is not None for w in warnings) else "."
            figure = figure_timeline(prediction, places)
            sections.append(Section("Scan by scan" + these, _READING if start == 0 else "", figure, caption))
    if not known:
        text = "No contributions are known."
        if len(scans) == 1:
            text = "There is one scan only: the whole prediction rests on it, and none could be made without it."
        sections.append(Section("Scan by scan", text))
    return sections + tables


def _table(prediction: Prediction, places: Sequence[int], identify: bool) -> pd.DataFrame:
    """A row for each scan, with what it contributes to some of the numbers."""
    scans, numbers = prediction.scans, prediction.numbers
    rows: dict[str, list[str]] = {
        "Scan": [str(i + 1) for i in range(len(scans))],
        "Day": [f"{scan.day:g}" for scan in scans],
        "Modality": [scan.modality or "not known" for scan in scans],
        "View": [scan.view or "\N{EN DASH}" for scan in scans],
        "Weight": [share(scan.weight, len(scans)) for scan in scans],
    }
    for place in places:
        parts, unit = contributions(prediction, place)
        label = "Contribution" + (f" to {_name(numbers[place])}" if len(numbers) > 1 else "") + unit
        rows |= {label: signed(parts)} if len(parts) == len(scans) else {}
    warned = [[w.check for w in prediction.warnings if w.scan == i] for i in range(len(scans))]
    rows["Warnings"] = [", ".join(dict.fromkeys(checks)) or "none" for checks in warned]
    rows |= {"Address": [scan.address for scan in scans]} if identify else {}
    return pd.DataFrame(rows)


def _tiles(prediction: Prediction, pictures: Sequence[ScanPicture], clean: Callable[[str], str]) -> list[Tile]:
    edge = 480 if len(pictures) <= 4 else 260
    tiles = []
    for i, (scan, picture) in enumerate(zip(prediction.scans, pictures, strict=True)):
        told = f"Scan {i + 1}, day {scan.day:g}"
        caption = told + (f": {clean(picture.caption)}" if picture.caption and picture.grey is not None else "")
        alternative = f"Slice of scan {i + 1}" + (" with outlines" if picture.saliency is not None else "")
        if picture.grey is None:
            alternative = clean(picture.caption) or "no picture"
        tiles.append(Tile(as_jpeg(picture, edge), alternative, caption))
    return tiles


def _left_out(prediction: Prediction, clean: Callable[[str], str], identify: bool) -> list[Section]:
    """Scans that were not used and why; without addresses, they are counted by reason."""
    if not prediction.left_out:
        return []
    reasons = pd.Series([clean(item.reason) for item in prediction.left_out])
    if identify:
        table = pd.DataFrame({"File or series": [item.address for item in prediction.left_out], "Reason": reasons})
    else:
        table = reasons.value_counts(sort=False).rename_axis("Reason").reset_index(name="Files or series")
    count = len(reasons)
    text = f"{count} file{'s or series were' if count > 1 else ' or series was'} found and not used."
    return [Section("Left out", text, table=table)]


def _model(prediction: Prediction) -> Section:
    model = prediction.model
    facts = {
        "Model": f"{model.name}, version {model.version}",
        "Software": model.software,
        "Networks that were averaged": str(len(model.weights)),
        "Weights (SHA-256, first 12 digits)": ", ".join(weights[:12] for weights in model.weights),
        "Preprocessing (first 12 digits)": model.preprocessing[:12],
    }
    table = pd.DataFrame({"Fact": facts.keys(), "Value": facts.values()})
    return Section("The model, and what this page is not for", f"{PURPOSE}\n\n{_LIMITS}", table=table)


def _decimals(number: PredictedNumber) -> int:
    """Decimals to show: two digits of a quarter of the interval, about its standard deviation, else three digits."""
    width = (number.high - number.low) / 4 if number.low is not None and number.high is not None else 0.0
    if width > 0 and math.isfinite(width):
        return 1 - math.floor(math.log10(width))
    return 2 - math.floor(math.log10(abs(number.value))) if number.value else 2


def _name(number: PredictedNumber) -> str:
    return number.name.replace("_", " ")


def _span(number: PredictedNumber, unit: str) -> str:
    """The ends of the interval, with a unit or with ``1`` for none; empty where there is no interval."""
    if number.low is None or number.high is None:
        return ""
    return f"{rounded(number.low, _decimals(number))} to {value(number.high, unit, _decimals(number))}"


def _held(number: PredictedNumber) -> str:
    span = _span(number, number.unit)
    share_of = f"{100 * number.confidence:.3g} % interval" if number.confidence is not None else "interval"
    return f"{share_of}: {span}" if span else "no interval"

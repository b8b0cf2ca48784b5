"""The verbs of ``mvreg`` for patients: predict, and what is made of predictions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_mvreg.cohort.table import Cohort
    from monai_mvreg.predict.predictor import Predictor
    from monai_mvreg.prediction import NoPrediction, Prediction

# Everything else is imported inside the verbs: --help must not wait for torch.


def add_patient_verbs(verbs: Any) -> None:
    """Add them to the parser of the command line."""
    predict = verbs.add_parser("predict", help="predict one patient from a folder, or all patients of a table")
    _add_model(predict)
    predict.add_argument("--out", type=Path, metavar="FOLDER", help="write predictions.json and predictions.csv there")
    predict.add_argument("--json", action="store_true", help="print the predictions as JSON, and nothing else")
    predict.set_defaults(verb=_predict)


def _add_model(verb: argparse.ArgumentParser) -> None:
    """What every verb takes that predicts."""
    verb.add_argument(
        "source", type=Path, metavar="SOURCE", help="a patient's folder, zip or file; or a table of scans"
    )
    verb.add_argument("--bundle", type=Path, default=Path("bundle"), metavar="FOLDER", help="default: bundle")
    verb.add_argument("--models", type=Path, metavar="FOLDER", help="of a training or a cross-validation")
    verb.add_argument("--kept", type=Path, metavar="FOLDER", help="keeps what was seen of each scan for the next visit")
    verb.add_argument("--covariate", action="append", default=[], metavar="NAME=NUMBER", help="of a folder's patient")
    verb.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    table = verb.add_argument_group("where SOURCE is a table, one row per scan")
    table.add_argument("--dataset_dir", type=Path, metavar="FOLDER", help="where its paths start (default: its folder)")
    table.add_argument("--patient", default="patient", metavar="COLUMN")
    table.add_argument("--path", default="path", metavar="COLUMN")
    table.add_argument("--day", default="day", metavar="COLUMN", help="read if the model reads dates")
    table.add_argument("--date", metavar="COLUMN", help="instead of the day")
    table.add_argument("--view", default="view", metavar="COLUMN", help="read if the model tells views apart")


def _predictor(options: argparse.Namespace) -> Predictor:
    from monai_mvreg.predict.predictor import Predictor

    return Predictor.from_bundle(
        options.bundle.resolve(), models=options.models, kept=options.kept, device=options.device
    )


def _is_table(options: argparse.Namespace) -> bool:
    return options.source.suffix in (".csv", ".tsv")


def _cohort(options: argparse.Namespace, predictor: Predictor) -> Cohort:
    """Read the table of scans with the columns that the model needs."""
    from monai_mvreg.cohort.table import Columns, read_cohort

    trained = predictor.trained
    if options.covariate:
        raise ValueError(f"expected covariates in the table {options.source.name}, got --covariate")
    columns = Columns(
        patient=options.patient,
        path=options.path,
        day=options.day if trained.settings["dated"] and not options.date else None,
        date=options.date,
        view=options.view if trained.views else None,
        views=trained.views,
        covariates=trained.settings["columns#covariates"] or {},
    )
    return read_cohort(str(options.source), columns, images=str(_home(options)))


def _home(options: argparse.Namespace) -> Path:
    """The folder that addresses in the result are relative to."""
    if _is_table(options):
        return Path(options.dataset_dir or options.source.parent)
    return Path(options.source)


def _covariates(options: argparse.Namespace) -> dict[str, float]:
    found = {}
    for covariate in options.covariate:
        name, equals, number = covariate.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"expected --covariate NAME=NUMBER, got {covariate!r}")
    return found


def _predictions(options: argparse.Namespace) -> tuple[list[Prediction], list[NoPrediction]]:
    from monai_mvreg.prediction import Prediction

    predictor = _predictor(options)
    if not _is_table(options):
        return [predictor.predict_folder(options.source, covariates=_covariates(options))], []
    found = list(predictor.predict_cohort(_cohort(options, predictor), home=_home(options)))
    predictions = [one for one in found if isinstance(one, Prediction)]
    return predictions, [one for one in found if not isinstance(one, Prediction)]


def _predict(options: argparse.Namespace) -> None:
    from monai_mvreg.prediction import as_rows, to_json

    predictions, unpredicted = _predictions(options)
    text = to_json(predictions, unpredicted=unpredicted)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        _write_whole(options.out / "predictions.json", text)
        _write_whole(options.out / "predictions.csv", as_rows(predictions).to_csv(index=False, float_format="%.7g"))
    if options.json:
        print(text)
    elif _is_table(options):
        print(f"{len(predictions)} patients predicted, {sum(bool(one.warnings) for one in predictions)} with warnings")
    else:
        print(_told(predictions[0]))
    if not options.json and options.out:
        print(f"Written: {options.out / 'predictions.json'} and, a view of it, predictions.csv")
    elif not options.json and _is_table(options):
        print("Nothing was written: give --out FOLDER, or --json to print all")
    if unpredicted:
        print(f"error: nothing could be predicted for {len(unpredicted)} patients", file=sys.stderr)
        for reason in dict.fromkeys(one.reason for one in unpredicted[:5]):
            print(f"  {reason}", file=sys.stderr)
        raise SystemExit(1)


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _told(prediction: Prediction) -> str:
    """One prediction in lines of text."""
    lines = []
    for number in prediction.numbers:
        unit = "" if number.unit == "1" else f" {number.unit}"
        line = f"{number.name}: {number.value:.4g}{unit}"
        if number.low is not None and number.high is not None and number.confidence is not None:
            line += f" ({number.confidence:.0%} interval {number.low:.4g} to {number.high:.4g})"
        lines.append(line)
    if prediction.survival is not None:
        median = prediction.survival.median_days
        lines.append(
            f"half of such patients have the event by day {median:g}" if median else "median time: not reached"
        )
        for day, risk in zip(prediction.survival.horizons, prediction.survival.risks, strict=True):
            lines.append(f"chance of the event by day {day:g}: {risk:.1%}")
    lines.append(
        f"\nfrom {len(prediction.scans)} scans (day, weight, and how much lower it would be without the scan):"
    )
    for place, scan in enumerate(prediction.scans, start=1):
        parts = "-" if scan.contributions is None else ", ".join(f"{part:+.4g}" for part in scan.contributions)
        lines.append(f"  {place:>2}  day {scan.day:<6g} weight {scan.weight:.2f}  {parts:>10}  {scan.address}")
    lines += [f"left out: {item.address}: {item.reason}" for item in prediction.left_out]
    for warning in prediction.warnings:
        lines.append(f"warning: {f'scan {warning.scan + 1}: ' if warning.scan is not None else ''}{warning.message}")
    return "\n".join(lines)

"""The verbs of ``mvreg`` for patients: predict, and what is made of predictions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mvreg.cli.bundle_folders import add_trained_options, bundle_of_model

if TYPE_CHECKING:
    from monai_mvreg.cohort.table import Cohort, Patient
    from monai_mvreg.predict.prediction import NoPrediction, Prediction
    from monai_mvreg.predict.predictor import Predictor

# Everything else is imported inside the verbs: --help must not wait for torch.

_METHODS = ("gradcam", "occlusion")


class _PrintSchema(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the schema, whatever else is asked for."""
        from monai_mvreg.predict.prediction import prediction_schema

        print(json.dumps(prediction_schema(), indent=1))
        parser.exit()


def add_patient_verbs(verbs: Any) -> None:
    """Add them to the parser of the command line."""
    predict = verbs.add_parser("predict", help="predict one patient from a folder, or all patients of a table")
    add_model_options(predict)
    predict.add_argument("--out", type=Path, metavar="FOLDER", help="write predictions.json and predictions.csv there")
    predict.add_argument("--each", action="store_true", help="SOURCE holds a folder for each patient: predict all")
    predict.add_argument("--json", action="store_true", help="print the predictions as JSON, and nothing else")
    predict.add_argument("--schema", action=_PrintSchema, nargs=0, help="print the JSON schema of the answer, and stop")
    predict.set_defaults(verb=_predict)

    explain = verbs.add_parser("explain", help="write where in each scan the network found what moves the number")
    add_model_options(explain)
    explain.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="for NIfTI maps and explanation.json"
    )
    explain.add_argument("--method", action="append", choices=_METHODS, help="default: both")
    explain.add_argument("--number", type=int, default=0, help="which of several predicted numbers, from 0")
    explain.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")
    explain.set_defaults(verb=_explain)

    report = verbs.add_parser("report", help="write a page for a patient, pages for all of a table, or a model card")
    add_model_options(report, sources="?")
    report.add_argument("--out", type=Path, required=True, metavar="PLACE", help="a page for a folder, else a folder")
    report.add_argument("--saliency", choices=(*_METHODS, "none"), default="gradcam", help="outlines in the pictures")
    report.add_argument("--identify", action="store_true", help="show who the patients are, and paths")
    report.add_argument("--card", action="store_true", help="write the model card instead; needs no SOURCE")
    report.add_argument("--evaluation", type=Path, metavar="FOLDER", help="of the card: results of an evaluation")
    report.add_argument("--answers", type=Path, metavar="FILE", help="of the card: YAML of what only its authors know")
    report.add_argument("--json", action="store_true", help="print what was written as JSON, and nothing else")
    report.set_defaults(verb=_report)


def add_model_options(verb: argparse.ArgumentParser, *, sources: str | None = None) -> None:
    """What every verb takes that predicts; ``sources`` is how many there may be, None for one."""
    told = "a patient's folder, zip or file; or a table of scans"
    verb.add_argument("source", type=Path, metavar="SOURCE", nargs=sources, help=told)
    add_trained_options(verb)
    verb.add_argument("--kept", type=Path, metavar="FOLDER", help="keeps what was seen of each scan for the next visit")
    verb.add_argument("--covariate", action="append", default=[], metavar="NAME=VALUE", help="of the patient: age=63")
    verb.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    verb.set_defaults(each=False)
    table = verb.add_argument_group("where SOURCE is a table, one row per scan")
    table.add_argument("--dataset_dir", type=Path, metavar="FOLDER", help="where its paths start (default: its folder)")
    table.add_argument("--patient", default="patient", metavar="COLUMN")
    table.add_argument("--path", default="path", metavar="COLUMN")
    table.add_argument("--day", default="day", metavar="COLUMN", help="read if the model reads dates")
    table.add_argument("--date", metavar="COLUMN", help="instead of the day")
    table.add_argument("--view", default="view", metavar="COLUMN", help="read if the model tells views apart")


def predictor_of(options: argparse.Namespace) -> Predictor:
    """Read the model, once there is something to predict."""
    if not options.source.exists():  # before all that takes time
        raise FileNotFoundError(f"expected a patient's folder or a table of scans, there is none at {options.source}")

    from monai_mvreg.predict.predictor import Predictor

    return Predictor.from_bundle(
        bundle_of_model(options).resolve(), models=options.models, kept=options.kept, device=options.device
    )


def is_table(options: argparse.Namespace) -> bool:
    """Whether the source is a table of scans, not one patient."""
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
        day=options.day if trained.settings.dated and not options.date else None,
        date=options.date,
        view=options.view if trained.views else None,
        views=trained.views,
        covariates=trained.settings.covariates,
    )
    return read_cohort(str(options.source), columns, images=str(home_of(options)))


def home_of(options: argparse.Namespace) -> Path:
    """The folder that addresses in the result are relative to."""
    if is_table(options):
        return Path(options.dataset_dir or options.source.parent)
    return Path(options.source)


def _covariates(options: argparse.Namespace) -> dict[str, str]:
    found = {}
    for covariate in options.covariate:
        name, equals, found[name] = covariate.partition("=")
        if not equals:
            raise ValueError(f"expected --covariate NAME=VALUE, got {covariate!r}")
    return found


def predicted_patients(
    options: argparse.Namespace, predictor: Predictor
) -> list[tuple[Patient, Prediction | NoPrediction]]:
    """Predict the patient of a folder, or all of a table; of one in a table nothing may be known, and is told."""
    from monai_mvreg.predict.selection import find_patient

    home = home_of(options)
    if options.each:
        return _each_patient(options, predictor)
    if not is_table(options):
        found = find_patient(options.source, predictor.trained, covariates=_covariates(options))
        return [(found.patient, predictor.predict(found, home=home))]
    cohort = _cohort(options, predictor)
    return list(zip(cohort.patients, predictor.predict_cohort(cohort, home=home), strict=True))


def _each_patient(options: argparse.Namespace, predictor: Predictor) -> list[tuple[Patient, Prediction | NoPrediction]]:
    """Predict the patient of every folder in the source; its name is the patient's key."""
    from monai_mvreg.cohort.table import Patient
    from monai_mvreg.predict.prediction import NoPrediction
    from monai_mvreg.predict.selection import find_patient

    folders = sorted(place for place in options.source.iterdir() if place.is_dir()) if options.source.is_dir() else []
    if not folders:
        raise ValueError(f"expected a folder with one folder per patient for --each, got {options.source} without any")
    predicted: list[tuple[Patient, Prediction | NoPrediction]] = []
    for folder in folders:
        try:
            found = find_patient(folder, predictor.trained, covariates=_covariates(options))
            patient = replace(found.patient, key=folder.name)
            prediction = predictor.predict(replace(found, patient=patient), home=options.source)
            predicted.append((patient, prediction))
        except ValueError as error:  # a ScanError too
            nobody = Patient(folder.name, (), (), (), (), ())
            predicted.append((nobody, NoPrediction(folder.name, str(error))))
    return predicted


def tell_unpredicted(predicted: Sequence[tuple[Patient, Prediction | NoPrediction]]) -> None:
    """End with 1 where something could not be predicted."""
    from monai_mvreg.predict.prediction import NoPrediction

    lost = [(at, one.reason) for at, (_, one) in enumerate(predicted, start=1) if isinstance(one, NoPrediction)]
    if lost:
        print(f"error: nothing could be predicted for {_count(len(lost), 'patient')}", file=sys.stderr)
        for at, reason in lost[:5]:
            print(f"  patient {at}: {reason}", file=sys.stderr)
        if len(lost) > 5:
            print("  the others: mvreg predict --json", file=sys.stderr)
        raise SystemExit(1)


def _predict(options: argparse.Namespace) -> None:
    from monai_mvreg.predict.prediction import NoPrediction, Prediction, as_rows, to_json

    predicted = predicted_patients(options, predictor_of(options))
    predictions = [one for _, one in predicted if isinstance(one, Prediction)]
    text = to_json(predictions, unpredicted=[one for _, one in predicted if isinstance(one, NoPrediction)])
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        _write_whole(options.out / "predictions.json", text)
        _write_whole(options.out / "predictions.csv", as_rows(predictions).to_csv(index=False, float_format="%.7g"))
    if options.json:
        print(text)
    elif is_table(options) or options.each:
        print(f"{len(predictions)} patients predicted, {sum(bool(one.warnings) for one in predictions)} with warnings")
    else:
        print(_told(predictions[0]))
    if not options.json and options.out:
        print(f"Written: {options.out / 'predictions.json'} and, a view of it, predictions.csv")
    elif not options.json and (is_table(options) or options.each):
        print("Nothing was written: give --out FOLDER, or --json to print all")
    tell_unpredicted(predicted)


def _explain(options: argparse.Namespace) -> None:
    from monai_mvreg.explain.explanation import METHODS, explain_patient, used_part
    from monai_mvreg.predict.prediction import NoPrediction

    predictor, methods = predictor_of(options), {name: METHODS[name] for name in options.method or METHODS}
    predicted = predicted_patients(options, predictor)
    places, checks = [], {}
    for at, (patient, prediction) in enumerate(predicted, start=1):
        if isinstance(prediction, NoPrediction):
            continue
        place = options.out / f"patient-{at}" if is_table(options) else options.out
        part = used_part(patient, prediction, home=home_of(options))
        checks = dict(explain_patient(predictor, part, place, methods=methods, number=options.number).checks)
        places.append(place / "explanation.json")
    if options.json:
        print("[" + ",\n".join(place.read_text(encoding="utf-8") for place in places) + "]")
    else:
        print(f"Maps of {_count(len(places), 'patient')}, on the grids of their scans: {options.out}")
        for name, check in checks.items():
            print(f"{name}: alike to maps of a random head {check.head:.2f}, of a random network {check.whole:.2f}")
        print("Near 1 a map shows the scan and not what was learned: do not use it. More: docs/explain.md")
    tell_unpredicted(predicted)


def _report(options: argparse.Namespace) -> None:
    import json

    from monai_mvreg.report.card import write_card

    predicted: list[tuple[Patient, Prediction | NoPrediction]] = []
    if options.card:
        bundle = bundle_of_model(options)
        models, facts = options.models or bundle / "models", bundle / "configs" / "metadata.json"
        card = write_card(models, options.out, evaluation=options.evaluation, metadata=facts, answers=options.answers)
        pages = [card.with_name("model_card.html"), card]
    elif options.source is None:
        raise ValueError("expected SOURCE, a patient's folder or a table of scans, or --card, got neither")
    else:
        pages, predicted = _patient_pages(options)
    print(json.dumps([str(page) for page in pages]) if options.json else f"Report: {pages[0] if pages else 'none'}")
    tell_unpredicted(predicted)


def _patient_pages(
    options: argparse.Namespace,
) -> tuple[list[Path], list[tuple[Patient, Prediction | NoPrediction]]]:
    """Write a page for each patient, and for those of a table an index, which stands first."""
    from monai_mvreg.explain.explanation import used_part
    from monai_mvreg.predict.prediction import Prediction
    from monai_mvreg.report.patient import write_index, write_patient_report
    from monai_mvreg.report.patient_pictures import scan_pictures

    predictor, table = predictor_of(options), is_table(options)
    (options.out if table else options.out.absolute().parent).mkdir(parents=True, exist_ok=True)
    predicted = predicted_patients(options, predictor)
    pages, names = [], []
    for at, (patient, prediction) in enumerate(predicted, start=1):
        names.append(f"patient-{at}.html")
        if not isinstance(prediction, Prediction):
            continue
        part = used_part(patient, prediction, home=home_of(options))
        if options.identify and not table:  # of a folder, its name is what is known
            prediction = replace(prediction, patient=options.source.name)
        pages.append(options.out / names[-1] if table else options.out)
        write_patient_report(
            pages[-1],
            prediction,
            pictures=scan_pictures(predictor, part, saliency=options.saliency, identify=options.identify),
            cohort=predictor.trained.members[0].domain.targets,
            identify=options.identify,
        )
    if table and pages:
        everyone = [one for _, one in predicted]
        pages.insert(0, write_index(options.out / "index.html", everyone, reports=names, identify=options.identify))
    return pages, predicted


def _write_whole(path: Path, text: str) -> None:
    from monai_mvreg.cache.atomic import atomic_write_text

    atomic_write_text(path, text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _told(prediction: Prediction) -> str:
    """One prediction in lines of text."""
    from monai_mvreg.predict.prediction import in_words

    lines = []
    for number in prediction.numbers:
        lines.append(in_words(number))
        if number.low is None and prediction.survival is None:
            lines[-1] += " (no interval: the training had too few validation patients)"
    if prediction.survival is not None:
        median = prediction.survival.median_days
        lines.append(
            f"half of such patients have the event by day {median:g}" if median else "median time: not reached"
        )
        for day, risk in zip(prediction.survival.horizons, prediction.survival.risks, strict=True):
            lines.append(f"chance of the event by day {day:g}: {risk:.1%}")
    lines.append(
        f"\nfrom {_count(len(prediction.scans), 'scan')} (day, weight, and how much lower it would be without it):"
    )
    for place, scan in enumerate(prediction.scans, start=1):
        parts = "-" if scan.contributions is None else ", ".join(f"{part:+.4g}" for part in scan.contributions)
        lines.append(f"  {place:>2}  day {scan.day:<6g} weight {scan.weight:.2f}  {parts:>10}  {scan.address}")
    lines += [f"left out: {item.address}: {item.reason}" for item in prediction.left_out]
    for warning in prediction.warnings:
        lines.append(f"warning: {f'scan {warning.scan + 1}: ' if warning.scan is not None else ''}{warning.message}")
    return "\n".join(lines)

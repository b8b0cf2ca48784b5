"""The verbs of ``mvreg`` for the hospital: results as DICOM objects."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from monai_mvreg.cli.patients import (
    add_model_options,
    home_of,
    is_table,
    predicted_patients,
    predictor_of,
    tell_unpredicted,
)

# Everything else is imported inside the verbs: --help must not wait for torch.


def add_hospital_verbs(verbs: Any) -> None:
    """Add them to the parser of the command line."""
    report = verbs.add_parser("sr", help="write the prediction as DICOM objects: a structured report, and maps")
    add_model_options(report)
    report.add_argument(
        "--out", type=Path, required=True, metavar="PLACE", help="a file .dcm for a folder, or a folder"
    )
    report.add_argument("--maps", choices=("gradcam", "occlusion"), help="write Parametric Maps of the scans too")
    report.add_argument("--number", type=int, default=0, help="which of several numbers maps explain, from 0")
    report.set_defaults(verb=_sr)


def _sr(options: argparse.Namespace) -> None:
    try:
        from monai_mvreg.dicom_results.parametric_map import patient_maps
    except ModuleNotFoundError as error:
        if error.name != "highdicom":
            raise
        raise ValueError('DICOM objects need highdicom: pip install "monai-mvreg[dicom]"') from None
    from monai_mvreg.dicom_results.evidence import write_object
    from monai_mvreg.dicom_results.structured_report import make_report
    from monai_mvreg.explain.explanation import used_part
    from monai_mvreg.predict.prediction import NoPrediction

    table, home = is_table(options), home_of(options)
    alone = options.out.suffix == ".dcm"
    if table and alone:
        raise ValueError(f"expected --out FOLDER for a table of patients, got the file {options.out}")
    predictor = predictor_of(options)
    predicted = predicted_patients(options, predictor)
    written, refused = [], []
    for at, (patient, prediction) in enumerate(predicted, start=1):
        if isinstance(prediction, NoPrediction):
            continue
        folder = options.out / f"patient-{at}" if table else options.out.parent if alone else options.out
        try:
            report = make_report(prediction, home=home)
            part = used_part(patient, prediction, home=home)
            maps, without = (
                patient_maps(
                    predictor, part, prediction=prediction, home=home, method=options.maps, number=options.number
                )
                if options.maps
                else ({}, {})
            )
        except ValueError as error:
            if not table:
                raise
            refused.append(f"patient {at} of the table: {error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        written.append(options.out if alone else folder / "report.dcm")
        write_object(report, written[-1])
        for scan, made in maps.items():
            written.append(folder / f"scan-{scan + 1}_{options.maps}.dcm")
            write_object(made, written[-1])
        for reason in without.values():
            print(f"no map: {reason}")
    for path in written:
        print(f"Written: {path}")
    for reason in refused:
        print(f"error: {reason}", file=sys.stderr)
    tell_unpredicted(predicted)
    if refused:
        raise SystemExit(1)

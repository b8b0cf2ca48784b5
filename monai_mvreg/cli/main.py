"""The command line ``mvreg``: its verbs, and one line for what the user can mend."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from monai_mvreg.cli.archives import add_archive_verbs
from monai_mvreg.cli.bundle_folders import add_folder_verbs
from monai_mvreg.cli.bundles import add_bundle_verbs
from monai_mvreg.cli.cohorts import ADD_TARGET, INIT, add_cohort_verbs, train_command
from monai_mvreg.cli.hospital import add_hospital_verbs
from monai_mvreg.cli.label_server import add_label_verb
from monai_mvreg.cli.patients import add_patient_verbs
from monai_mvreg.cli.trainings import add_training_verbs

# Everything else is imported inside the verbs: --help must not wait for torch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: what stands behind ``mvreg``; None reads the command line.

    Returns:
        The exit code: 0, 2 for what the user can mend, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    # MONAI tells every user without NVIDIA's codec that it is not there; it is not needed.
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    try:
        options.verb(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:  # a config wraps what its parts raise
        from monai_mvreg.errors import user_error

        # A file that is missing, in the way or not allowed is named by the error, wherever it was raised.
        cause = error if isinstance(error, OSError) else user_error(error)
        if cause is None:
            raise
        named = isinstance(cause, OSError) and cause.filename is not None
        print(f"error: {cause.filename}: {cause.strerror}" if named else f"error: {cause}", file=sys.stderr)  # type: ignore[attr-defined]
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mvreg", description="Predict one number per patient from all their scans.")
    parser.add_argument("--version", action="version", version=f"mvreg {version('monai-mvreg')}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    demo = verbs.add_parser("demo", help="train on a synthetic cohort and write a report, in some minutes")
    demo.add_argument("--out", type=Path, default=Path("mvreg-demo"), metavar="FOLDER", help="default: mvreg-demo")
    demo.add_argument("--patients", type=int, default=120, help="size of the cohort (default 120)")
    demo.add_argument("--epochs", type=int, help="of each of the two trainings (default: those of demo.yaml)")
    demo.set_defaults(verb=_demo)

    add_folder_verbs(verbs)
    add_cohort_verbs(verbs)
    add_training_verbs(verbs)
    add_patient_verbs(verbs)
    add_bundle_verbs(verbs)
    add_hospital_verbs(verbs)
    add_archive_verbs(verbs)
    add_label_verb(verbs)
    return parser


def _demo(options: argparse.Namespace) -> None:
    import logging

    from monai_mvreg.experiments.demo import UNIT, run_demo
    from monai_mvreg.results.units import readable_unit

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("monai_mvreg").setLevel(logging.INFO)
    result = run_demo(options.out, patients=options.patients, epochs=options.epochs)
    print(f"\nMean absolute error on {result.patients} synthetic test patients, with its 95 % interval:")
    for name, error in result.errors.items():
        print(f"  {name:<30} {error.value:.2f} {readable_unit(UNIT)} ({error.low:.2f} to {error.high:.2f})")
    print(f"With all scans, R2 is {result.r2.value:.2f} ({result.r2.low:.2f} to {result.r2.high:.2f}).")
    print(f"Report: {result.report}")
    place = shlex.quote(str(options.out))
    print(f"One patient: mvreg report {place}/cohort/dicom/DEMO-000 --models {place}/models --out patient.html")
    print("\nNext, with your own data:")
    print("  mvreg scan FOLDER --out cohort.csv    finds your scans (for a BIDS data set: mvreg bids)")
    print(f"  {ADD_TARGET}")
    print("  mvreg split cohort.csv --target COLUMN")
    print(f"  {INIT}")
    print(f"  {train_command('FOLDER', 'cohort.csv')}")

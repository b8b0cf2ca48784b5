"""The verbs of ``mvreg``: write a demo, list scans, split a cohort. Training is the bundle's own command."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

# Everything else is imported inside the verbs: --help must not wait for torch.

_ADD_TARGET = "add a column with the number to predict (the same in all rows of a patient) and one with its unit"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: what stands behind ``mvreg``; None reads the command line.

    Returns:
        The exit code: 0, 2 for what the user can mend, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        options.verb(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        from monai_mvreg.workflow import user_error

        # A file that is missing, in the way or not allowed is named by the error, wherever it was raised.
        cause = error if isinstance(error, OSError) else user_error(error)
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr)
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

    cohort = verbs.add_parser("cohort", help="list the scans of a folder as a table, one row per scan")
    cohort.add_argument("layout", choices=["bids", "nifti", "dicom"], help="how the folder is laid out")
    cohort.add_argument("folder", type=Path, metavar="FOLDER")
    cohort.add_argument("--out", type=Path, default=Path("cohort.csv"), metavar="FILE", help="default: cohort.csv")
    cohort.set_defaults(verb=_cohort)

    split = verbs.add_parser("split", help="add a column `fold` that keeps each patient in one fold")
    split.add_argument("table", type=Path, metavar="TABLE", help="CSV or TSV")
    split.add_argument("--patient", default="patient", metavar="COLUMN", help="default: patient")
    split.add_argument("--target", metavar="COLUMN", help="balance the folds on this number")
    split.add_argument("--folds", type=int, default=5)
    split.add_argument("--seed", type=int, help="default: the best balanced of 200")
    split.add_argument("--out", type=Path, metavar="FILE", help="default: TABLE itself")
    split.set_defaults(verb=_split)
    return parser


def _demo(options: argparse.Namespace) -> None:
    import logging

    from monai_mvreg.demo import UNIT, run_demo

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("monai_mvreg").setLevel(logging.INFO)
    result = run_demo(options.out, patients=options.patients, epochs=options.epochs)
    print(f"\nMean absolute error on {result.patients} synthetic test patients, with its 95 % interval:")
    for name, error in result.errors.items():
        print(f"  {name:<30} {error.value:.2f} {UNIT} ({error.low:.2f} to {error.high:.2f})")
    print(f"With all scans, R2 is {result.r2.value:.2f} ({result.r2.low:.2f} to {result.r2.high:.2f}).")
    print(f"Report: {result.report}")
    print("\nNext, with your own data:")
    print("  mvreg cohort dicom FOLDER         lists your scans in cohort.csv (also: nifti, bids)")
    print(f"  {_ADD_TARGET}")
    print("  mvreg split cohort.csv --target COLUMN")
    print(f"  {_train_command('FOLDER', 'cohort.csv')}")


def _cohort(options: argparse.Namespace) -> None:
    from monai_mvreg.cohort.sources import rows_from_bids, rows_from_dicom, rows_from_nifti

    if options.out.exists():
        raise FileExistsError(f"expected a new file, {options.out} exists: name another with --out")
    if not options.folder.is_dir():
        raise NotADirectoryError(f"expected a folder with scans, got {options.folder}")
    if options.layout == "dicom":
        rows, left_out = rows_from_dicom(options.folder)
    else:
        rows, left_out = (rows_from_bids if options.layout == "bids" else rows_from_nifti)(options.folder), []
    rows.to_csv(options.out, index=False)
    print(f"{options.out}: {rows['patient'].nunique()} patients, {len(rows)} scans")
    # A whole data set may be left out for one reason: one line per reason, with the first place.
    first = {item.reason: item.path for item in reversed(left_out)}
    for reason, count in Counter(item.reason for item in left_out).most_common():
        print(f"left out: {count} x {reason} (first: {first[reason]})")
    if undated := int(rows["day"].isna().sum()):
        print(f"{undated} scans have no date: fill in the column day, or train with --columns#day '$None'")
    print(f"\nNext: {_ADD_TARGET}, then")
    print(f"  mvreg split {options.out} --target COLUMN")
    print(f"  {_train_command(str(options.folder), str(options.out))}")


def _split(options: argparse.Namespace) -> None:
    from monai_mvreg.cohort.split import balanced_seed, split_cohort
    from monai_mvreg.cohort.table import Cohort, Patient, TableRows

    out = options.out or options.table
    if out != options.table and out.exists():
        raise FileExistsError(f"expected a new file, {out} exists: name another with --out")
    rows = TableRows(options.table)
    rows.need(options.patient, options.target)
    if "fold" in rows.frame.columns:
        raise ValueError(f"{options.table.name}: expected no column 'fold', it is there: patients keep their folds")
    if options.folds < 2:
        raise ValueError(f"expected --folds of 2 or more, got {options.folds}")
    of_patient: dict[str, list[int]] = {}
    for row in range(len(rows.frame)):
        of_patient.setdefault(rows.text(row, options.patient), []).append(row)
    targets: dict[str, tuple[float, ...]] = {}
    for key, found in of_patient.items():
        if options.target:
            rows.same(found, options.target, "the patient's value")
        targets[key] = (rows.number(found[0], options.target),) if options.target else ()
    patients = tuple(Patient(key, (), (), (), target, ()) for key, target in targets.items())
    cohort = Cohort(patients, target=(), unit="1", views=(), covariates=())
    seed = balanced_seed(cohort, options.folds) if options.seed is None else options.seed
    fold = {patient.key: patient.fold for patient in split_cohort(cohort, options.folds, seed=seed).patients}
    unfinished = out.with_name(out.name + ".part")
    keys = rows.frame[options.patient].str.strip()
    rows.frame.assign(fold=keys.map(fold)).to_csv(unfinished, index=False, sep=rows.separator)
    unfinished.replace(out)
    sizes = sorted(Counter(str(name) for name in fold.values()).items(), key=lambda item: int(item[0]))
    print(f"{out}: {len(fold)} patients, " + ", ".join(f"{size} in fold {name}" for name, size in sizes))
    print(
        f"seed {seed}: keep it. When patients are added, delete the column and split again with --seed {seed}: nobody"
    )
    print("changes fold.")


def _train_command(folder: str, table: str) -> str:
    return (
        "python -m monai.bundle run --config_file bundle/configs/train.yaml --bundle_root bundle "
        f"--dataset_dir {shlex.quote(folder)} --cohort_file {shlex.quote(table)} "
        "--target \"['COLUMN']\" --columns#unit UNIT_COLUMN"
    )

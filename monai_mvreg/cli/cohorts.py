"""The verbs of ``mvreg`` for a cohort: find scans, list a BIDS data set, search for leaks, split."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

# Everything else is imported inside the verbs: --help must not wait for torch.

ADD_TARGET = "add a column with the number to predict (the same in all rows of a patient) and one with its unit"
INIT = "mvreg init study    # a copy of the bundle, to edit"


def add_cohort_verbs(verbs: Any) -> None:
    """Add them to the parser of the command line."""
    scan = verbs.add_parser("scan", help="say what scans are in a folder, a zip or a DICOMDIR, and table them")
    scan.add_argument("folder", type=Path, metavar="FOLDER", help="or a zip, a DICOMDIR, a file")
    scan.add_argument("--out", type=Path, metavar="FILE", help="write the table of scans, the input of training")
    scan.add_argument("--outcomes", type=Path, metavar="FILE", help="a table with one row per patient, to be joined")
    scan.add_argument("--patient", default="patient", metavar="COLUMN", help="its column of patients")
    scan.add_argument("--hash-key", type=Path, metavar="FILE", help="a secret: patients are written as keyed hashes")
    scan.add_argument("--thumbnails", action="store_true", help="write a page with the middle slice of each scan")
    scan.add_argument("--json", action="store_true", help="print everything as JSON, and nothing else")
    scan.add_argument("--all", action="store_true", help="count localizers, derived images and screenshots as scans")
    scan.add_argument("--resample", action="store_true", help="accept volumes whose slices lie at uneven distances")
    scan.add_argument("--identify", action="store_true", help="show who the patients are")
    scan.set_defaults(verb=_scan)

    bids = verbs.add_parser("bids", help="list the scans of a BIDS data set as a table, with its participants.tsv")
    bids.add_argument("folder", type=Path, metavar="FOLDER")
    bids.add_argument("--out", type=Path, default=Path("cohort.csv"), metavar="FILE", help="default: cohort.csv")
    bids.set_defaults(verb=_bids)

    audit = verbs.add_parser("audit", help="search a cohort for leaks: twins, two folds, late scans, telling columns")
    audit.add_argument("table", type=Path, metavar="FILE", help="one row per scan")
    audit.add_argument("--dataset_dir", type=Path, required=True, metavar="FOLDER", help="where its paths start")
    audit.add_argument("--patient", default="patient", metavar="COLUMN")
    audit.add_argument("--path", default="path", metavar="COLUMN")
    audit.add_argument("--day", default=None, metavar="COLUMN", help="the day of each scan")
    audit.add_argument("--fold", default=None, metavar="COLUMN")
    audit.add_argument("--target", default=None, metavar="COLUMN")
    audit.add_argument("--covariate", action="append", default=[], metavar="COLUMN", help="may be given several times")
    audit.add_argument("--index-day", default=None, metavar="COLUMN", help="the day from which the prediction looks on")
    audit.add_argument("--event-day", default=None, metavar="COLUMN", help="the day of the event, empty if none")
    audit.set_defaults(verb=_audit)

    split = verbs.add_parser("split", help="add a column `fold` that keeps each patient in one fold")
    split.add_argument("table", type=Path, metavar="TABLE", help="CSV or TSV")
    split.add_argument("--patient", default="patient", metavar="COLUMN", help="default: patient")
    split.add_argument("--target", metavar="COLUMN", help="balance the folds on this number")
    split.add_argument("--folds", type=int, default=5)
    split.add_argument("--seed", type=int, help="default: the best balanced of 200")
    split.add_argument("--out", type=Path, metavar="FILE", help="default: TABLE itself")
    split.set_defaults(verb=_split)


def _scan(options: argparse.Namespace) -> None:
    import json
    from dataclasses import replace

    import pandas as pd

    from monai_mvreg.cache.atomic import atomic_write
    from monai_mvreg.cohort.inventory import as_json, contact_sheet, take_inventory, visits
    from monai_mvreg.cohort.sources import SCAN_COLUMNS, join_outcomes, pseudonym
    from monai_mvreg.cohort.table import TableRows

    page = (options.out or Path("scans.csv")).with_suffix(".html") if options.thumbnails else None
    for path in (options.out, page):
        if path is not None and path.exists():
            raise FileExistsError(f"expected a new file, {path} exists: name another with --out")
    if options.outcomes and not options.out:
        raise ValueError("expected --out with --outcomes: the joined table is what they are for")
    if options.out and options.out.suffix not in (".csv", ".tsv"):
        raise ValueError(f"expected --out to end in .csv or .tsv, got {options.out}")
    for path in (options.out, page):
        if path is not None and not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"expected a folder for {path}, there is none: make it first")
    if options.outcomes:  # a mistake in it is better known before a long search
        names = list(TableRows(options.outcomes).frame.columns)
        if options.patient not in names:
            raise ValueError(
                f"{options.outcomes.name}: expected the column {options.patient!r} with the patients' keys, got "
                f"{', '.join(names)}: name it with --patient COLUMN"
            )
        join_outcomes(pd.DataFrame(columns=SCAN_COLUMNS), options.outcomes, patient=options.patient)
    secret = options.hash_key.read_bytes().strip() if options.hash_key else b""
    if options.hash_key and not options.out:
        raise ValueError("expected --out with --hash-key: only the table holds the keys of patients")
    if options.hash_key and len(secret) < 16:
        raise ValueError(f"expected a secret of at least 16 characters in {options.hash_key}, got {len(secret)}")
    found = take_inventory(options.folder, everything=options.all, resample=options.resample)
    if options.outcomes:  # it may lie among the scans
        others = [item for item in found.left_out if not item.path.exists() or not item.path.samefile(options.outcomes)]
        found = replace(found, left_out=tuple(others))
    rows, unmatched = found.rows, list[str]()
    if secret:  # in the order of the hashes: that of the keys would tell who comes first
        hashes = {key: pseudonym(key, secret) for key in rows["patient"]}
        rows = rows.sort_values("patient", key=lambda keys: keys.map(hashes), kind="stable", ignore_index=True)
        if shown := sum(key in path for key, path in zip(rows["patient"], rows["path"], strict=True)):
            print(f"warning: the paths of {shown} scans hold the key of their patient: rename folders", file=sys.stderr)
    if options.outcomes:
        rows, unmatched = join_outcomes(rows, options.outcomes, patient=options.patient)
    if secret:
        rows = rows.assign(patient=rows["patient"].map(hashes))
    if options.out:
        with atomic_write(options.out) as unfinished:
            rows.to_csv(unfinished, index=False, sep="\t" if options.out.suffix == ".tsv" else ",")
    if page is not None:
        contact_sheet(page, found, identify=options.identify)
    if options.json:
        print(json.dumps(as_json(found, identify=options.identify) | {"unmatched": unmatched}, indent=1))
        return
    print(visits(found, identify=options.identify))
    print(f"\n{found.rows['patient'].nunique()} patients, {len(found.rows)} scans")
    # A whole data set may be left out for one reason: one line per reason, with the first place.
    left_out = as_json(found)["left_out"]
    first = {item["reason"]: item["path"] for item in reversed(left_out)}
    for reason, count in Counter(item["reason"] for item in left_out).most_common():
        print(f"left out: {first[reason]}{f' and {count - 1} more' if count > 1 else ''}: {reason}")
    for sentence in unmatched:
        print(sentence)
    if undated := int(rows["day"].isna().sum()):
        print(f"{undated} scans have no date: fill in the column day, or train with --columns#day '$None'")
    several = Counter(scan.frames_are for scan in found.scans if scan.frames > 1)
    for kind, count in several.items():
        advice = "mean, or the number of one" if kind == "time points" else "0, or the number of a different one"
        print(f"{count} scans have several {kind}: train with --reader#frame {advice}")
    if colours := sum(scan.colour for scan in found.scans):
        print(f"{colours} scans are coloured: remove their rows, or train on colours alone with --reader#colour True")
    if page is not None:
        print(f"Pictures: {page}")
    if not options.out:
        print(f"\nNext: mvreg scan {shlex.quote(str(options.folder))} --out cohort.csv")
        return
    print(f"\n{options.out} is the table of scans. Next: {ADD_TARGET if not options.outcomes else 'split it'}, then")
    print(f"  mvreg split {options.out} --target COLUMN")
    print(f"  {INIT}")
    print(f"  {train_command(str(found.home), str(options.out))}")


def _bids(options: argparse.Namespace) -> None:
    from monai_mvreg.cache.atomic import atomic_write
    from monai_mvreg.cohort.sources import rows_from_bids

    if options.out.exists():
        raise FileExistsError(f"expected a new file, {options.out} exists: name another with --out")
    if not options.folder.is_dir():
        raise NotADirectoryError(f"expected a folder with scans, got {options.folder}")
    rows = rows_from_bids(options.folder)
    with atomic_write(options.out) as unfinished:
        rows.to_csv(unfinished, index=False)
    print(f"{options.out}: {rows['patient'].nunique()} patients, {len(rows)} scans")
    if undated := int(rows["day"].isna().sum()):
        print(f"{undated} scans have no date: fill in the column day, or train with --columns#day '$None'")
    print(f"\nNext: {ADD_TARGET}, then")
    print(f"  mvreg split {options.out} --target COLUMN")
    print(f"  {INIT}")
    print(f"  {train_command(str(options.folder), str(options.out))}")


def _audit(options: argparse.Namespace) -> None:
    from monai_mvreg.cohort.audit import Audited, audit

    columns = Audited(
        patient=options.patient,
        path=options.path,
        day=options.day,
        fold=options.fold,
        target=options.target,
        covariates=tuple(options.covariate),
        index_day=options.index_day,
        event_day=options.event_day,
    )
    found = audit(options.table, options.dataset_dir, columns)
    counted = Counter(finding.what for finding in found)
    shown: Counter[str] = Counter()
    for finding in found:
        shown[finding.what] += 1
        if shown[finding.what] <= 5:
            rows = ", ".join(map(str, finding.rows[:10])) + (" ..." if len(finding.rows) > 10 else "")
            print(finding.what + (f": rows {rows}" if rows else ""))
    for what, count in counted.items():
        if count > 5:
            print(f"{what}: {count - 5} more")
    searched = {
        "folds": options.fold,
        "late scans": options.index_day or options.event_day,
        "columns": options.covariate,
    }
    skipped = [name for name, given in searched.items() if not given]
    print(
        f"\n{len(found)} findings"
        + (f"; not searched, for no column was named: {', '.join(skipped)}" if skipped else "")
    )
    if found:
        raise SystemExit(1)


def _split(options: argparse.Namespace) -> None:
    from monai_mvreg.cache.atomic import atomic_write
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
    keys = rows.frame[options.patient].str.strip()
    with atomic_write(out) as unfinished:
        rows.frame.assign(fold=keys.map(fold)).to_csv(unfinished, index=False, sep=rows.separator)
    sizes = sorted(Counter(str(name) for name in fold.values()).items(), key=lambda item: int(item[0]))
    print(f"{out}: {len(fold)} patients, " + ", ".join(f"{size} in fold {name}" for name, size in sizes))
    print(
        f"seed {seed}: keep it. When patients are added, delete the column and split again with --seed {seed}: nobody"
    )
    print("changes fold.")


def train_command(folder: str, table: str) -> str:
    """The command that trains the bundle of ``mvreg init study`` on a table of scans in a folder."""
    return (
        "python -m monai.bundle run --config_file study/configs/train.yaml --bundle_root study "
        f"--dataset_dir {shlex.quote(folder)} --cohort_file {shlex.quote(table)} "
        "--target \"['COLUMN']\" --columns#unit UNIT_COLUMN"
    )

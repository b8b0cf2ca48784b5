"""The verbs of ``mvreg`` for archives of DICOM images: answer what they send, and fetch patients from them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Everything else is imported inside the verbs: --help must not wait for torch.

_PACKAGES = {"highdicom", "pynetdicom", "dicomweb_client", "filelock", "prometheus_client", "requests"}


def add_archive_verbs(verbs: Any) -> None:
    """Add them to the parser of the command line."""
    listen = verbs.add_parser("listen", help="receive studies by DICOM, predict them, and send reports to the archive")
    listen.add_argument("--settings", type=Path, required=True, metavar="FILE", help="YAML: docs/pacs.md")
    listen.add_argument("--check", action="store_true", help="read the settings and the model, and stop")
    listen.set_defaults(verb=_listen)

    pull = verbs.add_parser("pull", help="fetch a list of patients from a DICOMweb archive, and table their scans")
    pull.add_argument("table", type=Path, metavar="PATIENTS", help="CSV or TSV with one row per patient")
    pull.add_argument("--patient", default="patient", metavar="COLUMN", help="its column of PatientIDs")
    pull.add_argument("--archive", required=True, metavar="URL", help="such as https://pacs:8042/dicom-web")
    pull.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the scans and cohort.csv")
    pull.add_argument("--modality", action="append", default=[], help="such as MR; may be given several times")
    pull.add_argument("--since", default="", metavar="YYYYMMDD", help="first date of a study")
    pull.add_argument("--until", default="", metavar="YYYYMMDD", help="last date of a study")
    pull.add_argument("--user", help="of the archive")
    pull.add_argument("--password-file", type=Path, metavar="FILE", help="holds the password alone")
    pull.add_argument("--authorities", type=Path, metavar="FILE", help="certificates to trust for https")
    pull.set_defaults(verb=_pull)


@contextmanager
def _extra() -> Iterator[None]:
    """Name the extra where one of its packages is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise ValueError(f'archives need {error.name}: pip install "monai-mvreg[pacs]"') from None


def _listen(options: argparse.Namespace) -> None:
    from monai_mvreg.service.service_settings import read_listen_settings

    settings = read_listen_settings(options.settings)
    with _extra():
        from monai_mvreg.service.run import check_model, listen
    if options.check:
        check_model(settings)
        peers = "1 peer" if len(settings.peers) == 1 else f"{len(settings.peers)} peers"
        print(f"{options.settings}: well; {peers} may send to {settings.host}:{settings.port}")
    else:
        listen(settings)


def _pull(options: argparse.Namespace) -> None:
    from monai_mvreg.cache.atomic import atomic_write
    from monai_mvreg.cohort.inventory import take_inventory
    from monai_mvreg.cohort.sources import SCAN_COLUMNS, join_outcomes
    from monai_mvreg.cohort.table import TableRows
    from monai_mvreg.service.service_settings import WebArchive

    with _extra():
        from monai_mvreg.service.archive import DicomWeb
        from monai_mvreg.service.pull import pull_patients

    for name in ("since", "until"):
        if (date := getattr(options, name)) and (len(date) != 8 or not date.isdigit()):
            raise ValueError(f"expected --{name} YYYYMMDD, got {date!r}")
    rows = TableRows(options.table)
    rows.need(options.patient)
    if clash := sorted((set(rows.frame.columns) - {options.patient}) & set(SCAN_COLUMNS)):
        raise ValueError(f"{options.table.name}: expected no column of the cohort's own names, got {clash}")
    patients = [rows.text(row, options.patient) for row in range(len(rows.frame))]
    if len(set(patients)) < len(patients):
        raise ValueError(f"{options.table.name}: expected each patient in one row, got some in several")
    place = WebArchive(
        options.archive, user=options.user, password_file=options.password_file, authorities=options.authorities
    )
    pulled = pull_patients(
        patients,
        options.out / "dicom",
        archive=DicomWeb(place),
        modalities=options.modality,
        since=options.since,
        until=options.until,
    )
    print(f"{pulled.studies} studies fetched, {pulled.objects} objects")
    for row in pulled.absent:
        print(f"row {row}: the archive has no such study of this patient")
    for row, reason in pulled.failed:
        print(f"row {row}: {reason}", file=sys.stderr)
    found = take_inventory(options.out / "dicom")
    table, sentences = join_outcomes(found.rows, options.table, patient=options.patient)
    table = table.assign(path=[f"dicom/{path}" for path in table["path"]])
    with atomic_write(options.out / "cohort.csv") as unfinished:
        table.to_csv(unfinished, index=False)
    print(f"{options.out / 'cohort.csv'}: {table['patient'].nunique()} patients, {len(table)} scans")
    for sentence in sentences:
        print(sentence)
    if pulled.failed:
        print("Call the same again: what is there is not fetched twice", file=sys.stderr)
        raise SystemExit(1)

"""An archive and a list of patients -> their scans on disk: whole series, each once, whenever it is called again."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.service.archive import ArchiveError, DicomWeb
from monai_mvreg.service.queue import hashed, read_facts

_PART = ".part"


@dataclass(frozen=True)
class Pulled:
    """What came: studies and objects that are new, rows of patients without a study, rows whose retrieval failed."""

    studies: int
    objects: int
    absent: tuple[int, ...]
    failed: tuple[tuple[int, str], ...]


def pull_patients(
    patients: Sequence[str],
    out: Path,
    *,
    archive: DicomWeb,
    modalities: Collection[str] = (),
    since: str = "",
    until: str = "",
) -> Pulled:
    """Fetch the studies of patients into ``patient-0001/<hash of the study>``, numbered as they are listed.

    A study that is there is not fetched again, and one that could not be fetched whole is not there. A patient whose
    retrieval fails does not stop the others.

    Args:
        patients: PatientIDs. Add new ones at the end: the number is the place in the list.
        out: the folder.
        archive: where the studies are.
        modalities: of the series that are wanted; none named means all images.
        since: first StudyDate that is wanted, YYYYMMDD.
        until: last StudyDate that is wanted.

    Raises:
        ValueError: if a folder holds another patient than its number says.
    """
    studies = objects = 0
    absent, failed = [], []
    for row, patient in enumerate(tqdm(patients, "patients", unit="patient", disable=None), start=2):
        place = out / f"patient-{row - 1:04d}"
        _check(place, patient, row)
        try:
            found = [
                study
                for study in archive.studies(patient)
                if study.may_hold(modalities) and (since or "0") <= (study.date or "0") <= (until or "99999999")
                if study.date or not (since or until)
            ]
            for study in found:
                target = place / hashed(study.uid)[:16]
                if not target.exists():
                    objects += _fetch(archive, study.uid, modalities, target, patient)
                    studies += 1
        except ArchiveError as error:
            failed.append((row, str(error)))
            continue
        if not found:
            absent.append(row)
    return Pulled(studies, objects, tuple(absent), tuple(failed))


def _fetch(archive: DicomWeb, study: str, modalities: Collection[str], target: Path, patient: str) -> int:
    """Fetch one study under another name, and rename it when it is whole."""
    part = target.with_name(target.name + _PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        archive.fetch(study, modalities, part)
        files = list(part.iterdir())
        for file in files:
            if read_facts(file).patient != patient:
                raise ArchiveError("the archive sent an object of another patient: the study is not kept")
    except ScanError as error:
        shutil.rmtree(part)
        raise ArchiveError(f"the archive sent what is no image: {error}") from None
    except OSError:
        shutil.rmtree(part)  # whoever looks for scans would find the half
        raise
    part.rename(target)
    return len(files)


def _check(place: Path, patient: str, row: int) -> None:
    """Refuse to mix patients, where rows of the list have moved since the last time."""
    shutil.rmtree(next(place.glob(f"*{_PART}"), place / "none"), ignore_errors=True)
    first = next(place.glob("*/*.dcm"), None)
    if first is not None and read_facts(first).patient != patient:
        raise ValueError(
            f"row {row}: expected the same patient as before in {place.name}, its files are of another: "
            "add new patients at the end of the list, or pull to a new folder"
        )

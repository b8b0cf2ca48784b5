"""A prediction -> the DICOM instances it was made from, and the header with their patient and study."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.predict.prediction import ModelIdentity, Prediction
from monai_mvreg.scans.addresses import ScanAddress
from monai_mvreg.scans.content_hash import content_hashes, scan_content
from monai_mvreg.scans.dicom.acquisition_date import in_order
from monai_mvreg.scans.dicom.volumes import Stack
from monai_mvreg.scans.find import Scan, find_scans
from monai_mvreg.scans.formats.byte_ranges import read_whole
from monai_mvreg.scans.read import scan_at

MAKER = "monai-mvreg"
SERIES_NUMBER = 9900  # beyond what scanners count to, so that results stand behind the scans

# Attributes that every object has, though their value may be empty: old files leave some out.
OF_EVERY_OBJECT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True)
class Instance:
    """One DICOM object that a scan was read from.

    ``frames`` are the numbers of the used frames, from 1, where it has several and not all of them were used.
    """

    path: Path
    study: str
    series: str
    kind: str
    uid: str
    frames: tuple[int, ...] = ()


@dataclass(frozen=True)
class DicomScan:
    """A DICOM scan that a prediction was made from; ``place`` is its number among all used scans, from 0."""

    place: int
    scan: Scan
    instances: tuple[Instance, ...]


def used_instances(prediction: Prediction, *, home: Path) -> tuple[DicomScan, ...]:
    """Find the DICOM instances that a prediction was made from, in the order of its scans.

    Args:
        prediction: of scans that are still where they were.
        home: the folder that its addresses are relative to.

    Returns:
        Its DICOM scans; those of other formats are not among them.

    Raises:
        ScanError: if a scan is not there any more, or cannot be read.
        ValueError: if a scan has changed since; if the scans are of several patients or of nobody; if none is DICOM.
    """
    base = home if home.is_dir() else home.parent
    used = [str(base / scan.address) for scan in prediction.scans]
    places = dict.fromkeys(ScanAddress.parse(address).place for address in used)
    known: dict[str, Scan] = {}
    for place in places:  # one look at a folder, however many of its series were used
        found, left = find_scans(place, resample=True)
        known |= {scan.address: scan for scan in [*found, *(item.scan for item in left if item.scan is not None)]}
    sources = []
    for at, address in enumerate(used):
        scan = known.get(str(ScanAddress.parse(address))) or scan_at(address, resample=True)
        if not isinstance(scan.content, Stack):
            continue
        content = prediction.scans[at].content
        if scan_content(scan) != content and content_hashes([address])[address] != content:
            raise ValueError(f"scan {at + 1}: expected the files that it was predicted from, they have changed since")
        sources.append(DicomScan(at, scan, _instances(scan.content, at)))
    if not sources:
        raise ValueError(
            f"expected a DICOM scan among the {len(used)} used, got none: a DICOM object needs the patient and study "
            "of one"
        )
    _check_patient(sources)
    return tuple(sources)


def _instances(stack: Stack, place: int) -> tuple[Instance, ...]:
    frames: dict[str, set[int]] = {}
    files = {}
    for one in (one for moment in stack.slices for one in moment):
        frames.setdefault(one.file.path, set()).add(one.frame + 1)
        files[one.file.path] = one.file
    found = []
    for path, file in files.items():
        if not (file.study and file.image and file.kind):
            raise ValueError(
                f"scan {place + 1}: expected StudyInstanceUID, SOPInstanceUID and SOPClassUID in each file, to refer "
                "to it; they are not in all"
            )
        part = () if len(frames[path]) >= file.frames else tuple(sorted(frames[path]))
        found.append(Instance(Path(path), file.study, file.series, file.kind, file.image, part))
    return tuple(found)


def _check_patient(sources: Sequence[DicomScan]) -> None:
    """Refuse what would file the scans of one patient under another; highdicom does not."""
    people = {source.scan.patient for source in sources}
    if len(people) > 1:
        raise ValueError(
            f"expected scans with one PatientID, got {len(people)} in {len(sources)} scans: nothing is written, as it "
            "would be filed under one of them"
        )
    headers = (read_header(source.instances[0].path) for source in sources)
    issuers = {str(header.get("IssuerOfPatientID") or "") for header in headers} - {""}
    if len(issuers) > 1:
        raise ValueError(
            f"expected scans with one IssuerOfPatientID, got {len(issuers)}: the same PatientID of several hospitals "
            "may be several patients"
        )
    studies = {source.instances[0].study for source in sources}
    if people == {""} and len(studies) > 1:
        raise ValueError(
            f"expected a PatientID in scans of several studies, got none in scans of {len(studies)}: nothing says that "
            "they are of one patient"
        )


def newest(sources: Sequence[DicomScan], prediction: Prediction) -> DicomScan:
    """The newest scan by the date in its header; its study is the one that a result belongs to."""

    def moment(source: DicomScan) -> tuple[tuple[int, int], float, str]:
        date = source.scan.date
        return in_order(date) if date else (0, 0), prediction.scans[source.place].day, source.instances[0].study

    return max(sources, key=moment)


def read_header(path: Path) -> Dataset:
    """Read what a file says, without its pixels; what every object has is there, empty where it was not."""
    with silent():
        header = pydicom.dcmread(io.BytesIO(read_whole(path)), stop_before_pixels=True)
        for name in OF_EVERY_OBJECT:
            if name not in header:
                setattr(header, name, "")
    return header


def take_over(header: Dataset, made: Dataset, *, ascii_only: bool) -> None:
    """Write into a result who the patient is, and which study it is of, exactly as a header says it.

    Args:
        header: as :func:`read_header` reads it.
        made: the result, an object of highdicom.
        ascii_only: whether the rest of the result is ASCII, and so can be written in the character set of the header.
    """
    made.copy_patient_and_study_information(header)
    for name, mark in (("StudyDate", "."), ("PatientBirthDate", "."), ("StudyTime", ":")):  # as before DICOM 3.0
        setattr(made, name, str(made.get(name) or "").replace(mark, ""))
    if not ascii_only:
        made.SpecificCharacterSet = "ISO_IR 192"
    elif "SpecificCharacterSet" in header:
        made.SpecificCharacterSet = header.SpecificCharacterSet
    elif "SpecificCharacterSet" in made:
        del made.SpecificCharacterSet


def write_object(made: Dataset, path: str | Path) -> None:
    """Write a DICOM result to a file, completely or not at all.

    Args:
        made: the result, as :func:`~monai_mvreg.dicom_results.structured_report.make_report` makes it.
        path: the file to write.

    Example:
        >>> import tempfile
        >>> from monai_mvreg.dicom_results import make_report
        >>> from monai_mvreg.predict import Predictor
        >>> report = make_report(Predictor.from_bundle("study").predict_folder("patient"), home="patient")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_object(report, f"{folder}/report.dcm")
        ...     pydicom.dcmread(f"{folder}/report.dcm").SOPInstanceUID == report.SOPInstanceUID
        True
    """
    with atomic_write(Path(path)) as unfinished, silent():
        made.save_as(unfinished, enforce_file_format=True)


def fitted(text: str) -> str:
    """Cut a text to what an attribute of 64 characters holds."""
    return text.replace("\\", "/")[:64]


@contextmanager
def silent() -> Iterator[None]:
    """Keep pydicom and highdicom from quoting a header in warnings and logs: it may name the patient."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def result_uid(kind: str, prediction: Prediction, sources: Sequence[DicomScan], *more: str) -> str:
    """A UID that the same result always has: sent twice, it is one object; another model or scan gives another.

    Numbers count to six digits, as the last ones differ from machine to machine. Where the files lie does not count,
    nor what was left out: results come back to the folder that they were made of.

    Args:
        kind: what the object is.
        prediction: what it says.
        sources: the DICOM scans of it.
        more: what else tells it from others.
    """
    instances = {source.place: [f"{one.uid} {one.frames}" for one in source.instances] for source in sources}
    scans = [instances.get(at, [scan.content]) for at, scan in enumerate(prediction.scans)]
    values: list[tuple[float | None, ...]] = [
        (one.value, one.low, one.high, one.confidence, one.spread) for one in prediction.numbers
    ]
    values += [prediction.survival.risks] if prediction.survival else []
    rounded = ["-" if value is None else f"{value:.6g}" for row in values for value in row]
    names = [f"{one.name} {one.unit}" for one in prediction.numbers]
    return str(generate_uid(entropy_srcs=[kind, repr(prediction.model), repr((scans, names, rounded)), *more]))


def model_uid(model: ModelIdentity) -> str:
    """A UID of the device that a model is."""
    return str(generate_uid(entropy_srcs=["model", repr(model)]))

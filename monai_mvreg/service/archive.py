"""The archive of a hospital: earlier studies of a patient out of it, reports into it, by DICOMweb or by DIMSE.

Errors say what failed and never of whom: a URL of DICOMweb holds PatientIDs and UIDs.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)
from requests.adapters import HTTPAdapter, Retry

from monai_mvreg.service.queue import hashed
from monai_mvreg.service.service_settings import DimseArchive, WebArchive

# What holds no picture of a patient; without a list of modalities everything else is fetched.
_NO_IMAGES = {"SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTRECORD", "DOC", "REG", "RWV", "FID", "AU", "ECG", "OT"}
_WILD = ("*", "?", "\\")
_REFUSED = {400, 409, 413, 415, 422}
_THERE_ALREADY = 0x0111  # a status of DIMSE


class ArchiveError(OSError):
    """The archive cannot be reached or did not do what it was asked: worth another try later."""


class RefusedError(ArchiveError):
    """The archive does not want this object: another try is hardly worth it."""


@dataclass(frozen=True)
class ArchivedStudy:
    """A study that an archive holds; ``date`` is YYYYMMDD or empty, ``modalities`` are empty if it did not say."""

    uid: str
    date: str
    modalities: frozenset[str]

    def may_hold(self, modalities: Collection[str]) -> bool:
        """Whether it may hold a series of one of these modalities; of none named, whether it may hold an image."""
        return not self.modalities or any(is_wanted(one, modalities) for one in self.modalities)


class Archive(Protocol):
    """What the listener needs of an archive."""

    def studies(self, patient: str) -> list[ArchivedStudy]:
        """List the studies of a PatientID."""

    def fetch(self, study: str, modalities: Collection[str], folder: Path) -> int:
        """Write the images of a study into a folder and say how many; of no modality named, all images."""

    def store(self, report: Path) -> None:
        """Store a DICOM file; one that is there already is no error."""


def is_wanted(modality: str, modalities: Collection[str]) -> bool:
    """Whether a series of this modality is fetched, where these are wanted; none named means every image."""
    return modality in modalities if modalities else modality not in _NO_IMAGES


class DicomWeb:
    """An archive by QIDO-RS, WADO-RS and STOW-RS.

    Args:
        place: where it is.
    """

    def __init__(self, place: WebArchive) -> None:
        session = requests.Session()
        # Orthanc drops idle connections without a word; and a request may be sent twice, for an object has one UID.
        session.headers["Connection"] = "close"
        retries = Retry(total=2, backoff_factor=0.2, allowed_methods=None, status=0)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        if place.user is not None and place.password_file is not None:
            session.auth = (place.user, place.password_file.read_text(encoding="utf-8").strip())
        if place.authorities is not None:
            session.verify = str(place.authorities)
            session.trust_env = False  # REQUESTS_CA_BUNDLE would count more
        for name in ("dicomweb_client", "urllib3"):  # they log URLs
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._client = DICOMwebClient(place.url.rstrip("/"), session=session, timeout=place.timeout)
        self._client.set_http_retry_params(retry=False)

    def studies(self, patient: str) -> list[ArchivedStudy]:
        """List the studies of a PatientID."""
        fields = ["StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "PatientID"]
        with _web("the search for studies"):
            found = self._client.search_for_studies(
                search_filters={"PatientID": _literal(patient)}, fields=fields, get_remaining=True
            )
        return _of_patient([Dataset.from_json(one) for one in found], patient)

    def fetch(self, study: str, modalities: Collection[str], folder: Path) -> int:
        """Write the images of a study into a folder and say how many, one in memory at a time."""
        with _web("the retrieval of a study"):
            fields = ["Modality", "SeriesInstanceUID"]
            found = self._client.search_for_series(study, fields=fields, get_remaining=True)
            series = [one for one in map(Dataset.from_json, found) if is_wanted(one.get("Modality", ""), modalities)]
            count = 0
            for one in series:
                # As it is stored: what the archive would unpack or pack anew could be another scan.
                images = self._client.iter_series(study, one.SeriesInstanceUID, (("application/dicom", "*"),))
                for image in images:
                    image.save_as(folder / f"{hashed(image.SOPInstanceUID)}.dcm", enforce_file_format=True)
                    count += 1
        return count

    def store(self, report: Path) -> None:
        """Store a DICOM file."""
        with _web("the storage of a report"):
            answer = self._client.store_instances([pydicom.dcmread(report)])
        if answer.get("FailedSOPSequence"):
            raise RefusedError("the archive did not store the report")


@contextmanager
def _web(what: str) -> Iterator[None]:
    """Turn what goes wrong in HTTP into an error without a URL."""
    try:
        yield
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        kind = RefusedError if status in _REFUSED else ArchiveError
        raise kind(f"{what} failed: HTTP status {status}") from None
    except requests.RequestException as error:
        raise ArchiveError(f"{what} failed: {type(error).__name__}") from None
    except OSError:
        raise  # of our own disk
    except Exception as error:  # an answer may be anything
        raise ArchiveError(f"{what} failed: an answer that cannot be read ({type(error).__name__})") from None


def _literal(patient: str) -> str:
    """A PatientID as a key of a search, in which * and ? would stand for anybody."""
    return "".join("?" if letter in _WILD else letter for letter in patient)


def _of_patient(found: list[Dataset], patient: str) -> list[ArchivedStudy]:
    """Only what names exactly this patient, each study once: archives differ in how they compare."""
    studies = {}
    for one in found:
        if str(one.get("PatientID", "")).strip() != patient or not one.get("StudyInstanceUID"):
            continue
        modalities = one.get("ModalitiesInStudy") or ()
        names = [modalities] if isinstance(modalities, str) else modalities
        uid = str(one.StudyInstanceUID)
        studies[uid] = ArchivedStudy(uid, str(one.get("StudyDate") or ""), frozenset(map(str, names)))
    return list(studies.values())


class Dimse:
    """An archive by C-FIND, C-MOVE to the listener of this process, and C-STORE.

    Args:
        place: where it is.
        ae_title: ours, to which it moves.
        expected: where the listener puts the objects of a study that is moved, by StudyInstanceUID.
    """

    def __init__(self, place: DimseArchive, *, ae_title: str, expected: dict[str, Path]) -> None:
        self._place, self._title, self._expected = place, ae_title, expected
        self._tls: tuple[ssl.SSLContext, str] | None = None
        if place.authorities is not None:
            context = ssl.create_default_context(cafile=str(place.authorities))
            if place.certificate is not None:
                context.load_cert_chain(place.certificate, place.key)
            self._tls = (context, place.host)

    @contextmanager
    def _associated(self, kind: str) -> Iterator[Any]:
        entity = AE(self._title)
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = self._place.timeout
        entity.network_timeout = self._place.timeout
        entity.add_requested_context(kind, [ExplicitVRLittleEndian, "1.2.840.10008.1.2"])
        association = entity.associate(
            self._place.host, self._place.port, ae_title=self._place.ae_title, tls_args=self._tls
        )
        if not association.is_established:
            raise ArchiveError("the archive cannot be reached, or it refuses the association")
        try:
            yield association
        finally:
            association.release()

    def _find(self, level: str, **keys: str) -> list[Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for name, value in keys.items():
            setattr(query, name, value)
        with self._associated(StudyRootQueryRetrieveInformationModelFind) as association:
            answers = list(association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind))
        _check(answers[-1][0], "the search for studies")
        return [one for _, one in answers if one is not None]

    def studies(self, patient: str) -> list[ArchivedStudy]:
        """List the studies of a PatientID."""
        keys = {"StudyInstanceUID": "", "StudyDate": "", "ModalitiesInStudy": ""}
        return _of_patient(self._find("STUDY", PatientID=_literal(patient), **keys), patient)

    def fetch(self, study: str, modalities: Collection[str], folder: Path) -> int:
        """Let the archive send the images of a study to the listener, which writes them into the folder."""
        keys = {"SeriesInstanceUID": "", "Modality": ""}
        found = self._find("SERIES", StudyInstanceUID=study, **keys)
        before, completed = len(list(folder.iterdir())), 0
        self._expected[study] = folder
        try:
            with self._associated(StudyRootQueryRetrieveInformationModelMove) as association:
                for one in found:
                    if is_wanted(one.get("Modality", ""), modalities):
                        completed += self._move(association, study, one.SeriesInstanceUID)
        finally:
            del self._expected[study]
        arrived = len(list(folder.iterdir())) - before
        if arrived < completed:
            raise ArchiveError(f"expected {completed} objects moved by the archive, {arrived} arrived")
        return arrived

    def _move(self, association: Any, study: str, series: str) -> int:
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "SERIES", study, series
        status, _ = list(association.send_c_move(query, self._title, StudyRootQueryRetrieveInformationModelMove))[-1]
        _check(status, "the move of a series")
        if status.get("NumberOfFailedSuboperations") or status.Status >> 12 == 0xB:
            raise ArchiveError("the move of a series failed: the archive could not send all of it")
        return int(status.get("NumberOfCompletedSuboperations", 0))

    def store(self, report: Path) -> None:
        """Store a DICOM file."""
        data = pydicom.dcmread(report)
        with self._associated(data.SOPClassUID) as association:
            try:
                status = association.send_c_store(data)
            except ValueError as error:  # no context for it
                raise RefusedError(f"the archive takes no such object ({type(error).__name__})") from None
        if status.get("Status") != _THERE_ALREADY:
            _check(status, "the storage of a report")


def _check(status: Dataset, what: str) -> None:
    """Raise for a status of DIMSE that is no success and no warning."""
    code = status.get("Status")
    if code is None:
        raise ArchiveError(f"{what} failed: no answer")
    if code == 0x0000 or code in (0x0001, 0x0107, 0x0116) or code >> 12 == 0xB:
        return
    kind = RefusedError if code >> 8 == 0xA9 or code >> 12 == 0xC else ArchiveError
    raise kind(f"{what} failed: status 0x{code:04X}")

"""The archive: only what is of this patient, whatever the archive says; errors that name nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from make_dicom import CANARY, new_image, save
from orthanc import Orthanc, free_port, needs_orthanc, running, study, wait_for
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    MRImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from monai_mvreg.service.archive import ArchivedStudy, ArchiveError, DicomWeb, Dimse, RefusedError, is_wanted
from monai_mvreg.service.queue import hashed
from monai_mvreg.service.service_settings import DimseArchive, WebArchive

UID = "1.2.826.0.1.3680043.8.498.1.20200101"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    home = tmp_path_factory.mktemp("archive")
    made = Orthanc(home / "orthanc", listener_port=free_port())
    with running(made):
        made.put(
            study(home / "1", number=1, date="20200101", patient=CANARY),
            study(home / "2", number=2, date="20210101", patient=CANARY),
            study(home / "3", number=3, date="20210101", patient=CANARY[:-1] + "X"),
            study(home / "4", number=4, date="20200202", patient=CANARY, Modality="CT"),
        )
        yield made


@pytest.fixture(params=["DICOMweb", "DIMSE"])
def archive(request: pytest.FixtureRequest, orthanc: Orthanc) -> DicomWeb | Dimse:
    if request.param == "DICOMweb":
        return DicomWeb(WebArchive(f"{orthanc.url}/dicom-web", timeout=10))
    return Dimse(DimseArchive("ORTHANC", "127.0.0.1", orthanc.port, timeout=10), ae_title="MVREG", expected={})


@needs_orthanc
def test_the_studies_of_a_patient_are_found_with_date_and_modality(archive: DicomWeb | Dimse) -> None:
    found = sorted(archive.studies(CANARY), key=lambda one: one.date)
    assert [(one.date, set(one.modalities)) for one in found] == [
        ("20200101", {"MR"}),
        ("20200202", {"CT"}),
        ("20210101", {"MR"}),
    ]


@needs_orthanc
@pytest.mark.parametrize("patient", ["*", "ZZPH?", "ZZ*", "ZZPH", "nobody", "ZZ\\PHI"])
def test_a_wildcard_or_part_of_a_patientid_finds_nobody(archive: DicomWeb | Dimse, patient: str) -> None:
    assert archive.studies(patient) == []


@needs_orthanc
def test_the_images_of_a_study_are_fetched_as_they_are(orthanc: Orthanc, tmp_path: Path) -> None:
    archive = DicomWeb(WebArchive(f"{orthanc.url}/dicom-web", timeout=10))
    assert archive.fetch(UID, {"MR"}, tmp_path) == 3
    sent = {f"{hashed(one.SOPInstanceUID)}.dcm": one.PixelData for one in map(pydicom.dcmread, _files(orthanc, "1"))}
    assert {file.name: pydicom.dcmread(file).PixelData for file in tmp_path.iterdir()} == sent


def _files(orthanc: Orthanc, name: str) -> list[Path]:
    return list((orthanc.home.parent / name).iterdir())


@needs_orthanc
def test_series_of_another_modality_are_not_fetched(orthanc: Orthanc, tmp_path: Path) -> None:
    assert DicomWeb(WebArchive(f"{orthanc.url}/dicom-web")).fetch(UID, {"CT"}, tmp_path) == 0


@needs_orthanc
def test_an_object_is_stored_and_storing_it_again_is_no_error(
    archive: DicomWeb | Dimse, orthanc: Orthanc, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uid = f"1.2.77.{len(request.node.name)}"
    own = {"StudyInstanceUID": f"{uid}.1", "SOPInstanceUID": uid, "SeriesInstanceUID": f"{uid}.2", "PatientID": "Z"}
    file = save(new_image(**own), tmp_path / "x.dcm")
    archive.store(file)
    archive.store(file)
    assert len(orthanc.post("/tools/lookup", uid.encode())) == 1


@pytest.mark.parametrize("kind", ["web", "dimse"])
def test_an_archive_that_is_not_there_is_worth_another_try(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    port = free_port()
    archive = (
        DicomWeb(WebArchive(f"http://127.0.0.1:{port}/dicom-web", timeout=2))
        if kind == "web"
        else Dimse(DimseArchive("A", "127.0.0.1", port, timeout=2), ae_title="MVREG", expected={})
    )
    with pytest.raises(ArchiveError) as error:
        archive.studies(CANARY)
    assert not isinstance(error.value, RefusedError) and CANARY not in str(error.value) and CANARY not in caplog.text
    assert (error.value.__cause__ is None and error.value.__suppress_context__) or kind == "dimse"


@needs_orthanc
def test_what_the_archive_refuses_is_told_apart(orthanc: Orthanc, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    file = save(new_image(StudyInstanceUID="1.2", SOPInstanceUID="1.3", PatientID=None), tmp_path / "x.dcm")
    with pytest.raises((RefusedError, ArchiveError)):
        DicomWeb(WebArchive(f"{orthanc.url}/nothing", timeout=5)).store(file)


def test_a_password_stands_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    archive = DicomWeb(WebArchive("https://x", user="me", password_file=tmp_path / "password"))
    assert archive._client._session.auth == ("me", "secret")


def test_a_patientid_is_never_asked_for_as_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    archive, asked = DicomWeb(WebArchive("https://x")), list[dict[str, str]]()

    def search(search_filters: dict[str, str], **_: object) -> list[dict[str, Any]]:
        asked.append(search_filters)
        return []

    monkeypatch.setattr(archive._client, "search_for_studies", search)
    assert archive.studies("ZZ*") == [] and asked == [{"PatientID": "ZZ?"}]  # one letter more, not everybody


def test_a_report_that_the_archive_says_it_did_not_store_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, answer = DicomWeb(WebArchive("https://x")), Dataset()
    answer.FailedSOPSequence = [Dataset()]
    monkeypatch.setattr(archive._client, "store_instances", lambda _: answer)
    with pytest.raises(RefusedError, match="did not store"):
        archive.store(save(new_image(), tmp_path / "x.dcm"))


@pytest.mark.parametrize(
    ("code", "completed", "failed", "said"),
    [(0x0000, 3, 0, "expected 3 objects moved by the archive, 1 arrived"), (0xB000, 1, 2, "could not send all of it")],
)
def test_a_study_of_which_only_a_part_was_moved_is_not_taken_for_whole(
    code: int, completed: int, failed: int, said: str, tmp_path: Path
) -> None:
    entity, expected = AE("A"), dict[str, Path]()
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)

    def find(_: object) -> Iterator[tuple[int, Dataset]]:
        series = Dataset()
        series.QueryRetrieveLevel, series.SeriesInstanceUID, series.Modality = "SERIES", "1.2.3.4", "MR"
        yield 0xFF00, series

    class Part(Dimse):
        """What moves arrives in the folder by another way: here one object does."""

        def _move(self, association: Any, study: str, series: str) -> int:
            (expected[study] / "one.dcm").write_bytes(b"")
            status = Dataset()
            status.Status, status.NumberOfFailedSuboperations = code, failed
            status.NumberOfCompletedSuboperations = completed
            association.send_c_move = lambda *_: iter([(status, None)])
            return super()._move(association, study, series)

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    place = DimseArchive("A", "127.0.0.1", server.server_address[1], timeout=5)
    try:
        with pytest.raises(ArchiveError, match=said):
            Part(place, ae_title="MVREG", expected=expected).fetch("1.2.3", {"MR"}, tmp_path)
    finally:
        server.shutdown()
    assert expected == {}


def test_an_archive_that_calls_a_second_copy_an_error_has_it(tmp_path: Path) -> None:
    entity = AE("A")
    entity.add_supported_context(MRImageStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0x0111)])
    place = DimseArchive("A", "127.0.0.1", server.server_address[1], timeout=5)
    try:
        Dimse(place, ae_title="MVREG", expected={}).store(save(new_image(), tmp_path / "x.dcm"))
    finally:
        server.shutdown()


def test_no_environment_variable_replaces_the_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    session = DicomWeb(WebArchive("https://x", authorities=tmp_path / "own.pem"))._client._session
    settings = session.merge_environment_settings("https://x", {}, None, None, None)
    assert settings["verify"] == str(tmp_path / "own.pem")


def test_every_request_has_a_connection_of_its_own() -> None:
    assert DicomWeb(WebArchive("https://x"))._client._session.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("held", "wanted", "may"),
    [({"MR", "SR"}, {"MR"}, True), ({"CT"}, {"MR"}, False), (set(), {"MR"}, True), ({"SR"}, set(), False)],
)
def test_a_study_may_hold_what_is_wanted(held: set[str], wanted: set[str], may: bool) -> None:
    assert ArchivedStudy("1", "", frozenset(held)).may_hold(wanted) is may


def test_without_wanted_modalities_every_image_is_wanted() -> None:
    assert is_wanted("CR", ()) and not is_wanted("SR", ()) and not is_wanted("CT", {"MR"})


def test_waiting_helper_gives_up() -> None:
    with pytest.raises(TimeoutError):
        wait_for(lambda: False, seconds=0.1)

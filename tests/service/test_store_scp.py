"""Who may send what: everything else is refused with the right status, and the service goes on."""

from __future__ import annotations

import dataclasses
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from make_dicom import new_image
from orthanc import EXPLICIT, MR, free_port, send, study, wait_for
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, DeflatedExplicitVRLittleEndian
from pynetdicom import AE

from monai_mvreg.service.health import Metrics
from monai_mvreg.service.queue import Inbox, hashed
from monai_mvreg.service.service_settings import DimseArchive, ListenSettings, Peer, ServerTls, WebArchive
from monai_mvreg.service.store_scp import Listener

# What pynetdicom makes of junk is to let the thread of its association die.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def started(home: Path, **settings: object) -> Listener:
    given = {
        "folder": home / "queue",
        "bundle": home,
        "web": WebArchive("http://127.0.0.1"),
        "port": 0,
        "peers": (Peer("SENDER", "127.0.0.1"),),
        "min_free_mb": 1.0,
        "max_object_mb": 0.1,
        "network_timeout": 2.0,
        **settings,
    }
    listener = Listener(ListenSettings(**given), Inbox(home / "queue"), Metrics())  # type: ignore[arg-type]
    listener.start()
    return listener


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = started(tmp_path)
    yield made
    made.stop()
    made.inbox.close()


def image(**tags: object) -> Dataset:
    return new_image(StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.1", PatientID="P", **tags)


def kept(listener: Listener) -> int:
    return len(list((listener.inbox.home / "inbox").glob("*/*.dcm")))


def test_an_image_is_kept(listener: Listener, tmp_path: Path) -> None:
    assert send(listener.port, sorted(study(tmp_path / "sent", number=1).iterdir())) == [0, 0, 0]
    assert kept(listener) == 3 and not any(listener.inbox.incoming.iterdir())


def test_what_is_kept_are_the_bytes_that_were_sent(listener: Listener) -> None:
    data = image()
    send(listener.port, [data])
    (file,) = (listener.inbox.home / "inbox").glob("*/*.dcm")
    assert data.PixelData in file.read_bytes()


@pytest.mark.parametrize(("title", "called"), [("STRANGER", "MVREG"), ("SENDER", "OTHER")])
def test_a_wrong_title_is_refused(listener: Listener, title: str, called: str) -> None:
    assert send(listener.port, [image()], title=title, called=called) == [-1]
    assert send(listener.port, [image()]) == [0]


def test_an_address_that_is_no_peers_is_refused(tmp_path: Path) -> None:
    listener = started(tmp_path, peers=(Peer("SENDER", "10.0.0.0/8"),))
    assert send(listener.port, [image()]) == [-1]
    listener.stop()
    assert listener.metrics.refused.labels("address")._value.get() == 1


def test_a_title_counts_only_from_its_own_address(tmp_path: Path) -> None:
    listener = started(tmp_path, peers=(Peer("SENDER", "10.0.0.1"), Peer("OTHER", "127.0.0.0/8")))
    assert send(listener.port, [image()]) == [-1]
    assert send(listener.port, [image()], title="OTHER") == [0]
    listener.stop()


def test_nobody_may_send_unless_named(tmp_path: Path) -> None:
    listener = started(tmp_path, peers=())
    assert send(listener.port, [image()]) == [-1]
    listener.stop()


def status_of(listener: Listener, data: Dataset, **request: object) -> int:
    """The status of one object, whose request may lie about it."""
    entity = AE("SENDER")
    entity.add_requested_context(MR, [EXPLICIT])
    association = entity.associate("127.0.0.1", listener.port, ae_title="MVREG")
    raw = association.dimse.send_msg

    def lie(primitive: object, context: int) -> None:
        for name, value in request.items():
            setattr(primitive, name, value)
        raw(primitive, context)

    association.dimse.send_msg = lie
    status = int(association.send_c_store(data).get("Status", -1))
    association.release()
    return status


def test_an_object_over_the_limit_is_refused_and_the_next_is_taken(listener: Listener) -> None:
    assert status_of(listener, image(PixelData=bytes(150_000))) == 0xC000
    assert status_of(listener, image()) == 0 and kept(listener) == 1


def test_an_object_far_over_the_limit_ends_the_association(listener: Listener) -> None:
    assert send(listener.port, [image(PixelData=bytes(3_000_000))]) == [-1]
    assert send(listener.port, [image()]) == [0]


def test_without_space_the_status_says_so(tmp_path: Path) -> None:
    listener = started(tmp_path, min_free_mb=1e12)
    assert status_of(listener, image()) == 0xA700 and kept(listener) == 0
    listener.stop()


def test_a_queue_that_cannot_be_written_is_out_of_resources(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(listener.inbox, "keep", full)
    assert status_of(listener, image()) == 0xA700


def test_other_uids_in_the_command_than_in_the_object_are_a_mismatch(listener: Listener) -> None:
    assert status_of(listener, image(), AffectedSOPInstanceUID="1.2.3.99") == 0xA900 and kept(listener) == 0


@pytest.mark.parametrize("uid", ["../../../../evil", "/etc/passwd", "1.2/../../3", "..", "a" * 64, ""])
def test_a_path_as_a_uid_is_not_understood(listener: Listener, uid: str) -> None:
    assert status_of(listener, image(), AffectedSOPInstanceUID="1.2.3.1") == 0
    before = sorted(listener.inbox.home.rglob("*"))
    data = image()
    data.StudyInstanceUID = uid
    assert status_of(listener, data) == 0xC000
    assert sorted(listener.inbox.home.rglob("*")) == before


@pytest.mark.parametrize("kind", [ComprehensiveSRStorage, "1.2.840.10008.5.1.4.1.1.66.4"], ids=["report", "mask"])
def test_what_is_no_image_is_refused_so_our_own_report_cannot_come_back(listener: Listener, kind: str) -> None:
    entity = AE("SENDER")
    entity.add_requested_context(kind)
    association = entity.associate("127.0.0.1", listener.port, ae_title="MVREG")
    assert not association.accepted_contexts and not association.is_established


def test_deflated_objects_are_not_taken(listener: Listener) -> None:
    entity = AE("SENDER")
    entity.add_requested_context(MR, DeflatedExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", listener.port, ae_title="MVREG")
    assert not association.accepted_contexts and not association.is_established


def test_an_image_that_the_archive_moves_for_us_is_no_new_study(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    listener.expected["1.2.3"] = tmp_path / "moved"
    own = {"MoveOriginatorApplicationEntityTitle": "MVREG", "MoveOriginatorMessageID": 1}
    assert status_of(listener, image(), **own) == 0
    assert [file.name for file in (tmp_path / "moved").iterdir()] == [f"{hashed('1.2.3.1')}.dcm"]
    assert kept(listener) == 0 and status_of(listener, image()) == 0 and kept(listener) == 1


def test_the_rest_of_a_move_that_was_given_up_is_no_new_study(tmp_path: Path) -> None:
    listener = started(tmp_path, web=None, dimse=DimseArchive("A", "127.0.0.1", 104))
    own = {"MoveOriginatorApplicationEntityTitle": "MVREG", "MoveOriginatorMessageID": 1}
    try:
        assert status_of(listener, image(), **own) == 0xC000 and kept(listener) == 0
        assert status_of(listener, image()) == 0 and kept(listener) == 1
    finally:
        listener.stop()
        listener.inbox.close()


def test_an_image_that_claims_to_be_moved_for_us_is_kept_when_nothing_is_moved(listener: Listener) -> None:
    own = {"MoveOriginatorApplicationEntityTitle": "MVREG", "MoveOriginatorMessageID": 1}
    assert status_of(listener, image(), **own) == 0 and kept(listener) == 1


def test_a_study_is_busy_as_long_as_its_sender_is_connected(listener: Listener) -> None:
    entity = AE("SENDER")
    entity.add_requested_context(MR, [EXPLICIT])
    association = entity.associate("127.0.0.1", listener.port, ae_title="MVREG")
    association.send_c_store(image())
    assert listener.being_sent() == {hashed("1.2.3")}
    association.release()
    wait_for(lambda: not listener.being_sent())


def raw(listener: Listener, data: bytes, *, wait: float = 0.0) -> None:
    """Send bytes that are no DICOM."""
    with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as connection:
        try:
            connection.sendall(data)
            time.sleep(wait)
        except OSError:  # ended by the other side, as it should
            pass


def test_a_message_that_claims_to_be_huge_ends_its_connection_at_once(tmp_path: Path) -> None:
    listener = started(tmp_path, network_timeout=20.0)
    with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 2**31) + bytes(1000))
        assert connection.recv(100) == b""  # or a time-out after 5 s
    listener.stop()


def test_junk_of_every_kind_is_refused_and_the_service_goes_on(listener: Listener) -> None:
    draw = random.Random(7)
    for kind in [*range(9), *(draw.randrange(256) for _ in range(40))]:
        body = draw.randbytes(draw.randrange(200))
        raw(listener, struct.pack(">BBL", kind, 0, len(body)) + body)
    wait_for(lambda: send(listener.port, [image()]) == [0])


def test_junk_in_the_middle_of_an_association_is_refused(listener: Listener) -> None:
    draw = random.Random(8)
    for _ in range(15):
        entity = AE("SENDER")
        entity.add_requested_context(MR, [EXPLICIT])
        association = entity.associate("127.0.0.1", listener.port, ae_title="MVREG")
        body = draw.randbytes(draw.randrange(1, 300))
        body = struct.pack(">LBB", len(body) + 2, 1, draw.randrange(4)) + body
        association.dul.socket.socket.sendall(struct.pack(">BBL", 4, 0, len(body)) + body)
        association.dul.socket.close()
    wait_for(lambda: send(listener.port, [image()]) == [0])


@pytest.mark.parametrize("control", [0, 1], ids=["a data set", "a command"])
def test_a_message_without_end_ends_its_connection_before_it_fills_the_memory(listener: Listener, control: int) -> None:
    entity = AE("SENDER")
    entity.add_requested_context(MR, [EXPLICIT])
    association = entity.associate("127.0.0.1", listener.port, ae_title="MVREG")
    sock = association.dul.socket.socket
    body = struct.pack(">LBB", 60_002, association.accepted_contexts[0].context_id, control) + bytes(60_000)
    sent = 0
    try:
        while sent < 400 and association.is_established:
            sock.sendall(struct.pack(">BBL", 4, 0, len(body)) + body)
            sent += 1
    except OSError:
        pass
    assert sent < 400
    wait_for(lambda: not association.is_alive(), seconds=10)
    assert send(listener.port, [image()]) == [0]


def test_a_flood_of_connections_is_refused_and_the_service_goes_on(listener: Listener) -> None:
    before = threading.active_count()  # other tests of this process leave threads behind
    flood = [socket.create_connection(("127.0.0.1", listener.port), timeout=5) for _ in range(100)]
    wait_for(lambda: listener.metrics.refused.labels("too many")._value.get() >= 50)
    assert threading.active_count() - before < 80
    wait_for(lambda: send(listener.port, [image()]) == [0])  # those that say nothing are ended after a while
    for connection in flood:
        connection.close()


def test_more_associations_than_allowed_hear_so(tmp_path: Path) -> None:
    listener = started(tmp_path, max_associations=2)
    entity = AE("SENDER")
    entity.add_requested_context(MR, [EXPLICIT])
    held = [entity.associate("127.0.0.1", listener.port, ae_title="MVREG") for _ in range(3)]
    assert [one.is_established for one in held] == [True, True, False] and held[2].is_rejected
    listener.stop()


def certificate(home: Path, name: str) -> tuple[Path, Path]:
    key, made = home / f"{name}.key", home / f"{name}.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*command, "-days", "2", *subject, "-keyout", str(key), "-out", str(made)], check=True, capture_output=True
    )
    return made, key


def test_with_tls_only_clients_with_a_certificate_are_let_in(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "server"), certificate(tmp_path, "client")
    listener = started(tmp_path, tls=ServerTls(*server, clients=client[0]), network_timeout=20.0)
    silent = socket.create_connection(("127.0.0.1", listener.port))  # never begins its handshake: nobody waits for it
    entity = AE("SENDER")
    entity.add_requested_context(MR, [EXPLICIT])
    entity.acse_timeout = entity.connection_timeout = entity.network_timeout = 5
    trusting = ssl.create_default_context(cafile=str(server[0]))
    results = []
    for own in (None, client):
        if own:
            trusting.load_cert_chain(*own)
        tls = (trusting, "localhost")
        association = entity.associate("127.0.0.1", listener.port, ae_title="MVREG", tls_args=tls)
        results.append(association.is_established)
        if association.is_established:  # an abort of what has ended may wait for ever
            association.release()
    assert results == [False, True] and send(listener.port, [image()]) == [-1]
    silent.close()
    listener.stop()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="expected a free port, got"):
        started(tmp_path, port=port)


def test_settings_have_no_peer_and_this_host_alone_by_default() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(ListenSettings)}
    assert (defaults["host"], defaults["peers"], defaults["health_host"]) == ("127.0.0.1", (), "127.0.0.1")

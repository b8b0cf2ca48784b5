"""Who may send what: a C-STORE receiver that puts images into the queue and refuses everything else."""

from __future__ import annotations

import io
import ipaddress
import logging
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from socketserver import BaseServer
from typing import Any, ClassVar

from pydicom.dataset import Dataset
from pynetdicom import AE, StoragePresentationContexts, _config, dimse_messages, evt
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

from monai_mvreg.scans.dicom.headers import CODECS
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.service.health import Metrics
from monai_mvreg.service.incoming import IncomingFile
from monai_mvreg.service.queue import Inbox, hashed, read_facts
from monai_mvreg.service.service_settings import ListenSettings

logger = logging.getLogger(__name__)

SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
# Deflated objects are not taken: what they become in memory is not known before.
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", *CODECS]
# Reports, segmentations and all else that is no picture of a patient are refused, so our own answer cannot come back.
IMAGES = [
    context.abstract_syntax
    for context in StoragePresentationContexts
    if context.abstract_syntax is not None and context.abstract_syntax.name.endswith("Image Storage")
]
_MOST_IN_MEMORY = 2**20  # bytes of a message that is no image
_MAX_PDU = 65_536
_SPARE_CONNECTIONS = 5  # above the limit of associations: these hear a polite refusal, more are just closed


def _unnamed(settings: ListenSettings) -> float:
    """Seconds that a peer has to say who it is."""
    return min(10.0, settings.network_timeout)


class Listener:
    """The receiver. One of a process: pynetdicom has one way to write to disk for all.

    Args:
        settings: of the listener.
        inbox: the queue.
        metrics: count what comes.
    """

    def __init__(self, settings: ListenSettings, inbox: Inbox, metrics: Metrics) -> None:
        self.settings, self.inbox, self.metrics = settings, inbox, metrics
        self.expected: dict[str, Path] = {}
        self.port = settings.port
        self._sending: dict[Any, set[str]] = {}
        self._lock = threading.Lock()
        self._server: Any = None
        self._entity = AE(settings.ae_title)

    def start(self) -> None:
        """Begin to receive, in threads of its own.

        Raises:
            OSError: if the port is taken, or a file of TLS cannot be read.
        """
        given = self.settings
        if not hasattr(dimse_messages, "NamedTemporaryFile"):
            raise RuntimeError("expected pynetdicom 3.0 to 3.x: this release writes objects to disk in another way")
        _config.STORE_RECV_CHUNKED_DATASET = True
        _config.LOG_HANDLER_LEVEL = "none"  # it would log identifiers, and costs half of the speed
        most, least_free = int(given.max_object_mb * 1e6), int(given.min_free_mb * 1e6)
        dimse_messages.NamedTemporaryFile = lambda **_: IncomingFile(
            self.inbox.incoming, most=most, least_free=least_free
        )
        dimse_messages.BytesIO = _Short
        entity = self._entity
        entity.require_called_aet = True
        entity.require_calling_aet = [peer.ae_title for peer in given.peers]  # of no peer, no address is let in
        entity.maximum_associations = given.max_associations
        entity.maximum_pdu_size = _MAX_PDU
        entity.acse_timeout = _unnamed(given)
        entity.dimse_timeout = entity.network_timeout = given.network_timeout
        entity.add_supported_context(Verification)
        for kind in IMAGES:
            entity.add_supported_context(kind, SYNTAXES)
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_REJECTED, lambda _: self.metrics.refused.labels("association").inc()),
            (evt.EVT_C_STORE, self._store),
        ]
        context = _server_context(given)
        try:
            self._server = entity.make_server(
                (given.host, given.port),
                ssl_context=context,
                evt_handlers=handlers,
                server_class=_guarded(given, self.metrics),
            )
        except OSError as error:
            raise OSError(f"expected a free port, got {given.host}:{given.port}: {error.strerror}") from None
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="listener", daemon=True).start()

    def stop(self) -> None:
        """Take no more connections and end those that are open: what was not acknowledged is sent again."""
        if self._server is not None:
            self._server.shutdown()
            for association in self._entity.active_associations:
                association.abort()
            self._server = None

    def is_alive(self) -> bool:
        """Whether the receiver runs."""
        return any(thread.name == "listener" and thread.is_alive() for thread in threading.enumerate())

    def being_sent(self) -> set[str]:
        """Keys of studies of which objects came over connections that are still open."""
        with self._lock:
            self._sending = {one: keys for one, keys in self._sending.items() if one.is_alive()}
            return set().union(*self._sending.values())

    def _opened(self, event: Any) -> None:
        """Let no peer claim more memory for one message than it was told it may send."""
        connection = event.assoc.dul.socket
        connection.recv = _bounded(connection, _MAX_PDU + 2**16)

    def _requested(self, event: Any) -> None:
        """Refuse an AE title that comes from an address of another peer."""
        primitive = event.assoc.requestor.primitive
        address = event.assoc.requestor.address
        titles = [peer.ae_title for peer in self.settings.peers if _is_in(address, peer.address)]
        if primitive.calling_ae_title.strip() not in titles:
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)
            self.metrics.refused.labels("association").inc()
            event.assoc.kill()

    def _store(self, event: Any) -> int | Dataset:
        """Keep an object, then say so."""
        request = event.request
        file: IncomingFile = request._dataset_file
        started = time.monotonic()
        try:
            status, told = self._kept(event, file)
        except OSError:
            status, told = OUT_OF_RESOURCES, "space"
        self.metrics.objects.labels(told).inc()
        facts: dict[str, object] = {"bytes": file.size, "seconds": round(time.monotonic() - started, 4)}
        facts |= {"object": hashed(str(request.AffectedSOPInstanceUID))[:12], "result": told, "status": f"{status:04X}"}
        logger.info("object received", extra={"facts": facts})
        answer = Dataset()
        answer.Status = status
        if status != SUCCESS:
            answer.ErrorComment = _COMMENTS[told]
        return answer

    def _kept(self, event: Any, file: IncomingFile) -> tuple[int, str]:
        request = event.request
        file.finish()
        if file.refusal:
            return (OUT_OF_RESOURCES if file.refusal == "space" else NOT_UNDERSTOOD), file.refusal
        path = Path(file.name)
        try:
            facts = read_facts(path)
        except ScanError:
            return NOT_UNDERSTOOD, "malformed"
        if (facts.kind, facts.instance) != (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID):
            return MISMATCH, "mismatch"
        ours = request.MoveOriginatorApplicationEntityTitle == self.settings.ae_title
        if ours and (moved := self.expected.get(facts.study)) is not None:
            path.replace(moved / f"{hashed(facts.instance)}.dcm")
            return SUCCESS, "fetched"
        if ours and self.settings.dimse is not None:  # of a move that was given up: no study that anybody sent
            return NOT_UNDERSTOOD, "unwanted"
        with self._lock:
            self._sending.setdefault(event.assoc, set()).add(hashed(facts.study))
        return SUCCESS, "stored" if self.inbox.keep(path, facts, digest=file.digest) else "duplicate"

    def free(self) -> int:
        """Free bytes of the disk that the queue lies on."""
        return shutil.disk_usage(self.inbox.home).free


_COMMENTS = {
    "space": "no space left for this object",
    "size": "the object is larger than this node accepts",
    "malformed": "the header cannot be read",
    "mismatch": "UIDs of command and data set differ",
    "unwanted": "the move that it belongs to has ended",
}


class _Short(io.BytesIO):
    """What pynetdicom keeps of a message in memory: all but images, which go to a file. It may not grow without end."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > _MOST_IN_MEMORY:
            raise OSError(f"expected a message of at most {_MOST_IN_MEMORY} bytes, got more")
        return super().write(data)


def _bounded(connection: Any, most: int) -> Callable[[int], bytearray]:
    receive, quick = connection.recv, getattr(socket, "TCP_QUICKACK", None)

    def bounded(count: int) -> bytearray:
        if count > most:
            raise OSError(f"expected a message of at most {most} bytes, one of {count} was announced")
        if quick is not None:
            # Senders that write an object in two parts would wait 40 ms for us between them, each time.
            connection.socket.setsockopt(socket.IPPROTO_TCP, quick, 1)
        found: bytearray = receive(count)
        return found

    return bounded


def _is_in(address: str, network: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found) in ipaddress.ip_network(network)


def _server_context(settings: ListenSettings) -> ssl.SSLContext | None:
    if settings.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls.certificate, settings.tls.key)
    if settings.tls.clients is not None:
        context.load_verify_locations(settings.tls.clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _guarded(settings: ListenSettings, metrics: Metrics) -> type[ThreadedAssociationServer]:
    """A server that looks at an address before it reads a byte, and that no silent client can stop."""

    class Guarded(ThreadedAssociationServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64
        shaking: ClassVar[set[Any]] = set()

        def verify_request(self, request: Any, client_address: Any) -> bool:
            if not any(_is_in(client_address[0], peer.address) for peer in settings.peers):
                reason = "address"
            elif len(self.active_associations) + len(self.shaking) >= settings.max_associations + _SPARE_CONNECTIONS:
                reason = "too many"
            else:
                return True
            metrics.refused.labels(reason).inc()
            logger.warning("connection refused", extra={"facts": {"reason": reason}})
            return False

        def get_request(self) -> tuple[socket.socket, Any]:
            client, address = self.socket.accept()
            client.settimeout(settings.network_timeout)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.ssl_context is not None:
                # The handshake waits for the client: not here, where all others would wait too.
                client = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
            return client, address

        def finish_request(self, request: Any, client_address: Any) -> None:
            if isinstance(request, ssl.SSLSocket):
                self.shaking.add(request)
                try:
                    request.settimeout(_unnamed(settings))
                    request.do_handshake()
                    request.settimeout(settings.network_timeout)
                finally:
                    self.shaking.discard(request)
            super().finish_request(request, client_address)

        def shutdown(self) -> None:  # that of pynetdicom wants to be in a list of its own
            BaseServer.shutdown(self)
            self.server_close()

        def handle_error(self, request: Any, client_address: Any) -> None:
            metrics.refused.labels("connection").inc()
            logger.warning("connection refused", extra={"facts": {"reason": "connection"}})

    return Guarded

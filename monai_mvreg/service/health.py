"""Is the listener well: ``/healthz`` for whoever watches it, ``/metrics`` for Prometheus, a log without identifiers."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

logger = logging.getLogger(__name__)

_OURS = "monai_mvreg.service"


class Metrics:
    """What is counted; one registry of its own, so that two listeners of a process do not share it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.objects = Counter("mvreg_objects", "objects received", ["result"], registry=own)
        self.refused = Counter("mvreg_associations_refused", "connections refused", ["reason"], registry=own)
        self.answers = Counter("mvreg_reports_sent", "reports that the archive has", registry=own)
        self.failures = Counter("mvreg_studies_failed", "studies put aside", registry=own)
        self.retries = Counter("mvreg_retries", "things to be tried again", ["what"], registry=own)
        self.studies = Gauge("mvreg_studies", "studies in the queue", ["state"], registry=own)
        self.oldest = Gauge("mvreg_oldest_seconds", "age of the study that waits for longest", registry=own)
        self.free = Gauge("mvreg_free_bytes", "free space of the queue's disk", registry=own)
        buckets = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
        self.seconds = Histogram(
            "mvreg_prediction_seconds", "from a complete study to its report", buckets=buckets, registry=own
        )


def serve_health(address: tuple[str, int], metrics: Metrics, trouble: Callable[[], list[str]]) -> ThreadingHTTPServer:
    """Answer ``/healthz`` and ``/metrics`` in threads of their own until ``shutdown`` is called.

    Args:
        address: host and port.
        metrics: of the listener.
        trouble: what is not well, in words without identifiers; called for each request.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            found = trouble()
            if self.path == "/healthz":
                body, kind = json.dumps({"well": not found, "trouble": found}).encode(), "application/json"
            elif self.path == "/metrics":
                body, kind = generate_latest(metrics.registry), CONTENT_TYPE_LATEST
            else:
                self.send_error(404)
                return
            self.send_response(503 if found and self.path == "/healthz" else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, event and the figures that belong to it.

    Other libraries write identifiers into their messages: of theirs only the place is written, and of an exception its
    kind and where it was raised, never its text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        line: dict[str, object] = {"time": stamp, "level": record.levelname.lower()}
        if record.name.startswith(_OURS):
            line["event"] = record.getMessage()
            line |= getattr(record, "facts", {})
        else:
            line |= {"event": "message of a library", "library": record.name, "line": record.lineno}
        if record.exc_info and record.exc_info[0] is not None:
            line |= _kind_and_place(record.exc_info[0], record.exc_info[2])
        return json.dumps(line)


def _kind_and_place(kind: type[BaseException], trace: TracebackType | None) -> dict[str, object]:
    frames = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(trace)[-5:]]
    return {"exception": kind.__name__, "raised": " > ".join(frames)}


def start_log() -> None:
    """Write the log of this process to standard error as JSON lines, and silence what would name patients."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers, root.level = [handler], logging.ERROR
    logging.getLogger(_OURS).setLevel(logging.INFO)
    logging.captureWarnings(True)
    for name in ("pynetdicom", "pydicom", "py.warnings"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def uncaught(args: threading.ExceptHookArgs) -> None:
        facts = _kind_and_place(args.exc_type, args.exc_traceback)
        logger.error("a thread ended by an exception", extra={"facts": facts})

    threading.excepthook = uncaught

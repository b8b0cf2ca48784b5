"""The service as a whole: receiver, worker and health in one process, until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

from monai_mvreg.dicom_results.ucum import unit_concept
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.service.archive import Archive, DicomWeb, Dimse
from monai_mvreg.service.health import Metrics, serve_health, start_log
from monai_mvreg.service.queue import Inbox
from monai_mvreg.service.service_settings import ListenSettings
from monai_mvreg.service.store_scp import Listener
from monai_mvreg.service.worker import Worker

logger = logging.getLogger(__name__)

_STUCK = 3600.0  # seconds after which one study took too long


def listen(settings: ListenSettings) -> None:
    """Receive, predict and answer until SIGTERM or SIGINT.

    Raises:
        ValueError: if the model cannot predict a folder, because it needs to be told the views.
        OSError: if a folder, file or port cannot be used.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    start_log()
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    predictor = check_model(settings)
    inbox, metrics = Inbox(settings.folder), Metrics()
    listener = Listener(settings, inbox, metrics)
    worker = Worker(
        settings,
        inbox,
        predictor=predictor,
        archive=_archive(settings, listener),
        metrics=metrics,
        busy=listener.being_sent,
    )
    _measure(metrics, inbox, listener)
    thread = threading.Thread(target=worker.run, args=[stop], name="worker", daemon=True)

    def trouble() -> list[str]:
        found = [] if listener.is_alive() else ["the receiver does not run"]
        found += [] if thread.is_alive() else ["the worker does not run"]
        found += ["a study takes more than an hour"] if time.monotonic() - worker.last_turn > _STUCK else []
        return found + (["no space left"] if listener.free() < settings.min_free_mb * 1e6 else [])

    listener.start()
    thread.start()
    health = serve_health((settings.health_host, settings.health_port), metrics, trouble)
    facts = {"port": listener.port, "health_port": health.server_address[1], "waiting": inbox.counts()}
    logger.info("listening", extra={"facts": facts})
    stop.wait()
    logger.info("stopping")
    listener.stop()
    thread.join(settings.stop_within)
    health.shutdown()
    logger.info("stopped", extra={"facts": {"waiting": inbox.counts()}})
    if thread.is_alive():  # in the middle of a study, which the next process begins anew
        worker.leave()
        sys.stderr.flush()
        os._exit(0)
    inbox.close()


def check_model(settings: ListenSettings) -> Predictor:
    """Read the model, and see that it can take what an archive sends, and say what a report can hold.

    Raises:
        ValueError: if the model needs to be told the views of scans, or its unit has no UCUM code.
        OSError: if there is no model.
    """
    kept = settings.folder / "kept" if settings.folder.is_dir() else None
    predictor = Predictor.from_bundle(settings.bundle, models=settings.models, kept=kept, device=settings.device)
    if predictor.trained.views:
        raise ValueError("expected a model that takes the scans of a folder, this one needs to be told their views")
    if not predictor.trained.survival:  # a log risk has no unit
        unit_concept(predictor.trained.settings.unit, of=predictor.trained.settings.target[0])
    return predictor


def _archive(settings: ListenSettings, listener: Listener) -> Archive:
    if settings.web is not None:
        return DicomWeb(settings.web)
    if settings.dimse is None:
        raise ValueError("expected one archive, web or dimse")
    return Dimse(settings.dimse, ae_title=settings.ae_title, expected=listener.expected)


def _measure(metrics: Metrics, inbox: Inbox, listener: Listener) -> None:
    """Let the gauges look when they are asked."""
    for state in inbox.counts():
        metrics.studies.labels(state).set_function(lambda state=state: inbox.counts()[state])  # type: ignore[misc]
    metrics.oldest.set_function(inbox.oldest)
    metrics.free.set_function(listener.free)

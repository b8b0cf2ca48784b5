"""MONAI Label's app: one task that predicts a number from one scan or all scans of a patient."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.sessions import Sessions

from monai_mvreg.errors import user_error
from monai_mvreg.label.reply import answer
from monai_mvreg.label.request import CHOICES, Question, read_question
from monai_mvreg.label.stores import ArchiveStore, FolderStore, NotThereError, gather
from monai_mvreg.predict.prediction import PURPOSE
from monai_mvreg.predict.predictor import Predictor

logger = logging.getLogger(__name__)
MODEL = "mvreg"
_SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class PatientApp(MONAILabelApp):
    """The app.

    Args:
        app_dir: the folder that MONAI Label started from.
        studies: a folder of images, or the address of a DICOMweb archive.
        conf: ``bundle``, and where they are not the defaults ``models``, ``kept`` and ``device``, all as in
            :meth:`~monai_mvreg.predict.predictor.Predictor.from_bundle`.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        if "bundle" not in conf:
            raise ValueError("expected the folder of a trained bundle, --conf bundle FOLDER, got none")
        models, kept = (Path(conf[name]) if name in conf else None for name in ("models", "kept"))
        self.predictor = Predictor.from_bundle(
            Path(conf["bundle"]).resolve(), models=models, kept=kept, device=conf.get("device", "cpu")
        )
        trained = self.predictor.trained
        modalities = sorted({name for member in trained.members for name in member.domain.modalities})
        # The default of MONAI Label's list of images helps nobody whose model never saw CT.
        if settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "CT"} and modalities and "CT" not in modalities:
            settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER = {"Modality": modalities[0]} if len(modalities) == 1 else {}
        super().__init__(
            app_dir, studies, conf, name=f"mvreg: {trained.name}", description=PURPOSE, version=trained.version
        )
        archive = isinstance(self.datastore(), DICOMWebDatastore)
        self.store = (
            ArchiveStore(self.datastore(), modalities) if archive else FolderStore(self.datastore(), Path(self.studies))
        )

    def init_infers(self) -> dict[str, InferTask]:
        """The one task."""
        return {MODEL: PatientTask(self.predictor)}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Answer a request; ids stay ids until they are checked, and are counted once.

        Raises:
            HTTPException: 404 for what is not there, 400 for what cannot be answered, 502 where the archive fails.
        """
        if request.get("model") not in self._infers:
            raise HTTPException(404, "expected the model mvreg, there is no other")
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            try:
                session = request.get("session")
                question = read_question(request, session=session is not None)
                if session is None:
                    self._gather(question, home)
                else:
                    home = self._session_files(session)
                file, reply = self._infers[MODEL]({"question": question, "home": home})
            except NotThereError as error:
                raise HTTPException(404, str(error)) from None
            except HTTPException:
                raise
            except Exception as error:
                cause = user_error(error) if isinstance(error, (ValueError, RuntimeError)) else None
                if isinstance(cause, MemoryError):
                    raise HTTPException(503, str(cause)) from None
                if cause is not None:
                    raise HTTPException(400, str(cause).replace(str(home), "the request")) from None
                # Its text may hold names of files, and these the names of patients.
                kind, last = type(error).__name__, traceback.extract_tb(error.__traceback__)[-1]
                at = f"{Path(last.filename).name}:{last.lineno}"
                logger.error(json.dumps({"event": "prediction failed", "error": kind, "at": at}))
                raise HTTPException(500, f"the prediction failed ({kind})") from None
        scans = reply["predictions"][0]["scans"]
        asked = hashlib.sha256("".join(scan["content"] for scan in scans).encode()).hexdigest()[:12]
        seconds = round(time.monotonic() - started, 3)
        logger.info(json.dumps({"event": "predicted", "scans": len(scans), "content": asked, "seconds": seconds}))
        return {"label": file, "tag": "original", "file": file, "params": reply}

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Refuse: MONAI Label would open any path."""
        raise HTTPException(404, "expected /infer/mvreg, there are no other tasks")

    def batch_infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Refuse: what is predicted is a number, which MONAI Label's batches would not keep."""
        raise HTTPException(404, "expected /infer/mvreg, there are no other tasks")

    def _gather(self, question: Question, folder: Path) -> None:
        try:
            gather(question, self.store, folder)
        except Exception as error:
            if isinstance(error, NotThereError) or user_error(error) is error:
                raise
            # Whatever a library raises that an archive did not answer.
            logger.error(json.dumps({"event": "archive failed", "error": type(error).__name__}))
            raise HTTPException(502, "expected the datastore to give the images, it did not") from None

    def _session_files(self, session: Any) -> Path:
        """The files of a session, whatever else the request says that they are."""
        name = session.get("name") if isinstance(session, dict) else None
        found = self.sessions().get_session(name) if isinstance(name, str) else None
        if found is None:
            raise NotThereError("expected the id of a session, there is none such")
        return Path(found.image)

    def _download_dcmqi_tools(self) -> None:
        """Fetch nothing: MONAI Label would get programs that write segmentations from the web."""

    def _load_sessions(self, load: bool = False) -> Sessions | None:
        if not load:
            return None
        return UnpackedSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY)


class PatientTask(InferTask):
    """Predict, and map if asked; one request after the other, as maps are made with hooks on the network.

    Args:
        predictor: the trained model.
    """

    def __init__(self, predictor: Predictor) -> None:
        trained = predictor.trained
        # Stock viewers list segmentations alone, and take the name of a label from the reply.
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=["raises it", "lowers it"],
            dimension=len(trained.settings.spatial_size),
            description=f"One number per patient: {', '.join(trained.settings.target)}. {PURPOSE}",
            config=dict(CHOICES),
        )
        self.predictor, self.lock = predictor, threading.Lock()

    def is_valid(self) -> bool:
        """The model was read at the start."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Answer ``question`` about the scans in ``home``; the file of the map is the caller's to delete."""
        question = request["question"]
        with tempfile.NamedTemporaryFile(suffix=question.extension, delete=False) as made:
            volume = Path(made.name)
        try:
            with self.lock:
                file, reply = answer(self.predictor, question, request["home"], volume=volume)
        except BaseException:
            volume.unlink(missing_ok=True)
            raise
        if file is None:
            volume.unlink(missing_ok=True)
        return str(file) if file else None, reply


class UnpackedSessions(Sessions):
    """Sessions whose ids are checked, and whose archives are not unpacked: MONAI Label would let a tar write anywhere.

    A zip is sent as it is: the prediction reads it without unpacking.
    """

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> Any:
        """The session of an id, None if there is none."""
        if not _SESSION.fullmatch(session_id):
            return None
        return super().get_session(session_id, update_ts, fetch_cache)

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> Any:
        """Move what was received into the store."""
        if uncompress:
            parent = Path(data_file)
            shutil.rmtree(parent if parent.is_dir() else parent.parent, ignore_errors=True)
            raise HTTPException(400, "expected files or a zip as it is, got an archive to unpack")
        return super().add_session(data_file, expiry, False, session_id)

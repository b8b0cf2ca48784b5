"""Start MONAI Label with the app: what MONAI Label needs beside pydicom 3, and defaults that keep patients' data in.

``python -m monai_mvreg.label.serve start_server ...`` takes what ``monailabel start_server ...`` takes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import types
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pydicom.uid

APP = Path(__file__).parent
_SERVICE = "monai_mvreg.label.guard:app"
_PYDICOM_2 = "pydicom._storage_sopclass_uids"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run_label_server(arguments: Sequence[str]) -> None:
    """Run MONAI Label's command line until it is stopped.

    Args:
        arguments: as those of ``monailabel``. Of ``start_server``, the host is the loopback address and the service is
            the guarded one unless the arguments say otherwise.

    Raises:
        ValueError: if MONAI Label is not installed.
    """
    restore_pydicom_names()
    if find_spec("monailabel") is None:
        raise ValueError(
            'expected MONAI Label, it is not installed: pip install "monai-mvreg[label]", then '
            "pip install --no-deps monailabel==0.8.5 pydicom-seg==0.4.1"
        )
    made = list(arguments)
    if "start_server" in made:
        host = _option(made, "-i", "--host")
        if host is None:
            made += ["--host", host := _LOOPBACK[0]]
        if host in _LOOPBACK:
            os.environ.setdefault("MVREG_LABEL_HOSTS", "127.0.0.1,localhost,[::1]")
        if _option(made, "--uvicorn_app") is None:
            made += ["--uvicorn_app", _SERVICE]
    from monailabel.main import Main

    sys.argv = ["monailabel", *made]
    Main().run()


def prepare_work(work: Path) -> Path:
    """Lay out a folder of the server's own, where all that it keeps of patients goes: sessions, cache, temporary files.

    Its environment variables are set for MONAI Label unless they are set already.

    Returns:
        The folder of the app, in ``work``: MONAI Label writes into it.
    """
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    places = {name: work / name for name in ("app", "sessions", "dicom", "tmp")}
    for place in places.values():
        place.mkdir(exist_ok=True, mode=0o700)
    (places["app"] / "main.py").write_bytes((APP / "main.py").read_bytes())
    os.environ["TMPDIR"] = tempfile.tempdir = str(places["tmp"])  # of this process, and of those it starts
    os.environ.setdefault("MONAI_LABEL_SESSION_PATH", str(places["sessions"]))
    os.environ.setdefault("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(places["dicom"]))
    (work / "logging.json").write_text(json.dumps(_logging()), encoding="utf-8")
    return places["app"]


def restore_pydicom_names() -> None:
    """Put back a module of pydicom 2 that pydicom-seg, which MONAI Label imports, looks for beside pydicom 3.

    It holds the one name that pydicom-seg 0.4.1 takes from it. Every process of the server needs it.
    """
    module = types.ModuleType(_PYDICOM_2)
    module.SegmentationStorage = pydicom.uid.SegmentationStorage  # type: ignore[attr-defined]
    sys.modules.setdefault(_PYDICOM_2, module)


def _logging() -> dict[str, object]:
    """Our own lines, and errors: MONAI Label's own lines tell ids of patients."""
    console = {"class": "logging.StreamHandler", "formatter": "line"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"console": console},
        "root": {"level": "ERROR", "handlers": ["console"]},
        "loggers": {name: {"level": "INFO"} for name in ("monai_mvreg", "uvicorn.error")},
    }


def _option(arguments: Sequence[str], *names: str) -> str | None:
    """The value of an option, as ``--name value`` or ``--name=value``."""
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            return value if equals else (arguments[at + 1] if at + 1 < len(arguments) else "")
    return None


if __name__ == "__main__":
    run_label_server(sys.argv[1:])

"""A bundle's run: what ``monai.bundle run`` lacks, a mistyped setting refused and an error in one line."""

import difflib
import inspect
import logging
import os
import re
import sys
import threading
from multiprocessing.dummy import DummyProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from monai.apps import get_logger
from monai.bundle import ConfigParser

_READ_BY_MONAI = {"imports", "initialize", "run", "finalize", "_meta_"}


def refuse_unread_settings(configs: str) -> None:
    """Refuse a setting that nothing reads; for the list ``initialize`` of a config.

    MONAI adds an override of an unknown name (``--epoch 1``) as a new entry and goes on with the default. A setting is
    known if a config of the bundle declares it, or if the running config refers to it.

    Args:
        configs: the folder of the bundle's configs.

    Raises:
        ValueError: naming the setting and the nearest known one.
        RuntimeError: if not called from a config.
    """
    config = _calling_config()
    known = {key for file in Path(configs).glob("*.yaml") for key in yaml.safe_load(file.read_text())}
    known |= _READ_BY_MONAI | set(re.findall(r"[@%](\w+)", yaml.safe_dump(config)))
    for setting in config:
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected a setting of the bundle, got {setting!r}{hint}")


def _calling_config() -> dict[str, Any]:
    """Find the config being parsed: MONAI hands it to no expression, but its parser stands on the call stack."""
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return {key: value for key, value in parser.config.items() if key != "_meta_"}
        frame = frame.f_back
    raise RuntimeError("expected to be called from a config of a bundle")


def explain_errors() -> None:
    """Print what a user can mend in one line instead of the nested traceback of a config.

    Applies to uncaught ``ValueError`` and ``FileNotFoundError`` raised in this package, in this process; all others,
    and all when the environment variable ``MVREG_TRACEBACK`` is set, are shown whole.
    """
    if os.environ.get("MVREG_TRACEBACK"):
        return
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_cause
    get_logger("monai.handlers.StatsHandler").addFilter(_no_traceback)


def _no_traceback(record: logging.LogRecord) -> bool:
    """Leave out MONAI's traceback of an error inside a run: the error itself is printed at its end."""
    return not record.exc_info or record.exc_info[1] is None or user_error(record.exc_info[1]) is None


def user_error(error: BaseException) -> BaseException | None:
    """Find the error a user can mend: the outermost among an error and its causes that this package raised."""
    cause: BaseException | None = error
    while cause is not None:
        trace = cause.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        ours = trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("monai_mvreg")
        if ours and isinstance(cause, (ValueError, FileNotFoundError)):
            return cause
        # What was raised "from None" stands for itself.
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _print_cause(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = user_error(error)
    if cause is None:
        sys.__excepthook__(kind, error, trace)
    else:
        # A progress bar may stand on the line.
        print(f"\nerror: {cause}", file=sys.stderr)
    for thread in threading.enumerate():
        # A pool's thread that still loads a scan when Python ends would abort the process.
        if isinstance(thread, DummyProcess):
            thread.join(timeout=60)

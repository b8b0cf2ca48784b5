"""Errors that a user can mend, found among their causes: what the command line, a bundle's run and a server report."""

from __future__ import annotations

import errno
import re

import torch


def user_error(error: BaseException) -> BaseException | None:
    """Find the error a user can mend: the outermost among an error and its causes that speaks of the user's files.

    These are the ``ValueError`` and ``FileNotFoundError`` of this package, a file that another one does not find (the
    trained model) or may not open, a component of the config that does not exist or does not have an argument, and
    memory that is too small, as a ``MemoryError`` that names the settings to lower.
    """
    cause: BaseException | None = error
    while cause is not None:
        if (shortage := _memory_shortage(cause)) is not None:
            return shortage
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return cause
        if (unreachable := _hub_failure(cause)) is not None:
            return unreachable
        trace = cause.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        ours = trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("monai_mvreg")
        if isinstance(cause, (FileNotFoundError, PermissionError)) or (ours and isinstance(cause, ValueError)):
            return cause
        if isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause):
            return cause
        if isinstance(cause, ModuleNotFoundError) and "Cannot locate" in str(cause):
            return cause
        # What was raised "from None" stands for itself.
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def config_error(error: BaseException) -> str | None:
    """Say in one sentence what failed in a config, where the error is none of this package.

    Args:
        error: as MONAI raises it.

    Returns:
        The first cause and the innermost expression or component that MONAI names; None for an error outside a config.
    """
    where = None
    if circle := re.match(r"detected circular references '(.*)' for id='(.*)' in the config", str(error)):
        first, second = (name.replace("::", "#") for name in circle.groups())
        return f"expected settings that do not refer to each other in a circle, got {first} and {second}"
    while (text := str(error)).startswith(("Failed to evaluate", "Failed to instantiate")):
        where = " ".join(text.split())
        below = error.__cause__ or error.__context__
        if below is None:
            break
        error = below
    if where is None:
        return None
    where = re.sub(r"__local_refs\['([^']*)'\]", lambda name: "@" + name[1].replace("::", "#"), where)
    where = re.sub(r"^Failed to (evaluate|instantiate) (ConfigExpression: |component )?", "", where)[:200]
    cause = " ".join(str(error).split())[:500]
    return f"{cause or 'no reason given'} ({type(error).__name__} in {where}; MVREG_TRACEBACK=1 shows all of it)"


def _hub_failure(error: BaseException) -> FileNotFoundError | None:
    """Say what to do where pretrained weights cannot be fetched."""
    if type(error).__module__.partition(".")[0] not in ("huggingface_hub", "httpx", "httpcore", "requests"):
        return None
    return FileNotFoundError(
        f"expected pretrained weights from the hub, which cannot be reached ({type(error).__name__}): give a file by "
        "--encoder#encoder#pretrained_cfg_overlay \"{'file': 'weights.safetensors'}\", or --pretrained False"
    )


def _memory_shortage(error: BaseException) -> MemoryError | None:
    """Turn torch's report that memory ran out, of a GPU or of the computer, into one sentence with a remedy."""
    text = str(error).partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        where = "the GPU"
    elif isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text:  # torch has no type of its own for it
        where = "this computer"
    else:
        return None
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    size = f" for {asked[1]} more" if asked else ""
    return MemoryError(
        f"not enough memory on {where}{size}: in training set chunk_size (scans encoded at once), or lower max_scans "
        "(scans in a batch), batch_size (patients in a batch) or spatial_size; in prediction use --device cpu"
    )

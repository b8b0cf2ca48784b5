"""Errors that a user can mend, found among their causes: what the command line, a bundle's run and a server report."""

from __future__ import annotations


def user_error(error: BaseException) -> BaseException | None:
    """Find the error a user can mend: the outermost among an error and its causes that speaks of the user's files.

    These are the ``ValueError`` and ``FileNotFoundError`` of this package, a file that another one does not find (the
    trained model) or may not open, and a component of the config that does not exist or does not have an argument.
    """
    cause: BaseException | None = error
    while cause is not None:
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

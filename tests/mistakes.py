"""What the command line says of a mistake."""

import pytest

from monai_mvreg.cli.main import main


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake gives, on stderr, with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err

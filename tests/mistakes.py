"""What the command line and a config say of a mistake."""

import pytest
from monai.bundle import ConfigParser

from monai_mvreg.cli.main import main
from monai_mvreg.errors import user_error


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake gives, on stderr, with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err


def cause(error: BaseException) -> str:
    """The sentence of an error that a user can mend."""
    found = user_error(error)
    assert found is not None
    return str(found)


def failing(expression: str) -> BaseException:
    """The error of a config whose run fails three levels deep."""
    parser = ConfigParser(
        {
            "imports": ["$import torch", "$import monai_mvreg.cohort.table as table"],
            "cohort": expression,
            "items": "$list(@cohort)",
            "run": ["$@items"],
        }
    )
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("run")
    return caught.value

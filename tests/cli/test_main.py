"""The command line as a whole: instant help, the version, an unknown verb."""

import subprocess
import sys
import time

import pytest

from monai_mvreg.cli.main import main


def test_help_needs_no_torch_and_no_second() -> None:
    code = (
        "import sys; from monai_mvreg.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'monai', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 2
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(verb in done.stdout for verb in ("demo", "scan", "bids", "split", "predict", "explain", "report", "sr"))


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("mvreg 0.")


def test_an_unknown_verb_ends_with_2() -> None:
    with pytest.raises(SystemExit) as end:
        main(["train"])
    assert end.value.code == 2


def test_the_package_runs_as_a_module_as_mvreg_does() -> None:
    done = subprocess.run([sys.executable, "-m", "monai_mvreg", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: mvreg ")
    unknown = subprocess.run([sys.executable, "-m", "monai_mvreg", "fly"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2 and "fly" in unknown.stderr

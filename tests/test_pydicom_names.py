"""pydicom-seg beside pydicom 3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from label_server import ROOT

_MEND = "from monai_mvreg.deploy.pydicom_names import restore_pydicom_names; restore_pydicom_names()"


@pytest.mark.parametrize(("before", "works"), [("", False), (_MEND, True)])
def test_pydicom_seg_can_be_imported_once_the_name_is_back(monailabel_packages: Path, before: str, works: bool) -> None:
    paths = os.pathsep.join([str(ROOT), str(monailabel_packages)])
    done = subprocess.run(
        [sys.executable, "-c", f"{before}\nimport pydicom_seg"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) == works, done.stderr

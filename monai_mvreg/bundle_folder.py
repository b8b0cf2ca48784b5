"""The bundle that comes with the package: where it is, and a copy of it to edit."""

from __future__ import annotations

import shutil
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_PARTS = ("configs", "docs", "LICENSE")


def find_bundle() -> Path:
    """Find the bundle: inside the package after an installation from a wheel, next to it in a clone.

    Returns:
        The folder with ``configs``, ``docs`` and ``LICENSE``. Read it only: results belong in another folder.

    Raises:
        FileNotFoundError: if the package was installed without its data.
    """
    for bundle in (_PACKAGE / "bundle", _PACKAGE.parent / "bundle"):
        if (bundle / "configs/train.yaml").is_file():
            return bundle
    raise FileNotFoundError(
        f"expected the bundle in {_PACKAGE / 'bundle'}, found no configs/train.yaml: install monai-mvreg again"
    )


def is_installed(folder: Path) -> bool:
    """Whether a folder lies in the package, where nothing may be written.

    Args:
        folder: any path; it need not exist. The ``bundle`` of a clone lies next to the package, not in it.
    """
    return folder.resolve().is_relative_to(_PACKAGE)


def copy_bundle(folder: Path) -> None:
    """Copy the bundle's configs, docs and license to a folder to edit them.

    Args:
        folder: a new or an empty folder.

    Raises:
        FileExistsError: if it is not empty, or a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"expected a new or an empty folder, got {folder}: choose a different name")
    bundle = find_bundle()
    for part in _PARTS:
        for file in [bundle / part] if (bundle / part).is_file() else sorted((bundle / part).glob("*.*")):
            copy = folder / file.relative_to(bundle)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)  # without the mode: an installed file may be read-only

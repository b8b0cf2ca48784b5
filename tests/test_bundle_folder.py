"""The bundle is found in a wheel and in a clone, is never written to, and is copied to be edited."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from monai_mvreg import bundle_folder
from monai_mvreg.bundle_folder import copy_bundle, find_bundle, is_installed

BUNDLE = Path(__file__).parents[1] / "bundle"


def shipped(bundle: Path) -> dict[str, bytes]:
    """What of a bundle is shipped: not what a training wrote."""
    files = [bundle / "LICENSE", *(bundle / "configs").iterdir(), *(bundle / "docs").iterdir()]
    return {file.relative_to(bundle).as_posix(): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as a wheel installs it, with the bundle inside."""
    package = tmp_path / "site-packages/monai_mvreg"
    shutil.copytree(BUNDLE / "configs", package / "bundle/configs")
    shutil.copytree(BUNDLE / "docs", package / "bundle/docs")
    shutil.copyfile(BUNDLE / "LICENSE", package / "bundle/LICENSE")
    monkeypatch.setattr(bundle_folder, "_PACKAGE", package)
    return package


def test_a_clone_has_its_bundle_next_to_the_package() -> None:
    assert find_bundle() == BUNDLE.resolve()


def test_a_wheel_has_its_bundle_in_the_package(wheel: Path) -> None:
    (wheel.parent / "bundle/configs").mkdir(parents=True)  # of somebody else
    (wheel.parent / "bundle/configs/train.yaml").touch()
    assert find_bundle() == wheel / "bundle"


def test_a_package_without_the_bundle_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_folder, "_PACKAGE", tmp_path / "site-packages/monai_mvreg")
    with pytest.raises(FileNotFoundError, match=r"expected the bundle in .*monai_mvreg/bundle, .*: install .* again"):
        find_bundle()


def test_the_bundle_of_a_wheel_is_installed_by_whatever_path(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(wheel / "bundle")
    (tmp_path / "link").symlink_to(wheel)
    assert is_installed(wheel / "bundle") and is_installed(Path()) and is_installed(tmp_path / "link/bundle/new")
    assert not is_installed(wheel.parent) and not is_installed(tmp_path / "study")


def test_the_bundle_of_a_clone_is_a_folder_of_ones_own() -> None:
    assert not is_installed(BUNDLE)


@pytest.mark.parametrize("exists", [False, True])
def test_a_copy_holds_what_is_shipped_and_no_results(wheel: Path, tmp_path: Path, exists: bool) -> None:
    (wheel / "bundle/models").mkdir()
    (wheel / "bundle/models/model.pt").touch()
    if exists:
        (tmp_path / "study").mkdir()
    copy_bundle(tmp_path / "study")
    assert shipped(tmp_path / "study") == shipped(BUNDLE)
    assert {path.name for path in (tmp_path / "study").iterdir()} == {"configs", "docs", "LICENSE"}


def test_a_copy_can_be_edited_even_if_the_installed_files_are_read_only(wheel: Path, tmp_path: Path) -> None:
    for path in (wheel / "bundle/configs/train.yaml", wheel / "bundle/configs"):
        path.chmod(path.stat().st_mode & ~0o222)
    copy_bundle(tmp_path / "study")
    (wheel / "bundle/configs").chmod(0o755)  # or nobody could remove it
    for path in (tmp_path / "study/configs", tmp_path / "study/configs/train.yaml"):
        assert path.stat().st_mode & 0o200


def test_a_copy_never_mixes_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(
            FileExistsError, match=r"expected a new or an empty folder, got .*: choose a different name"
        ):
            copy_bundle(place)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

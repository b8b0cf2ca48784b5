"""Scans beside other readers: ``pip install -e ".[bench]" && pytest -m slow tests/benchmarks/test_scans.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import readers
import speed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not readers.PACK.is_dir(), reason="the data pack shared/data/dicom is not beside the project"),
]


def test_we_alone_read_every_series_right_or_refuse_it() -> None:
    expected = json.loads((readers.PACK / "expected.json").read_text())
    items = [*expected["series"], *expected["broken"]]
    wrong = {}
    for tool in readers.TOOLS:
        said = [kind for kind, _ in readers.run(tool, readers.PACK, items).values()]
        wrong[tool] = (said.count("right"), said.count("WRONG"))
    assert wrong.pop("monai_mvreg") == (len(items), 0)
    assert max(right for right, _ in wrong.values()) < len(items)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return speed.measure(tmp_path_factory.mktemp("speed"), runs=3)


@pytest.mark.parametrize(
    ("work", "tool", "times"),
    [
        ("CT 300 x 512 x 512, to float32", "MONAI LoadImage, PydicomReader", 10),
        ("CT 300 x 512 x 512, to float32", "MONAI LoadImage, ITKReader", 10),
        ("CT 300 x 512 x 512, to float32", "dcm2niix and nibabel", 2),
        ("CT 300 x 512 x 512, to float32", "floor: read into a hot buffer, convert", 1 / 2.5),
        ("the same, to a contiguous tensor (x, y, z)", "MONAI LoadImage, PydicomReader", 6),
        ("the same, to a contiguous tensor (x, y, z)", "MONAI LoadImage, ITKReader", 6),
        ("5,000 headers in 25 series", "pydicom, specific_tags, stop_before_pixels", 4),
        ("5,000 headers in 25 series", "gdcm.Scanner, 18 tags", 2),
        ("the volume as .nii", "MONAI LoadImage, NibabelReader", 3),
        ("the volume as .nii.gz", "MONAI LoadImage, NibabelReader", 3),
    ],
)
def test_others_take_so_many_times_as_long(
    work: str, tool: str, times: float, measured: dict[str, dict[str, float]]
) -> None:
    figures = measured[work]
    assert figures[tool] / next(iter(figures.values())) >= times


def test_the_volumes_that_were_timed_are_the_same(tmp_path: Path) -> None:
    ct = speed.write_ct(tmp_path / "ct")
    ours = speed.series_jobs(ct)["monai_mvreg read_scan"]().array
    assert ours.shape == (512, 512, 300)
    theirs = speed.tensor_jobs(ct)
    for tensor in (theirs["LoadImage(reader=ScanReader())"](), theirs["MONAI LoadImage, ITKReader"]()):
        assert (tensor.numpy() == ours).all()
    plain, zipped = speed.write_nifti(tmp_path, ct)
    for path in (plain, zipped):
        jobs = speed.nifti_jobs(path)
        tensors = [jobs[name]() for name in ("LoadImage(reader=ScanReader())", "MONAI LoadImage, NibabelReader")]
        assert (tensors[0].numpy() == tensors[1].numpy()).all() and tensors[0].dtype == tensors[1].dtype
        assert (tensors[0].affine == tensors[1].affine).all()

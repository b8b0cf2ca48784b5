"""How fast scans are found and read beside other tools, into docs/benchmarks.md: ``python tests/benchmarks/speed.py``.

All figures are CPU seconds of one thread, the least of several runs that take turns, on files in a warm cache. What is
compared does the same work: the values of one series as float32 with their geometry, or the headers of a folder.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from monai.data import ITKReader, NibabelReader, PydicomReader
from monai.transforms import LoadImage
from pydicom.uid import generate_uid
from readers import PACK, dicom2nifti, highdicom, into_docs, simple_itk

from monai_mvreg.scans.find import find_scans
from monai_mvreg.scans.read import read_scan
from monai_mvreg.scans.reader import ScanReader

SHAPE = (300, 512, 512)
HEADERS = ("ct_straight", "mr_sag_hfdl", "mr_ge_4d", "one_CT_small", "mr_jpll_fragments")
Job = Callable[[], Any]


def write_ct(folder: Path) -> Path:
    """300 slices of 512 x 512, 16 bit, uncompressed, from the real slices of the pack, under shuffled names."""
    folder.mkdir(parents=True)
    slices = sorted(
        (pydicom.dcmread(path) for path in (PACK / "series/ct_straight").iterdir()),
        key=lambda s: s.ImagePositionPatient[2],
    )
    names, series = np.random.default_rng(0).permutation(SHAPE[0]), generate_uid()
    for number in range(SHAPE[0]):
        image = slices[number % len(slices)]
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.SeriesInstanceUID, image.InstanceNumber = series, number + 1
        image.ImagePositionPatient = [*slices[0].ImagePositionPatient[:2], 0.625 * number]
        image.save_as(folder / f"{names[number]:04d}.dcm")
    return folder


def write_headers(folder: Path, *, count: int = 5000, series: int = 200) -> Path:
    """5,000 files in 25 series with the real headers of several scanners and small pixels."""
    for number in range(count // series):
        source = PACK / "series" / HEADERS[number % len(HEADERS)]
        image = pydicom.dcmread(sorted(source.iterdir())[0])
        image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        image.Rows = image.Columns = 16
        image.PixelData = bytes(16 * 16 * image.BitsAllocated // 8)
        image["PixelData"].is_undefined_length = False
        image.SeriesInstanceUID = generate_uid()
        (folder / f"{number}").mkdir(parents=True)
        normal = np.cross(image.ImageOrientationPatient[:3], image.ImageOrientationPatient[3:])
        for at in range(series):
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.ImagePositionPatient, image.InstanceNumber = (normal * at).round(6).tolist(), at + 1
            image.save_as(folder / f"{number}/{at:04d}.dcm")
    return folder


def write_nifti(folder: Path, ct: Path) -> tuple[Path, Path]:
    """The same volume as .nii and .nii.gz."""
    data = read_scan(ct)
    image = nib.Nifti1Image(data.array.astype(np.int16), data.affine)
    nib.save(image, folder / "ct.nii")
    nib.save(image, folder / "ct.nii.gz")
    return folder / "ct.nii", folder / "ct.nii.gz"


def cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def least(jobs: dict[str, Job], *, runs: int) -> dict[str, float]:
    """The least CPU seconds of each job; they take turns, so that a busy moment hits none of them alone."""
    found = dict.fromkeys(jobs, float("inf"))
    for _ in range(runs):
        for name, job in jobs.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                started = cpu_seconds()
                kept = job()
                found[name] = min(found[name], cpu_seconds() - started)
            del kept
    return found


def floor(folder: Path) -> np.ndarray:
    """The least that reading can cost: each file into one hot buffer, and from there to float32."""
    out, buffer = np.empty(SHAPE, np.float32), bytearray(SHAPE[1] * SHAPE[2] * 2)
    view, stored = memoryview(buffer), np.frombuffer(buffer, "<u2").reshape(SHAPE[1:])
    for picture, path in zip(out, sorted(folder.iterdir()), strict=True):
        with path.open("rb", buffering=0) as file:
            file.seek(-len(buffer), os.SEEK_END)
            file.readinto(view)
        np.copyto(picture, stored, casting="unsafe")
    return out


def pydicom_loop(folder: Path) -> np.ndarray:
    images = [pydicom.dcmread(path) for path in folder.iterdir()]
    images.sort(key=lambda image: image.ImagePositionPatient[2])
    return np.stack([i.pixel_array.astype(np.float32) * i.RescaleSlope + i.RescaleIntercept for i in images])


def by_dcm2niix(folder: Path) -> np.ndarray:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as out:
        command = ["dcm2niix", "-p", "n", "-b", "n", "-z", "n", "-o", out, "-f", "a", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        return nib.load(f"{out}/a.nii").get_fdata(dtype=np.float32)


def pydicom_headers(folder: Path) -> list[Any]:
    wanted = ["SeriesInstanceUID", "SOPInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
    wanted += ["Rows", "Columns", "InstanceNumber", "Modality", "AcquisitionDate", "AcquisitionTime", "EchoTime"]
    wanted += ["RescaleSlope", "RescaleIntercept", "ImageType", "PatientID", "BitsAllocated", "AcquisitionNumber"]
    return [pydicom.dcmread(path, specific_tags=wanted, stop_before_pixels=True) for path in folder.rglob("*.dcm")]


def gdcm_headers(folder: Path) -> Any:
    import gdcm

    scanner = gdcm.Scanner()
    for group, element in (
        (0x20, 0xE),
        (0x8, 0x18),
        (0x20, 0x32),
        (0x20, 0x37),
        (0x28, 0x30),
        (0x28, 0x10),
        (0x28, 0x11),
        (0x20, 0x13),
        (0x8, 0x60),
        (0x8, 0x22),
        (0x8, 0x32),
        (0x18, 0x81),
        (0x28, 0x1053),
        (0x28, 0x1052),
        (0x8, 0x8),
        (0x10, 0x20),
        (0x28, 0x100),
        (0x20, 0x12),
    ):
        scanner.AddTag(gdcm.Tag(group, element))
    if not scanner.Scan([str(path) for path in folder.rglob("*.dcm")]):
        raise RuntimeError("GDCM could not scan")
    return scanner


def dcm2niix_headers(folder: Path) -> None:
    subprocess.run(["dcm2niix", "-n", "-1", str(folder)], check=False, capture_output=True)


def series_jobs(ct: Path) -> dict[str, Job]:
    return {
        "monai_mvreg read_scan": lambda: read_scan(ct),
        "floor: read into a hot buffer, convert": lambda: floor(ct),
        "pydicom, a loop": lambda: pydicom_loop(ct),
        "dcm2niix and nibabel": lambda: by_dcm2niix(ct),
        "SimpleITK": lambda: simple_itk(ct)[0][0].astype(np.float32),
        "MONAI LoadImage, ITKReader": lambda: LoadImage(reader=ITKReader())(str(ct)),
        "MONAI LoadImage, PydicomReader": lambda: LoadImage(reader=PydicomReader())(str(ct)),
    }


def tensor_jobs(ct: Path) -> dict[str, Job]:
    return {
        "LoadImage(reader=ScanReader())": lambda: LoadImage(reader=ScanReader())(str(ct)),
        "MONAI LoadImage, ITKReader": lambda: LoadImage(reader=ITKReader())(str(ct)),
        "MONAI LoadImage, PydicomReader": lambda: LoadImage(reader=PydicomReader())(str(ct)),
    }


def header_jobs(headers: Path) -> dict[str, Job]:
    return {
        "monai_mvreg find_scans": lambda: find_scans(headers),
        "dcm2niix -n -1": lambda: dcm2niix_headers(headers),
        "gdcm.Scanner, 18 tags": lambda: gdcm_headers(headers),
        "pydicom, specific_tags, stop_before_pixels": lambda: pydicom_headers(headers),
    }


def nifti_jobs(path: Path) -> dict[str, Job]:
    return {
        "monai_mvreg read_scan": lambda: read_scan(path),
        "LoadImage(reader=ScanReader())": lambda: LoadImage(reader=ScanReader())(str(path)),
        "nibabel get_fdata(float32)": lambda: nib.load(path).get_fdata(dtype=np.float32),
        "MONAI LoadImage, NibabelReader": lambda: LoadImage(reader=NibabelReader())(str(path)),
    }


def slow_jobs(ct: Path) -> dict[str, Job]:
    return {
        "dicom2nifti and nibabel": lambda: dicom2nifti(ct),
        "highdicom": lambda: highdicom(ct),
    }


def measure(folder: Path, *, runs: int = 5) -> dict[str, dict[str, float]]:
    """CPU seconds by kind of work and tool."""
    import itk  # the extra 'bench', which the tests that collect this file need not have

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    ct, headers = write_ct(folder / "ct"), write_headers(folder / "headers")
    plain, zipped = write_nifti(folder, ct)
    return {
        "CT 300 x 512 x 512, to float32": least(series_jobs(ct), runs=runs) | least(slow_jobs(ct), runs=1),
        "the same, to a contiguous tensor (x, y, z)": least(tensor_jobs(ct), runs=runs),
        "5,000 headers in 25 series": least(header_jobs(headers), runs=runs),
        "the volume as .nii": least(nifti_jobs(plain), runs=runs),
        "the volume as .nii.gz": least(nifti_jobs(zipped), runs=runs),
    }


def report(found: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown, each beside its ratio to ours."""
    lines = [f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, one thread."]
    for work, figures in found.items():
        own = next(iter(figures.values()))
        lines += ["", f"| {work} | CPU s | times ours |", "|---|---|---|"]
        lines += [f"| {name} | {seconds:.3f} | {seconds / own:.1f} |" for name, seconds in figures.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how fast scans are found and read.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--docs", action="store_true", help="write the figures into docs/benchmarks.md")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        text = report(measure(folder, runs=options.runs))
    finally:
        shutil.rmtree(folder)
    print(text)
    if options.docs:
        into_docs("speed", text)


if __name__ == "__main__":
    main()

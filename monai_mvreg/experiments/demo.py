"""An honest synthetic cohort, written as real DICOM and NIfTI files, and the way through the bundle that it shows.

The law: a patient has one bright ellipsoidal lesion whose diameter is ``D(t) = D0 + v t``, with ``t`` in years from the
middle of the follow-up. ``D0`` (16 to 36 mm) and the growth rate ``v`` (-6 to 6 mm/a, the target) are drawn apart
from each other, so one scan tells little about ``v`` whatever the network. Place and shape of the lesion, anatomy,
number and dates of the scans differ between patients; position, intensity scale and noise between scans. Nothing of
this is a real patient, and a real lesion is not so kind: the demo shows that the package works, not that it is of use.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import torch
from monai.transforms import Compose, LoadImaged, NormalizeIntensityd, Orientationd
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.bundle_folder import find_bundle
from monai_mvreg.cohort.split import balanced_seed, leave_out, split_cohort
from monai_mvreg.cohort.table import Cohort, Columns, Patient, read_cohort, write_cohort
from monai_mvreg.metrics.bootstrap import Estimate
from monai_mvreg.metrics.regression import cohort_metrics
from monai_mvreg.report.evaluation import evaluation_sections, figure_scans
from monai_mvreg.report.page import Section, value, write_report
from monai_mvreg.results.predictions_table import PredictionsTable
from monai_mvreg.results.units import readable_unit
from monai_mvreg.scans.reader import ScanReader

logger = logging.getLogger(__name__)
Array = npt.NDArray[Any]

SHAPE, VOXEL = (24, 24, 16), 4.0  # voxels, mm
UNIT = "mm/a"
MARKER = "Made by `mvreg demo`."
_FOLDS, _VALIDATION, _TEST = 5, "0", "1"
_README = f"""{MARKER} Everything here is synthetic.

report.html      read this first
predictions.csv  one row per test patient: measured, predicted, the weight of each scan
metrics.json     the metrics with intervals; history.csv: the curves; models/model.pt: the trained network
cohort/          cohort.csv with one row per scan, and the scans as DICOM series and NIfTI files
newest_scan/     the same for a network that sees each patient's newest scan alone
train.json, evaluate.json: the settings of the runs; again: python -m monai.bundle run --args_file train.json
run.log          what the runs said; events.*: the curves for TensorBoard
"""


@dataclass(frozen=True)
class DemoPatient:
    """One synthetic patient: days of the scans, their diameters in mm, growth in mm/a, volumes in RAS order."""

    start: datetime.date
    days: tuple[int, ...]
    diameters: tuple[float, ...]
    growth: float
    volumes: tuple[npt.NDArray[np.uint16], ...]


@dataclass(frozen=True)
class DemoResult:
    """What the demo reached on ``patients`` test patients; mean absolute ``errors`` in mm/a."""

    report: Path
    patients: int
    errors: dict[str, Estimate]
    r2: Estimate


def draw_patient(number: int, *, seed: int = 0) -> DemoPatient:
    """Draw one patient by the law above; the same number and seed give the same patient."""
    rng = np.random.default_rng([seed, number])
    gaps = rng.integers(90, 270, rng.integers(1, 5))
    days = np.concatenate([[0], np.cumsum(gaps)])
    growth, middle = float(rng.uniform(-6, 6)), float(rng.uniform(16, 36))
    diameters = middle + growth * (days - days[-1] / 2) / 365.25
    centre, axes = rng.uniform([-22, -22, -10], [22, 22, 10]), np.exp(rng.normal(0, 0.12, 3))
    axes /= np.prod(axes) ** (1 / 3)
    place = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * VOXEL for n in SHAPE], indexing="ij"), axis=-1)
    body = _below(np.linalg.norm(place / [46, 44, 60], axis=-1) - 1, width=0.08)
    anatomy, brightness = 1 + 0.25 * _smooth(rng), rng.uniform(1.8, 2.2)
    volumes = []
    for diameter in diameters:
        distance = np.linalg.norm((place - centre - rng.normal(0, 2, 3)) / axes, axis=-1)
        lesion = _below(distance - diameter / 2, width=1.5)
        clean = body * (anatomy + 0.08 * _smooth(rng)) * (1 - lesion) + brightness * lesion
        scan = (clean + 0.2 * rng.standard_normal(SHAPE)) * rng.uniform(300, 800)
        volumes.append(np.clip(scan, 0, 4095).astype(np.uint16))
    start = datetime.date(2015, 1, 1) + datetime.timedelta(int(rng.integers(2000)))
    return DemoPatient(start, tuple(map(int, days)), tuple(map(float, diameters)), growth, tuple(volumes))


def _below(distance: Array, *, width: float) -> Array:
    """1 where the distance is below zero, 0 above, smooth over the width."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / width, -50, 50))))


def _smooth(rng: np.random.Generator) -> Array:
    """Noise that changes over 16 mm."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, *(n // 4 for n in SHAPE))))
    fine = torch.nn.functional.interpolate(coarse, SHAPE, mode="trilinear", align_corners=True)
    return np.asarray(fine[0, 0].numpy())


def write_demo_cohort(folder: Path, *, patients: int = 120, seed: int = 0) -> Path:
    """Write the cohort: every second patient as DICOM series, the others as NIfTI files.

    Args:
        folder: an empty or new folder; gets ``cohort.csv``, ``newest.csv`` (each patient's newest scan alone),
            ``dicom/`` and ``nifti/``.
        patients: how many, enough to fill five folds.
        seed: of the draws; the same seed gives the same files.

    Returns:
        The path of ``cohort.csv``: patient, path, day, growth, unit, fold.

    Raises:
        ValueError: if there are too few patients for five folds.
    """
    rows = []
    for number in tqdm(range(patients), "writing patients", unit="patient"):
        drawn, key = draw_patient(number, seed=seed), f"DEMO-{number:03d}"
        scans = []
        for day, volume in zip(drawn.days, drawn.volumes, strict=True):
            date = drawn.start + datetime.timedelta(day)
            if number % 2 == 0:
                scans.append(write_dicom(folder / "dicom" / key / date.isoformat(), volume, date=date, patient=key))
            else:
                scans.append(write_nifti(folder / "nifti" / key / f"{date.isoformat()}.nii.gz", volume))
        days = tuple(map(float, drawn.days))
        rows.append(Patient(key, tuple(map(str, scans)), days, (0,) * len(days), (round(drawn.growth, 4),), ()))
    cohort = Cohort(tuple(rows), target=("growth",), unit=UNIT, views=(), covariates=())
    cohort = split_cohort(cohort, _FOLDS, seed=balanced_seed(cohort, _FOLDS))
    newest = tuple(replace(p, scans=p.scans[-1:], days=p.days[-1:], views=(0,)) for p in cohort.patients)
    write_cohort(cohort, str(folder / "cohort.csv"))
    write_cohort(replace(cohort, patients=newest), str(folder / "newest.csv"))
    return folder / "cohort.csv"


def write_nifti(path: Path, volume: npt.NDArray[np.uint16]) -> Path:
    """Write a volume in RAS order, centred on the origin."""
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * VOXEL for n in volume.shape]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)
    return path


def write_dicom(folder: Path, volume: npt.NDArray[np.uint16], *, date: datetime.date, patient: str) -> Path:
    """Write the same as one MR series, a file per axial slice; pixels run to the left and to the back (LPS)."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(volume.shape[2]):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        names = (str(index), "study", "series", "frame")
        own, study, series, frame = (generate_uid(entropy_srcs=[patient, str(date), name]) for name in names)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = own
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientID, image.PatientName, image.PatientBirthDate = patient, "Demo^Synthetic", ""
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = date.strftime("%Y%m%d")
        image.StudyTime, image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "120000", "1", "", ""
        image.Modality, image.Manufacturer, image.SeriesNumber, image.InstanceNumber = "MR", "", 1, index + 1
        image.ImageType, image.ScanningSequence, image.SequenceVariant = ["DERIVED", "PRIMARY", "OTHER"], "RM", "NONE"
        image.Rows, image.Columns, image.SamplesPerPixel = volume.shape[1], volume.shape[0], 1
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.PhotometricInterpretation, image.RescaleSlope, image.RescaleIntercept = "MONOCHROME2", 1, 0
        image.PixelSpacing, image.SliceThickness = [VOXEL, VOXEL], VOXEL
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        at = [-(volume.shape[0] - 1) / 2, -(volume.shape[1] - 1) / 2, index - (volume.shape[2] - 1) / 2]
        image.ImagePositionPatient = [step * VOXEL for step in at]
        image.PixelData = np.ascontiguousarray(volume[::-1, ::-1, index].T).astype("<u2").tobytes()
        pydicom.dcmwrite(folder / f"{index + 1:02d}.dcm", image, enforce_file_format=True)
    return folder


def run_demo(folder: Path, *, patients: int = 120, epochs: int | None = None) -> DemoResult:
    """Write the cohort, train and evaluate on all scans and on the newest alone, and write the report.

    Args:
        folder: a new or empty folder for everything.
        patients: size of the cohort.
        epochs: of each of the two trainings; None takes those of ``demo.yaml``.

    Raises:
        FileNotFoundError: if the package was installed without the bundle.
        ValueError: if the folder is not empty, or a run of the bundle failed.
    """
    bundle = find_bundle()
    _refuse_used_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.txt").write_text(_README, encoding="utf-8")
    logger.info("1 of 4: a synthetic cohort of %d patients, as DICOM and NIfTI files", patients)
    table = write_demo_cohort(folder / "cohort", patients=patients)
    logger.info("2 of 4: training on all scans with their dates")
    _train_and_evaluate(bundle, folder, table, epochs)
    logger.info("3 of 4: training on the newest scan alone, for comparison")
    _train_and_evaluate(bundle, folder / "newest_scan", table.with_name("newest.csv"), epochs)
    logger.info("4 of 4: the report")
    return _write_report(folder, table)


def _refuse_used_folder(folder: Path) -> None:
    """Refuse what holds anything; what an earlier demo made may be removed, so the message says how."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    readme = folder / "README.txt"
    made_here = readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(MARKER)
    advice = f"an earlier demo made it: rm -r {shlex.quote(str(folder))} removes it, or" if made_here else "please"
    raise ValueError(f"expected a new or empty folder, got {folder}; {advice} name another with --out")


def _train_and_evaluate(bundle: Path, output: Path, table: Path, epochs: int | None) -> None:
    """Train, then evaluate the best model on the test fold, in a process of their own; the log goes to run.log."""
    output, table = output.resolve(), table.resolve()
    output.mkdir(exist_ok=True)
    files = []
    for config in ("train", "evaluate"):
        configs = bundle / "configs"
        settings: dict[str, Any] = {
            "config_file": [str(configs / f"{config}.yaml"), str(Path(__file__).with_name("demo.yaml"))],
            "logging_file": str(configs / "logging.conf"),
            "bundle_root": str(output),
            "dataset_dir": str(table.parent),
            "cohort_file": str(table),
            "output_dir": str(output),
            "model_dir": str(output / "models"),
            "evaluate_folds": [_TEST],
            **({} if epochs is None else {"epochs": epochs}),
        }
        files.append(output / f"{config}.json")
        files[-1].write_text(json.dumps(settings, indent=1), encoding="utf-8")
    # One process for both saves a start; progress bars go to stderr, which stays on the screen.
    code = "import sys; from monai.bundle import run; [run(args_file=file) for file in sys.argv[1:]]"
    # Volumes this small gain nothing from a second thread, and lose minutes to it on a busy computer.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (output / "run.log").open("w", encoding="utf-8") as log:
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, files)]
        done = subprocess.run(command, stdout=log, env=environment)
    if done.returncode:
        raise ValueError(f"expected training and evaluation to end well, got code {done.returncode}: see {log.name}")


def _write_report(folder: Path, table: Path) -> DemoResult:
    columns = Columns(day="day", target=("growth",), unit="unit", fold="fold")
    cohort = read_cohort(str(table), columns, images=str(table.parent))
    training = [patient.target[0] for patient in leave_out(cohort, [_VALIDATION, _TEST])]
    all_scans, newest = (PredictionsTable.read(place / "predictions.csv") for place in (folder, folder / "newest_scan"))
    measured = all_scans.measured("growth")
    by_newest = dict(zip(newest.patient, newest.predicted("growth"), strict=True))
    baselines = {
        "Newest scan alone": np.array([by_newest[patient] for patient in all_scans.patient]),
        "Mean of the training patients": np.full(len(measured), np.mean(training)),
    }
    own = cohort_metrics(all_scans.predicted("growth"), measured)
    errors = {name: cohort_metrics(values, measured)["mae"] for name, values in baselines.items()}
    scans = sum(len(patient.scans) for patient in cohort.patients)
    about = (
        f"Nothing here is a real patient. {len(cohort.patients)} synthetic patients have {scans} small volumes, half "
        "of them DICOM series, half NIfTI files. Each patient has one lesion that grows or shrinks at a steady rate, "
        f"which is to be predicted, in {readable_unit(UNIT)}. Size and rate are drawn apart, so one scan tells little "
        f"about the rate: it takes several scans and their dates.\n\n{len(training)} patients trained the network, one "
        f"fold chose the epoch to keep, and all numbers below come from the {len(measured)} patients of another fold, "
        "which the training never saw. “Newest scan alone” is the same network, trained as long on one scan per "
        "patient. A real lesion is not so kind: these numbers show that the way from files to report works, and say "
        "nothing about its use in any disease."
    )
    sections = evaluation_sections(all_scans, folder, "growth", baselines=baselines)
    page = [Section("A synthetic cohort", about), *sections[:2], _one_patient(cohort, all_scans), *sections[2:]]
    report = write_report(folder / "report.html", title="Demo: the growth rate of a lesion", sections=page)
    return DemoResult(report, len(measured), {"All scans with their dates": own["mae"], **errors}, own["r2"])


def _one_patient(cohort: Cohort, predictions: PredictionsTable) -> Section:
    """The test patient with most scans (the first of several), sliced where the lesion is, as the network sees it."""
    row = int(predictions.scans.argmax())
    patient = next(patient for patient in cohort.patients if patient.key == predictions.patient[row])
    # Spacing and size are those of demo.yaml already.
    read = LoadImaged("image", reader=ScanReader(), ensure_channel_first=True)
    load = Compose([read, Orientationd("image", "RAS", labels=None), NormalizeIntensityd("image")])
    volumes = [np.asarray(load({"image": scan})["image"][0]) for scan in patient.scans]
    bright = np.stack(volumes) > np.percentile(volumes, 97)
    plane = int(bright.sum((0, 1, 2)).argmax())
    days, weights = predictions.days[row], predictions.weights[row]
    measured, predicted = predictions.measured("growth")[row], predictions.predicted("growth")[row]
    text = (
        f"Measured growth {value(float(measured), UNIT)}, predicted {value(float(predicted), UNIT)}, from "
        f"{len(days)} scans over {max(days) - min(days):.0f} days."
    )
    caption = (
        "One test patient, the one with the most scans, at the slice through the bright lesion. Above each scan stand "
        "its day and its weight, below it the weight as a bar from 0 to 1."
    )
    figure = figure_scans([volume[:, :, plane] for volume in volumes], days, weights)
    return Section("The scans of one patient", text, figure, caption)

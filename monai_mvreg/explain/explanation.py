"""One patient -> saliency of each scan as files on the scans' own grids, and what a report shows of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.cohort.table import Patient
from monai_mvreg.explain.native_space import to_native_space, write_map
from monai_mvreg.explain.saliency import (
    NumberByScan,
    RandomisationCheck,
    SaliencyMap,
    fix_patient,
    gradcam,
    mean_map,
    occlusion,
    randomisation_check,
)
from monai_mvreg.predict.prediction import PURPOSE, Prediction
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import inside

FORMAT = "monai-mvreg explanation 1"
METHODS: Mapping[str, SaliencyMap] = {"gradcam": gradcam, "occlusion": occlusion}


@dataclass(frozen=True)
class ScanMap:
    """The saliency of one scan by one method.

    ``scan`` is the number of a scan, from 0, in the order of the patient. ``path`` is the map, on the scan's own grid.
    ``peak`` is the voxel where it is strongest, ``peak_mm`` the same place in RAS, and ``peak_value`` the map there.
    ``picture`` and ``overlay`` are the scan and the map in the slice through the peak, ``(columns, rows)``, each pixel
    of ``pixel_mm``; ``axis`` is the one that was cut, that of the thickest voxels, and None in an image.
    """

    scan: int
    method: str
    path: Path
    peak: tuple[int, ...]
    peak_mm: tuple[float, ...]
    peak_value: float
    axis: int | None
    pixel_mm: tuple[float, float]
    picture: npt.NDArray[np.float32]
    overlay: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Explanation:
    """Saliency of all scans of a patient for one number of the prediction.

    ``value`` is the number, in ``unit``. ``checks`` say by method whether maps depend on what was learned, tried on the
    newest scan.
    """

    number: str
    unit: str
    value: float
    maps: tuple[ScanMap, ...]
    checks: Mapping[str, RandomisationCheck]


def used_part(patient: Patient, prediction: Prediction, *, home: Path) -> Patient:
    """Reduce a patient to the scans that a prediction was made from.

    Args:
        patient: as it was predicted.
        prediction: its prediction.
        home: the folder that addresses in the prediction are relative to.
    """
    used = {scan.address for scan in prediction.scans}
    rows = [row for row, address in enumerate(patient.scans) if inside(address, home) in used]
    return replace(
        patient,
        scans=tuple(patient.scans[row] for row in rows),
        days=tuple(patient.days[row] for row in rows),
        views=tuple(patient.views[row] for row in rows),
    )


def numbers_by_scan(
    predictor: Predictor, patient: Patient, *, number: int = 0
) -> tuple[list[MetaTensor], list[NumberByScan]]:
    """Prepare the scans of a patient, and encode them once with each network.

    Args:
        predictor: a trained model, or several.
        patient: whose scans, all of which must be readable.
        number: which of the predicted numbers, from 0.

    Returns:
        The prepared scans ``(C, *spatial)``, and for each network the number as a function of the first of them.
    """
    images = [predictor.prepare(address) for address in patient.scans]
    fixed = [
        fix_patient(
            net,
            images,
            days=torch.tensor(patient.days),
            views=torch.tensor(patient.views),
            covariates=torch.tensor(patient.covariates),
            readout=predictor.readout,
        )
        for net in predictor.members
    ]
    return images, [replace(one, number=number) for one in fixed]


def explain_patient(
    predictor: Predictor,
    patient: Patient,
    folder: str | Path,
    *,
    methods: Mapping[str, SaliencyMap] = METHODS,
    number: int = 0,
) -> Explanation:
    """Write a saliency map of every scan of a patient, on the grid of the scan.

    Args:
        predictor: a trained model, or several.
        patient: whose scans must all be readable.
        folder: where ``scan-<n>_<method>.nii.gz`` and ``explanation.json`` are written; made if it does not exist.
        methods: by the name in the files; ``{"occlusion": occlusion}`` for encoders that GradCAM cannot explain.
        number: which of the predicted numbers, from 0.

    Returns:
        The maps with their peaks, and a check by randomisation for each method.

    Raises:
        ValueError: if a method cannot explain the encoder, or a transform cannot be inverted.

    Example:
        >>> import tempfile
        >>> from monai_mvreg.predict.selection import find_patient
        >>> predictor = Predictor.from_bundle("study")
        >>> patient = find_patient("patient", predictor.trained).patient
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     explanation = explain_patient(predictor, patient, folder, methods={"gradcam": gradcam})
        ...     explanation.maps[0].path.name
        'scan-0_gradcam.nii.gz'
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images, fixed = numbers_by_scan(predictor, patient, number=number)
    with torch.no_grad():
        first = images[0][None].as_tensor().to(fixed[0].embeddings.device)
        value = sum(float(one(first)) for one in fixed) / len(fixed)
    read = predictor.transform.flatten().transforms[0]
    maps = []
    for scan, address in enumerate(tqdm(patient.scans, "saliency", unit="scan", disable=None)):
        numbers = [replace(one, place=scan) for one in fixed]
        own = read({"image": address})["image"]
        for name, method in methods.items():
            saliency = to_native_space(mean_map(numbers, images[scan], method), images[scan], predictor.transform)
            path = folder / f"scan-{scan}_{name}.nii.gz"
            write_map(saliency, address, path)
            maps.append(_scan_map(saliency, own, scan=scan, method=name, path=path))
    # On the newest scan; GradCAM costs one pass for each network drawn, any other method hundreds.
    checks = {
        name: randomisation_check(numbers, images[-1], method=method, draws=5 if method is gradcam else 1)
        for name, method in methods.items()
    }
    survival = predictor.trained.survival
    explanation = Explanation(
        number="log_risk" if survival else predictor.trained.settings.target[number],
        unit="1" if survival else predictor.trained.settings.unit,
        value=value,
        maps=tuple(maps),
        checks=checks,
    )
    atomic_write_text(folder / "explanation.json", _to_json(explanation))
    return explanation


def _scan_map(saliency: MetaTensor, own: MetaTensor, *, scan: int, method: str, path: Path) -> ScanMap:
    """Find where a map is strongest, and cut scan and map there; both are on the scan's own grid."""
    values, affine = np.asarray(saliency.as_tensor()), np.asarray(saliency.affine)
    picture = np.asarray(own.as_tensor()).mean(0)  # colours as grey
    peak = tuple(int(at) for at in np.unravel_index(np.abs(values).argmax(), values.shape))
    spacing = np.linalg.norm(affine[:3, : values.ndim], axis=0)
    axis = int(np.flatnonzero(spacing > 0.99 * spacing.max())[-1]) if values.ndim == 3 else None
    across = np.delete(spacing, axis) if axis is not None else spacing
    place = affine[:3, : values.ndim] @ np.array(peak) + affine[:3, 3]
    return ScanMap(
        scan=scan,
        method=method,
        path=path,
        peak=peak,
        peak_mm=tuple(place.tolist()),
        peak_value=float(values[peak]),
        axis=axis,
        pixel_mm=(float(across[0]), float(across[1])),
        picture=picture if axis is None else picture.take(peak[axis], axis),
        overlay=values if axis is None else values.take(peak[axis], axis),
    )


def _to_json(explanation: Explanation) -> str:
    """The figures of an explanation, with the names of the map files; nothing in it identifies the patient."""
    maps = [
        {
            **{"scan": one.scan, "method": one.method, "file": one.path.name, "peak_voxel": one.peak},
            **{"peak_mm": one.peak_mm, "peak_value": one.peak_value},
        }
        for one in explanation.maps
    ]
    whole = {
        **{"format": FORMAT, "purpose": PURPOSE, "number": explanation.number, "unit": explanation.unit},
        **{"value": explanation.value, "maps": maps},
        "randomisation": {name: asdict(check) for name, check in explanation.checks.items()},
    }
    return json.dumps(whole, indent=1, allow_nan=False)

"""The saliency of one scan -> a DICOM Parametric Map on the planes of that scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from monai_mvreg.cohort.table import Patient
from monai_mvreg.dicom_results.evidence import (
    MAKER,
    OF_EVERY_OBJECT,
    SERIES_NUMBER,
    DicomScan,
    fitted,
    read_header,
    result_uid,
    silent,
    take_over,
    used_instances,
)
from monai_mvreg.dicom_results.ucum import unit_concept
from monai_mvreg.explain.explanation import METHODS, numbers_by_scan
from monai_mvreg.explain.native_space import to_native_space
from monai_mvreg.explain.saliency import mean_map
from monai_mvreg.predict.prediction import PURPOSE, Prediction
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import inside
from monai_mvreg.scans.dicom.volumes import Stack

Array = npt.NDArray[np.float32]

# What each method of explain/ shows; the values of GradCAM have no unit (docs/explain.md).
_MEANINGS = {"gradcam": codes.DCM.GradientWeightedClassActivation, "occlusion": codes.DCM.Saliency}
_ABOUT = {
    "gradcam": "Places whose features raise the number, less those that lower it: no unit",
    "occlusion": "How far the number falls when a box around the voxel is blurred",
}


def make_map(
    saliency: MetaTensor, source: DicomScan, *, prediction: Prediction, method: str, number: int = 0
) -> Dataset:
    """Make the Parametric Map of one scan, float32, with the planes, the patient and the study of the scan.

    It is no segmentation: archives for labelling, as that of MONAI Label, count each of those as ground truth.

    Args:
        saliency: the map ``(*spatial)`` on the scan's own grid, as
            :func:`~monai_mvreg.explain.native_space.to_native_space` brings it back.
        source: the scan, one of those that :func:`~monai_mvreg.dicom_results.evidence.used_instances` finds.
        prediction: what the map explains.
        method: ``gradcam`` or ``occlusion``, which made it.
        number: which of the predicted numbers it explains, from 0.

    Raises:
        ValueError: if the unit has no UCUM code; if a value is not finite; if the map is not on the grid of the scan;
            if the scan has no place in the patient, as a radiograph, or its header is such that highdicom refuses it.
    """
    if method not in _MEANINGS:
        raise ValueError(f"expected a method of {sorted(_MEANINGS)}, got {method!r}")
    stack, told = source.scan.content, prediction.numbers[number]
    if not isinstance(stack, Stack):
        raise TypeError("expected a DICOM scan")
    planes = _planes(saliency, source, stack)
    about = f"{told.name}: {_ABOUT[method]}"
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=method,
        lut_explanation=fitted(about),
        unit=unit_concept("1" if method == "gradcam" else told.unit, of=told.name),
        value_range=(float(planes.min()), float(planes.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_MEANINGS[method],
    )
    peak = float(np.abs(planes).max()) or 1.0
    window = hd.VOILUTTransformation(window_center=0.0, window_width=2 * peak, voi_lut_function="LINEAR_EXACT")
    header = read_header(source.instances[0].path)
    uid = result_uid("map", prediction, (source,), method, told.name)
    model = prediction.model
    geometry = _geometry(stack, saliency)
    with silent():
        try:
            made = hd.pm.ParametricMap(
                source_images=_source_images(source, geometry),
                pixel_array=planes,
                series_instance_uid=result_uid("map series", prediction, (source,), method, told.name),
                series_number=SERIES_NUMBER + 1,
                sop_instance_uid=uid,
                instance_number=1,
                manufacturer=MAKER,
                manufacturer_model_name=fitted(model.name),
                software_versions=fitted(model.software),
                device_serial_number=fitted(model.version),
                contains_recognizable_visual_features=False,
                real_world_value_mappings=[mapping],
                voi_lut_transformations=[window],
                content_description=fitted(PURPOSE),
                content_label="SALIENCY",
                series_description=fitted(f"Research use only: {method} of {told.name}"),
                **geometry,
            )
        except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
            # Their messages may quote the header.
            raise ValueError(
                f"scan {source.place + 1}: expected a header that a Parametric Map can be made from, got one that "
                f"highdicom refuses ({type(error).__name__})"
            ) from None
        take_over(header, made, ascii_only=about.isascii())
        made.BodyPartExamined = header.get("BodyPartExamined", "")
        side = header.get("Laterality") or header.get("ImageLaterality") or ""
        if side or not made.BodyPartExamined:  # what part it is nobody says, so it may be one of two
            made.Laterality = side
    return made


def patient_maps(
    predictor: Predictor, patient: Patient, *, prediction: Prediction, home: Path, method: str, number: int = 0
) -> tuple[dict[int, Dataset], dict[int, str]]:
    """Make the maps of all DICOM scans of a patient.

    Args:
        predictor: what predicted.
        patient: those scans alone that the prediction was made from, as
            :func:`~monai_mvreg.explain.explanation.used_part` gives them.
        prediction: what the maps explain.
        home: the folder that its addresses are relative to.
        method: ``gradcam`` or ``occlusion``.
        number: which of the predicted numbers, from 0.

    Returns:
        The maps by the number of the scan in the prediction, from 0, and why others have none.

    Raises:
        ValueError: if the method cannot explain the encoder, or as :func:`used_instances` does.
    """
    if not 0 <= number < len(prediction.numbers):
        raise ValueError(f"expected a number from 0 to {len(prediction.numbers) - 1}, got {number}")
    sources = {source.place: source for source in used_instances(prediction, home=home)}
    images, fixed = numbers_by_scan(predictor, patient, number=number)
    places = {inside(address, home): at for at, address in enumerate(patient.scans)}
    maps, without = {}, {}
    for at, scan in enumerate(prediction.scans):
        if at not in sources:
            without[at] = f"scan {at + 1} is not DICOM: mvreg explain writes its map as NIfTI"
            continue
        place = places[scan.address]
        numbers = [replace(one, place=place) for one in fixed]
        saliency = to_native_space(
            mean_map(numbers, images[place], METHODS[method]), images[place], predictor.transform
        )
        try:
            maps[at] = make_map(saliency, sources[at], prediction=prediction, method=method, number=number)
        except ValueError as error:
            without[at] = str(error)
    return maps, without


def _planes(saliency: MetaTensor, source: DicomScan, stack: Stack) -> Array:
    """The map as planes ``(slices, rows, columns)``, in the order of the scan's slices."""
    values = np.asarray(saliency.as_tensor(), dtype=np.float32)
    values = values[:, :, None] if values.ndim == 2 else values
    where = f"scan {source.place + 1}"
    if bad := values.size - np.count_nonzero(np.isfinite(values)):
        raise ValueError(f"{where}: expected finite values of saliency, got {bad} that are NaN or infinite")
    shape = (*source.scan.shape, 1)[:3]
    if stack.affine is None or not stack.slices[0][0].file.space:
        raise ValueError(
            f"{where}: expected a scan with a place in the patient (FrameOfReferenceUID and positions), to lay a "
            "Parametric Map over it, got one without: a radiograph has none, and mvreg explain writes its map as NIfTI"
        )
    own = np.asarray(saliency.affine, dtype=np.float64)
    moved = values.shape[2] > 1 and not stack.heights and not np.allclose(own, stack.affine, atol=1e-3)
    if values.shape[:2] != shape[:2] or (values.shape[2] != shape[2] and not stack.heights) or moved:
        raise ValueError(f"{where}: expected saliency on its own grid {shape}, got {values.shape}, or another affine")
    return np.ascontiguousarray(values.transpose(2, 1, 0))


def _geometry(stack: Stack, saliency: MetaTensor) -> dict[str, Any]:
    """Where the planes lie: as the headers of the slices say, or, of a scan that was evened out, as its affine says."""
    line = [one.position for one in stack.slices[0]]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(saliency.affine, dtype=np.float64)  # RAS to LPS
    if stack.heights:
        line = [tuple(affine[:3, 3] + at * affine[:3, 2]) for at in range(saliency.shape[2])]
    first = stack.slices[0][0]
    step = float(np.linalg.norm(np.subtract(line[-1], line[0]))) / (len(line) - 1) if len(line) > 1 else None
    return {
        "plane_positions": [hd.PlanePositionSequence("PATIENT", position) for position in line],
        "plane_orientation": hd.PlaneOrientationSequence("PATIENT", first.axes),
        "pixel_measures": hd.PixelMeasuresSequence(
            pixel_spacing=first.spacing[::-1], slice_thickness=first.thickness or step or 1.0
        ),
    }


def _source_images(source: DicomScan, geometry: dict[str, Any]) -> list[Dataset]:
    """The headers of a scan for highdicom, which wants one orientation, where scanners round, and clean dates."""
    images = []
    for instance in source.instances:
        image = read_header(instance.path)
        for name in OF_EVERY_OBJECT:
            setattr(image, name, "")
        if "SharedFunctionalGroupsSequence" in image:  # which may say it for each frame alone
            image.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = geometry["plane_orientation"]
            image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = geometry["pixel_measures"]
        else:
            image.ImageOrientationPatient = geometry["plane_orientation"][0].ImageOrientationPatient
        images.append(image)
    return images

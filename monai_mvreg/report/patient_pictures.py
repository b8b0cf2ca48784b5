"""Scans of a prediction -> the pictures of its report: read again, turned, with the map of what the network went by."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from monai.transforms import Orientation
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cohort.table import Patient
from monai_mvreg.cohort.thumbnails import ScanPicture, picture_of
from monai_mvreg.explain.explanation import METHODS, explain_patient
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.scans.burned_in import may_name_patient
from monai_mvreg.trained.training_domain import header_of

Array = npt.NDArray[np.float32]


def scan_pictures(
    predictor: Predictor, patient: Patient, *, saliency: str = "none", identify: bool = False
) -> list[ScanPicture]:
    """Make a picture of each scan that a prediction was made from.

    Args:
        predictor: what predicted.
        patient: with those scans alone that were used, in order of time.
        saliency: name of the method whose outlines are drawn, of the first number, or ``none``.
        identify: show scans too that may have a name burned into their pixels.

    Raises:
        ValueError: if the method cannot explain the encoder, or a transform cannot be inverted.
    """
    with tempfile.TemporaryDirectory() as folder:
        maps: dict[int, Array] = {}
        if saliency != "none":
            found = explain_patient(predictor, patient, Path(folder), methods={saliency: METHODS[saliency]})
            maps = {one.scan: np.asarray(nib.load(one.path).dataobj, dtype=np.float32) for one in found.maps}
    return _pictures(predictor, patient, maps, identify)


def _pictures(predictor: Predictor, patient: Patient, maps: dict[int, Array], identify: bool) -> list[ScanPicture]:
    read = predictor.transform.flatten().transforms[0]
    pictures = []
    for place, address in enumerate(tqdm(patient.scans, "pictures", unit="scan", disable=None, leave=False)):
        header = header_of(address, predictor.trained.reader)
        if header is not None and not identify and may_name_patient(header):
            pictures.append(ScanPicture(None, None, "not shown: text may be burned in"))
            continue
        image = read({"image": address})["image"]
        turn = Orientation(axcodes="RAS"[: image.ndim - 1], labels=None)
        strength = None
        if place in maps:
            values = MetaTensor(maps[place].reshape(1, *image.shape[1:]), affine=image.affine)
            strength = np.asarray(turn(values)[0])
        shown = turn(image)
        spacing = np.asarray(shown.pixdim)[: image.ndim - 1].tolist()
        pictures.append(picture_of(np.asarray(shown).mean(0), strength, spacing=spacing))
    return pictures

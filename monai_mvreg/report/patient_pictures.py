"""Scans of a prediction -> the pictures of its report: read again, turned, with the map of what the network went by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cohort.table import Patient
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.trained import header_of
from monai_mvreg.report.thumbnails import ScanPicture, picture_of
from monai_mvreg.scans.burned_in import may_name_patient


def scan_pictures(
    predictor: Predictor, patient: Patient, *, maps: Mapping[int, Path] | None = None, identify: bool = False
) -> list[ScanPicture]:
    """Make a picture of each scan that a prediction was made from.

    Args:
        predictor: what predicted.
        patient: with those scans alone that were used, in order of time.
        maps: number of a scan, from 0 -> the NIfTI of its saliency, on the scan's own grid.
        identify: show scans too that may have a name burned into their pixels.
    """
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
        if maps is not None and place in maps:
            values = np.asarray(nib.load(maps[place]).dataobj, dtype=np.float32).reshape(image.shape[1:])
            strength = np.asarray(turn(MetaTensor(values[None], affine=image.affine))[0])
        shown = turn(image)
        spacing = np.asarray(shown.pixdim)[: image.ndim - 1].tolist()
        pictures.append(picture_of(np.asarray(shown).mean(0), strength, spacing=spacing))
    return pictures

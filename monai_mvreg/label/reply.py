"""Prediction -> what a client of MONAI Label gets: the JSON, and a map of one scan as a volume."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from monai_mvreg.cohort.table import Patient
from monai_mvreg.explain.explanation import METHODS, numbers_by_scan, used_part
from monai_mvreg.explain.native_space import to_native_space, write_map
from monai_mvreg.explain.saliency import gradcam, mean_map, randomisation_check
from monai_mvreg.label.request import Question
from monai_mvreg.label.stores import image_at
from monai_mvreg.predict.prediction import in_words, to_json
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import find_patient

# A label marks where a map is at least this share of its largest value.
STRONG = 0.5


def answer(
    predictor: Predictor, question: Question, home: Path, *, volume: Path | None = None
) -> tuple[Path | None, dict[str, Any]]:
    """Predict the patient whose scans lie in a folder, and make the map that is asked for.

    Args:
        predictor: the trained model.
        question: what is asked.
        home: the folder with the scans, or a file.
        volume: where the map goes, with the extension that is asked for.

    Returns:
        ``volume``, None if no map is asked for, and the JSON: that of ``mvreg predict``, ``images`` with the id of each
        scan in the same order, and ``label_names``, which stock viewers show, with the number.

    Raises:
        ValueError: if nothing can be predicted, or the image that the map is asked of is not used.
    """
    found = find_patient(home, predictor.trained, covariates=question.covariates)
    prediction = predictor.predict(found, home=home)
    reply: dict[str, Any] = json.loads(to_json([prediction]))
    images = [image_at(scan.address) for scan in prediction.scans]
    names = [in_words(prediction.numbers[0])]
    reply |= {"images": images, "saliency": None}
    if question.method is not None and volume is not None:
        scan = _mapped(question, images)
        patient = used_part(found.patient, prediction, home=home)
        reply["saliency"] = _write_saliency(predictor, patient, scan, question, volume) | {"image": images[scan]}
        if question.label:
            names = _to_label(volume, names[0])
    reply["label_names"] = {name: value for value, name in enumerate(names, start=1)}
    return volume if reply["saliency"] else None, reply


def _mapped(question: Question, images: list[str]) -> int:
    """Which scan the map is of: the one that is named, else the image that the question began with, else the newest."""
    wanted = question.mapped or (question.images[0] if question.images else "")
    if wanted in images:
        return images.index(wanted)
    if question.mapped:
        raise ValueError("expected saliency_image to be one of the scans that the prediction used, it is not")
    return len(images) - 1


def _write_saliency(
    predictor: Predictor, patient: Patient, scan: int, question: Question, volume: Path
) -> dict[str, Any]:
    method = METHODS[question.method or ""]
    images, fixed = numbers_by_scan(predictor, patient)
    numbers = [replace(one, place=scan) for one in fixed]
    saliency = to_native_space(mean_map(numbers, images[scan], method), images[scan], predictor.transform)
    draws = 5 if method is gradcam else 1  # as mvreg explain does
    check = randomisation_check(numbers, images[scan], method=method, draws=draws)
    if volume.suffix == ".nrrd":
        written = volume.with_suffix(".nii")
        write_map(saliency, patient.scans[scan], written)
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(written)), str(volume), useCompression=True)
        written.unlink()
    else:
        write_map(saliency, patient.scans[scan], volume)
    return {"method": question.method, "scan": scan, "randomisation": asdict(check)}


def _to_label(volume: Path, words: str) -> list[str]:
    """Replace a map by labels from 1 on of where it is strong, and name those that are there; the first is the number.

    Viewers number the labels that they find: one that is not there must not be named.
    """
    image = SimpleITK.ReadImage(str(volume))
    values = SimpleITK.GetArrayFromImage(image)
    strong = STRONG * np.abs(values).max()
    labels = np.zeros(values.shape, np.uint8)
    names: list[str] = []
    for name, part in (("raises it", values), ("lowers it", -values)):
        if strong > 0 and (marked := part >= strong).any():
            labels[marked] = len(names) + 1
            names.append(f"{words}: {name}")
    made = SimpleITK.GetImageFromArray(labels)
    made.CopyInformation(image)
    SimpleITK.WriteImage(made, str(volume), useCompression=True)
    return names or [words]

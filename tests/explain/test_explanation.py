"""An explanation of a patient: files on the scans' own grids, figures that agree with the prediction, no names."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_model import BUNDLE, write_model, write_scan, write_visit

from monai_mvreg.cohort.table import Patient
from monai_mvreg.explain.explanation import explain_patient, numbers_by_scan, used_part
from monai_mvreg.explain.saliency import gradcam, occlusion
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import FoundPatient, find_patient
from monai_mvreg.scans.read import read_scan

METHODS = {"gradcam": gradcam, "occlusion": partial(occlusion, boxes=2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A patient of two visits, a DICOM series and a NIfTI volume."""
    write_visit(tmp_path / "Mustermann" / "first", date="20200101", seed=1)
    write_scan(tmp_path / "Mustermann" / "scan_2020-03-01.nii.gz", seed=2)
    return tmp_path / "Mustermann"


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor.from_bundle(BUNDLE, models=write_model(tmp_path / "model" / "models"))


def patient_of(folder: Path, predictor: Predictor) -> Patient:
    return find_patient(folder, predictor.trained).patient


def test_each_scan_has_a_map_for_each_method_on_its_own_voxels(
    folder: Path, predictor: Predictor, tmp_path: Path
) -> None:
    patient = patient_of(folder, predictor)
    found = explain_patient(predictor, patient, tmp_path / "out", methods=METHODS)
    names = [f"scan-{scan}_{method}.nii.gz" for scan in (0, 1) for method in METHODS]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*names, "explanation.json"])
    assert [one.path.name for one in found.maps] == names
    for one in found.maps:
        own, written = read_scan(patient.scans[one.scan]), nib.load(one.path)
        assert written.shape == own.array.shape
        np.testing.assert_allclose(written.affine, own.affine, atol=1e-5)
        values = np.asarray(written.dataobj)
        assert values.any() and np.abs(values).max() == pytest.approx(abs(one.peak_value))
        assert values[one.peak] == pytest.approx(one.peak_value)
        np.testing.assert_allclose(one.peak_mm, (own.affine @ [*one.peak, 1])[:3], atol=1e-4)
        assert one.axis == 2  # slices are thicker than pixels
        np.testing.assert_allclose(one.pixel_mm, own.facts["spacing"][:2], rtol=1e-5)
        np.testing.assert_array_equal(one.picture, own.array[:, :, one.peak[2]])
        np.testing.assert_allclose(one.overlay, values[:, :, one.peak[2]], rtol=1e-5)


def test_the_number_explained_is_the_number_predicted(folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    found = explain_patient(predictor, patient_of(folder, predictor), tmp_path / "out", methods=METHODS)
    [number] = predictor.predict_folder(folder).numbers
    assert found.value == pytest.approx(number.value, rel=1e-6, abs=1e-6)
    assert (found.number, found.unit) == (number.name, number.unit)


def test_of_a_time_to_an_event_the_log_risk_is_explained(folder: Path, tmp_path: Path) -> None:
    cox = {"_target_": "monai_mvreg.losses.CoxLoss"}
    models = write_model(tmp_path / "model" / "models", loss=cox, horizons=[365, 1095], target=["time"])
    predictor = Predictor.from_bundle(BUNDLE, models=models)
    found = explain_patient(predictor, patient_of(folder, predictor), tmp_path / "out", methods=METHODS)
    [number] = predictor.predict_folder(folder).numbers
    assert found.number == "log_risk" and found.value == pytest.approx(number.value, abs=1e-6)


HEADER = "patient,fold,volume,volume_predicted,unit,scans,days,weights\n"


def test_the_models_of_a_cross_validation_are_explained_by_the_mean_of_their_maps(folder: Path, tmp_path: Path) -> None:
    for fold, seed in (("a", 0), ("b", 1)):
        write_model(tmp_path / "cv" / f"fold-{fold}_seed-0" / "models", seed=seed)
    (tmp_path / "cv" / "predictions.csv").write_text(HEADER, encoding="utf-8")
    together = Predictor.from_bundle(BUNDLE, models=tmp_path / "cv")
    patient = patient_of(folder, together)
    maps = []
    places = [tmp_path / "cv", *(tmp_path / "cv" / f"fold-{fold}_seed-0" / "models" for fold in "ab")]
    for at, models in enumerate(places):
        one = Predictor.from_bundle(BUNDLE, models=models)
        found = explain_patient(one, patient, tmp_path / f"out{at}", methods={"gradcam": gradcam})
        maps.append([np.asarray(nib.load(file.path).dataobj) for file in found.maps])
    for whole, first, second in zip(*maps, strict=True):
        np.testing.assert_allclose(whole, (first + second) / 2, rtol=1e-4, atol=1e-6)


def test_any_of_several_numbers_can_be_explained(folder: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_bundle(BUNDLE, models=write_model(tmp_path / "model" / "models", outputs=2))
    entries = {**predictor.trained.settings.entries, "target": ["volume", "length"]}
    predictor.trained = replace(predictor.trained, settings=replace(predictor.trained.settings, entries=entries))
    patient = patient_of(folder, predictor)
    found = [
        explain_patient(predictor, patient, tmp_path / f"{at}", methods={"gradcam": gradcam}, number=at)
        for at in (0, 1)
    ]
    assert [one.number for one in found] == ["volume", "length"]
    assert found[0].value != pytest.approx(found[1].value)
    assert not np.allclose(found[0].maps[0].overlay, found[1].maps[0].overlay)


def test_neither_files_nor_figures_tell_whose_they_are(folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    explain_patient(predictor, patient_of(folder, predictor), tmp_path / "out", methods=METHODS)
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes() if path.suffix == ".json" else nib.load(path).header.binaryblock
        assert b"Mustermann" not in path.name.encode() + content and str(tmp_path).encode() not in content


def test_the_figures_are_in_the_json(folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    found = explain_patient(predictor, patient_of(folder, predictor), tmp_path / "out", methods=METHODS)
    whole: dict[str, Any] = json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))
    assert whole["format"] == "monai-mvreg explanation 1" and "Research use only" in whole["purpose"]
    assert whole["value"] == found.value and len(whole["maps"]) == 4
    for method, check in found.checks.items():
        assert whole["randomisation"][method] == {"head": check.head, "whole": check.whole}
        assert 0 <= check.whole <= 1


def test_an_encoder_without_places_is_explained_by_occlusion_alone(folder: Path, tmp_path: Path) -> None:
    histogram = {"_target_": "monai_mvreg.networks.encoders.HistogramEncoder", "bins": 8}
    models = write_model(tmp_path / "model" / "models", encoder=histogram)
    predictor = Predictor.from_bundle(BUNDLE, models=models)
    patient = patient_of(folder, predictor)
    with pytest.raises(ValueError, match="HistogramEncoder has none: take occlusion"):
        explain_patient(predictor, patient, tmp_path / "out", methods=METHODS)
    found = explain_patient(predictor, patient, tmp_path / "out", methods={"occlusion": METHODS["occlusion"]})
    assert all(one.overlay.any() for one in found.maps)


def test_scans_that_were_left_out_of_the_prediction_are_left_out_of_the_explanation(
    folder: Path, predictor: Predictor, tmp_path: Path
) -> None:
    patient = patient_of(folder, predictor)
    broken = tmp_path / "Mustermann" / "broken.nii"
    broken.write_bytes(b"no scan")
    more = FoundPatient(Patient("p", (*patient.scans, str(broken)), (0.0, 60.0, 90.0), (0, 0, 0), (), ()), {}, ())
    prediction = predictor.predict(more, home=folder)
    used = used_part(more.patient, prediction, home=folder)
    assert used.scans == patient.scans and used.days == (0.0, 60.0)


def test_a_number_follows_its_scan_as_the_prediction_does(folder: Path, predictor: Predictor) -> None:
    images, [number] = numbers_by_scan(predictor, patient_of(folder, predictor))
    [predicted] = predictor.predict_folder(folder).numbers
    with torch.no_grad():
        assert float(number(images[0][None].as_tensor())) == pytest.approx(predicted.value, abs=1e-5)

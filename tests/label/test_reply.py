"""What the MONAI Label app answers, without a server."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from tiny_model import BUNDLE, write_model, write_scan

from monai_mvreg.explain.explanation import METHODS, explain_patient
from monai_mvreg.label.reply import answer
from monai_mvreg.label.request import Question, read_question
from monai_mvreg.predict.prediction import in_words
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import find_patient


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.from_bundle(BUNDLE, models=write_model(tmp_path_factory.mktemp("model") / "models"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for at, date in enumerate(("2020-01-01", "2020-03-01")):
        write_scan(tmp_path / "patient" / f"a_{date}.nii.gz", seed=at)
    return tmp_path / "patient"


def asked(**params: Any) -> Question:
    return read_question({"image": "a_2020-01-01", **params})


def test_the_answer_is_that_of_the_predictor(predictor: Predictor, home: Path) -> None:
    file, reply = answer(predictor, asked(), home)
    expected = predictor.predict_folder(home)
    [found] = reply["predictions"]
    assert file is None and found["numbers"] == [dataclasses.asdict(number) for number in expected.numbers]
    for scan, other in zip(found["scans"], expected.scans, strict=True):
        assert (scan["weight"], scan["contributions"]) == (other.weight, list(other.contributions or ()))


def test_each_scan_has_the_id_of_its_image(predictor: Predictor, home: Path) -> None:
    assert answer(predictor, asked(), home)[1]["images"] == ["a_2020-01-01", "a_2020-03-01"]


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("image", ["a_2020-01-01", "a_2020-03-01"])
def test_the_map_is_that_of_mvreg_explain_on_the_grid_of_the_scan(
    predictor: Predictor, home: Path, tmp_path: Path, image: str, extension: str
) -> None:
    question = asked(saliency="gradcam", saliency_image=image, result_extension=extension)
    file, reply = answer(predictor, question, home, volume=tmp_path / f"map{extension}")
    patient = find_patient(home, predictor.trained).patient
    explained = explain_patient(predictor, patient, tmp_path / "maps", methods={"gradcam": METHODS["gradcam"]})
    scan = reply["images"].index(image)
    expected = nib.load(tmp_path / "maps" / f"scan-{scan}_gradcam.nii.gz")
    found = SimpleITK.ReadImage(str(file))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found).T, np.asarray(expected.dataobj))
    own = SimpleITK.ReadImage(str(home / f"{image}.nii.gz"))
    for part in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(found, part)(), getattr(own, part)(), atol=1e-6)
    assert reply["saliency"]["image"] == image
    if image == "a_2020-03-01":  # mvreg explain checks on the newest
        assert reply["saliency"]["randomisation"] == pytest.approx(dataclasses.asdict(explained.checks["gradcam"]))


def test_without_a_wish_the_map_is_that_of_the_image_that_was_asked_for(
    predictor: Predictor, home: Path, tmp_path: Path
) -> None:
    reply = answer(predictor, asked(saliency="gradcam"), home, volume=tmp_path / "map.nii.gz")[1]
    assert reply["saliency"]["image"] == "a_2020-01-01"


def test_without_an_image_the_map_is_that_of_the_newest_scan(predictor: Predictor, home: Path, tmp_path: Path) -> None:
    question = read_question({"saliency": "gradcam"}, session=True)
    assert answer(predictor, question, home, volume=tmp_path / "map.nii")[1]["saliency"]["image"] == "a_2020-03-01"


def test_a_map_of_a_scan_that_was_not_used_is_refused(predictor: Predictor, home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of the scans that the prediction used"):
        answer(predictor, asked(saliency="gradcam", saliency_image="b"), home, volume=tmp_path / "map.nii")


def test_a_label_marks_where_the_map_has_half_of_its_strength(predictor: Predictor, home: Path, tmp_path: Path) -> None:
    values, labels = (
        answer(predictor, asked(saliency="occlusion", result_dtype=kind), home, volume=tmp_path / f"{kind}.nrrd")
        for kind in ("float32", "uint8")
    )
    whole, marked = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file, _ in (values, labels))
    strong = np.abs(whole) >= np.abs(whole).max() / 2
    np.testing.assert_array_equal(marked > 0, strong)
    assert marked.dtype == np.uint8 and strong.any() and not strong.all()
    for name, value in labels[1]["label_names"].items():
        signs = set(np.sign(whole[marked == value]))
        assert signs == ({1.0} if name.endswith("raises it") else {-1.0})
    assert set(labels[1]["label_names"].values()) == set(np.unique(marked)) - {0}


def test_every_label_is_named_with_the_number(predictor: Predictor, home: Path, tmp_path: Path) -> None:
    question = asked(saliency="gradcam", result_dtype="uint8", result_extension=".nrrd")
    reply = answer(predictor, question, home, volume=tmp_path / "map.nrrd")[1]
    words = in_words(predictor.predict_folder(home).numbers[0])
    assert reply["label_names"] and all(name.startswith(words) for name in reply["label_names"])

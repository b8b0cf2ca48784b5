"""Every public function takes a path as text or as a Path, and does the same with both."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from test_public_names import OBJECTS, public

from monai_mvreg.cohort import Columns, audit, read_cohort, write_cohort
from monai_mvreg.cohort.audit import Audited
from monai_mvreg.experiments import fit
from monai_mvreg.explain import explain_patient, gradcam
from monai_mvreg.predict import Predictor, read_predictions, to_json
from monai_mvreg.predict.selection import find_patient
from monai_mvreg.report import write_card, write_index, write_patient_report
from monai_mvreg.scans import find_scans, read_scan
from monai_mvreg.share import export_onnx, export_torchscript, pack_bundle, unpack_bundle, verify_bundle

PathKind = Callable[[Any], Any]
COLUMNS = Columns(day="day")


def predicted() -> Any:
    return Predictor.from_bundle("study").predict_folder("patient")


def saved(path: PathKind, out: Path) -> Any:
    (out / "predictions.json").write_text(to_json([predicted()]), encoding="utf-8")
    return read_predictions(path(out / "predictions.json"))


def explained(path: PathKind, out: Path) -> list[str]:
    predictor = Predictor.from_bundle("study")
    patient = find_patient(path("patient"), predictor.trained).patient
    explain_patient(predictor, patient, path(out / "new"), methods={"gradcam": gradcam})
    return sorted(file.name for file in (out / "new").iterdir())


def packed(path: PathKind, out: Path) -> Any:
    facts = pack_bundle(path("study"), path("study/models"), path(out / "pack.zip"))
    checked = verify_bundle(path(out / "pack.zip"))
    return facts, checked, unpack_bundle(path(out / "pack.zip"), path(out / "copy"))


def predicted_by(path: PathKind, out: Path) -> Any:
    predictor = Predictor.from_bundle(path("study"), models=path("study/models"), kept=path(out / "kept"))
    cohort = read_cohort("cohort.csv", COLUMNS, images=".")
    found = find_patient(path("patient"), predictor.trained)
    again = Predictor(predictor.trained, kept=path(out / "other"))
    return (
        predictor.predict_folder(path("patient")),
        list(predictor.predict_cohort(cohort, home=path("."))),
        again.predict(found, home=path("patient")),
    )


def written_cohort(path: PathKind, out: Path) -> bytes:
    write_cohort(read_cohort("cohort.csv", COLUMNS, images="."), path(out / "copy.csv"))
    return (out / "copy.csv").read_bytes()


def fitted(path: PathKind, out: Path) -> Any:
    quick = {"epochs": 1, "spatial_size": [16, 16, 16], "validation_folds": ["0", "1", "2"]}
    columns = Columns(day="day", target=("growth",), unit="unit", fold="fold")
    preset = out / "slow.yaml"
    preset.write_text("learning_rate: 0.0001", encoding="utf-8")
    model = fit(path("cohort.csv"), columns, out=path(out / "study"), presets=[path(preset)], settings=quick)
    model.save(path(out / "saved"))
    return model.predict(path("cohort.csv")), sorted(file.name for file in (out / "saved").rglob("*"))


def card(path: PathKind, out: Path) -> list[str]:
    (out / "answers.yaml").write_text('5b: "2011 to 2019"', encoding="utf-8")
    metadata, answers = path("study/configs/metadata.json"), path(out / "answers.yaml")
    return write_card(path("study/models"), path(out), metadata=metadata, answers=answers).read_text("utf-8").split()


def dicom(path: PathKind, out: Path) -> Any:
    pytest.importorskip("highdicom", reason="a report as a DICOM object needs highdicom")
    from monai_mvreg.dicom_results import make_report, write_object

    report = make_report(predicted(), home=path("patient"))
    write_object(report, path(out / "report.dcm"))
    return report.SOPInstanceUID, (out / "report.dcm").exists()


def onnx(path: PathKind, out: Path) -> float:
    pytest.importorskip("onnxruntime", reason="an ONNX file is tested with onnxruntime")
    return export_onnx(Predictor.from_bundle("study"), path(out / "study.onnx"))


# By the public functions that a call covers.
CALLS: dict[str, Callable[[PathKind, Path], Any]] = {
    "find_scans": lambda path, out: (find_scans(path("patient")), find_scans([path("patient"), path("nifti")])),
    "read_scan": lambda path, out: read_scan(path("patient/2015-03-23")).array.tolist(),
    "read_cohort": lambda path, out: read_cohort(
        path("cohort.csv"), COLUMNS, images=path("."), outcomes_file=path("newest.csv")
    ),
    "write_cohort": written_cohort,
    "audit": lambda path, out: audit(path("cohort.csv"), path("."), Audited(target="growth", covariates=("growth",))),
    "Predictor": predicted_by,
    "read_predictions": saved,
    "explain_patient": explained,
    "pack_bundle verify_bundle unpack_bundle": packed,
    "export_onnx": onnx,
    "export_torchscript": lambda path, out: export_torchscript(Predictor.from_bundle("study"), path(out / "study.ts")),
    "write_patient_report": lambda path, out: write_patient_report(path(out / "p.html"), predicted()).name,
    "write_index": lambda path, out: write_index(path(out / "p.html"), [predicted()]).read_bytes(),
    "write_card": card,
    "fit": fitted,
    "make_report write_object": dicom,
}


def path_parameters() -> Iterator[tuple[str, str, Any]]:
    """Name of the function or class, name and type of each parameter that is a path."""
    for name in OBJECTS:
        thing = public(name)
        functions = [thing] if inspect.isfunction(thing) else []
        if name == "Predictor":
            methods = inspect.getmembers(thing, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
            functions = [method for called, method in methods if called == "__init__" or not called.startswith("_")]
        for function in functions:
            for parameter, kind in get_type_hints(function).items():
                if parameter != "return" and (kind is Path or Path in get_args(kind)):
                    yield name, parameter, kind


@pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="some public functions need highdicom")
def test_every_public_path_may_be_text_and_is_tried_below() -> None:
    found = list(path_parameters())
    assert [(name, parameter) for name, parameter, kind in found if str not in get_args(kind)] == []
    assert {name for name, _, _ in found} == {name for call in CALLS for name in call.split()}


@pytest.mark.parametrize("call", CALLS)
def test_a_path_as_text_does_the_same(
    call: str, example_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example_files)
    results = []
    for kind in (str, Path):
        (tmp_path / kind.__name__).mkdir()
        results.append(CALLS[call](kind, tmp_path / kind.__name__))
    assert results[0] == results[1]

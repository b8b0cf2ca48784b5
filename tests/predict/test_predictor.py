from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from make_dicom import write_slice
from tiny_model import BUNDLE, POOL, write_model, write_scan, write_visit

from monai_mvreg.cohort.table import Cohort, Columns, read_cohort
from monai_mvreg.predict.prediction import NoPrediction, Prediction
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import find_patient
from monai_mvreg.results.calibration import Baseline
from monai_mvreg.results.intervals import extend_intervals
from monai_mvreg.results.predictions_table import average
from monai_mvreg.training.batches import collate_scans
from tests.results.tables import table_of

POOLS = ["MeanPool", "SumPool", "MaxPool", "LastPool", "GatedAttentionPool", "LSTMPool", "TransformerPool", "TrendPool"]
DATES = ("20200101", "20200301", "20201231")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A patient with three visits, the second one as NIfTI."""
    write_visit(tmp_path / "patient" / "first", date=DATES[0], seed=1)
    write_scan(tmp_path / "patient" / "scan_2020-03-01.nii.gz", seed=2)
    write_visit(tmp_path / "patient" / "third", date=DATES[2], seed=3)
    return tmp_path / "patient"


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor.from_bundle(BUNDLE, models=write_model(tmp_path / "model" / "models"))


def value(prediction: Prediction) -> float:
    return prediction.numbers[0].value


def of_table(predictor: Predictor, cohort: Cohort, home: Path) -> list[Prediction]:
    return [found for found in predictor.predict_cohort(cohort, home=home) if isinstance(found, Prediction)]


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_a_prediction_is_what_the_network_says_of_a_batch(pool: str, folder: Path, tmp_path: Path) -> None:
    settings = {**POOL, "_target_": f"monai_mvreg.networks.pools.{pool}"}
    predictor = Predictor.from_bundle(BUNDLE, models=write_model(tmp_path / "model" / "models", pool=settings))
    patient = find_patient(folder, predictor.trained).patient
    images = torch.stack([torch.as_tensor(predictor.prepare(scan)) for scan in patient.scans]).as_subclass(torch.Tensor)
    batch = collate_scans([{"image": images, "time": patient.days, "view": patient.views}])
    network = predictor.members[0]
    with torch.no_grad():
        expected = network(batch["image"], batch["mask"], batch["time"])
        embeddings = network.embed(batch["image"], batch["mask"])
        _, weights = network.from_embeddings(embeddings, batch["mask"], batch["time"])
    found = predictor.predict_folder(folder)
    assert value(found) == close(expected.item())
    assert [scan.weight for scan in found.scans] == pytest.approx(weights[0].tolist(), abs=1e-6)
    assert [scan.day for scan in found.scans] == [0.0, 60.0, 365.0]


@pytest.mark.parametrize("pool", POOLS)
def test_a_contribution_is_what_would_be_missing_without_the_scan(pool: str, folder: Path, tmp_path: Path) -> None:
    settings = {**POOL, "_target_": f"monai_mvreg.networks.pools.{pool}"}
    predictor = Predictor.from_bundle(BUNDLE, models=write_model(tmp_path / "model" / "models", pool=settings))
    whole = predictor.predict_folder(folder)
    for place, scan in enumerate(whole.scans):
        other = tmp_path / f"without-{place}"
        shutil.copytree(folder, other)
        lost = other / scan.address
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        rest = value(predictor.predict_folder(other))
        assert scan.contributions is not None
        assert scan.contributions[0] == pytest.approx(value(whole) - rest, abs=2e-5)
        if place == 2:
            assert whole.newest_visit == pytest.approx(scan.contributions, abs=2e-5)


def test_an_only_scan_has_no_contribution_and_all_the_weight(predictor: Predictor, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "one.nii", seed=1)
    found = predictor.predict_folder(scan)
    assert (found.scans[0].contributions, found.newest_visit) == (None, None)
    assert found.scans[0].weight == pytest.approx(1.0)
    assert "scans" in {warning.check for warning in found.warnings}  # training saw two of each patient


def test_any_subset_in_any_order_of_rows_gives_a_number_of_its_own(predictor: Predictor, tmp_path: Path) -> None:
    rows = [
        {"patient": "p", "path": write_scan(tmp_path / f"{at}.nii", seed=at).name, "day": 50 * at} for at in (1, 2, 3)
    ]
    found: dict[frozenset[int], float] = {}
    for count in (1, 2, 3):
        for order in itertools.permutations(range(3), count):
            pd.DataFrame([rows[at] for at in order]).to_csv(tmp_path / "cohort.csv", index=False)
            cohort = read_cohort(str(tmp_path / "cohort.csv"), Columns(day="day"), images=str(tmp_path))
            [prediction] = of_table(predictor, cohort, tmp_path)
            assert value(prediction) == close(found.setdefault(frozenset(order), value(prediction)))
    assert len({round(number, 5) for number in found.values()}) == 7


def test_a_new_visit_is_the_only_scan_that_is_encoded_and_the_number_is_that_of_a_full_run(
    folder: Path, tmp_path: Path
) -> None:
    models = write_model(tmp_path / "model" / "models")
    shutil.move(folder / "third", tmp_path / "third")
    predictor = Predictor.from_bundle(BUNDLE, models=models, kept=tmp_path / "kept")
    predictor.predict_folder(folder)
    shutil.move(tmp_path / "third", folder / "third")
    encoded: list[int] = []
    predictor = Predictor.from_bundle(BUNDLE, models=models, kept=tmp_path / "kept")
    predictor.members[0].encoder.register_forward_hook(lambda *_: encoded.append(1))
    followed = predictor.predict_folder(folder)
    assert encoded == [1]
    assert followed == Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder)


def test_embeddings_of_other_weights_or_other_preprocessing_are_not_taken(folder: Path, tmp_path: Path) -> None:
    wide = [{"_target_": "monai.transforms.ScaleIntensityd", "keys": "image"}]
    made = [write_model(tmp_path / "a" / "models"), write_model(tmp_path / "b" / "models", seed=1)]
    made.append(write_model(tmp_path / "c" / "models", intensity=wide))
    for models in made:
        kept = Predictor.from_bundle(BUNDLE, models=models, kept=tmp_path / "kept").predict_folder(folder)
        assert kept == Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder)


def test_the_answer_says_what_was_used_and_what_was_left_out_and_why(
    predictor: Predictor, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = value(predictor.predict_folder(folder))
    write_scan(folder / "undated.nii.gz", seed=5)
    (folder / "broken_2020-05-05.nii.gz").write_bytes((folder / "undated.nii.gz").read_bytes()[:200])
    write_slice(folder / "flat" / "a.dcm", SeriesInstanceUID="1.5", PatientID="Mustermann", AcquisitionDate="20200505")
    write_visit(folder / "scout", date="20200505", seed=6, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    gap = write_visit(folder / "gap", date="20200505", seed=7)
    write_slice(gap / "far", z=20.0, SeriesInstanceUID="1.2.3.7.20200505", PatientID="Mustermann", Rows=6, Columns=8,
                PixelData=bytes(96), AcquisitionDate="20200505", StudyInstanceUID="1.2.3.7.20200505.1")  # fmt: skip
    shutil.copy(folder / "scan_2020-03-01.nii.gz", folder / "copy_2020-03-01.nii.gz")
    (folder / "notes.txt").write_text("nothing")
    with caplog.at_level(logging.DEBUG):
        found = predictor.predict_folder(folder)
    assert value(found) == close(expected)
    reasons = {item.address: item.reason for item in found.left_out}
    assert "no date beside scans with one" in reasons["undated.nii.gz"]
    assert reasons["flat/a.dcm"] == "2 dimensions, the model takes 3"
    assert "localizer" in reasons["scout"]
    assert any("broken" in address for address in reasons) and any("gap" in address for address in reasons)
    assert sum("the same bytes as scan 2" in reason for reason in reasons.values()) == 1
    assert "another format" in reasons["notes.txt"]
    assert "Mustermann" not in caplog.text + " ".join(reasons.values())


def test_scans_of_a_modality_that_training_never_saw_are_left_out(folder: Path, tmp_path: Path) -> None:
    models = write_model(tmp_path / "model" / "models")
    text = (models / "domain.json").read_text().replace('"modalities": []', '"modalities": ["MR"]')
    (models / "domain.json").write_text(text)
    write_visit(folder / "ct", date="20200505", seed=8, Modality="CT", RescaleSlope=1, RescaleIntercept=0)
    found = Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder)
    assert {item.address: item.reason for item in found.left_out} == {"ct": "modality CT, the model was trained on MR"}


def test_the_scans_of_several_patients_are_refused_without_their_names(predictor: Predictor, folder: Path) -> None:
    write_visit(folder / "other", date="20200505", seed=9, PatientID="Musterfrau")
    with pytest.raises(ValueError, match=r"expected the scans of one patient in .*, got those of 2") as error:
        predictor.predict_folder(folder)
    assert "Muster" not in str(error.value)


def test_a_scan_of_a_table_that_cannot_be_read_is_told_and_the_others_are_used(
    predictor: Predictor, tmp_path: Path
) -> None:
    rows = [{"patient": "p", "path": write_scan(tmp_path / f"{at}.nii", seed=at).name, "day": at} for at in (1, 2)]
    (tmp_path / "3.nii").write_bytes(b"no scan" * 100)
    pd.DataFrame([*rows, {"patient": "p", "path": "3.nii", "day": 3}]).to_csv(tmp_path / "cohort.csv", index=False)
    cohort = read_cohort(str(tmp_path / "cohort.csv"), Columns(day="day"), images=str(tmp_path))
    [found] = of_table(predictor, cohort, tmp_path)
    assert [item.address for item in found.left_out] == ["3.nii"]
    assert [w.message for w in found.warnings if w.check == "left_out"] == ["1 of 3 scans could not be used"]
    assert [scan.address for scan in found.scans] == ["1.nii", "2.nii"]


def test_days_count_from_the_first_scan_that_was_used(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "0.nii").write_bytes(b"no scan" * 100)
    rows = [{"patient": "p", "path": write_scan(tmp_path / f"{at}.nii", seed=at).name, "day": 30 * at} for at in (1, 3)]
    pd.DataFrame([{"patient": "p", "path": "0.nii", "day": 0}, *rows]).to_csv(tmp_path / "cohort.csv", index=False)
    cohort = read_cohort(str(tmp_path / "cohort.csv"), Columns(day="day"), images=str(tmp_path))
    [found] = of_table(predictor, cohort, tmp_path)
    assert [scan.day for scan in found.scans] == [0.0, 60.0]


def test_a_patient_without_a_readable_scan_has_no_number(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "3.nii").write_bytes(b"no scan" * 100)
    pd.DataFrame([{"patient": "p", "path": "3.nii", "day": 3}]).to_csv(tmp_path / "cohort.csv", index=False)
    cohort = read_cohort(str(tmp_path / "cohort.csv"), Columns(day="day"), images=str(tmp_path))
    [found] = predictor.predict_cohort(cohort, home=tmp_path)
    assert isinstance(found, NoPrediction) and found.patient == "p"
    assert found.reason.startswith("expected a scan that can be read, got none: ")


def test_scans_unlike_those_of_the_training_are_told(predictor: Predictor, tmp_path: Path) -> None:
    rows = [{"patient": "p", "path": write_scan(tmp_path / "1.nii", seed=1).name, "day": 0}]
    rows.append({"patient": "p", "path": write_scan(tmp_path / "2.nii", seed=2, level=5000.0).name, "day": 300})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    cohort = read_cohort(str(tmp_path / "cohort.csv"), Columns(day="day"), images=str(tmp_path))
    [found] = of_table(predictor, cohort, tmp_path)
    assert {(warning.check, warning.scan) for warning in found.warnings if warning.scan is not None} == {
        ("intensity", 1),
        ("embedding", 1),
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a GPU for the device cuda, found none"):
        Predictor.from_bundle(BUNDLE, models=tmp_path, device="cuda")


def test_a_missing_covariate_is_told_and_a_strange_one_refused(folder: Path, tmp_path: Path) -> None:
    models = write_model(tmp_path / "model" / "models", **{"columns#covariates": {"age": "number", "sex": ["F", "M"]}})
    predictor = Predictor.from_bundle(BUNDLE, models=models)
    found = predictor.predict_folder(folder, covariates={"age": 70.0})
    assert [w.message for w in found.warnings if w.check == "covariates"] == ["missing: sex=M"]
    assert value(found) != close(value(predictor.predict_folder(folder)))
    with pytest.raises(ValueError, match=r"expected covariates of \['age', 'sex'\], got 'weight'"):
        predictor.predict_folder(folder, covariates={"weight": 1.0})


def test_a_covariate_is_given_by_its_level_or_as_the_network_reads_it(folder: Path, tmp_path: Path) -> None:
    columns = {"columns#covariates": {"age": "number", "site": ["north", "south", "west"]}}
    predictor = Predictor.from_bundle(BUNDLE, models=write_model(tmp_path / "model" / "models", **columns))
    for level, numbers in (("north", (0.0, 0.0)), ("south", (1.0, 0.0)), ("west", (0.0, 1.0))):
        by_numbers = dict(zip(("site=south", "site=west"), numbers, strict=True))
        found = predictor.predict_folder(folder, covariates={"age": "70", "site": level})
        assert found == predictor.predict_folder(folder, covariates={"age": 70.0, **by_numbers})
        assert not [w for w in found.warnings if w.check == "covariates"]
    with pytest.raises(ValueError, match="covariate site: expected one of north, south, west, got 'East'"):
        predictor.predict_folder(folder, covariates={"site": "East"})
    with pytest.raises(ValueError, match="covariate age: expected a number, got 'old'"):
        predictor.predict_folder(folder, covariates={"age": "old"})


def test_a_model_that_tells_views_apart_wants_a_table(folder: Path, tmp_path: Path) -> None:
    models = write_model(tmp_path / "model" / "models", **{"columns#views": ["left", "right"]})
    predictor = Predictor.from_bundle(BUNDLE, models=models)
    with pytest.raises(ValueError, match="expected a table with the view of each scan, one of left, right"):
        predictor.predict_folder(folder)
    columns, numbers = Columns(day="day", view="view", views=["left", "right"]), []
    for view in ("left", "right"):
        write_scan(tmp_path / "1.nii", seed=1)
        pd.DataFrame([{"patient": "p", "path": "1.nii", "day": 0, "view": view}]).to_csv(
            tmp_path / "c.csv", index=False
        )
        cohort = read_cohort(str(tmp_path / "c.csv"), columns, images=str(tmp_path))
        [found] = of_table(predictor, cohort, tmp_path)
        assert found.scans[0].view == view
        numbers.append(value(found))
    assert numbers[0] != close(numbers[1])


def test_a_table_without_what_the_model_knows_is_refused(folder: Path, tmp_path: Path) -> None:
    models = write_model(tmp_path / "model" / "models", **{"columns#covariates": {"age": "number"}})
    pd.DataFrame([{"patient": "p", "path": "third", "day": 0}]).to_csv(tmp_path / "c.csv", index=False)
    cohort = read_cohort(str(tmp_path / "c.csv"), Columns(day="day"), images=str(folder))
    with pytest.raises(ValueError, match=r"expected covariates \['age'\] and views \[\], got \[\] and \[\]"):
        next(iter(Predictor.from_bundle(BUNDLE, models=models).predict_cohort(cohort, home=folder)))


def test_a_risk_becomes_the_chances_of_its_curve(folder: Path, tmp_path: Path) -> None:
    cox = {"_target_": "monai_mvreg.losses.CoxLoss"}
    models = write_model(tmp_path / "model" / "models", loss=cox, horizons=[365, 1095], target=["time"])
    found = Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder)
    curve = Baseline((100.0, 400.0, 900.0), (0.1, 0.5, 1.0), 0.8, 0.1)
    risk = np.array([value(found)])
    assert found.survival is not None and found.numbers[0].name == "log_risk"
    assert found.survival.risks == pytest.approx(1 - curve.survival(risk, np.array([365.0, 1095.0]))[0])
    assert found.survival.survival == pytest.approx(curve.survival(risk, np.array(curve.days))[0])
    median = curve.median_days(risk)[0]
    assert found.survival.median_days == (median if math.isfinite(median) else None)


def test_a_predicted_spread_widens_the_interval(folder: Path, tmp_path: Path) -> None:
    gaussian = {"_target_": "monai_mvreg.losses.GaussianLoss"}
    models = write_model(tmp_path / "model" / "models", loss=gaussian, outputs=2)
    [number] = Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder).numbers
    assert number.spread is not None and number.high is not None and number.low is not None
    assert number.high - number.value == pytest.approx(3 * number.spread, rel=1e-6)
    assert number.value - number.low == pytest.approx(3 * number.spread, rel=1e-6)


@pytest.fixture
def crossvalidated(tmp_path: Path) -> tuple[Path, Callable[[Path], pd.DataFrame]]:
    """Three folds of two seeds each with their predictions, and what ``mvreg crossval`` would say of a folder."""
    out, draw = tmp_path / "cv", np.random.default_rng(0)
    places = [(fold, seed) for fold in "abc" for seed in (0, 1)]
    for at, (fold, seed) in enumerate(places):
        write_model(out / f"fold-{fold}_seed-{seed}" / "models", seed=at)
    known = pd.DataFrame({"patient": [f"p{at}" for at in range(30)], "fold": ["a", "b", "c"] * 10, "unit": "mL"})
    known["volume"] = draw.normal(0, 3, 30)
    known["volume_predicted"] = known["volume"] + draw.normal(0, 1, 30)
    table_of(known).write(out / "predictions.csv")

    def new(folder: Path) -> pd.DataFrame:
        tables = {}
        for fold, seed in places:
            models = out / f"fold-{fold}_seed-{seed}" / "models"
            number = value(Predictor.from_bundle(BUNDLE, models=models).predict_folder(folder))
            row = {"patient": ["n"], "volume": [math.nan], "volume_predicted": [number], "volume_low": 0.0}
            tables[fold, seed] = table_of(pd.DataFrame(row | {"volume_high": 0.0}))
        found, models = average(list(tables.values())), [average([tables[f, s] for s in (0, 1)]) for f in "abc"]
        return extend_intervals(found, models, table_of(known), "volume").frame

    return out, new


def test_the_models_of_a_cross_validation_predict_together(
    crossvalidated: tuple[Path, Callable[[Path], pd.DataFrame]], folder: Path
) -> None:
    out, new = crossvalidated
    found, expected = Predictor.from_bundle(BUNDLE, models=out).predict_folder(folder), new(folder).iloc[0]
    [number] = found.numbers
    assert number.value == close(expected["volume_predicted"])
    assert (number.low, number.high) == (close(expected["volume_low"]), close(expected["volume_high"]))
    assert len(found.model.weights) == 6 and len(set(found.model.weights)) == 6


def test_a_cross_validation_that_is_not_finished_does_not_predict(
    crossvalidated: tuple[Path, Callable[[Path], pd.DataFrame]],
) -> None:
    out, _ = crossvalidated
    (out / "predictions.csv").unlink()
    with pytest.raises(FileNotFoundError, match="expected a finished cross-validation"):
        Predictor.from_bundle(BUNDLE, models=out)


def test_without_any_date_all_scans_count_as_one_visit_and_this_is_told(predictor: Predictor, tmp_path: Path) -> None:
    for at in (1, 2):
        write_scan(tmp_path / "p" / f"{at}.nii", seed=at)
    found = predictor.predict_folder(tmp_path / "p")
    assert [scan.day for scan in found.scans] == [0.0, 0.0]
    assert [w.message for w in found.warnings if w.check == "dates"] == ["no scan has a date: all count as one visit"]

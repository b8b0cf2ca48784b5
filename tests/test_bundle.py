"""The bundle as MONAI runs it: train, evaluate, infer, export, several processes, and one line for an error."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import EnsureTyped, RandomizableTrait
from torch import Tensor

from monai_mvreg.cli.main import main
from monai_mvreg.cohort.split import fold_of
from monai_mvreg.cohort.table import Columns, read_cohort
from monai_mvreg.networks import pools
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.predict.prediction import Prediction, read_predictions
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.trained.model_settings import settings_of, write_settings
from monai_mvreg.trained.training_patients import write_training_patients

BUNDLE = Path(__file__).parents[1] / "bundle"
CONFIGS = BUNDLE / "configs"
SCHEMA = Path(__file__).parent / "references" / "meta_schema_20240725.json"
POOLS = [
    "MeanPool",
    "SumPool",
    "MaxPool",
    "LastPool",
    "AttentionPool",
    "GatedAttentionPool",
    "TransformerPool",
    "LSTMPool",
    "GRUPool",
    "TrendPool",
]
KINDS = ("train", "evaluate", "inference")
KEY = "Erika Mustermann 1964"
# A network without normalisation: brightness is what it has to see, and a few steps must do.
TINY: dict[str, Any] = {
    "spatial_size": [16, 16, 16],
    "intensity": [
        {"_target_": "monai.transforms.ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 100, "b_min": -1}
        | {"b_max": 1}
    ],
    "augmentation": [{"_target_": "monai.transforms.RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 0}],
    "encoder": {
        "_target_": "monai.networks.nets.Regressor",
        "in_shape": [1, 16, 16, 16],
        "out_shape": [8],
        "channels": [4, 8],
        "strides": [4, 2],
        "norm": None,
        "num_res_units": 1,
    },
    "columns#unit": "unit",
    "batch_size": 4,
    "learning_rate": 0.01,
    "epochs": 3,
}


@dataclass(frozen=True)
class Study:
    """A cohort on disk and the second config file that fits it."""

    data: Path
    tiny: Path

    def config(self, name: str) -> list[str]:
        return [str(CONFIGS / f"{name}.yaml"), str(self.tiny)]


@dataclass(frozen=True)
class Trained:
    output: Path
    models: Path


Row = dict[str, Any]


def write_table(path: Path, rows: Sequence[Row]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def read_table(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """30 patients in 3 folds, every other one with one scan, the others with four; the target is the brightness."""
    folder = tmp_path_factory.mktemp("study")
    data = folder / "data"
    data.mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for patient in range(30):
        level = draw.uniform(20, 80)
        for visit in range(1 if patient % 2 else 4):
            voxels = draw.normal(level, 5, (20, 18, 16)).astype(np.float32)
            name = f"scan_{len(rows):02d}.nii"
            nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0])), data / name)
            row = {"patient": f"{KEY}-{patient}", "path": name, "day": 100 * visit, "target": f"{level:.3f}"}
            rows.append(row | {"unit": "mL", "fold": patient // 2 % 3, "site": "North" if patient % 2 else "South"})
    write_table(data / "cohort.csv", rows)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "subgroups": ["site"]}))
    return Study(data, folder / "tiny.yaml")


def run(
    program: Sequence[str], config: Sequence[str], *overrides: str, where: Path
) -> subprocess.CompletedProcess[str]:
    """Run the bundle as a user does, from a folder that is not the bundle's."""
    command = [sys.executable, *program, "monai.bundle", "run", "--config_file", str(list(config))]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, "--bundle_root", str(BUNDLE), *overrides],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def folders(study: Study, place: Path, models: Path) -> list[str]:
    return ["--dataset_dir", str(study.data), "--output_dir", str(place), "--model_dir", str(models)]


@pytest.fixture(scope="module")
def trained(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    place = tmp_path_factory.mktemp("elsewhere")
    done = run(["-m"], study.config("train"), *folders(study, place / "eval", place / "models"), where=place)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ignoring non-scalar" not in done.stderr
    assert KEY not in done.stdout + done.stderr
    return Trained(place / "eval", place / "models")


def workflow(config: Sequence[str], kind: str, **overrides: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        list(config),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        **{"device": "$torch.device('cpu')", **overrides},
    )


def network(config: Sequence[str], **overrides: Any) -> Any:
    parser = ConfigParser()
    parser.read_config(list(config))
    parser.update(overrides)
    return parser.get_parsed_content("network_def")


def loaded(study: Study, trained: Trained) -> MultiScanNet:
    net: MultiScanNet = network(study.config("inference"))
    net.load_state_dict(torch.load(trained.models / "model.pt", weights_only=True))
    return net.eval()


def batch(patients: int, scans: int) -> dict[str, Tensor]:
    """Patients with 1, 2, 3 ... of the scans, in no order of time."""
    draw = torch.Generator().manual_seed(10 * patients + scans)
    return {
        "image": torch.rand(patients, scans, 1, 16, 16, 16, generator=draw),
        "mask": torch.arange(scans) < torch.arange(1, patients + 1).clamp(max=scans)[:, None],
        "time": (1000 * torch.rand(patients, scans, generator=draw)).round(),
    }


# ---- Runs ------------------------------------------------------------------------------------------------------------


def test_training_writes_every_file_and_learns_more_than_the_mean(trained: Trained) -> None:
    found = {path.name.split(".vm.")[0].split(".")[0] + path.suffix for path in trained.output.iterdir()}
    assert {"predictions.csv", "metrics.json", "history.csv", "report.html"} <= found
    assert sorted(path.name for path in trained.models.iterdir()) == [
        "domain.json",
        "intervals.json",
        "model.pt",
        "patients.json",
        "settings.json",
        "training.json",
    ]
    predictions = pd.read_csv(trained.output / "predictions.csv")
    assert list(predictions["fold"].unique()) == [0] and set(predictions["scans"]) == {1, 4}
    metrics = json.loads((trained.output / "metrics.json").read_text())["target"]
    assert metrics["unit"] == "mL" and metrics["r2"]["value"] > 0.4
    assert len(read_table(trained.output / "history.csv")) == 3
    assert set(predictions["group_site"]) == {"North", "South"}
    page = (trained.output / "report.html").read_text()
    assert "site: North" in page and KEY not in page


def test_training_writes_down_what_it_was_and_names_no_patient(trained: Trained) -> None:
    text = (trained.models / "training.json").read_text()
    found = json.loads(text)
    assert found["epochs"] == {"planned": 3, "run": 3, "best": found["epochs"]["best"]} and found["seed"] == 0
    history = [float(row["mae"]) for row in read_table(trained.output / "history.csv")]
    assert found["epochs"]["best"] == 1 + history.index(min(history))
    assert [found["patients"][part]["patients"] for part in ("training", "validation")] == [20, 10]
    assert found["patients"]["training"]["folds"] == {"1": 10, "2": 10} and KEY not in text and ".nii" not in text


def test_tensorboard_shows_the_training_loss_and_the_validation_metric(trained: Trained) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: dict[str, int] = {}
    for file in trained.output.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        tags |= {tag: len(events.Scalars(tag)) for tag in events.Tags()["scalars"]}
    assert tags == {"train_loss": 15, "mae": 4}


def test_the_report_is_about_the_best_epoch_and_not_the_last(study: Study, tmp_path: Path) -> None:
    place = {"dataset_dir": str(study.data), "output_dir": str(tmp_path), "model_dir": str(tmp_path / "models")}
    steady = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@optimizer", "factor": 1.0}
    flow = workflow(study.config("train"), "train", **place, learning_rate=0.3, schedule=steady)
    flow.initialize()
    flow.run()
    errors = [float(row["mae"]) for row in read_table(tmp_path / "history.csv")]
    assert errors[-1] > 1.1 * min(errors)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["target"]["mae"]["value"] == pytest.approx(min(errors), rel=1e-4)


def test_averaged_weights_are_those_that_are_validated_and_saved(study: Study, tmp_path: Path) -> None:
    found = {}
    for averaging in (0.0, 0.1):
        place = tmp_path / str(averaging)
        own = {"dataset_dir": str(study.data), "output_dir": str(place), "model_dir": str(place)}
        flow = workflow(study.config("train"), "train", **own, weight_averaging=averaging, epochs=1)
        flow.initialize()
        flow.run()
        last = flow.network_def.state_dict()
        found[averaging] = torch.load(place / "model.pt", weights_only=True)
        apart = {name for name, weight in last.items() if not torch.allclose(weight, found[averaging][name], rtol=1e-6)}
        assert apart == ({name for name, _ in flow.network_def.named_parameters()} if averaging else set())
    assert found[0.0]["scaling.mean"] > 0  # the scaling was fitted before the first average was taken
    done = run(["-m"], study.config("evaluate"), *folders(study, tmp_path / "again", place), where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "again/predictions.csv").read_text() == (place / "predictions.csv").read_text()


def test_evaluation_of_the_validation_fold_gives_the_numbers_of_the_training(
    study: Study, trained: Trained, tmp_path: Path
) -> None:
    done = run(["-m"], study.config("evaluate"), *folders(study, tmp_path / "eval", trained.models), where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("predictions.csv", "metrics.json"):
        assert (tmp_path / "eval" / name).read_text() == (trained.output / name).read_text()
    assert (tmp_path / "eval/report.html").exists() and KEY not in done.stdout + done.stderr


def predicted(study: Study, models: Path, table: str) -> dict[str, Prediction]:
    """What Python says of the patients of a table."""
    predictor = Predictor.from_bundle(BUNDLE, models=models)
    cohort = read_cohort(table, Columns(day="day"), images=str(study.data))
    found = list(predictor.predict_cohort(cohort, home=study.data))
    return {one.patient: one for one in found if isinstance(one, Prediction)}


def test_inference_without_targets_gives_the_same_predictions(study: Study, trained: Trained, tmp_path: Path) -> None:
    rows = [row for row in read_table(study.data / "cohort.csv") if row["fold"] == "0"]
    table = write_table(tmp_path / "new.csv", [{k: row[k] for k in ("patient", "path", "day")} for row in rows[::-1]])
    place = folders(study, tmp_path / "eval", trained.models)
    done = run(["-m"], study.config("inference"), *place, "--cohort_file", table, where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = (
        pd.read_csv(folder / "predictions.csv", dtype={"patient": str})
        for folder in (trained.output, tmp_path / "eval")
    )
    same = ["patient", "scans", "days"]
    pd.testing.assert_frame_equal(found[same], expected[same])
    np.testing.assert_allclose(found["target_predicted"], expected["target_predicted"], rtol=1e-5)
    assert found["target"].isna().all() and KEY not in done.stdout + done.stderr
    assert set(found["unit"]) == {"mL"}
    # The same number by every door, also from the folder of one patient.
    known = found.set_index("patient")["target_predicted"]
    by_python = predicted(study, trained.models, table)
    assert {key: one.numbers[0].value for key, one in by_python.items()} == pytest.approx(known.to_dict(), rel=1e-6)
    arguments = ["predict", table, "--dataset_dir", str(study.data), "--bundle", str(BUNDLE)]
    assert main([*arguments, "--models", str(trained.models), "--out", str(tmp_path / "cli")]) == 0
    by_command = read_predictions(tmp_path / "cli" / "predictions.json")
    assert {one.patient: one.numbers[0].value for one in by_command} == pytest.approx(known.to_dict(), rel=1e-6)
    ends = found.set_index("patient")[["target_low", "target_high"]]
    assert {one.patient: one.numbers[0].low for one in by_command} == pytest.approx(
        ends["target_low"].to_dict(), rel=1e-6
    )
    weights = dict(zip(found["patient"], found["weights"], strict=True))
    assert {one.patient: ";".join(f"{scan.weight:.4f}" for scan in one.scans) for one in by_command} == weights


def test_two_processes_write_one_set_of_files_with_every_patient_once(study: Study, tmp_path: Path) -> None:
    # Eleven validation patients on two processes: one has to work alone at the end.
    rows = read_table(study.data / "cohort.csv")
    for row in rows:
        row["fold"] = "0" if int(row["patient"].rpartition("-")[2]) < 11 else "1"
    table = write_table(tmp_path / "cohort.csv", rows)
    config = [str(CONFIGS / "train.yaml"), str(CONFIGS / "multi_gpu_train.yaml"), str(study.tiny)]
    place = folders(study, tmp_path / "eval", tmp_path / "models")
    program = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29871", "-m"]
    done = run(program, config, *place, "--cohort_file", table, where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    predictions = read_table(tmp_path / "eval/predictions.csv")
    assert sorted(row["patient"] for row in predictions) == sorted({r["patient"] for r in rows if r["fold"] == "0"})
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())["target"]
    assert metrics["patients"] == 11 and metrics["r2"]["value"] > 0.2
    history = read_table(tmp_path / "eval/history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert min(float(row["mae"]) for row in history) == pytest.approx(metrics["mae"]["value"], rel=1e-4)
    assert len(list((tmp_path / "eval").glob("events.out.tfevents.*"))) == 2  # training and validation of one process
    assert not any(name.startswith("module.") for name in torch.load(tmp_path / "models/model.pt", weights_only=True))
    assert KEY not in done.stdout + done.stderr


def survival_table(study: Study, path: Path) -> str:
    """Time and event of each patient of the study: the brighter the sooner, a third of them censored before."""
    rows = {}
    for number, row in enumerate(read_table(study.data / "cohort.csv")):
        day = 40_000 / float(row["target"]) ** 1.5
        censored = number % 3 == 0
        known = {"time_to_event": f"{day * 0.6 if censored else day:.1f}", "event": int(not censored)}
        rows.setdefault(row["patient"], {"patient": row["patient"], "fold": row["fold"], **known})
    return write_table(path, list(rows.values()))


def test_survival_is_trained_evaluated_and_predicted_by_one_more_file(study: Study, tmp_path: Path) -> None:
    table = survival_table(study, tmp_path / "outcomes.csv")
    (tmp_path / "mine.yaml").write_text("columns#unit: null\nhorizons: [60, 150]\nbatch_size: 8\n")
    more = [str(CONFIGS / "survival.yaml"), str(tmp_path / "mine.yaml")]
    place = [*folders(study, tmp_path / "train", tmp_path / "models"), "--outcomes_file", table]
    done = run(["-m"], [*study.config("train"), *more], *place, "--epochs", "4", where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = read_table(tmp_path / "train/predictions.csv")
    assert list(trained[0])[2:8] == ["time_to_event", "event", "log_risk", "median_days", "risk_60", "risk_150"]
    metrics = json.loads((tmp_path / "train/metrics.json").read_text())["time_to_event"]
    assert metrics["harrell"]["value"] > 0.75 and metrics["patients"] == 10 and metrics["harrell"]["low"] is not None
    curves = json.loads((tmp_path / "models/survival.json").read_text())
    assert curves["slope"] >= 0 and curves["hazard"] == sorted(curves["hazard"])
    place = [*folders(study, tmp_path / "again", tmp_path / "models"), "--outcomes_file", table]
    done = run(["-m"], [*study.config("evaluate"), *more], *place, where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    again = read_table(tmp_path / "again/predictions.csv")
    for name in ("log_risk", "median_days", "risk_60", "risk_150"):
        numbers = [[float(row[name] or "nan") for row in rows] for rows in (again, trained)]
        np.testing.assert_allclose(*numbers, rtol=1e-5)
    evaluated = json.loads((tmp_path / "again/metrics.json").read_text())["time_to_event"]
    assert evaluated["harrell"] == metrics["harrell"]
    assert "Kaplan-Meier" in (tmp_path / "again/report.html").read_text() and KEY not in done.stdout + done.stderr
    place = folders(study, tmp_path / "new", tmp_path / "models")
    done = run(["-m"], [*study.config("inference"), *more], *place, where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["patient"]: row for row in read_table(tmp_path / "new/predictions.csv")}
    assert len(rows) == 30
    for key, one in predicted(study, tmp_path / "models", str(study.data / "cohort.csv")).items():
        assert one.survival is not None
        assert one.numbers[0].value == pytest.approx(float(rows[key]["log_risk"]), rel=1e-5, abs=1e-6)
        assert one.survival.risks == pytest.approx([float(rows[key][f"risk_{day}"]) for day in (60, 150)], rel=1e-5)
        assert (one.survival.median_days or math.nan) == pytest.approx(
            float(rows[key]["median_days"] or "nan"), nan_ok=True
        )
    for row in trained:
        other = rows[row["patient"]]
        assert other["time_to_event"] == other["event"] == ""
        assert float(other["risk_150"]) == pytest.approx(float(row["risk_150"]), rel=1e-3)


@pytest.mark.parametrize(
    "loss",
    [
        {"_target_": "monai_mvreg.losses.DiscreteHazardLoss", "edges": [50, 100, 200, 400]},
        {"_target_": "monai_mvreg.losses.LogNormalLoss", "scale": 100},
    ],
)
def test_another_survival_loss_is_one_setting(loss: dict[str, Any], study: Study, tmp_path: Path) -> None:
    table = survival_table(study, tmp_path / "outcomes.csv")
    mine = {"columns#unit": None, "horizons": [60, 150], "batch_size": 8, "loss": loss}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    config = [*study.config("train"), str(CONFIGS / "survival.yaml"), str(tmp_path / "mine.yaml")]
    place = [*folders(study, tmp_path / "eval", tmp_path / "models"), "--outcomes_file", table]
    done = run(["-m"], config, *place, "--epochs", "4", where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["time_to_event"]["harrell"]["value"] > 0.6


def test_two_processes_learn_survival_and_write_every_patient_once(study: Study, tmp_path: Path) -> None:
    table = survival_table(study, tmp_path / "outcomes.csv")
    (tmp_path / "mine.yaml").write_text("columns#unit: null\nhorizons: [60, 150]\nbatch_size: 4\n")
    names = ("train", "survival", "multi_gpu_train")
    config = [*(str(CONFIGS / f"{name}.yaml") for name in names), str(study.tiny), str(tmp_path / "mine.yaml")]
    place = [*folders(study, tmp_path / "eval", tmp_path / "models"), "--outcomes_file", table]
    program = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29872", "-m"]
    done = run(program, config, *place, where=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_table(tmp_path / "eval/predictions.csv")) == 10
    history = read_table(tmp_path / "eval/history.csv")
    stored = json.loads((tmp_path / "eval/metrics.json").read_text())["time_to_event"]
    assert max(float(row["concordance"]) for row in history) == pytest.approx(stored["harrell"]["value"], abs=1e-5)


# ---- What MONAI asks of a bundle -------------------------------------------------------------------------------------


def test_metadata_follows_the_schema() -> None:
    monai.bundle.verify_metadata(str(CONFIGS / "metadata.json"), filepath=str(SCHEMA))


def test_the_schema_refuses_metadata_that_lack_a_field(tmp_path: Path) -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    del metadata["network_data_format"]["inputs"]["image"]["value_range"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="value_range"):
        monai.bundle.verify_metadata(str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_the_network_takes_and_gives_what_the_metadata_say(name: str) -> None:
    monai.bundle.verify_net_in_out(
        "network_def",
        str(CONFIGS / "metadata.json"),
        str(CONFIGS / f"{name}.yaml"),
        device="cpu",
        extra_forward_args={"mask": torch.ones(1, 3, dtype=torch.bool), "time": torch.tensor([[0.0, 9.0, 400.0]])},
    )


@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("evaluate", "infer"), ("inference", "infer")])
def test_every_property_of_a_workflow_is_where_monai_looks_for_it(
    study: Study, trained: Trained, name: str, kind: str, tmp_path: Path
) -> None:
    place = {"dataset_dir": str(study.data), "output_dir": str(tmp_path), "model_dir": str(trained.models)}
    flow = workflow(study.config(name), kind, **place)
    flow.initialize()
    assert flow.check_properties() == []


# Sections that have to differ, and why.
DIFFERENT = {
    "pretrained": "weights from the hub start a training, a trained model brings its own",
    "imports": "each imports what it uses",
    "run": "each does another thing",
    "initialize": "only a training draws random numbers",
    "cohort": "new patients have neither target nor fold",
    "dataset": "evaluation takes folds, inference all patients",
    "handlers": "the name on the progress bar",
    "evaluator": "without targets there is no metric",
    "output_dir": "predictions for new patients are not mixed with an evaluation",
    "unit": "that of the training, for there is no target",
    "trained_dir": "a training writes its files apart until all of them are there",
}


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        ("train", "evaluate", {"pretrained", "imports", "run", "initialize", "trained_dir"}),
        (
            "train",
            "inference",
            {"pretrained", "imports", "run", "initialize", "cohort", "output_dir", "unit", "trained_dir"},
        ),
        (
            "evaluate",
            "inference",
            {"imports", "run", "cohort", "dataset", "handlers", "evaluator", "output_dir", "unit"},
        ),
    ],
)
def test_shared_parts_of_the_configs_are_equal(one: str, other: str, different: set[str]) -> None:
    first, second = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in (one, other))
    assert {key for key in first.keys() & second.keys() if first[key] != second[key]} == different
    assert different <= DIFFERENT.keys()


def test_evaluation_prepares_scans_as_validation_does() -> None:
    train, evaluate = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("train", "evaluate"))
    start = train["train"]["deterministic_transforms"] + " + ["
    expected = train["validate"]["preprocessing"]["transforms"].replace("$@train#deterministic_transforms + [", start)
    assert evaluate["preprocessing"]["transforms"] == expected
    del train["validate"]["dataloader"]["generator"]  # there is no training whose random state it could move
    for part in ("dataloader", "inferer"):
        expected = yaml.safe_load(yaml.safe_dump(train["validate"][part]).replace("@validate#", "@"))
        assert evaluate[part] == expected
    shared = train["validate"]["evaluator"].keys() & evaluate["evaluator"].keys()
    for key in shared:
        trained = train["validate"]["evaluator"][key]
        expected = {"@validated": "@network"}.get(trained, str(trained).replace("@validate#", "@"))
        assert evaluate["evaluator"][key] in (expected, trained)


def test_everything_before_the_augmentation_is_cached() -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.yaml"))
    preprocessing = parser.get_parsed_content("train#preprocessing")
    first_random = preprocessing.get_index_of_first(lambda transform: isinstance(transform, RandomizableTrait))
    assert isinstance(preprocessing.transforms[first_random - 1], EnsureTyped)


# ---- Choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["ct", "radiograph"])
@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_a_preset_fits_every_config(name: str, preset: str) -> None:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml"), str(CONFIGS / f"{preset}.yaml")])
    parser.update({"pretrained": False, "spatial_size": [32, 32] if preset == "radiograph" else [16, 16, 16]})
    scan = torch.rand(1, *([40, 50] if preset == "radiograph" else [20, 30, 10]))
    for part in ("grid", "intensity", *(["augmentation"] if name == "train" else [])):
        for transform in parser.get_parsed_content(part):
            scan = transform({"image": scan})["image"]
    assert list(scan.shape) == [1, *parser.get_parsed_content("spatial_size")]
    net = parser.get_parsed_content("network_def").eval()
    assert net(scan[None, None]).shape == (1, 1)
    assert all(parameter.requires_grad for parameter in net.parameters())


TEXTBOOK = {
    "resnet50_mean": ("ResNet", 2048, pools.MeanPool),
    "vgg16_lstm": ("VGG", 4096, pools.LSTMPool),
    "mobilenetv2_attention": ("EfficientNet", 1280, pools.AttentionPool),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_a_textbook_network_has_its_encoder_frozen_and_its_pool_learning(name: str) -> None:
    kind, size, pool = TEXTBOOK[name]
    config = [str(CONFIGS / f"{part}.yaml") for part in ("train", "radiograph", name)]
    net = network(config, pretrained=False, spatial_size=[32, 32]).train()
    assert type(net.encoder.encoder).__name__ == kind and net.pool.size == size and type(net.pool) is pool
    learning = {parameter for parameter, part in net.named_parameters() if part.requires_grad}
    assert not any(parameter.startswith("encoder.") for parameter in learning)
    assert {p for p, _ in net.named_parameters() if not p.startswith("encoder.")} == learning
    assert not any(part.training for part in net.encoder.encoder.modules())


def test_pretrained_weights_are_asked_for_by_default_and_can_be_a_local_file() -> None:
    config = [str(CONFIGS / f"{part}.yaml") for part in ("train", "radiograph", "resnet50_mean")]
    parser = ConfigParser()
    parser.read_config(config)
    assert parser.get_parsed_content("pretrained") is True
    assert parser["encoder"]["encoder"]["pretrained"] == "@pretrained"


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [({}, 2), ({"_target_": "monai_mvreg.losses.QuantileLoss", "quantiles": [0.1, 0.5, 0.9]}, 3)],
    ids=["normal", "quantiles"],
)
def test_a_spread_is_learned_by_one_more_file_and_scales_the_interval(
    loss: dict[str, Any], outputs: int, study: Study, tmp_path: Path
) -> None:
    configs = {kind: [str(CONFIGS / f"{kind}.yaml"), str(CONFIGS / "spread.yaml"), str(study.tiny)] for kind in KINDS}
    own = ["--loss", str(loss), "--outputs", str(outputs)] if loss else []
    tables = {}
    for kind in KINDS:
        done = run(["-m"], configs[kind], *folders(study, tmp_path / kind, tmp_path / "models"), *own, where=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        tables[kind] = pd.read_csv(tmp_path / kind / "predictions.csv").set_index("patient")
    names = ["target", "target_predicted", "target_spread", "target_low", "target_high"]
    assert list(tables["train"].columns[1:6]) == names
    new = tables["inference"].loc[tables["evaluate"].index]
    for key, one in predicted(study, tmp_path / "models", str(study.data / "cohort.csv")).items():
        [number] = one.numbers
        row = tables["inference"].loc[key, ["target_predicted", "target_spread", "target_low", "target_high"]]
        assert [number.value, number.spread, number.low, number.high] == pytest.approx(row.tolist(), rel=1e-5)
    for kind in ("train", "evaluate"):
        np.testing.assert_allclose(new[names[1:]], tables[kind][names[1:]], rtol=1e-5, atol=1e-4)
    interval = json.loads((tmp_path / "models/intervals.json").read_text())["target"]
    assert (new["target_spread"] > 0).all() and new["target_spread"].nunique() == len(new)
    half = 0.5 * (new["target_high"] - new["target_low"])
    np.testing.assert_allclose(half, interval["reach"] * new["target_spread"], rtol=1e-4)
    metrics = json.loads((tmp_path / "evaluate/metrics.json").read_text())["target"]
    assert metrics["coverage"]["value"] >= 0.9 and metrics["width"]["value"] > 0
    assert "prediction intervals held" in (tmp_path / "evaluate/report.html").read_text()


@pytest.mark.parametrize("loss", ["MSELoss", "L1Loss", "HuberLoss"])
def test_the_loss_is_one_override(study: Study, loss: str) -> None:
    parser = ConfigParser()
    parser.read_config(study.config("train"))
    parser.update({"loss#_target_": f"torch.nn.{loss}"})
    assert type(parser.get_parsed_content("train#loss_function").loss.loss).__name__ == loss


def test_every_pool_is_listed() -> None:
    listed = {name for name in dir(pools) if name.endswith("Pool")}
    assert listed == set(POOLS)


@pytest.mark.parametrize("pool", POOLS)
def test_the_pool_is_one_override(study: Study, pool: str) -> None:
    overrides: dict[str, Any] = {"pool#_target_": f"monai_mvreg.networks.pools.{pool}"}
    if pool in {"MeanPool", "SumPool", "MaxPool", "LastPool", "TrendPool"}:  # have no time encoding of their own
        overrides["pool#time_encoding#_disabled_"] = True
    net = network(study.config("train"), **overrides).eval()
    assert type(net.pool).__name__ == pool and net(**batch(2, 3)).shape == (2, 1)


# ---- Export ----------------------------------------------------------------------------------------------------------


def test_the_exported_torchscript_predicts_as_the_network_with_any_number_of_scans(
    study: Study, trained: Trained, tmp_path: Path
) -> None:
    monai.bundle.ckpt_export(
        "network_def",
        str(tmp_path / "model.ts"),
        ckpt_file=str(trained.models / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=study.config("inference"),
    )
    script, eager = torch.jit.load(tmp_path / "model.ts"), loaded(study, trained)
    with torch.no_grad():
        for scans in (1, 3, 5):
            whole = batch(2, scans)
            for names in (["image"], ["image", "mask"], ["image", "mask", "time"]):
                given = {name: whole[name] for name in names}
                torch.testing.assert_close(script(**given), eager(**given))


def test_the_onnx_that_monai_exports_takes_any_number_of_patients_and_scans(study: Study, tmp_path: Path) -> None:
    net = network(study.config("inference")).eval()
    torch.save(net.state_dict(), tmp_path / "model.pt")
    monai.bundle.onnx_export(
        "network_def",
        str(tmp_path / "model.onnx"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=study.config("inference"),
        use_trace=True,
        input_shape=[2, 3, 1, 16, 16, 16],
        converter_kwargs={"input_names": ["image"], "dynamic_axes": {"image": {0: "patients", 1: "scans"}}},
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    for patients, scans in ((1, 1), (1, 5), (3, 2), (4, 7)):  # exported with 2 and 3
        image = batch(patients, scans)["image"]
        with torch.no_grad():
            np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], net(image), rtol=1e-4, atol=1e-4)


# ---- Errors: one line, in the user's words ---------------------------------------------------------------------------


@pytest.fixture
def explain(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Run a config in this process and give the line that a user would see."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.delenv("MVREG_TRACEBACK", raising=False)

    def explain(name: str = "train", **overrides: Any) -> str:
        place = {"dataset_dir": str(study.data), "output_dir": str(tmp_path / "out"), "model_dir": str(tmp_path / "no")}
        with pytest.raises(Exception) as caught:
            flow = workflow(study.config(name), "train", **{**place, **overrides})
            flow.initialize()
            flow.run()
        sys.excepthook(caught.type, caught.value, caught.tb)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        assert KEY not in captured.out + captured.err
        _, start, line = captured.err.rpartition("\nerror: ")
        assert start and line.endswith("\n") and "\n" not in line[:-1]
        assert not (tmp_path / "no" / "model.pt").exists()
        return line[:-1]

    yield explain


def changed(study: Study, folder: Path, change: Callable[[list[Row]], None]) -> str:
    rows = read_table(study.data / "cohort.csv")
    change(rows)
    return write_table(folder / "cohort.csv", rows)


def test_a_mistyped_setting_is_named_with_the_nearest(explain: Callable[..., str]) -> None:
    assert explain(epoch=1) == "expected a setting of the bundle, got 'epoch': did you mean 'epochs'?"


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_a_mistyped_setting_is_refused_by_every_config(explain: Callable[..., str], name: str) -> None:
    assert explain(name, batchsize=1) == "expected a setting of the bundle, got 'batchsize': did you mean 'batch_size'?"


def test_a_mistyped_entry_of_train_is_named_with_the_nearest(explain: Callable[..., str]) -> None:
    assert explain(**{"train#dataloder": []}) == (
        "expected a setting of the bundle, got 'train#dataloder': did you mean 'train#dataloader'?"
    )


@pytest.mark.parametrize("typo", ["columns#covariats", "pool#hiden", "train#trainer#max_epoch"])
def test_a_mistyped_argument_of_a_component_is_named(explain: Callable[..., str], typo: str) -> None:
    assert f"got an unexpected keyword argument '{typo.rpartition('#')[2]}'" in explain(**{typo: 1})


@pytest.mark.parametrize(("setting", "word"), [("pretrained", "false"), ("columns#fold", "null")])
def test_a_word_of_yaml_on_the_command_line_is_not_taken_for_a_text(
    explain: Callable[..., str], setting: str, word: str
) -> None:
    assert explain(**{setting: word}) == (
        f"{setting}: the command line takes True, False and '$None', got the text '{word}'"
    )


def test_another_metric_beside_the_first_is_no_mistake(study: Study) -> None:
    workflow(
        study.config("train"),
        "train",
        dataset_dir=str(study.data),
        **{"metrics#second": {"_target_": "ignite.metrics.MeanSquaredError"}},
    ).initialize()


def test_a_missing_cohort_file_is_named(explain: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "absent.csv"
    assert explain(cohort_file=str(file)) == f"expected a table, found no file {file}"


def test_a_scan_that_does_not_exist_is_named_by_its_row(
    study: Study, explain: Callable[..., str], tmp_path: Path
) -> None:
    table = changed(study, tmp_path, lambda rows: rows[6].update(path=f"{KEY}.nii"))
    assert explain(cohort_file=table) == f"cohort.csv row 8, column 'path': no such scan below {study.data}"


def test_a_patient_without_target_is_named_by_its_row(
    study: Study, explain: Callable[..., str], tmp_path: Path
) -> None:
    table = changed(study, tmp_path, lambda rows: rows[4].update(target=""))
    assert explain(cohort_file=table) == "cohort.csv row 6, column 'target': expected a number, the cell is empty"


def test_two_units_are_named(study: Study, explain: Callable[..., str], tmp_path: Path) -> None:
    table = changed(study, tmp_path, lambda rows: rows[9].update(unit="L"))
    assert explain(cohort_file=table) == (
        "cohort.csv row 11, column 'unit': expected one unit 'mL' as in row 2, got 'L'"
    )


def test_a_patient_in_two_folds_is_named_by_rows(study: Study, explain: Callable[..., str], tmp_path: Path) -> None:
    table = changed(study, tmp_path, lambda rows: rows[1].update(fold="2"))
    assert explain(cohort_file=table) == (
        "cohort.csv, column 'fold': one patient is in two folds, '0' (row 2) and '2' (row 3)"
    )


def test_an_unknown_fold_is_named_with_the_known(explain: Callable[..., str]) -> None:
    sentence = "expected folds among ['0', '1', '2'], got ['7']"
    assert explain(validation_folds=["7"]) == sentence


def test_evaluating_without_a_trained_model_names_the_file(explain: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "no" / "settings.json") in explain("evaluate")


def test_a_fold_that_the_model_learned_from_is_not_evaluated(
    explain: Callable[..., str], study: Study, trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "settings.json").write_text((trained.models / "settings.json").read_text())
    sentence = explain("evaluate", evaluate_folds=["1"], model_dir=str(tmp_path / "settings"))
    assert sentence.startswith("expected folds that training left out, ['0'], got ['1']")


@pytest.mark.parametrize("name", ["evaluate", "inference"])
def test_other_settings_than_those_of_the_training_are_named(
    name: str, explain: Callable[..., str], trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "settings.json").write_text((trained.models / "settings.json").read_text())
    sentence = explain(name, intensity=[], model_dir=str(tmp_path / "settings"))
    expected = "intensity (trained: [ScaleIntensityRanged], now: [])"
    assert sentence == f"settings differ from those the model was trained with: {expected}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"columns#unit": None}, "unit (trained: mL, now: 1)"),
        ({"columns#day": None}, "dated, by columns#day or columns#date (trained: True, now: False)"),
        ({"columns#covariates": {"target": "number"}}, "columns#covariates (trained: None, now: [{target: number}])"),
        ({"horizons": [365]}, "horizons (trained: None, now: [365])"),
    ],
)
def test_every_setting_that_changes_the_numbers_is_compared_before_an_evaluation(
    overrides: dict[str, Any], sentence: str, explain: Callable[..., str], trained: Trained
) -> None:
    found = explain("evaluate", model_dir=str(trained.models), **overrides)
    assert found == f"settings differ from those the model was trained with: {sentence}"


def test_files_of_two_trainings_in_one_folder_are_not_evaluated(
    explain: Callable[..., str], trained: Trained, tmp_path: Path
) -> None:
    shutil.copytree(trained.models, tmp_path / "mixed")
    (tmp_path / "mixed/intervals.json").write_text('{"target": null}')
    sentence = explain("evaluate", model_dir=str(tmp_path / "mixed"))
    assert "expected files of one training, got intervals.json of another one than settings.json" in sentence


def test_patients_that_the_model_learned_from_are_not_evaluated_in_whatever_fold(
    explain: Callable[..., str], study: Study, trained: Trained, tmp_path: Path
) -> None:
    table = changed(study, tmp_path, lambda rows: [r.update(fold=(int(r["fold"]) + 1) % 3) for r in rows] and None)
    sentence = explain("evaluate", model_dir=str(trained.models), cohort_file=table)
    assert sentence.startswith(
        "expected patients that the model has not learned from, got 10 of 10 that it has (folds of its training: "
        "['1', '2'], folds to evaluate: ['0'])"
    )


def test_on_purpose_patients_of_the_training_are_evaluated_and_the_report_says_so(
    study: Study, trained: Trained, tmp_path: Path
) -> None:
    place = {"dataset_dir": str(study.data), "output_dir": str(tmp_path), "model_dir": str(trained.models)}
    flow = workflow(study.config("evaluate"), "train", **place, evaluate_folds=["1"], allow_training_patients=True)
    flow.initialize()
    flow.run()
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 10
    assert "has learned from 10 of the 10 evaluated patients" in (tmp_path / "report.html").read_text()


def test_other_patients_in_folds_of_the_same_names_are_evaluated(
    study: Study, trained: Trained, tmp_path: Path
) -> None:
    table = changed(study, tmp_path, lambda rows: [r.update(patient=f"new {r['patient']}") for r in rows] and None)
    place = {"dataset_dir": str(study.data), "output_dir": str(tmp_path), "model_dir": str(trained.models)}
    folds = {"evaluate_folds": ["0", "1", "2"], "test_folds": ["1", "2"], "cohort_file": table}
    flow = workflow(study.config("evaluate"), "train", **place, **folds)
    flow.initialize()
    flow.run()
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 30
    assert "has learned from" not in (tmp_path / "report.html").read_text()


def test_a_model_of_version_0_1_knows_its_patients_by_their_folds(
    explain: Callable[..., str], trained: Trained, tmp_path: Path
) -> None:
    shutil.copytree(trained.models, tmp_path / "old")
    (tmp_path / "old/patients.json").unlink()
    settings = json.loads((tmp_path / "old/settings.json").read_text())
    new = ("format", "files", "columns#event", "columns#fold", "folds", "split_seed")
    old = {name: entry for name, entry in settings.items() if name not in new}
    (tmp_path / "old/settings.json").write_text(json.dumps(old))
    given = {"model_dir": str(tmp_path / "old"), "evaluate_folds": ["1"], "test_folds": ["1"]}
    assert "got 10 of 10 that it has (folds of its training: ['1', '2']" in explain("evaluate", **given)


@pytest.mark.parametrize(("name", "value", "trained_with"), [("split_seed", 5, 0), ("folds", 4, 3)])
def test_an_evaluation_under_another_split_is_refused(
    name: str, value: int, trained_with: int, explain: Callable[..., str], study: Study, tmp_path: Path
) -> None:
    """The folder of a model that was trained on folds by a hash of the patients' keys."""
    keys = {row["patient"]: fold_of(row["patient"], 3, seed=0) for row in read_table(study.data / "cohort.csv")}
    config = ConfigParser.load_config_files(study.config("train"))
    columns = Columns(day="day", target=["target"], unit="unit", subgroups=["site"])
    whole = {**config, "folds": 3, "split_seed": 0}
    write_settings(settings_of(whole, columns, unit="mL"), tmp_path / "models/settings.json")
    parts = {"training": [key for key, fold in keys.items() if fold != "0"], "validation": ["another"]}
    items = {part: [{"patient": key} for key in found] for part, found in parts.items()}
    write_training_patients(tmp_path / "models/patients.json", items)
    split = {"columns#fold": None, "folds": 3, "model_dir": str(tmp_path / "models")}
    sentence = f"settings differ from those the model was trained with: {name} (trained: {trained_with}, now: {value})"
    assert explain("evaluate", **{**split, name: value}) == sentence


@pytest.mark.parametrize("name", ["weights", "target_low", "risk_365"])
def test_a_target_with_the_name_of_another_column_of_the_predictions_is_refused_at_the_start(
    name: str, explain: Callable[..., str], study: Study, tmp_path: Path
) -> None:
    table = changed(study, tmp_path, lambda rows: [r.update({name: r["target"]}) for r in rows] and None)
    sentence = explain(target=["target", name], cohort_file=table)
    assert sentence.startswith("expected a target that is not named like another column of predictions.csv")
    assert f"got {name!r}" in sentence


def test_a_training_without_a_validation_is_refused_before_it_starts(explain: Callable[..., str]) -> None:
    assert explain(epochs=2, val_interval=3).startswith("expected val_interval of at most epochs, 2, got 3")


def test_a_component_that_does_not_exist_is_named(explain: Callable[..., str]) -> None:
    assert "monai_mvreg.networks.pools.MeenPool" in explain(**{"pool#_target_": "monai_mvreg.networks.pools.MeenPool"})


def test_no_variation_of_the_target_is_named(study: Study, explain: Callable[..., str], tmp_path: Path) -> None:
    table = changed(study, tmp_path, lambda rows: [row.update(target="5") for row in rows] and None)
    assert explain(cohort_file=table) == (
        "expected values of 'target' that differ between the 20 training patients, got 5 for all"
    )


def with_garbage(study: Study, folder: Path) -> str:
    """A cohort in which one scan of the training is no picture."""
    (folder / "garbage.nii").write_bytes(bytes(range(256)) * 20)
    return changed(study, folder, lambda rows: rows[6].update(path=str(folder / "garbage.nii")))


def test_an_unreadable_scan_is_named(study: Study, explain: Callable[..., str], tmp_path: Path) -> None:
    line = explain(cohort_file=with_garbage(study, tmp_path))
    assert line.startswith("garbage.nii: expected a NIfTI file, got another format")


def test_an_unreadable_scan_in_the_middle_of_a_training_ends_the_program_in_one_line(
    study: Study, tmp_path: Path
) -> None:
    place = folders(study, tmp_path / "eval", tmp_path / "models")
    table = with_garbage(study, tmp_path)
    done = run(["-m"], study.config("train"), *place, "--cohort_file", table, "--cache_rate", "0", where=tmp_path)
    assert done.returncode == 1
    assert "\nerror: garbage.nii: expected a NIfTI file, got another format" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr and KEY not in done.stdout + done.stderr


@pytest.mark.parametrize(("batch_size", "left_out"), [(19, True), (20, False), (8, False)])
def test_a_last_batch_of_one_patient_is_left_out_of_an_epoch(
    batch_size: int, left_out: bool, study: Study, tmp_path: Path
) -> None:
    place = {"dataset_dir": str(study.data), "output_dir": str(tmp_path), "model_dir": str(tmp_path)}
    flow = workflow(study.config("train"), "train", **place, batch_size=batch_size)
    flow.initialize()
    batches = [len(batch["patient"]) for batch in flow.parser.get_parsed_content("train#dataloader")]
    assert sum(batches) == (19 if left_out else 20) and min(batches) > 1


def test_several_targets_count_alike_whatever_their_units(study: Study, tmp_path: Path) -> None:
    table = changed(study, tmp_path, lambda rows: [row.update(volume=f"{1000 * float(row['target'])}") for row in rows])
    place = {"dataset_dir": str(study.data), "output_dir": str(tmp_path), "model_dir": str(tmp_path)}
    flow = workflow(study.config("train"), "train", **place, cohort_file=table, target=["target", "volume"])
    flow.initialize()
    labels = torch.tensor([item["label"] for item in flow.parser.get_parsed_content("train#dataset").data])
    flow.parser.get_parsed_content("network_def").scaling.fit(labels)
    metric = flow.parser.get_parsed_content("validate#key_metric")["mae"]
    spread = labels.std(0, unbiased=False)
    label = labels[:4]
    metric.reset()
    metric.update(metric._output_transform({"pred": label + torch.tensor([1.0, 0.0]) * spread, "label": label}))
    one_off = metric.compute()
    metric.reset()
    metric.update(metric._output_transform({"pred": label + torch.tensor([0.0, 1.0]) * spread, "label": label}))
    assert one_off == pytest.approx(1.0, rel=1e-4) and metric.compute() == pytest.approx(1.0, rel=1e-4)

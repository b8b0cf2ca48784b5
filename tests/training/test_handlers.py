"""The handlers at work in small trainings with MONAI's own engines."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from ignite.metrics import MeanAbsoluteError
from monai.data import DataLoader
from monai.engines import IterationEvents, PrepareBatchExtraInput, SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler, from_engine
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from torch.testing import assert_close

from monai_mvreg.losses import CoxLoss, GaussianLoss
from monai_mvreg.metrics.survival import concordance
from monai_mvreg.networks.multiscan import MultiScanNet, TargetScaling
from monai_mvreg.networks.pools import LSTMPool
from monai_mvreg.networks.task import Number, NumberWithSpread, TimeToEvent
from monai_mvreg.results.calibration import Baseline, Interval
from monai_mvreg.results.predictions_table import PredictionsTable
from monai_mvreg.training import handlers
from monai_mvreg.training.batches import collate_scans
from monai_mvreg.training.handlers import (
    Concordance,
    GradientClipping,
    HistorySaver,
    PredictionSaver,
    validation_metrics,
)


class Encoder(nn.Module):
    """Flatten, and count the scans."""

    seen = 0

    def forward(self, image: Tensor) -> Tensor:
        self.seen += image.shape[0]
        return image.flatten(1)


NUMBER = Number(nn.HuberLoss())
DAYS = {"p1": [0.0], "p2": [0.0, 30.5, 90.0], "p3": [50.0, 0.0], "p4": [0.0, 7.0]}
ARGUMENTS = PrepareBatchExtraInput(extra_keys={"mask": "mask", "time": "time"})


@pytest.fixture
def patients() -> list[dict[str, Any]]:
    """Four patients; the rows of the third are not in order of time."""
    return [
        {
            "patient": key,
            "fold": "1",
            "image": torch.randn(len(days), 1, 2, 2),
            "time": days,
            "view": [0] * len(days),
            "label": [float(number)],
        }
        for number, (key, days) in enumerate(DAYS.items())
    ]


@pytest.fixture
def net() -> MultiScanNet:
    net = MultiScanNet(Encoder(), LSTMPool(4, hidden=3))
    net.scaling.fit(torch.tensor([[0.0], [100.0]]))
    return net


def loader(patients: list[dict[str, Any]]) -> DataLoader:
    return DataLoader(patients, batch_size=2, collate_fn=collate_scans)


def mae() -> dict[str, MeanAbsoluteError]:
    return {"mae": MeanAbsoluteError(output_transform=from_engine(["pred", "label"]))}


def evaluator(
    net: nn.Module, patients: list[dict[str, Any]], *handlers: Any, metrics: Callable[[], Any] | None = mae
) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader(patients),
        network=net,
        inferer=SimpleInferer(),
        prepare_batch=ARGUMENTS,
        key_val_metric=metrics() if metrics else None,
        val_handlers=list(handlers),
        decollate=False,
    )


def trainer(net: nn.Module, patients: list[dict[str, Any]], epochs: int, *handlers: Any) -> SupervisedTrainer:
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader(patients),
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=1e-4),
        loss_function=nn.MSELoss(),
        prepare_batch=ARGUMENTS,
        train_handlers=list(handlers),
        decollate=False,
    )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- Gradient clipping -----------------------------------------------------------------------------------------------


def norms(net: nn.Module, patients: list[dict[str, Any]], *handlers: Any) -> list[float]:
    """The norm of all gradients when the optimizer steps."""
    run, found = trainer(net, patients, 1, *handlers), []
    run.add_event_handler(
        IterationEvents.MODEL_COMPLETED,
        lambda engine: found.append(float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())),
    )
    run.run()
    return found


def test_gradients_are_clipped_to_the_norm(net: MultiScanNet, patients: list[dict[str, Any]]) -> None:
    assert min(norms(net, patients)) > 10
    assert norms(net, patients, GradientClipping(0.5)) == pytest.approx([0.5, 0.5], rel=1e-4)


def test_small_gradients_stay_as_they_are(net: MultiScanNet, patients: list[dict[str, Any]]) -> None:
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    free = norms(net, patients)
    net.load_state_dict(start)
    assert norms(net, patients, GradientClipping(1e9)) == pytest.approx(free)


# ---- History ---------------------------------------------------------------------------------------------------------


def test_history_holds_the_mean_loss_of_each_epoch_and_the_metric_where_validated(
    net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path
) -> None:
    validate, losses, metrics = evaluator(net, patients), [], {}
    run = trainer(
        net,
        patients,
        4,
        ValidationHandler(interval=2, validator=validate, epoch_level=True),
        HistorySaver(str(tmp_path / "out" / "history.csv"), validate, "mae"),
    )
    run.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item()))
    validate.add_event_handler(Events.COMPLETED, lambda e: metrics.update({run.state.epoch: e.state.metrics["mae"]}))
    run.run()
    rows = read(tmp_path / "out" / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    expected = [(losses[2 * epoch] + losses[2 * epoch + 1]) / 2 for epoch in range(4)]
    assert [float(row["train_loss"]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert [row["mae"] == "" for row in rows] == [True, False, True, False]
    assert float(rows[3]["mae"]) == pytest.approx(metrics[4], rel=1e-5)


def test_history_is_whole_after_every_epoch(net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path) -> None:
    validate, seen = evaluator(net, patients), []
    run = trainer(net, patients, 3, HistorySaver(str(tmp_path / "history.csv"), validate, "mae"))
    run.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append(len(read(tmp_path / "history.csv"))))
    run.run()
    assert seen == [1, 2, 3]


# ---- Predictions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, str]]:
    """What an evaluation writes."""
    saver = PredictionSaver(str(tmp_path / "predictions.csv"), net, task=NUMBER, target=["volume"], unit="mL")
    evaluator(net, patients, saver).run()
    return read(tmp_path / "predictions.csv")


def test_there_is_one_row_per_patient_with_measurement_unit_and_fold(rows: list[dict[str, str]]) -> None:
    assert [(row["patient"], row["volume"], row["unit"], row["fold"]) for row in rows] == [
        ("p1", "0", "mL", "1"),
        ("p2", "1", "mL", "1"),
        ("p3", "2", "mL", "1"),
        ("p4", "3", "mL", "1"),
    ]


def test_groups_of_patients_stand_last_in_columns_of_their_own(
    net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path
) -> None:
    saver = PredictionSaver(str(tmp_path / "predictions.csv"), net, task=NUMBER, target=["volume"])
    evaluator(net, [{**p, "groups": {"sex": "F", "scans": f"of {p['patient']}"}} for p in patients], saver).run()
    found = read(tmp_path / "predictions.csv")
    assert list(found[0])[-3:] == ["weights", "group_sex", "group_scans"]
    assert [(row["group_sex"], row["group_scans"]) for row in found] == [("F", f"of {row['patient']}") for row in found]


def test_names_of_patients_folds_and_groups_are_written_and_read_as_they_are(
    net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path
) -> None:
    keys, sites = ["NA", "None", "007", "1e5"], ["NA", "", "nan", "TRUE"]
    named = [
        {**p, "patient": key, "fold": key, "groups": {"site": site}}
        for p, key, site in zip(patients, keys, sites, strict=True)
    ]
    evaluator(
        net, named, PredictionSaver(str(tmp_path / "predictions.csv"), net, task=NUMBER, target=["volume"], unit="NA")
    ).run()
    table = PredictionsTable.read(tmp_path / "predictions.csv")
    assert dict(zip(table.patient, table.groups["site"], strict=True)) == dict(zip(keys, sites, strict=True))
    assert table.fold.tolist() == table.patient.tolist() and table.unit == "NA"


@torch.no_grad()
def test_every_digit_of_a_prediction_is_written_and_measured_values_as_in_the_table_of_the_cohort(
    net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path
) -> None:
    measured = [{**patient, "label": [47.123 + 1e-3 * number]} for number, patient in enumerate(patients)]
    evaluator(
        net, measured, PredictionSaver(str(tmp_path / "predictions.csv"), net, task=NUMBER, target=["volume"])
    ).run()
    table, batch = PredictionsTable.read(tmp_path / "predictions.csv"), collate_scans(patients[:2])
    expected = net.eval()(batch["image"], batch["mask"], batch["time"])[:, 0].double()
    assert table.predicted("volume")[:2].tolist() == expected.tolist()
    assert table.measured("volume").tolist() == [47.123, 47.124, 47.125, 47.126]


@torch.no_grad()
def test_predictions_are_those_of_the_network(
    net: MultiScanNet, patients: list[dict[str, Any]], rows: list[dict[str, str]]
) -> None:
    for patient, row in zip(patients, rows, strict=True):
        alone = collate_scans([patient])
        expected = net.eval()(alone["image"], alone["mask"], alone["time"])
        assert float(row["volume_predicted"]) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_days_and_weights_stand_in_order_of_time(
    net: MultiScanNet, patients: list[dict[str, Any]], rows: list[dict[str, str]]
) -> None:
    assert [row["days"] for row in rows] == ["0", "0;30.5;90", "0;50", "0;7"]
    assert [row["scans"] for row in rows] == ["1", "3", "2", "2"]
    for patient, row in zip(patients, rows, strict=True):
        alone = collate_scans([patient])
        embeddings = net.eval().embed(alone["image"], alone["mask"])
        weights = net.from_embeddings(embeddings, alone["mask"], alone["time"])[1][0]
        expected = weights[torch.tensor(patient["time"]).argsort()]
        assert_close(torch.tensor([float(w) for w in row["weights"].split(";")]), expected, atol=6e-5, rtol=0)


def test_no_scan_is_encoded_twice(net: MultiScanNet, rows: list[dict[str, str]]) -> None:
    assert net.encoder.seen == sum(len(days) for days in DAYS.values())


def test_new_patients_without_labels_get_predictions(
    net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path
) -> None:
    saver = PredictionSaver(str(tmp_path / "predictions.csv"), net, task=NUMBER, target=["volume"])
    unlabelled = [{key: value for key, value in patient.items() if key != "label"} for patient in patients]
    evaluator(net, unlabelled, saver, metrics=None).run()
    assert {row["volume"] for row in read(tmp_path / "predictions.csv")} == {""}


def test_a_second_evaluation_forgets_the_patients_of_the_first(
    net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = evaluator(
        net, patients, PredictionSaver(str(tmp_path / "predictions.csv"), net, task=NUMBER, target=["volume"])
    )
    run.run()
    run.data_loader = run.state.dataloader = loader(patients[:1])
    run.state.epoch_length = 1
    run.run()
    assert [row["patient"] for row in read(tmp_path / "predictions.csv")] == ["p1"]


def test_an_interrupted_write_leaves_the_old_file_whole(
    net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluator(
        net, patients, PredictionSaver(str(tmp_path / "predictions.csv"), net, task=NUMBER, target=["volume"])
    )
    run.run()
    before = (tmp_path / "predictions.csv").read_text()
    real = csv.writer

    class Interrupted:
        def __init__(self, file: Any) -> None:
            self.file = file

        def writerows(self, rows: list[list[str]]) -> None:
            real(self.file).writerows(rows[:2])
            raise KeyboardInterrupt

    monkeypatch.setattr(handlers.csv, "writer", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert (tmp_path / "predictions.csv").read_text() == before


def test_a_predicted_spread_and_its_interval_stand_beside_the_prediction(
    patients: list[dict[str, Any]], tmp_path: Path
) -> None:
    net = MultiScanNet(Encoder(), LSTMPool(4, hidden=3), outputs=2).eval()
    path, task = str(tmp_path / "predictions.csv"), NumberWithSpread(GaussianLoss())
    for calibration in (None, [None], [Interval(3.0, 0.9)]):
        saver = PredictionSaver(path, net, task=task, target=["volume"], calibration=calibration)
        evaluator(net, patients, saver, metrics=None).run()
        rows = read(tmp_path / "predictions.csv")
        ends = [name for name in rows[0] if name in ("volume_low", "volume_high")]
        assert len(ends) == (0 if calibration is None else 2)
        assert calibration != [None] or {row[end] for row in rows for end in ends} == {""}
    with torch.no_grad():
        batch = collate_scans(patients)
        outputs = net(batch["image"], batch["mask"], batch["time"])
    for row, (mean, log_std) in zip(rows, outputs.tolist(), strict=True):
        found = [float(row[f"volume_{name}"]) for name in ("predicted", "spread", "low", "high")]
        spread = math.exp(log_std)
        assert found == pytest.approx([mean, spread, mean - 3 * spread, mean + 3 * spread], rel=1e-5)


def test_the_errors_of_several_targets_are_added_up_in_standard_deviations() -> None:
    scaling = TargetScaling(2)
    label, predicted = torch.randn(9, 2) * torch.tensor([1.0, 5000.0]), torch.randn(9, 2)
    scaling.fit(label)
    for targets, scale in ((2, scaling.std.numpy()), (1, 1.0)):
        columns = slice(0, targets)
        [(name, metric)] = validation_metrics(NUMBER, scaling, targets=targets).items()
        metric.update(metric._output_transform({"pred": predicted[:, columns], "label": label[:, columns]}))
        error = np.abs(predicted - label).numpy()[:, columns] / scale
        assert name == "mae" and metric.compute() == pytest.approx(error.sum(1).mean(), rel=1e-5)


# ---- Time to event ---------------------------------------------------------------------------------------------------


def dated(patients: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [patient | {"label": [float(100 - 20 * at), float(at != 1)]} for at, patient in enumerate(patients)]


def test_risks_are_written_with_time_and_event_and_what_curves_make_of_them(
    net: MultiScanNet, patients: list[dict[str, Any]], tmp_path: Path
) -> None:
    net.scaling.mean.zero_(), net.scaling.std.fill_(1)
    curves = Baseline((10.0, 50.0), (0.2, 5.0), 1.0, 0.0)
    for known in (None, curves):
        task = TimeToEvent(CoxLoss(), horizons=[20, 60])
        path = str(tmp_path / "predictions.csv")
        saver = PredictionSaver(path, net, task=task, target=["days_left"], calibration=known)
        evaluator(net, dated(patients), saver, metrics=None).run()
        rows = read(tmp_path / "predictions.csv")
        assert [(row["patient"], row["days_left"], row["event"], row["unit"]) for row in rows] == [
            ("p1", "100", "1", "d"),
            ("p2", "80", "0", "d"),
            ("p3", "60", "1", "d"),
            ("p4", "40", "1", "d"),
        ]
        assert ("risk_60" in rows[0]) == (known is not None)
    for row in rows:
        risk = np.array([float(row["log_risk"])])
        assert float(row["risk_60"]) == pytest.approx(1 - curves.survival(risk, np.array([60.0]))[0, 0], rel=1e-5)
        assert float(row["median_days"]) == curves.median_days(risk)[0]
        assert float(row["log_hazard"]) == curves.log_hazard(risk, 60)[0]


def test_the_concordance_is_that_of_the_whole_cohort(net: MultiScanNet, patients: list[dict[str, Any]]) -> None:
    def metric() -> dict[str, Concordance]:
        return {"concordance": Concordance(from_engine(["pred", "label"]))}

    run = evaluator(net, dated(patients), metrics=metric)
    run.run()
    with torch.no_grad():
        batch = collate_scans(dated(patients))
        risk = net.eval()(batch["image"], batch["mask"], batch["time"])
    assert run.state.metrics["concordance"] == concordance(risk[:, 0].double().numpy(), batch["label"].numpy())
    nobody = [patient | {"label": [1.0, 0.0]} for patient in patients]
    run = evaluator(net, nobody, metrics=metric)
    run.run()
    assert math.isnan(run.state.metrics["concordance"])


def test_a_target_named_as_another_column_is_refused(net: MultiScanNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got \['days'\]"):
        PredictionSaver(str(tmp_path / "predictions.csv"), net, task=NUMBER, target=["days"])

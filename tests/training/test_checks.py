"""A training that cannot give a model is refused or ends at once, and NaN is never best."""

import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from ignite.metrics import MeanAbsoluteError
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import Tensor, nn

from monai_mvreg.cohort.table import Columns
from monai_mvreg.losses import CoxLoss, DiscreteHazardLoss
from monai_mvreg.networks.task import Number, Task, TimeToEvent
from monai_mvreg.training.batches import PatientBatches
from monai_mvreg.training.checks import (
    FiniteTraining,
    better_metric,
    chosen_first,
    expect_bfloat16,
    expect_patients,
    stopping_score,
)

# ---- NaN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_never_better(lower: bool, wrong: float) -> None:
    better = better_metric(lower_is_better=lower)
    assert not better(wrong, 1.0) and better(1.0, wrong) and not better(wrong, wrong)
    assert better(1.0, 2.0) is lower and better(2.0, 1.0) is not lower


def test_early_stopping_counts_an_epoch_without_a_metric_as_no_better() -> None:
    engine, trainer = Engine(lambda *_: None), Engine(lambda *_: None)
    stop = EarlyStopping(2, stopping_score("mae", lower_is_better=True), trainer)
    scores = []
    for metric in (math.nan, 3.0, math.nan, 2.0, math.nan):
        engine.state.metrics = {"mae": metric}
        stop(engine)
        scores.append((stop.best_score, stop.counter))
    assert scores == [(-math.inf, 0), (-3.0, 0), (-3.0, 1), (-2.0, 0), (-2.0, 1)]


def test_the_metric_that_chooses_the_epoch_comes_first() -> None:
    assert list(chosen_first({"mae": 1, "mse": 2, "r2": 3}, "mse")) == ["mse", "mae", "r2"]
    with pytest.raises(ValueError, match=r"^metric: expected one of \['mae'\], got 'rmse'"):
        chosen_first({"mae": 1}, "rmse")


class Scripted(nn.Module):
    """Predict what a script says: one entry for each batch of training, one for each of validation."""

    def __init__(self, training: list[float], validation: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scripts = {True: iter(training), False: iter(validation)}

    def forward(self, image: Tensor) -> Tensor:
        return 0 * self.weight * image + next(self.scripts[self.training])


def scripted(training: list[float], validation: list[float], *, epochs: int) -> Any:
    """A training of two batches an epoch, validated on one patient whose value is 0."""
    data = [{"image": torch.ones(1), "label": torch.zeros(1)} for _ in range(2)]
    network, device = Scripted(training, validation), torch.device("cpu")
    evaluator = SupervisedEvaluator(
        device,
        DataLoader(data[:1], batch_size=1),
        network,
        key_val_metric={"mae": MeanAbsoluteError(lambda output: (output["pred"], output["label"]))},
        metric_cmp_fn=better_metric(lower_is_better=True),
        decollate=False,
    )
    trainer = SupervisedTrainer(
        device,
        epochs,
        DataLoader(data, batch_size=1),
        network,
        torch.optim.SGD(network.parameters(), lr=0.0),
        nn.L1Loss(),
        decollate=False,
        train_handlers=[FiniteTraining(evaluator, "mae"), ValidationHandler(1, evaluator)],
    )
    return trainer, evaluator


@pytest.mark.parametrize(
    ("training", "place"),
    [([1, math.nan, 1, 1], "epoch 1, iteration 2"), ([1, 1, math.inf, 1], "epoch 2, iteration 3")],
)
def test_a_loss_that_is_not_finite_ends_the_training_at_once(training: list[float], place: str) -> None:
    trainer, _ = scripted(training, [1.0] * 4, epochs=2)
    with pytest.raises(ValueError, match=rf"^expected a finite training loss, got (nan|inf) in {place}: lower learn"):
        trainer.run()
    assert trainer.state.iteration <= int(place[-1]) + 1


def test_steps_that_gradient_scaling_skips_are_tolerated_but_not_many() -> None:
    for training, ends in (([math.inf, math.inf, 1, 1], False), ([1, math.inf, math.inf, math.inf], True)):
        check, engine = FiniteTraining(Engine(lambda *_: None), "mae"), Engine(lambda *_: None)
        engine.scaler = object()  # type: ignore[attr-defined]
        losses = iter([*training, 1.0])
        check.attach(engine)
        engine.add_event_handler(
            Events.ITERATION_STARTED, lambda e, losses=losses: setattr(e.state, "loss", next(losses))
        )
        engine._process_function = lambda e, _: {"loss": torch.tensor(float(e.state.loss))}
        engine.state.best_metric_epoch = -1
        check.evaluator.state.best_metric_epoch = -1
        if ends:
            with pytest.raises(ValueError, match="got inf in epoch 1, iteration 4"):
                engine.run(range(4))
        else:
            engine.run(range(4))


def test_predictions_that_are_not_finite_end_the_training_in_the_validation() -> None:
    trainer, _ = scripted([1.0] * 4, [1.0, math.nan], epochs=2)
    with pytest.raises(ValueError, match=r"finite predictions in validation, got others for 1 of 1 .* epoch 2"):
        trainer.run()


def test_a_training_without_any_finite_metric_chooses_no_epoch() -> None:
    trainer, evaluator = scripted([1.0] * 4, [1.0, 1.0], epochs=2)
    evaluator.prepare_batch = lambda batch, *_, **__: (batch["image"], torch.full((1, 1), math.nan))
    with pytest.raises(ValueError, match=r"^metric: expected a finite mae in at least one validation, got nan in all"):
        trainer.run()


def test_the_best_epoch_is_the_best_of_those_with_a_metric() -> None:
    trainer, evaluator = scripted([1.0] * 6, [3.0, 1.0, 2.0], epochs=3)
    labels = iter([math.nan, 0.0, 0.0])
    evaluator.prepare_batch = lambda batch, *_, **__: (batch["image"], torch.full((1, 1), next(labels)))
    trainer.run()
    assert (evaluator.state.best_metric, evaluator.state.best_metric_epoch) == (1.0, 2)


# ---- Patients --------------------------------------------------------------------------------------------------------


def number_items(*targets: float) -> list[dict[str, Any]]:
    return [{"label": [target]} for target in targets]


def event_items(*labels: tuple[float, int]) -> list[dict[str, Any]]:
    return [{"label": list(label)} for label in labels]


NUMBER, TIME = Columns(target=("ef",)), Columns(target=("days",), event="dead")
COX = TimeToEvent(CoxLoss(), horizons=[1], event="dead")
MIXED = event_items((1, 1), (2, 0), (3, 1), (4, 0))


@pytest.mark.parametrize(
    ("task", "training", "validation", "sentence"),
    [
        (Number(nn.L1Loss()), number_items(1, 2), number_items(1), "validation_folds: expected at least 2 patients"),
        (Number(nn.L1Loss()), number_items(1), number_items(1, 2), "expected at least 2 training patients, got 1"),
        (Number(nn.L1Loss()), number_items(5, 5), number_items(1, 2), "values of 'ef' that differ between the 2"),
        (
            Number(nn.L1Loss()),
            number_items(1e9 + 20, 1e9 + 80),
            number_items(1, 2),
            r"^expected values of 'ef' that differ .* deviation of 30 at steps of 64 around 1000000050: subtract",
        ),
        (COX, MIXED, event_items((1, 0), (2, 0)), r"validation_folds: expected an event \(column 'dead'\) .* got 0"),
        (COX, MIXED, event_items((1, 0), (2, 1)), "got 1 events in 2 patients"),
        (COX, MIXED, event_items((2, 1)), "got 1 events in 1 patients"),
        (COX, MIXED, event_items((0.9, 1), (0.5, 1)), r"at least 1 days, the first of the horizons, got at most 0.9 "),
        (COX, event_items((1, 0), (2, 0)), MIXED, r"expected an event \(column 'dead'\) among 2 training patients"),
    ],
)
def test_patients_who_cannot_teach_or_judge_are_refused(
    task: Task, training: list[Any], validation: list[Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        expect_patients(task, training, validation, columns=TIME if task is COX else NUMBER)


def batches(patients: int, size: int, *, max_scans: int | None = None) -> PatientBatches:
    return PatientBatches([1] * patients, size, max_scans=max_scans)


@pytest.mark.parametrize(
    ("few", "enough", "name"),
    [
        (batches(4, 1), batches(4, 2), "batch_size"),
        (batches(4, 16, max_scans=1), batches(4, 16, max_scans=4), "max_scans"),
    ],
)
def test_batches_from_which_a_loss_cannot_learn_are_refused(
    few: PatientBatches, enough: PatientBatches, name: str
) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"^{name}: expected batches that the loss CoxLoss can learn from"):
        expect_patients(COX, MIXED, MIXED, columns=TIME, batches=few)
    expect_patients(COX, MIXED, MIXED, columns=TIME, batches=enough)
    for loss in (nn.L1Loss(), nn.HuberLoss(), nn.MSELoss()):
        expect_patients(Number(loss), number_items(1, 2, 3, 4), number_items(1, 2), columns=NUMBER, batches=few)
    hazards = TimeToEvent(DiscreteHazardLoss([2, 3]), horizons=[3], event="dead")
    expect_patients(hazards, MIXED, MIXED, columns=TIME, batches=few)  # it compares nobody
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("offset", [0, 1e6, -1e6])
def test_targets_that_single_precision_resolves_are_taken(offset: float) -> None:
    items = number_items(*(offset + value for value in (20, 50, 80)))
    expect_patients(Number(nn.L1Loss()), items, items, columns=NUMBER)


@pytest.mark.parametrize(
    ("layer", "device", "refused"),
    [
        (nn.Conv3d(1, 2, 3), "cpu", True),
        (nn.Sequential(nn.Flatten(), nn.ModuleList([nn.Conv3d(1, 2, 1)])), "cpu", True),
        (nn.Conv3d(1, 2, 3), "cuda", False),
        (nn.Conv2d(1, 2, 3), "cpu", False),
    ],
)
def test_bfloat16_of_volumes_on_a_cpu_is_refused(layer: nn.Module, device: str, refused: bool) -> None:
    if not refused:
        expect_bfloat16(layer, torch.device(device))
        return
    with pytest.raises(ValueError, match=r"^bfloat16: expected a GPU or a 2D encoder, got 3D convolutions on a CPU"):
        expect_bfloat16(layer, torch.device(device))

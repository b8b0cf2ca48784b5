"""A task says what outputs mean: how many there are, how they are learned, and what is read from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from monai_mvreg import losses
from monai_mvreg.networks.multiscan import TargetScaling
from monai_mvreg.networks.task import Number, NumberWithSpread, StandardisedLoss, Task, TimeToEvent

TASKS: dict[str, Task] = {
    "Gaussian": NumberWithSpread(losses.GaussianLoss()),
    "quantiles": NumberWithSpread(losses.QuantileLoss([0.1, 0.5, 0.9])),
    "Cox": TimeToEvent(losses.CoxLoss(), horizons=[365]),
    "hazards": TimeToEvent(losses.DiscreteHazardLoss([180, 365, 730]), horizons=[365]),
    "hazards of two causes": TimeToEvent(losses.DiscreteHazardLoss([180, 365, 730], causes=2), horizons=[365]),
    "Weibull": TimeToEvent(losses.WeibullLoss(scale=400), horizons=[365]),
    "log-normal": TimeToEvent(losses.LogNormalLoss(scale=400), horizons=[365]),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_takes_as_many_outputs_as_the_task_counts_and_no_others(name: str) -> None:
    task = TASKS[name]
    label = torch.tensor([[200.0, 1.0], [900.0, 0.0], [30.0, 1.0]])[:, : 1 if task.event is None else 2]
    outputs = task.outputs(1)
    assert task.loss(torch.randn(3, outputs), label).isfinite()
    assert task.read(torch.randn(3, outputs)).value.shape == (3, 1)
    with pytest.raises(ValueError, match="expected"):
        task.loss(torch.randn(3, outputs + 1), label)


@pytest.mark.parametrize("name", TASKS)
def test_these_tasks_are_of_one_target(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected one (target|time).* 2"):
        TASKS[name].outputs(2)


def test_numbers_are_read_as_they_are() -> None:
    task, outputs = Number(nn.MSELoss()), torch.randn(4, 3)
    assert task.outputs(3) == 3 and task.event is None
    assert torch.equal(task.read(outputs).value, outputs.double()) and task.read(outputs).spread is None


def test_a_spread_is_the_standard_deviation_or_half_the_distance_of_the_outer_quantiles() -> None:
    read = TASKS["Gaussian"].read(torch.tensor([[7.0, math.log(2.0)]]))
    assert read.spread is not None
    assert (read.value.item(), read.spread.item()) == pytest.approx((7.0, 2.0))
    outputs = np.sort(np.random.default_rng(0).normal(size=(5, 3)))
    read = TASKS["quantiles"].read(torch.tensor(outputs))
    assert read.spread is not None
    np.testing.assert_allclose(read.value[:, 0], outputs[:, 1])
    np.testing.assert_allclose(read.spread[:, 0], (outputs[:, 2] - outputs[:, 0]) / 2)


@pytest.mark.parametrize("name", ["Weibull", "log-normal"])
def test_a_higher_risk_is_an_earlier_event(name: str) -> None:
    task = TASKS[name]
    outputs = torch.tensor([[-1.0, 0.3], [0.0, 0.3], [2.0, 0.3]])
    survival = task.loss.log_survival(outputs, torch.tensor([400.0]))[:, 0]
    assert (task.read(outputs).value[:, 0].diff() > 0).all() and (survival.diff() < 0).all()


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e6])
def test_the_unit_of_a_target_changes_neither_the_loss_of_a_number_nor_of_its_spread(factor: float) -> None:
    label, standard = 50 + 10 * torch.randn(20, 1), torch.randn(20, 2)

    def value(task: Task, factor: float) -> torch.Tensor:
        scaling = TargetScaling(task.outputs(1))
        task.fit_scaling(scaling, factor * label)
        return task.training_loss(scaling)(scaling(standard[:, : task.outputs(1)]), factor * label)

    for task in (Number(nn.HuberLoss()), TASKS["Gaussian"]):
        assert_close(value(task, factor), value(task, 1.0), rtol=1e-4, atol=1e-5)


def test_a_loss_of_torch_sees_standard_deviations_of_the_training_patients() -> None:
    label, prediction = torch.randn(20, 1) * 30 + 100, torch.randn(20, 1) * 30 + 100
    scaling = TargetScaling(1)
    Number(nn.HuberLoss()).fit_scaling(scaling, label)
    z = [(x - label.mean()) / label.std(unbiased=False) for x in (prediction, label)]
    assert_close(Number(nn.HuberLoss()).training_loss(scaling)(prediction, label), nn.HuberLoss()(*z))


def test_a_log_risk_has_no_scale() -> None:
    scaling, task = TargetScaling(1), TASKS["Cox"]
    task.fit_scaling(scaling, torch.tensor([[100.0, 1.0], [300.0, 0.0]]))
    assert (scaling.mean.item(), scaling.std.item()) == (0.0, 1.0)
    assert not isinstance(task.training_loss(scaling), StandardisedLoss)


@pytest.mark.parametrize(
    ("loss", "task"),
    [
        (losses.CoxLoss(), "TimeToEvent"),
        (losses.WeibullLoss(scale=400), "TimeToEvent"),
        (losses.GaussianLoss(), "NumberWithSpread"),
        (losses.QuantileLoss([0.5]), "NumberWithSpread"),
    ],
)
def test_a_loss_of_another_task_is_refused_by_its_name(loss: nn.Module, task: str) -> None:
    with pytest.raises(ValueError, match=f"task: expected {task} for the loss {type(loss).__name__}, got Number"):
        Number(loss)


@pytest.mark.parametrize("horizons", [[], [0], [-5, 100], [365, 365], [730, 365]])
def test_horizons_are_increasing_days_above_zero(horizons: list[float]) -> None:
    with pytest.raises(ValueError, match="horizons: expected increasing days above 0"):
        TimeToEvent(losses.CoxLoss(), horizons=horizons)


def test_one_horizon_is_a_list_of_one() -> None:
    loss = losses.CoxLoss()
    assert TimeToEvent(loss, horizons=365) == TimeToEvent(loss, horizons=[365])  # type: ignore[arg-type]
    for wrong in ("365", ["365"]):
        with pytest.raises(ValueError, match=r"^horizons: expected days as numbers, got "):
            TimeToEvent(loss, horizons=wrong)  # type: ignore[arg-type]

"""What a training needs to be worth its time: checked before it starts where it can be known, else as it happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from torch import Tensor, nn

from monai_mvreg.cohort.table import Columns
from monai_mvreg.metrics.survival import concordance
from monai_mvreg.networks.multiscan import TargetScaling
from monai_mvreg.networks.task import Task, TimeToEvent
from monai_mvreg.training.batches import PatientBatches

_SKIPPED_STEPS = 3  # in a row: gradient scaling recovers from fewer


def better_metric(*, lower_is_better: bool) -> Callable[[float, float], bool]:
    """Make the comparison that chooses the best epoch, for ``metric_cmp_fn``; a metric that is not finite never wins.

    Args:
        lower_is_better: of the metric.

    Returns:
        Whether a metric is better than the best one before.

    Example:
        >>> better = better_metric(lower_is_better=True)
        >>> better(2.0, 3.0), better(2.0, math.nan), better(math.nan, 3.0)
        (True, True, False)
    """

    def better(metric: float, best: float) -> bool:
        if not (math.isfinite(metric) and math.isfinite(best)):
            return math.isfinite(metric)
        return metric < best if lower_is_better else metric > best

    return better


def stopping_score(metric: str, *, lower_is_better: bool) -> Callable[[Engine], float]:
    """Make the score of an epoch for ``EarlyStopping``, higher is better; a metric that is not finite is the worst.

    Args:
        metric: its name.
        lower_is_better: of the metric.

    Returns:
        The score of the evaluator's last run.
    """

    def score(engine: Engine) -> float:
        found = float(engine.state.metrics[metric])
        if not math.isfinite(found):
            return -math.inf
        return -found if lower_is_better else found

    return score


def chosen_first(metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Put the metric that chooses the epoch first, where MONAI takes it from, for ``key_val_metric``.

    Args:
        metrics: all of them by name.
        metric: the name of the one that chooses.

    Raises:
        ValueError: if there is no such metric.

    Example:
        >>> chosen_first({"mae": 1, "mse": 2}, "mse")
        {'mse': 2, 'mae': 1}
    """
    if metric not in metrics:
        raise ValueError(
            f"metric: expected one of {list(metrics)}, got {metric!r}: give further ones by name in the setting metrics"
        )
    return {metric: metrics[metric], **metrics}


def expect_patients(
    task: Task,
    training: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    *,
    columns: Columns,
    batches: PatientBatches | None = None,
) -> None:
    """Refuse, before it starts, a training that cannot learn from its patients, or not judge an epoch by them.

    Args:
        task: what the outputs of the network mean.
        training: items of the dataset for training.
        validation: items of the dataset for validation.
        columns: which column of the table holds what.
        batches: the batches of the training; None does not look at them.

    Raises:
        ValueError: naming what is missing.
    """
    if problem := validation_problem(task, validation, columns=columns):
        raise ValueError(f"validation_folds: {problem}: give other validation_folds")
    label = np.array([item["label"] for item in training], dtype=np.float64)
    if len(label) < 2:
        raise ValueError(f"expected at least 2 training patients, got {len(label)}")
    if isinstance(task, TimeToEvent):
        if not label[:, 1].any():
            raise ValueError(
                f"expected an event (column {task.event!r}) among {len(label)} training patients, got none"
            )
    else:
        for name, values in zip(columns.target, label.T, strict=True):
            if (values == values[0]).all():
                raise ValueError(
                    f"expected values of {name!r} that differ between the {len(label)} training patients, got "
                    f"{values[0]:.17g} for all"
                )
            step, spread = float(np.spacing(np.abs(values).max().astype(np.float32))), float(values.std())
            if step > spread / 20:  # numbers are float32
                raise ValueError(
                    f"expected values of {name!r} that differ between patients by more than single precision rounds, "
                    f"got a standard deviation of {spread:.3g} at steps of {step:.3g} around {values.mean():.12g}: "
                    "subtract a constant from the column"
                )
    if batches is not None and batches.processes == 1 and not _teaches(task, label, batches, len(columns.target)):
        size = "max_scans" if batches.max_scans is not None else "batch_size"
        raise ValueError(
            f"{size}: expected batches that the loss {type(task.loss).__name__} can learn from, got gradients of 0 "
            f"in all {len(batches)} batches of an epoch, the largest of {max(map(len, batches))} patients: give a "
            f"larger {size}"
        )


def validation_problem(task: Task, validation: Sequence[Mapping[str, Any]], *, columns: Columns) -> str:
    """Find why these patients could not choose an epoch of a training.

    Args:
        task: what the outputs of the network mean.
        validation: items of a dataset.
        columns: which column of the table holds what.

    Returns:
        The reason, or nothing.
    """
    if not isinstance(task, TimeToEvent):
        return f"expected at least 2 patients, got {len(validation)}" if len(validation) < 2 else ""
    label = np.array([item["label"] for item in validation], dtype=np.float64)
    if not any(day <= label[:, 0].max(initial=0.0) for day in task.horizons):
        return (
            f"expected patients followed for at least {task.horizons[0]:g} days, the first of the horizons, got at "
            f"most {label[:, 0].max(initial=0.0):g} (column {columns.target[0]!r} is taken to be in days)"
        )
    if math.isnan(concordance(np.zeros(len(label)), label)):
        events = int(label[:, 1].sum())
        return (
            f"expected an event (column {task.event!r}) and a patient without one until then, got {events} events in "
            f"{len(label)} patients"
        )
    return ""


def _teaches(task: Task, label: np.ndarray[Any, Any], batches: Iterable[list[tuple[int, int]]], targets: int) -> bool:
    """Whether any batch of an epoch gives gradients, at predictions drawn at random."""
    outputs, generator = task.outputs(targets), torch.Generator().manual_seed(0)
    loss, labels = task.training_loss(TargetScaling(outputs)), torch.as_tensor(label, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for batch in batches:
            rows = [index for index, _ in batch]
            prediction = torch.randn(len(rows), outputs, generator=generator).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(prediction, labels[rows]).sum(), prediction, allow_unused=True)
            if gradient is not None and bool((gradient != 0).any()):
                return True
    return False


def expect_bfloat16(encoder: nn.Module, device: torch.device) -> None:
    """Refuse ``bfloat16`` where its gradients are wrong: on a CPU with three-dimensional convolutions.

    Of an input of two voxels along each axis, the gradient that torch 2.14 computes there for the weights of a
    convolution is read in part from memory that nobody wrote: other numbers in every step, and NaN now and then.

    Args:
        encoder: any network.
        device: where it is trained.

    Raises:
        ValueError: naming the setting.
    """
    if device.type == "cpu" and any(isinstance(module, nn.Conv3d) for module in encoder.modules()):
        raise ValueError(
            "bfloat16: expected a GPU or a 2D encoder, got 3D convolutions on a CPU, whose gradients torch computes "
            "wrongly in bfloat16: set bfloat16 False"
        )


class FiniteTraining:
    """End a training at once when a loss or a prediction is not finite, or no epoch could be chosen.

    Attach it before the handler that runs the validation.

    Args:
        evaluator: the validation evaluator.
        metric: the name of the metric that chooses the epoch.

    Raises:
        ValueError: when it happens, naming epoch and iteration.
    """

    def __init__(self, evaluator: Any, metric: str) -> None:
        self.evaluator, self.metric = evaluator, metric
        self.loss: Tensor | None = None
        self.iteration = self.bad = 0

    def attach(self, engine: Engine) -> None:
        """Register the handler with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)
        engine.add_event_handler(Events.COMPLETED, self._end)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._validation)

    def _iteration(self, engine: Any) -> None:
        # That of the batch before: to read the last one here would wait for the GPU.
        self._check(engine)
        self.loss, self.iteration = engine.state.output[CommonKeys.LOSS].detach(), engine.state.iteration

    def _check(self, engine: Any) -> None:
        loss, self.loss = self.loss, None
        if loss is None:
            return
        value = float(loss)
        self.bad = 0 if math.isfinite(value) else self.bad + 1
        if self.bad >= (1 if engine.scaler is None else _SKIPPED_STEPS):
            raise ValueError(
                f"expected a finite training loss, got {value} in epoch {engine.state.epoch}, iteration "
                f"{self.iteration}: lower learning_rate, and check that the prepared scans hold finite voxels"
            )

    def _validation(self, evaluator: Any) -> None:
        predicted = evaluator.state.output[CommonKeys.PRED]
        wrong = ~predicted.detach().isfinite().flatten(1).all(1)
        if wrong.any():
            raise ValueError(
                f"expected finite predictions in validation, got others for {int(wrong.sum())} of {len(wrong)} "
                f"patients of a batch in epoch {evaluator.state.epoch}: lower learning_rate, and check that the "
                "prepared scans hold finite voxels"
            )

    def _end(self, engine: Engine) -> None:
        state = self.evaluator.state
        if state.best_metric_epoch != -1 and not math.isfinite(state.best_metric):
            raise ValueError(
                f"metric: expected a finite {self.metric} in at least one validation, got {float(state.best_metric)} "
                "in all: no epoch can be chosen"
            )

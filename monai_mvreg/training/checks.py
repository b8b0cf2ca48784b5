"""What a training needs to be worth its time: checked before it starts where it can be known, else as it happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from torch import Tensor

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

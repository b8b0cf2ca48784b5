"""What the outputs of a network mean: numbers, a number with its spread, or a time to an event.

A task is an object of a config, ``task: {_target_: monai_mvreg.networks.task.Number, loss: ...}``. From it follow the
number of outputs, the loss, the scaling of targets, the labels, what is read from the outputs, and the metric that
chooses the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from monai_mvreg.networks.multiscan import TargetScaling


@dataclass(frozen=True)
class Readout:
    """The numbers in outputs of a network.

    Args:
        value: ``(B, T)`` float64, in target units or as log risk.
        spread: ``(B, T)`` float64 in target units; ``None`` if the task predicts none.
    """

    value: Tensor
    spread: Tensor | None = None


class Task(Protocol):
    """What every task offers."""

    metric: ClassVar[str]
    lower_is_better: ClassVar[bool]

    @property
    def loss(self) -> Any:
        """The loss as it stands in the config."""

    @property
    def event(self) -> str | None:
        """Name of the column with 1 for an event and 0 for censored; ``None`` if the target is no time to an event."""

    def outputs(self, targets: int) -> int:
        """Count the outputs ``K`` of the network for a number of targets."""

    def training_loss(self, scaling: TargetScaling) -> nn.Module:
        """Give the loss ``(prediction (B, K), label) -> ()`` in target units."""

    def fit_scaling(self, scaling: TargetScaling, label: Tensor) -> None:
        """Fit the scaling of the network to the labels of the training patients."""

    def read(self, outputs: Tensor) -> Readout:
        """Read outputs ``(B, K)`` of the network."""


@runtime_checkable
class SpreadLoss(Protocol):
    """A loss whose outputs hold a value and its spread, such as :class:`~monai_mvreg.losses.GaussianLoss`."""

    outputs: int

    def fit_scaling(self, scaling: TargetScaling, label: Tensor) -> None:
        """Fit the scaling of the network to the labels ``(P, 1)`` of the training patients."""

    def value_and_spread(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Give value and spread, each ``(B, 1)`` in target units, of outputs ``(B, K)``."""


@runtime_checkable
class SurvivalLoss(Protocol):
    """A loss of a time to an event, such as :class:`~monai_mvreg.losses.CoxLoss`."""

    outputs: int

    def log_risk(self, prediction: Tensor) -> Tensor:
        """Give the log risk ``(B, 1)``, higher is sooner, of outputs ``(B, K)``."""


class StandardisedLoss(nn.Module):
    """Compare prediction and label in standard deviations of the training patients, whatever the unit.

    Args:
        loss: a loss of torch, such as ``MSELoss``, ``L1Loss`` or ``HuberLoss``; its parameters are then in standard
            deviations.
        scaling: that of the network.
    """

    def __init__(self, loss: nn.Module, scaling: TargetScaling) -> None:
        super().__init__()
        self.loss, self.scaling = loss, scaling

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Compare prediction ``(B, K)`` and label, in target units: ``(B, K)``, or ``(B, 1)`` if all mean one."""
        standardised = self.scaling.standardise(label)[:, : label.shape[1]]
        return self.loss(self.scaling.standardise(prediction), standardised)


@dataclass(frozen=True)
class Number:
    """One or several numbers per patient, one output each.

    Args:
        loss: any loss of torch; it sees standardised targets.

    Raises:
        ValueError: for a loss of another task.

    Example:
        >>> Number(nn.HuberLoss()).outputs(2)
        2
    """

    loss: nn.Module
    metric: ClassVar[str] = "mae"
    lower_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        kind = "TimeToEvent" if isinstance(self.loss, SurvivalLoss) else "NumberWithSpread"
        if isinstance(self.loss, (SurvivalLoss, SpreadLoss)):
            raise ValueError(f"task: expected {kind} for the loss {type(self.loss).__name__}, got Number")

    @property
    def event(self) -> None:
        """There is no event."""

    def outputs(self, targets: int) -> int:
        """Count one output for each target."""
        return targets

    def training_loss(self, scaling: TargetScaling) -> nn.Module:
        """Give the loss on standardised targets."""
        return StandardisedLoss(self.loss, scaling)

    def fit_scaling(self, scaling: TargetScaling, label: Tensor) -> None:
        """Fit the scaling of the network to the labels ``(P, K)`` of the training patients."""
        scaling.fit(label)

    def read(self, outputs: Tensor) -> Readout:
        """Read outputs ``(B, K)`` in target units."""
        return Readout(outputs.double())


@dataclass(frozen=True)
class NumberWithSpread:
    """One number per patient and its spread, by which prediction intervals widen and narrow.

    Args:
        loss: :class:`~monai_mvreg.losses.GaussianLoss` for a standard deviation, or
            :class:`~monai_mvreg.losses.QuantileLoss` for half the distance between the outer quantiles.

    Example:
        >>> import torch
        >>> from monai_mvreg.losses import GaussianLoss
        >>> NumberWithSpread(GaussianLoss()).read(torch.tensor([[7.0, 0.0]])).spread
        tensor([[1.]], dtype=torch.float64)
    """

    loss: SpreadLoss
    metric: ClassVar[str] = "mae"
    lower_is_better: ClassVar[bool] = True

    @property
    def event(self) -> None:
        """There is no event."""

    def outputs(self, targets: int) -> int:
        """Count the outputs of the loss.

        Raises:
            ValueError: for several targets.
        """
        if targets != 1:
            raise ValueError(f"expected one target to predict with a spread, got {targets}")
        return self.loss.outputs

    def training_loss(self, scaling: TargetScaling) -> nn.Module:
        """Give the loss on standardised targets and spreads."""
        return StandardisedLoss(_module(self.loss), scaling)

    def fit_scaling(self, scaling: TargetScaling, label: Tensor) -> None:
        """Fit the scaling of the network to the labels ``(P, 1)`` of the training patients."""
        self.loss.fit_scaling(scaling, label)

    def read(self, outputs: Tensor) -> Readout:
        """Read outputs ``(B, K)`` in target units."""
        value, spread = self.loss.value_and_spread(outputs)
        return Readout(value.double(), spread.double())


@dataclass(frozen=True)
class TimeToEvent:
    """Time in days to an event that may be censored, ordered by log risk.

    Args:
        loss: :class:`~monai_mvreg.losses.CoxLoss`, ``DiscreteHazardLoss``, ``WeibullLoss`` or ``LogNormalLoss``.
        horizons: days, increasing, by which probabilities of the event are predicted and judged; or one day.
        event: name of the column with 1 for an event and 0 for censored.

    Raises:
        ValueError: if the horizons are not positive and increasing.

    Example:
        >>> from monai_mvreg.losses import CoxLoss
        >>> TimeToEvent(CoxLoss(), horizons=[365]).outputs(1)
        1
    """

    loss: SurvivalLoss
    horizons: Sequence[float]
    event: str = "event"
    metric: ClassVar[str] = "concordance"
    lower_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.horizons, (int, float)):  # one value is a list of one
            object.__setattr__(self, "horizons", [self.horizons])
        if not all(isinstance(day, (int, float)) for day in self.horizons):
            raise ValueError(f"horizons: expected days as numbers, got {self.horizons!r}")
        days = [0.0, *self.horizons]
        if len(days) < 2 or any(earlier >= later for earlier, later in itertools.pairwise(days)):
            raise ValueError(f"horizons: expected increasing days above 0, got {list(self.horizons)}")

    def outputs(self, targets: int) -> int:
        """Count the outputs of the loss.

        Raises:
            ValueError: for several targets.
        """
        if targets != 1:
            raise ValueError(f"expected one time to an event, got {targets} targets")
        return self.loss.outputs

    def training_loss(self, scaling: TargetScaling) -> nn.Module:
        """Give the loss, which compares the patients of a batch."""
        return _module(self.loss)

    def fit_scaling(self, scaling: TargetScaling, label: Tensor) -> None:
        """Leave the scaling as it is: a log risk has none."""

    def read(self, outputs: Tensor) -> Readout:
        """Read outputs ``(B, K)`` as log risk ``(B, 1)``."""
        return Readout(self.loss.log_risk(outputs).double())


def _module(loss: object) -> nn.Module:
    if not isinstance(loss, nn.Module):
        raise TypeError(f"expected a loss that is a torch module, got {type(loss).__name__}")
    return loss

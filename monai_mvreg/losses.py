"""Number -> loss: what torch lacks to learn one number per patient."""

from torch import Tensor, nn

from monai_mvreg.networks.multiscan import TargetScaling


class StandardisedLoss(nn.Module):
    """Apply a loss to standardised numbers, so that its size and step do not depend on the unit of the target.

    Args:
        loss: a loss of torch, such as ``MSELoss``, ``L1Loss`` or ``HuberLoss``; its parameters are then in standard
            deviations of the training targets.
        scaling: the :class:`~monai_mvreg.networks.multiscan.TargetScaling` of the network.
    """

    def __init__(self, loss: nn.Module, scaling: TargetScaling) -> None:
        super().__init__()
        self.loss = loss
        self.scaling = scaling

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Compare prediction and label ``(B, K)``, both in target units."""
        return self.loss(self.scaling.standardise(prediction), self.scaling.standardise(label))

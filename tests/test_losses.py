"""Number to loss: the unit of the target is of no consequence."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from monai_mvreg.losses import StandardisedLoss
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.pools import MeanPool

LOSSES = [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(delta=0.5)]


def first_step(loss: nn.Module, factor: float) -> tuple[Tensor, Tensor]:
    """Loss and head after one step towards labels in a unit smaller by a factor."""
    torch.manual_seed(0)
    net, image = MultiScanNet(nn.Flatten(), MeanPool(9)), torch.randn(5, 2, 1, 3, 3)
    label = torch.tensor([[1.2], [3.4], [2.2], [9.1], [5.0]]) * factor
    net.scaling.fit(label)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    value = StandardisedLoss(loss, net.scaling)(net(image), label)
    value.backward()
    optimizer.step()
    return value.detach(), net.head.weight.detach()


@pytest.mark.parametrize("loss", LOSSES)
def test_another_unit_changes_neither_loss_nor_step(loss: nn.Module) -> None:
    assert_close(first_step(loss, 1000.0), first_step(loss, 1.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_the_loss_of_standardised_numbers(loss: nn.Module) -> None:
    net = MultiScanNet(nn.Flatten(), MeanPool(4))
    net.scaling.fit(torch.tensor([[10.0], [30.0]]))
    prediction, label = torch.tensor([[20.0], [50.0]]), torch.tensor([[40.0], [45.0]])
    expected = loss(torch.tensor([[0.0], [3.0]]), torch.tensor([[2.0], [2.5]]))
    assert_close(StandardisedLoss(loss, net.scaling)(prediction, label), expected)

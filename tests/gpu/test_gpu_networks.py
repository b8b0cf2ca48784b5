"""Networks on a GPU: the outputs and gradients of a CPU, and the same numbers whatever saves time or memory."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from monai.networks.nets import Regressor, resnet10
from torch import Tensor, nn
from torch.testing import assert_close

from monai_mvreg import losses
from monai_mvreg.networks.encoders import HistogramEncoder, PretrainedEncoder, SliceEncoder, compile_encoder, lay_out
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.pools import GatedAttentionPool, MeanPool
from monai_mvreg.training.batches import StreamedImages

pytestmark = pytest.mark.gpu
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
TIME = torch.tensor([[0.0, 100.0, 400.0], [0.0, 0.0, 0.0], [0.0, 35.0, 0.0]])
LABEL = torch.tensor([[200.0, 1.0], [900.0, 0.0], [400.0, 1.0], [400.0, 1.0], [650.0, 0.0], [30.0, 1.0]])


def encoder_2d() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=0, in_chans=1)


def encoder_3d() -> nn.Module:
    sizes = {"n_input_channels": 1, "feed_forward": False, "shortcut_type": "B", "bias_downsample": False}
    return resnet10(spatial_dims=3, conv1_t_stride=2, **sizes)


def in_groups(edge: int) -> nn.Module:
    """Volumes, group normalisation and dropout: what may be encoded in chunks."""
    norm = ("group", {"num_groups": 4})
    return Regressor((1, edge, edge, edge), (16,), (8, 16), (2, 2), norm=norm, dropout=0.2)


ENCODERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "2D": (encoder_2d, (1, 64, 64), 512),
    "3D": (encoder_3d, (1, 32, 32, 32), 512),
}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.cpu().double() - expected.cpu().double()).norm() / expected.cpu().double().norm()).item()


def gradients(net: nn.Module, *inputs: Any, seed: int = 0) -> Tensor:
    """All gradients in one vector."""
    torch.manual_seed(seed)
    net.zero_grad()
    net(*inputs).square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None])


def test_every_pool_pools_and_learns_as_on_a_cpu(
    pool: nn.Module, embedded: tuple[Tensor, Tensor, Tensor], device: torch.device, on_device: Any
) -> None:
    net = MultiScanNet(nn.Linear(6, 6), pool)
    there = copy.deepcopy(net).to(device)
    with on_device():
        moved = tuple(x.to(device) for x in embedded)
        pooled, weights = there.pool(*moved)
        learned = gradients(there, *moved)
    wanted, shares = net.pool(*embedded)
    assert_close(pooled.cpu(), wanted, rtol=1e-4, atol=1e-5)
    assert_close(weights.cpu(), shares, rtol=1e-4, atol=1e-5)
    assert relative(learned, gradients(net, *embedded)) < 1e-4


@pytest.mark.parametrize(
    ("loss", "outputs", "columns"),
    [
        (losses.CoxLoss(), 1, 2),
        (losses.CoxLoss(efron=False), 1, 2),
        (losses.DiscreteHazardLoss([180, 365, 730]), 3, 2),
        (losses.WeibullLoss(scale=400.0), 2, 2),
        (losses.LogNormalLoss(scale=400.0), 2, 2),
        (losses.QuantileLoss([0.1, 0.5, 0.9]), 3, 1),
        (losses.GaussianLoss(), 2, 1),
    ],
)
def test_every_loss_and_its_gradient_are_those_of_a_cpu(
    loss: nn.Module, outputs: int, columns: int, device: torch.device, on_device: Any
) -> None:
    prediction, label = torch.randn(len(LABEL), outputs), LABEL[:, :columns]
    expect_same_loss(loss, prediction, label / (1 if columns == 2 else 300), device, on_device)


def expect_same_loss(loss: nn.Module, prediction: Tensor, label: Tensor, device: torch.device, on_device: Any) -> None:
    here, there = prediction.clone().requires_grad_(), prediction.to(device).requires_grad_()
    value = loss(here, label)
    value.backward()
    with on_device():
        found = copy.deepcopy(loss).to(device)(there, label.to(device))
        found.backward()
    assert_close(found.cpu(), value, rtol=1e-4, atol=1e-6)
    assert here.grad is not None and there.grad is not None and here.grad.abs().sum() > 0
    assert_close(there.grad.cpu(), here.grad, rtol=1e-4, atol=1e-6)


def test_cox_learns_from_a_risk_set_of_500_patients_in_one_step(device: torch.device, on_device: Any) -> None:
    time = torch.randint(1, 300, (500, 1)).float()  # with ties
    label = torch.cat([time, (torch.rand(500, 1) < 0.4).float()], dim=1)
    expect_same_loss(losses.CoxLoss(), 3 * torch.randn(500, 1), label, device, on_device)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_in_channels_last_embeds_and_learns_as_on_a_cpu(
    name: str, device: torch.device, on_device: Any
) -> None:
    make, shape, width = ENCODERS[name]
    net = MultiScanNet(make(), GatedAttentionPool(width)).eval()  # statistics of a few scans would amplify rounding
    there, image = copy.deepcopy(net).to(device), torch.randn(3, 3, *shape)
    lay_out(there, torch.channels_last if name == "2D" else torch.channels_last_3d)
    inputs = (image, MASK, TIME)
    with on_device():
        moved = tuple(x.to(device) for x in inputs)
        with torch.no_grad():
            embeddings = there.embed(*moved[:2])
        learned = gradients(there, *moved)
    with torch.no_grad():
        assert relative(embeddings, net.embed(*inputs[:2])) < 1e-4
    assert relative(learned, gradients(net, *inputs)) < 1e-4


@pytest.mark.parametrize("make", [lambda: HistogramEncoder(8, low=-2, high=2), lambda: SliceEncoder(encoder_2d())])
def test_encoders_of_this_package_embed_as_on_a_cpu(
    make: Callable[[], nn.Module], device: torch.device, on_device: Any
) -> None:
    encoder, image = make().eval(), torch.randn(3, 1, 32, 32, 4)
    with torch.no_grad():
        with on_device():
            found = copy.deepcopy(encoder).to(device)(image.to(device))
        assert relative(found, encoder(image)) < 1e-4


@pytest.mark.parametrize(("name", "frozen"), [("2D", True), ("3D", False)])
def test_a_compiled_encoder_embeds_the_same_for_any_number_of_scans(
    name: str, frozen: bool, device: torch.device, on_device: Any
) -> None:
    make, shape, width = ENCODERS[name]
    encoder = PretrainedEncoder(make(), learn=[] if frozen else ["*"])
    net = MultiScanNet(encoder, MeanPool(width)).to(device).eval()
    compiled = copy.deepcopy(net)
    compile_encoder(compiled.encoder)
    with on_device(), torch.no_grad():
        for scans in (2, 3):
            image = torch.randn(2, scans, *shape, device=device)
            assert relative(compiled.embed(image), net.embed(image)) < 1e-4


# ---- Chunks ----------------------------------------------------------------------------------------------------------


def test_gradients_in_chunks_equal_those_of_plain_backpropagation_with_dropout(
    device: torch.device, on_device: Any
) -> None:
    net = MultiScanNet(in_groups(16), MeanPool(16), chunk_size=2).to(device)
    image, mask = torch.randn(3, 3, 1, 16, 16, 16, device=device), MASK.to(device)

    def plain(image: Tensor, mask: Tensor) -> Tensor:
        """The same scans, two at a time in the same order, with all graphs kept."""
        embeddings = torch.zeros(*mask.shape, 16, device=device)
        embeddings[mask] = torch.cat([net.encoder(part) for part in image[mask].split(2)])
        return net.from_embeddings(embeddings, mask)[0]

    with on_device():
        found = gradients(net, image, mask)
        torch.manual_seed(0)
        net.zero_grad()
        plain(image, mask).square().sum().backward()
        expected = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert relative(found, expected) < 1e-5


def test_images_that_stay_in_host_memory_give_the_same_predictions_and_gradients(
    device: torch.device, on_device: Any
) -> None:
    net = MultiScanNet(in_groups(16), MeanPool(16), chunk_size=2).to(device)
    batch = {"image": torch.randn(3, 3, 1, 16, 16, 16), "mask": MASK, "time": TIME, "label": torch.zeros(3, 1)}
    with on_device():
        prepared = StreamedImages({"mask": "mask", "time": "time"})(batch, device, False)
        image, _, _, moved = prepared
        assert image.device.type == "cpu" and moved["mask"].device == device
        found = gradients(net, image, moved["mask"], moved["time"])
        expected = gradients(net, image.to(device), moved["mask"], moved["time"])
    assert relative(found, expected) < 1e-5


def test_the_memory_of_64_volumes_is_that_of_4(device: torch.device, on_device: Any) -> None:
    edge = 64 if device.type == "cuda" else 16
    net, peaks = MultiScanNet(in_groups(edge), GatedAttentionPool(16), chunk_size=2).to(device), []
    for scans in (4, 4, 64):  # the first one warms up
        image = torch.randn(1, scans, 1, edge, edge, edge)
        with on_device(), peak_memory(device) as measured:
            gradients(net, image)
        peaks += measured
    if device.type != "cuda":
        pytest.skip("peak memory is measured on a GPU only; the steps ran")
    assert peaks[2] <= 1.15 * peaks[1]


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Any:
    """Bytes of the GPU above those held before, as the one entry of a list once the context ends."""
    peak: list[int] = []
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield peak
    torch.cuda.synchronize()
    peak.append(torch.cuda.max_memory_allocated() - before)

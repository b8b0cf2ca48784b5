"""What the tests share: every pool and every encoder, one seed, one thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from label_server import label_server, monailabel_packages  # noqa: F401, fixtures
from monai.networks.nets import DenseNet121, EfficientNetBN, ViT, resnet10
from torch import Tensor, nn

from monai_mvreg.networks import pools
from monai_mvreg.networks.encoders import HistogramEncoder, SliceEncoder, TokenEncoder, cut_layer

torch.set_num_threads(1)

SIZE = 6
POOLS: dict[str, Callable[[], nn.Module]] = {
    "mean": lambda: pools.MeanPool(SIZE),
    "sum": lambda: pools.SumPool(SIZE),
    "max": lambda: pools.MaxPool(SIZE),
    "last": lambda: pools.LastPool(SIZE),
    "attention": lambda: pools.AttentionPool(SIZE, hidden=8),
    "attention in time": lambda: pools.AttentionPool(SIZE, hidden=8, time_encoding=pools.TimeEncoding()),
    "gated attention": lambda: pools.GatedAttentionPool(SIZE, hidden=8),
    "gated attention in time": lambda: pools.GatedAttentionPool(SIZE, hidden=8, time_encoding=pools.TimeEncoding()),
    "transformer": lambda: pools.TransformerPool(SIZE, hidden=8, heads=2),
    "transformer in time": lambda: pools.TransformerPool(SIZE, hidden=8, heads=2, time_encoding=pools.TimeEncoding()),
    "LSTM": lambda: pools.LSTMPool(SIZE, hidden=8),
    "LSTM in time": lambda: pools.LSTMPool(SIZE, hidden=8, layers=2, time_encoding=pools.TimeEncoding()),
    "GRU": lambda: pools.GRUPool(SIZE, hidden=8),
    "GRU in time": lambda: pools.GRUPool(SIZE, hidden=8, layers=2, time_encoding=pools.TimeEncoding()),
    "trend": lambda: pools.TrendPool(SIZE),
}


def monai_resnet(spatial_dims: int) -> nn.Module:
    return resnet10(
        spatial_dims=spatial_dims,
        n_input_channels=1,
        feed_forward=False,
        shortcut_type="B",
        bias_downsample=False,
        conv1_t_stride=2,
    )


def monai_vit() -> nn.Module:
    sizes = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
    return TokenEncoder(ViT(in_channels=1, img_size=(32, 32), patch_size=(16, 16), spatial_dims=2, **sizes))


ENCODERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "timm resnet50": (lambda: timm.create_model("resnet50", num_classes=0, in_chans=1), (1, 32, 32)),
    "timm vgg16": (lambda: timm.create_model("vgg16", num_classes=0, in_chans=1), (1, 32, 32)),
    "timm mobilenetv2": (lambda: timm.create_model("mobilenetv2_100", num_classes=0, in_chans=1), (1, 32, 32)),
    "MONAI resnet10 2D": (lambda: monai_resnet(2), (1, 32, 32)),
    "MONAI resnet10 3D": (lambda: monai_resnet(3), (1, 16, 16, 16)),
    "MONAI densenet": (lambda: cut_layer(DenseNet121(2, 1, 1), "class_layers.out"), (1, 32, 32)),
    "MONAI efficientnet": (
        lambda: cut_layer(EfficientNetBN("efficientnet-b0", False, spatial_dims=2, in_channels=1), "_fc"),
        (1, 32, 32),
    ),
    "MONAI ViT": (monai_vit, (1, 32, 32)),
    "histogram": (lambda: HistogramEncoder(8, low=-2, high=2), (1, 32, 32)),
    "slices": (lambda: SliceEncoder(monai_resnet(2)), (1, 32, 32, 3)),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all tests of a file in one process, since they share fixtures; start files in the order of their names."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def example_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that examples run in; a test that changes it breaks others."""
    from example_files import write_example_files

    return write_example_files(tmp_path_factory.mktemp("examples"))


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> nn.Module:
    return POOLS[request.param]().eval()


@pytest.fixture(scope="module", params=ENCODERS)
def encoder_and_shape(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """An encoder as after some training: statistics that fit its activations, so that scans tell apart."""
    make, shape = ENCODERS[request.param]
    torch.manual_seed(0)
    encoder = make()
    normalised = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in normalised:
        module.momentum = 1.0
    if normalised:
        with torch.no_grad():
            encoder.train()(torch.randn(6, *shape))
    return encoder.eval(), shape


@pytest.fixture
def embedded() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, mask and days of patients with 1, 2, 5 and 4 scans, rubbish where there is no scan."""
    mask = torch.arange(6) < torch.tensor([1, 2, 5, 4])[:, None]
    days = [[40, 0, 0, 0, 0, 0], [90, 30, 7, 7, 7, 7], [0, 400, 35, 35, 210, 999], [0, 700, 80, 700, -5, -900]]
    embeddings = torch.randn(4, 6, SIZE).masked_fill(mask.logical_not()[:, :, None], 1e4)
    return embeddings, mask, torch.tensor(days, dtype=torch.float32)

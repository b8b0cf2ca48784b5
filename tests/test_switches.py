"""The switches for speed in train.yaml: on or off, a network predicts the same within the stated tolerance."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.testing import assert_close

from monai_mvreg.networks.encoders import compile_encoder
from monai_mvreg.networks.multiscan import MultiScanNet
from tests.conftest import ENCODERS

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"
BFLOAT16 = 0.02  # relative: bfloat16 has 8 bits, and the roundings of many layers add up
MASK = torch.tensor([[True, True], [False, True]])


def parsed(name: str, **settings: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{part}.yaml") for part in ("train", "radiograph", name)])
    shape = {"pretrained": False, "spatial_size": [32, 32], "dropout": 0.0, "device": torch.device("cpu")}
    parser.update({**shape, **settings})
    return parser


def network(parser: ConfigParser) -> MultiScanNet:
    """The network of a config in the memory format it asks for, always with the same weights."""
    torch.manual_seed(0)
    net: MultiScanNet = parser.get_parsed_content("network_def")
    return net.to(memory_format=parser.get_parsed_content("memory_format"))


def gradients(net: nn.Module, image: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    net(image, MASK).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", sorted(ENCODERS.keys() - {"histogram"}))  # that one multiplies nothing
def test_an_embedding_in_bfloat16_is_that_of_float32_within_two_percent(name: str) -> None:
    # Fresh statistics of batch normalisation. Fitted to noise they amplify any rounding, of the pixels too.
    make, shape = ENCODERS[name]
    encoder, image = make().eval(), torch.randn(4, *shape)
    inferers = [parsed("resnet50_mean", bfloat16=on).get_parsed_content("train#inferer") for on in (False, True)]
    with torch.no_grad():
        exact, rounded = (inferer(image, encoder).float() for inferer in inferers)
    assert 0 < (rounded - exact).norm() <= BFLOAT16 * exact.norm()


def test_a_pool_in_bfloat16_learns_and_predicts_as_in_float32(
    pool: nn.Module, embedded: tuple[Tensor, Tensor, Tensor]
) -> None:
    embeddings, mask, time = embedded
    net = MultiScanNet(nn.Linear(6, 6), pool)
    inferer = parsed("resnet50_mean", bfloat16=True).get_parsed_content("train#inferer")
    exact, rounded = net(embeddings, mask, time), inferer(embeddings, net, mask, time)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert_close(rounded, exact, rtol=BFLOAT16, atol=BFLOAT16)
    rounded.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert net.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet50_mean", "mobilenetv2_attention"])
def test_channels_last_changes_neither_predictions_nor_gradients_nor_the_checkpoint(name: str) -> None:
    learn = {"encoder#learn": ["*"], "channels": 3}
    last, plain = network(parsed(name, **learn)), network(parsed(name, memory_format=torch.preserve_format, **learn))
    for net, contiguous in ((plain, True), (last, False)):
        wide = [p for p in net.parameters() if p.ndim == 4 and min(p.shape[:2]) > 1 and min(p.shape[2:]) > 1]
        assert wide and {p.is_contiguous() for p in wide} == {contiguous}
    image = torch.randn(2, 2, 3, 32, 32)
    assert_close(last(image, MASK), plain(image, MASK), rtol=1e-4, atol=1e-5)
    expected = gradients(plain, image)
    for parameter, gradient in gradients(last, image).items():
        assert (gradient - expected[parameter]).norm() <= 1e-3 * expected[parameter].norm() + 1e-5, parameter
    assert list(last.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(last.state_dict())
    assert_close(torch.jit.script(last.eval())(image, MASK), plain.eval()(image, MASK), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_encoder_predicts_the_same_for_any_number_of_scans_and_keeps_its_checkpoint() -> None:
    plain, compiled = network(parsed("resnet50_mean")), network(parsed("resnet50_mean"))
    names = list(plain.state_dict())
    compile_encoder(compiled.encoder)
    for scans in (2, 3, 5):
        image = torch.randn(2, scans, 1, 32, 32)
        with torch.no_grad():
            assert_close(compiled(image), plain(image), rtol=1e-4, atol=1e-5)
    assert list(compiled.state_dict()) == names

"""Scan to embedding: promises of every encoder, then freezing and pretrained weights."""

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from monai.networks.nets import resnet10
from torch import Tensor, nn
from torch.testing import assert_close

from monai_mvreg.cache.fingerprint import fingerprint
from monai_mvreg.networks.encoders import (
    HistogramEncoder,
    PretrainedEncoder,
    SliceEncoder,
    TokenEncoder,
    compile_encoder,
    cut_layer,
    embedding_size,
    lay_out,
    load_weights,
)
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.pools import MeanPool

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
EncoderAndShape = tuple[nn.Module, tuple[int, ...]]
MASK = torch.tensor([[True, True], [False, True]])


def network(encoder_and_shape: EncoderAndShape) -> tuple[MultiScanNet, Tensor]:
    """A network around an encoder, whose predictions spread by about one, and two patients with 2 and 1 scans."""
    encoder, shape = encoder_and_shape
    image = torch.randn(2, 2, *shape)
    net = MultiScanNet(encoder, MeanPool(embedding_size(encoder, shape))).eval()
    with torch.no_grad():
        spread = net.embed(image).flatten(0, 1).std(0).norm()
        assert spread > 0, "expected scans that tell apart"
        net.head.weight /= net.head.weight.norm() * spread
    return net, image


def stages() -> nn.Module:
    """Two stages of convolution, batch normalisation and dropout."""

    def stage(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())

    net = nn.Sequential()
    net.add_module("low", stage(1))
    net.add_module("high", stage(4))
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", nn.Flatten())
    return net


def state_after_training(encoder: nn.Module) -> dict[str, Tensor]:
    """Three large steps on all parameters that may learn."""
    net = MultiScanNet(encoder, MeanPool(4)).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(2, 2, 1, 8, 8) * 3 + 1).square().sum().backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name in before if not torch.equal(before[name], after[name])]


# ---- Promises of every encoder ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_encoder_gives_one_vector_per_scan(encoder_and_shape: EncoderAndShape) -> None:
    encoder, shape = encoder_and_shape
    assert encoder(torch.randn(2, *shape)).shape == (2, embedding_size(encoder, shape))


@torch.no_grad()
def test_padding_and_batch_mates_never_change_a_prediction(encoder_and_shape: EncoderAndShape) -> None:
    net, image = network(encoder_and_shape)
    both = net(image, MASK)
    assert_close(net(image[:1]), both[:1], rtol=1e-3, atol=1e-3)
    assert_close(net(image[1:, 1:]), both[1:], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_row_order_never_changes_a_prediction(encoder_and_shape: EncoderAndShape) -> None:
    net, image = network(encoder_and_shape)
    assert_close(net(image.flip(1), MASK.flip(1)), net(image, MASK), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_scripted_equals_eager(encoder_and_shape: EncoderAndShape) -> None:
    net, image = network(encoder_and_shape)
    assert_close(torch.jit.script(net)(image, MASK), net(image, MASK), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_traced_equals_eager_for_other_numbers_of_patients_and_scans(encoder_and_shape: EncoderAndShape) -> None:
    net, image = network(encoder_and_shape)
    traced = torch.jit.trace(net, image, check_trace=False)
    assert_close(traced(image[:1, :1]), net(image[:1, :1]), rtol=1e-3, atol=1e-3)


# ---- Freezing --------------------------------------------------------------------------------------------------------


def test_a_frozen_encoder_stays_in_evaluation_mode() -> None:
    net = MultiScanNet(PretrainedEncoder(stages()), MeanPool(4)).train()
    assert not any(module.training for module in net.encoder.encoder.modules())
    assert net.head.training


def test_a_frozen_encoder_builds_no_graph() -> None:
    assert not PretrainedEncoder(stages()).train()(torch.randn(2, 1, 8, 8)).requires_grad


def test_a_frozen_encoder_changes_nothing_in_training() -> None:
    encoder = PretrainedEncoder(stages())
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert changed(before, state_after_training(encoder)) == []


def test_dropout_in_a_frozen_part_is_off() -> None:
    encoder, image = PretrainedEncoder(stages(), learn=["high.*"]).train(), torch.randn(2, 1, 8, 8)
    assert not encoder.encoder.low[2].training and encoder.encoder.high[2].training
    assert_close(encoder.encoder.low(image), encoder.encoder.low(image))


def test_only_the_named_stages_learn() -> None:
    encoder = PretrainedEncoder(stages(), learn=["high.*"])
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    parameters = {f"encoder.high.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    assert set(changed(before, state_after_training(encoder))) == parameters


def test_batch_statistics_stay_in_the_learning_parts_too() -> None:
    encoder = PretrainedEncoder(stages(), learn=["*"])
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    after = changed(before, state_after_training(encoder))
    assert "encoder.low.0.weight" in after
    assert not [name for name in after if "running" in name or "tracked" in name]


def test_a_learning_encoder_equals_the_bare_one_in_evaluation() -> None:
    encoder, image = stages().eval(), torch.randn(2, 1, 8, 8)
    assert_close(PretrainedEncoder(encoder, learn=["high.*"]).eval()(image), encoder(image))


def test_a_pattern_that_matches_nothing_is_refused_with_the_stages_named() -> None:
    with pytest.raises(ValueError, match=r"such as \['low\.\*', 'high\.\*'\], got 'layer4\.\*'"):
        PretrainedEncoder(stages(), learn=["high.*", "layer4.*"])


def test_a_frozen_encoder_scripts_and_equals_eager() -> None:
    encoder, image = PretrainedEncoder(stages()), torch.randn(2, 1, 8, 8)
    assert_close(torch.jit.script(encoder)(image), encoder(image))


# ---- Compiled with the weights as constants -------------------------------------------------------------------------


def fitted() -> nn.Module:
    """Two stages whose batch normalisation changes what it gets."""
    encoder = stages()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 2.0)
    return encoder


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that are compiled, by a compiler that leaves them as they are."""
    found: list[nn.Module] = []

    def stand_in(network: nn.Module, *, dynamic: bool) -> nn.Module:
        found.append(network)
        return network

    monkeypatch.setattr(torch, "compile", stand_in)
    return found


@pytest.mark.slow
def test_compiled_with_its_weights_as_constants_an_encoder_gives_the_same_for_any_number_of_scans() -> None:
    one, two = PretrainedEncoder(fitted()), PretrainedEncoder(fitted()).to(memory_format=torch.channels_last)
    compile_encoder(one)
    compile_encoder(two)
    for encoder, weights in ((one, fitted()), (two, fitted()), (one, fitted())):
        encoder.encoder.load_state_dict(weights.state_dict())
        for scans in (2, 5):
            image = torch.randn(scans, 1, 8, 8)
            with torch.no_grad():
                expected = weights.eval()(image)
            assert (encoder(image) - expected).norm() <= 1e-5 * expected.norm()
            with torch.autocast("cpu", torch.bfloat16):
                rounded = encoder(image).float()
            assert 0 < (rounded - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: encoder.encoder.load_state_dict(fitted().state_dict()),
        lambda encoder: encoder.encoder.low[1].running_mean.add_(1.0),
        lambda encoder: nn.init.uniform_(encoder.encoder.low[0].weight),
        lambda encoder: setattr(encoder.encoder.low[0].weight, "data", torch.ones(4, 1, 3, 3)),
        lambda encoder: encoder.half().float(),
    ],
)
def test_changed_weights_are_compiled_anew(
    change: Callable[[PretrainedEncoder], Any], compilations: list[nn.Module]
) -> None:
    encoder, image = PretrainedEncoder(fitted()), torch.randn(2, 1, 8, 8)
    compile_encoder(encoder)
    before = encoder(image)
    change(encoder)
    assert_close(encoder(image), encoder.encoder(image).detach(), rtol=0, atol=0)
    assert not torch.equal(encoder(image), before) and len(compilations) == 2


def test_the_same_weights_loaded_again_are_not_compiled_again(compilations: list[nn.Module]) -> None:
    encoder, image = PretrainedEncoder(fitted()), torch.randn(2, 1, 8, 8)
    compile_encoder(encoder)
    for _ in range(3):
        encoder(image)
        encoder.load_state_dict({name: tensor.clone() for name, tensor in encoder.state_dict().items()})
        encoder.to(memory_format=torch.channels_last).double().float()
    assert len(compilations) == 1


def test_copies_files_and_exports_of_a_compiled_encoder_are_those_of_the_plain_one(
    compilations: list[nn.Module],
) -> None:
    encoder, image = PretrainedEncoder(fitted()), torch.randn(2, 1, 8, 8)
    names, size, expected = list(encoder.state_dict()), len(pickle.dumps(encoder)), encoder(image)
    compile_encoder(encoder)
    encoder(image)
    assert list(encoder.state_dict()) == names and len(pickle.dumps(encoder)) < size + 200
    for other in (torch.jit.script(encoder), torch.jit.trace(encoder, image)):
        assert_close(other(image), expected, rtol=0, atol=0)
    assert len(compilations) == 1
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        with torch.no_grad():
            other.encoder.low[0].weight.add_(1.0)
        assert_close(other(image), other.encoder(image).detach(), rtol=0, atol=0)
    assert_close(encoder(image), expected, rtol=0, atol=0)


def test_a_compiled_encoder_has_the_fingerprint_of_the_plain_one(compilations: list[nn.Module]) -> None:
    encoder = PretrainedEncoder(fitted())
    before = fingerprint(encoder)
    compile_encoder(encoder)
    encoder(torch.randn(2, 1, 8, 8))
    assert fingerprint(encoder) == before and compilations


def test_a_layout_for_pictures_is_refused_for_volumes_and_the_other_way_round() -> None:
    with pytest.raises(
        ValueError, match=r"expected torch\.channels_last_3d for an encoder of volumes, got torch\.chan"
    ):
        lay_out(nn.Conv3d(1, 2, 3), torch.channels_last)
    with pytest.raises(ValueError, match=r"expected torch\.channels_last for an encoder of pictures, got torch\.chan"):
        lay_out(nn.Conv2d(1, 2, 3), torch.channels_last_3d)


def test_a_layout_reaches_the_weights() -> None:
    encoder = nn.Conv3d(2, 2, 3)
    lay_out(encoder, torch.preserve_format)
    assert encoder.weight.is_contiguous()
    lay_out(encoder, torch.channels_last_3d)
    assert not encoder.weight.is_contiguous()


# ---- Parts -----------------------------------------------------------------------------------------------------------


def test_a_slice_encoder_is_the_mean_over_slices_encoded_one_by_one() -> None:
    encoder, volumes = stages().eval(), torch.randn(2, 1, 8, 8, 5)
    expected = torch.stack([encoder(volumes[..., k]) for k in range(5)]).mean(0)
    assert_close(SliceEncoder(encoder)(volumes), expected)


def test_a_token_encoder_is_the_mean_over_tokens() -> None:
    class Tokens(nn.Module):
        def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
            return image.flatten(2), [image]

    image = torch.randn(2, 5, 3, 4)
    assert_close(TokenEncoder(Tokens())(image), image.flatten(2).mean(1))


def test_a_layer_that_is_not_there_cannot_be_cut() -> None:
    with pytest.raises(AttributeError, match="classifier"):
        cut_layer(stages(), "classifier")


def test_an_encoder_that_keeps_its_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one embedding \(1, E\) .* got \(1, 4, 6, 6\)"):
        embedding_size(nn.Conv2d(1, 4, 3), (1, 8, 8))


def test_finding_the_size_changes_no_statistics_and_no_mode() -> None:
    encoder = stages().train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert embedding_size(encoder, (1, 8, 8)) == 4
    assert changed(before, encoder.state_dict()) == [] and encoder.training


# ---- Pretrained weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "first"), [("resnet18", "conv1"), ("mobilenetv2_100", "conv_stem")])
def test_colour_weights_are_summed_for_grey_scans(name: str, first: str, tmp_path: Path) -> None:
    colour = timm.create_model(name, pretrained=False)
    torch.save(colour.state_dict(), tmp_path / "colour.pth")
    overlay = {"file": str(tmp_path / "colour.pth")}
    grey = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=0)
    image = torch.randn(2, 1, 32, 32)
    assert_close(grey.get_submodule(first).weight, colour.get_submodule(first).weight.sum(1, keepdim=True))
    # A grey picture shown in three equal channels looks the same.
    with torch.no_grad():
        colour.reset_classifier(0)
        assert_close(grey.eval()(image), colour.eval()(image.expand(2, 3, 32, 32)), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def medicalnet() -> Callable[[], nn.Module]:
    return lambda: resnet10(
        n_input_channels=1, feed_forward=False, shortcut_type="B", bias_downsample=False, conv1_t_stride=2
    )


def as_bare(state: dict[str, Tensor]) -> dict[str, Any]:
    return state


def as_medicalnet(state: dict[str, Tensor]) -> dict[str, Any]:
    """With optimizer and segmentation layers, and without the counters, which torch did not have then."""
    tensors = {f"module.{name}": tensor for name, tensor in state.items() if not name.endswith("tracked")}
    return {"state_dict": {**tensors, "module.conv_seg.0.weight": torch.zeros(2, 2)}, "epoch": 3}


@pytest.mark.parametrize("form", [as_bare, as_medicalnet])
def test_weights_are_read_bare_and_as_medicalnet_writes_them(
    form: Callable[[dict[str, Tensor]], Any], medicalnet: Callable[[], nn.Module], tmp_path: Path
) -> None:
    source, image = medicalnet().eval(), torch.randn(1, 1, 16, 16, 16)
    torch.save(form(source.state_dict()), tmp_path / "weights.pth")
    loaded = load_weights(medicalnet(), str(tmp_path / "weights.pth")).eval()
    assert_close(loaded(image), source(image))


def test_a_missing_tensor_is_refused_by_name_and_nothing_is_loaded(tmp_path: Path) -> None:
    state, net = stages().state_dict(), stages()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    del state["high.0.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: 1 tensors are missing \['high\.0\.weight'\]"):
        load_weights(net, str(tmp_path / "weights.pth"))
    assert changed(before, net.state_dict()) == []


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({**stages().state_dict(), "low.0.weight": torch.zeros(4, 2, 3, 3)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"1 have another shape \['low\.0\.weight'\]"):
        load_weights(stages(), str(tmp_path / "weights.pth"))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_weights(stages(), str(tmp_path / "nowhere.pth"))


class Code:
    """An object that runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_file_that_holds_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    torch.save({**stages().state_dict(), "extra": Code(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(pickle.UnpicklingError):
        load_weights(stages(), str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()


# ---- Histogram -------------------------------------------------------------------------------------------------------


def test_the_shares_of_intensities_are_those_of_numpy() -> None:
    """At the centres of bins it is the histogram of numpy; between two, both have a part by distance."""
    image = torch.randint(0, 5, (2, 3, 7, 6)).float()
    found = HistogramEncoder(5, low=0.0, high=4.0)(image)
    for scan, shares in zip(image, found.unflatten(1, (3, 5)), strict=True):
        for channel, own in zip(scan, shares, strict=True):
            expected = np.histogram(channel, bins=np.arange(-0.5, 5))[0] / channel.numel()
            assert_close(own.numpy(), expected.astype(np.float32))
    assert_close(HistogramEncoder(3)(torch.tensor([[[0.1, -7.0]]])), torch.tensor([[0.9, 0.1, 0.0]]))
    assert_close(HistogramEncoder(3)(torch.tensor([[[0.1, 9.0]]])), torch.tensor([[0.4, 0.1, 0.5]]))


def test_gradients_of_a_histogram_reach_the_image() -> None:
    image = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(HistogramEncoder(4), image)


@pytest.mark.parametrize("bins", [{"bins": 1}, {"bins": 4, "low": 1.0, "high": 1.0}])
def test_a_histogram_without_bins_is_refused(bins: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected at least two bins from low to high"):
        HistogramEncoder(**bins)


def test_a_part_that_is_unfrozen_later_is_trained_from_then_on() -> None:
    encoder = PretrainedEncoder(
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2), nn.Dropout())), learn=["0.*"]
    )
    first, second = encoder.encoder
    assert first.training and not any(module.training for module in second.modules())
    second.requires_grad_(True)
    encoder.train()
    assert all(module.training for module in second.modules())
    first.requires_grad_(False)
    assert not encoder.train().encoder[0].training and not encoder.eval().encoder[1].training


def test_one_pattern_is_a_list_of_one() -> None:
    encoder = PretrainedEncoder(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), learn="1.*")
    assert [parameter.requires_grad for parameter in encoder.parameters()] == [False, False, True, True]


def test_weights_of_three_colours_are_summed_for_one_channel(tmp_path: Path) -> None:
    colours, grey = (nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Conv2d(4, 2, 3)) for channels in (3, 1))
    torch.save(colours.state_dict(), tmp_path / "colours.pt")
    load_weights(grey, str(tmp_path / "colours.pt"))
    image = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(grey(image), colours(image.expand(-1, 3, -1, -1)))

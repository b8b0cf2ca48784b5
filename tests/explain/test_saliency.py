"""Saliency: closed forms, every pool, every encoder, and a network that is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor, nn

from monai_mvreg.explain.saliency import (
    NumberByScan,
    _rank_correlation,
    fix_patient,
    gradcam,
    mean_map,
    occlusion,
    randomisation_check,
    spatial_layer,
)
from monai_mvreg.networks.encoders import PretrainedEncoder, SliceEncoder
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.pools import MaxPool, MeanPool
from tests.conftest import SIZE

WITHOUT_PLACES = ("MONAI ViT", "histogram")


class Filters(nn.Sequential):
    """Filters of one voxel and their means: what GradCAM and occlusion give can be written down."""

    def __init__(self, spatial_dims: int = 2) -> None:
        kind, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if spatial_dims == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
        super().__init__(kind(1, SIZE, 1, bias=False), pool(1), nn.Flatten())


def same(outputs: Tensor) -> Tensor:
    return outputs


def fixed(net: MultiScanNet, images: list[Tensor], readout: Callable[[Tensor], Tensor] = same) -> NumberByScan:
    count = len(images)
    return fix_patient(
        net.eval(),
        images,
        days=torch.arange(count) * 100.0,
        views=torch.arange(count) % 2,
        covariates=torch.tensor([1.5, torch.nan]),
        readout=readout,
    )


def scans(*shape: int, count: int = 3) -> list[Tensor]:
    return list(torch.rand(count, *shape))


def weight(net: MultiScanNet) -> Tensor:
    """How the number of a mean pool over :class:`Filters` depends on the mean of a scan."""
    return (net.head.weight @ net.encoder[0].weight.flatten(1)).squeeze()  # type: ignore[index]


def test_the_number_is_that_of_the_network_whichever_scan_is_looked_at(pool: nn.Module) -> None:
    net = MultiScanNet(Filters(), pool, views=2, covariates=2, outputs=2)
    nn.init.normal_(net.view.weight)  # type: ignore[union-attr]
    images = scans(1, 8, 8)
    number = fixed(net, images)
    whole = torch.stack(images)[None]
    expected = net(
        whole, None, torch.tensor([[0.0, 100, 200]]), torch.tensor([[0, 1, 0]]), torch.tensor([[1.5, torch.nan]])
    )
    for place in range(3):
        for which in range(2):
            seen = replace(number, place=place, number=which)(images[place][None])
            torch.testing.assert_close(seen, expected[:, [which]])


def test_gradcam_of_a_linear_network_is_its_weight_times_the_scan() -> None:
    net = MultiScanNet(Filters(), MeanPool(SIZE))
    net.scaling.std.fill_(7.0)  # target units
    images = scans(1, 5, 6)
    found = gradcam(fixed(net, images), images[0])
    torch.testing.assert_close(found, 7 * weight(net).detach() * images[0][0] / (3 * 30))


def test_occlusion_is_the_mean_fall_of_the_number_over_the_boxes_that_cover_a_voxel() -> None:
    net = MultiScanNet(Filters(), MeanPool(SIZE))
    images = scans(1, 8, 12)
    number = fixed(net, images)
    blurred = torch.tensor(gaussian_filter(images[0][0].numpy(), (1, 1.5), mode="constant"))
    total, count = torch.zeros(8, 12), torch.zeros(8, 12)
    for row in range(0, 7):
        for column in range(0, 10):
            box = (slice(row, row + 2), slice(column, column + 3))
            covered = images[0].clone()
            covered[0][box] = blurred[box]
            total[box] += float(number(images[0][None]) - number(covered[None]))
            count[box] += 1
    # Boxes of 2 x 3 that overlap by half start at every voxel.
    torch.testing.assert_close(occlusion(number, images[0], boxes=4), (total / count).detach(), atol=2e-5, rtol=0.02)


@pytest.mark.parametrize("method", [gradcam, occlusion])
def test_what_lowers_the_number_is_negative(method: Callable[[NumberByScan, Tensor], Tensor]) -> None:
    net = MultiScanNet(Filters(), MeanPool(SIZE))
    images = scans(1, 16, 16)
    images[0][0, 10, 3] = 30.0
    raised, lowered = method(fixed(net, images), images[0]), method(fixed(net, images, torch.neg), images[0])
    torch.testing.assert_close(lowered, -raised)
    assert raised[10, 3] * weight(net) > 0
    assert raised.abs()[10, 3] == raised.abs().max()


def test_a_scan_that_decides_nothing_has_an_empty_map() -> None:
    net = MultiScanNet(Filters(), MaxPool(SIZE))
    net.encoder[0].weight.data.abs_()  # type: ignore[index]
    images = [torch.full((1, 8, 8), level) for level in (0.1, 1.0)]
    images[1][0, :4] = 2.0
    number = fixed(net, images)
    assert not gradcam(number, images[0]).any() and not occlusion(number, images[0]).any()
    assert gradcam(replace(number, place=1), images[1]).any()


def test_every_pool_can_be_looked_through(pool: nn.Module) -> None:
    net = MultiScanNet(Filters(), pool, covariates=2)
    images = scans(1, 8, 8)
    number = replace(fixed(net, images), place=2)
    assert gradcam(number, images[2]).any() and occlusion(number, images[2], boxes=2).any()


def test_every_encoder_has_a_map_or_says_that_it_has_no_places(
    encoder_and_shape: tuple[nn.Module, tuple[int, ...]], request: pytest.FixtureRequest
) -> None:
    encoder, shape = encoder_and_shape
    images = scans(*shape, count=2)
    size = encoder(images[0][None]).shape[1]
    number = fixed(MultiScanNet(encoder, MeanPool(size)), images)
    assert occlusion(number, images[0], boxes=2).shape == shape[1:]
    if any(name in request.node.name for name in WITHOUT_PLACES):
        with pytest.raises(ValueError, match="take occlusion"):
            gradcam(number, images[0])
    else:
        found = gradcam(number, images[0])
        assert found.shape == shape[1:] and found.isfinite().all() and found.std() > 0


def test_channels_last_are_not_taken_for_places() -> None:
    import timm

    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, in_chans=1, img_size=64, window_size=2)
    with pytest.raises(ValueError, match="SwinTransformer has none"):
        spatial_layer(swin.eval(), torch.rand(1, 64, 64))


def test_the_layer_is_the_last_that_tells_places_apart(
    encoder_and_shape: tuple[nn.Module, tuple[int, ...]], request: pytest.FixtureRequest
) -> None:
    encoder, shape = encoder_and_shape
    known = {
        "timm resnet50": (224, "layer4"),
        "MONAI resnet10 3D": (56, "layer2"),
        "MONAI densenet": (224, "class_layers.relu"),
    }
    for name, (size, layer) in known.items():
        if name in request.node.name:
            assert spatial_layer(encoder, torch.rand(shape[0], size, *(size // 2 for _ in shape[2:]))) == layer
            return
    pytest.skip("named for a few encoders only")


def test_a_branch_of_a_residual_block_is_no_place_to_look_at() -> None:
    import timm

    # At 12 pixels the third stage ends with one place, but its first block begins with four.
    encoder = timm.create_model("resnet18", num_classes=0, in_chans=1).eval()
    assert spatial_layer(encoder, torch.rand(1, 12, 12)) == "layer2"


@pytest.mark.parametrize(("size", "layer"), [(224, "layer4"), (200, "layer4"), (192, "layer3"), (64, "layer2")])
def test_the_layer_has_seven_places_along_an_axis_where_there_is_one(size: int, layer: str) -> None:
    import timm

    encoder = timm.create_model("resnet18", num_classes=0, in_chans=1).eval()
    assert spatial_layer(encoder, torch.rand(1, size, size // 2)) == layer


def test_a_frozen_encoder_has_the_map_of_one_that_learns() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, SIZE, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learns, frozen = MultiScanNet(encoder, MeanPool(SIZE)), MultiScanNet(PretrainedEncoder(encoder), MeanPool(SIZE))
    frozen.head.load_state_dict(learns.head.state_dict())
    images = scans(1, 8, 8)
    expected = gradcam(fixed(learns, images), images[0])
    assert expected.any()
    torch.testing.assert_close(gradcam(fixed(frozen, images), images[0]), expected)
    for parameter in encoder.parameters():
        assert not parameter.requires_grad


def test_an_earlier_layer_can_be_named_whatever_writes_over_it() -> None:
    layers = [nn.Conv2d(1, SIZE, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    images = scans(1, 8, 8)
    net = MultiScanNet(nn.Sequential(*layers), MeanPool(SIZE))
    found = gradcam(fixed(net, images), images[0], layer="0")
    layers[1] = nn.ReLU()
    other = MultiScanNet(nn.Sequential(*layers), MeanPool(SIZE))
    other.head = net.head
    torch.testing.assert_close(found, gradcam(fixed(other, images), images[0], layer="0"))
    assert not torch.allclose(found, gradcam(fixed(net, images), images[0]))
    with pytest.raises(AttributeError, match="layer4"):
        gradcam(fixed(net, images), images[0], layer="layer4")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_compiled_encoder_has_the_map_of_its_own(wrapped: bool) -> None:
    encoder = Filters()
    images = scans(1, 8, 8)
    net = MultiScanNet(encoder, MeanPool(SIZE))
    expected = gradcam(fixed(net, images), images[0])
    if wrapped:
        net.encoder = torch.compile(encoder, backend="eager")  # type: ignore[assignment]
    else:
        encoder.compile(backend="eager")
    torch.testing.assert_close(gradcam(fixed(net, images), images[0]), expected)


def test_encoding_in_chunks_changes_no_map() -> None:
    net = MultiScanNet(Filters(), MeanPool(SIZE))
    images = scans(1, 8, 8)
    chunked = MultiScanNet(net.encoder, net.pool, chunk_size=1)
    chunked.load_state_dict(net.state_dict())
    for method in (gradcam, occlusion):
        expected = method(fixed(net, images), images[0])
        torch.testing.assert_close(method(fixed(chunked, images), images[0]), expected)


def test_the_network_is_left_as_it_was() -> None:
    encoder = nn.Sequential(nn.Conv2d(1, SIZE, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = MultiScanNet(encoder, MeanPool(SIZE))
    images = scans(1, 8, 8)
    number = fixed(net, images)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    gradcam(number, images[0])
    occlusion(number, images[0], boxes=2)
    randomisation_check([number], images[0], method=gradcam)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    for module in net.modules():
        assert not module.training and not module._forward_hooks and not module._backward_hooks
    assert encoder[1].inplace and all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_volume_read_slice_by_slice_shows_the_slice() -> None:
    slices = SliceEncoder(nn.Sequential(nn.Conv2d(1, SIZE, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    images = [torch.zeros(1, 12, 10, 7), torch.zeros(1, 12, 10, 7)]
    images[0][0, 2, 8, 5] = 50.0
    number = fixed(MultiScanNet(slices, MeanPool(SIZE)), images)
    for found in (gradcam(number, images[0]), occlusion(number, images[0])):
        assert found.shape == (12, 10, 7)
    peak = (gradcam(number, images[0]) - gradcam(number, images[1])).abs().argmax()
    assert tuple(int(at) for at in torch.unravel_index(peak, (12, 10, 7))) == (2, 8, 5)


def test_an_ensemble_has_the_mean_of_the_maps() -> None:
    images = scans(1, 8, 8)
    members = [fixed(MultiScanNet(Filters(), MeanPool(SIZE)), images) for _ in range(2)]
    each = [gradcam(member, images[0]) for member in members]
    torch.testing.assert_close(mean_map(members, images[0], gradcam), (each[0] + each[1]) / 2)


def test_a_map_that_shows_the_scan_alone_is_told_by_random_weights() -> None:
    images = scans(1, 8, 8)
    number = fixed(MultiScanNet(Filters(), MeanPool(SIZE)), images)

    def edges(number: NumberByScan, image: Tensor) -> Tensor:
        return image[0] - image[0].mean()

    check = randomisation_check([number], images[0], method=edges)
    assert (check.head, check.whole) == pytest.approx((1, 1))


def test_maps_of_a_deep_network_change_with_its_weights() -> None:
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, SIZE, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    images = [torch.randn(1, 32, 32) for _ in range(2)]
    check = randomisation_check([fixed(MultiScanNet(encoder, MeanPool(SIZE)), images)], images[0], method=gradcam)
    assert check.head < 0.8 and check.whole < 0.5


def test_a_check_does_not_touch_the_random_numbers_of_others_and_repeats() -> None:
    images = scans(1, 8, 8)
    number = fixed(MultiScanNet(Filters(), MeanPool(SIZE)), images)
    state = torch.get_rng_state()
    first, second = (randomisation_check([number], images[0], method=gradcam) for _ in range(2))
    assert first == second and torch.equal(state, torch.get_rng_state())


def test_the_rank_correlation_is_that_of_scipy() -> None:
    first, second = torch.randint(0, 9, (200,)).float(), torch.randint(0, 5, (200,)).float()
    expected = spearmanr(first.numpy(), second.numpy()).statistic
    assert _rank_correlation(first, second) == pytest.approx(expected)
    assert _rank_correlation(first, torch.zeros(200)) == 0


def test_an_encoder_that_cuts_the_gradients_is_refused_with_a_sentence() -> None:
    class Cut(Filters):
        def forward(self, image: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(image)

    images = scans(1, 8, 8)
    with pytest.raises(ValueError, match="Cut has none: take occlusion"):
        gradcam(fixed(MultiScanNet(Cut(), MeanPool(SIZE)), images), images[0])

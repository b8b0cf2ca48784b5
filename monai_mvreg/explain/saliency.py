"""Which regions of a scan the number of its patient comes from: GradCAM and occlusion, on the network's grid.

A map is positive where the scan raises the number and negative where it lowers it, given the patient's other scans.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.transforms import GaussianSmooth
from monai.visualize import GradCAM, OcclusionSensitivity
from monai.visualize.visualizer import default_upsampler
from torch import Tensor, nn

from monai_mvreg.networks.encoders import PretrainedEncoder
from monai_mvreg.networks.multiscan import MultiScanNet

Readout = Callable[[Tensor], Tensor]
_BATCH = 16  # scans with a covered box that are encoded at once
_PLACES = 7  # along an axis, of the last layer of the networks that GradCAM is known from


@dataclass(frozen=True)
class NumberByScan:
    """One number of a patient as a function of one scan, while the patient's other scans stay as they are.

    ``embeddings (N, E)`` are those of all scans, made once; that of the scan at ``place`` is what changes. ``readout``
    turns outputs of the network ``(M, K)`` into numbers ``(M, T)``, of which the one at ``number`` is looked at.
    """

    net: MultiScanNet
    embeddings: Tensor
    days: Tensor
    views: Tensor
    covariates: Tensor
    readout: Readout
    place: int = 0
    number: int = 0

    def __call__(self, image: Tensor) -> Tensor:
        """The number ``(M, 1)`` in target units if the scan were one of ``image (M, C, *spatial)``."""
        embedding, count = self.net.encoder(image), len(image)
        whole = self.embeddings.expand(count, -1, -1)
        whole = torch.cat([whole[:, : self.place], embedding[:, None], whole[:, self.place + 1 :]], dim=1)
        covariates = self.covariates.expand(count, -1) if self.net.covariates is not None else None
        days, views = self.days.expand(count, -1), self.views.expand(count, -1)
        outputs, _ = self.net.from_embeddings(whole, None, days, views, covariates)
        return self.readout(outputs)[:, self.number, None].to(torch.float32)


SaliencyMap = Callable[[NumberByScan, Tensor], Tensor]


@torch.no_grad()
def fix_patient(
    net: MultiScanNet, images: Sequence[Tensor], *, days: Tensor, views: Tensor, covariates: Tensor, readout: Readout
) -> NumberByScan:
    """Encode the scans of a patient once, to look at one after the other (``dataclasses.replace(..., place=n)``).

    Args:
        net: a trained network in evaluation mode.
        images: the prepared scans, ``(C, *spatial)`` each.
        days: ``(N,)``.
        views: ``(N,)``, read only if the network has views.
        covariates: ``(V,)``, NaN where missing.
        readout: turns outputs ``(M, K)`` into numbers ``(M, T)``; for a time to event the log risk.
    """
    device = net.head.weight.device
    views = views.to(device)
    embeddings = torch.cat([net.embed(_plain(image, net)[:, None]) for image in images], dim=1)[0]
    return NumberByScan(net, embeddings, days.to(device, torch.float32), views, covariates.to(device), readout)


def mean_map(numbers: Sequence[NumberByScan], image: Tensor, method: SaliencyMap) -> Tensor:
    """The mean of the maps ``(*spatial)`` of a scan ``(C, *spatial)`` by each network of an ensemble."""
    return torch.stack([method(number, image) for number in numbers]).mean(0)


class _Wrapped(nn.Module):
    """What MONAI's methods take: a module of the scan alone, with the network below it."""

    def __init__(self, number: NumberByScan) -> None:
        super().__init__()
        self.net = number.net
        self.number = number
        self.training = False  # MONAI would set the network back to the mode of this module


class _BothDirections(_Wrapped):
    def forward(self, image: Tensor) -> Tensor:
        """The number and its negative, ``(M, 2)``: what raises it and what lowers it are two classes for GradCAM."""
        number = self.number(image)
        return torch.cat([number, -number], dim=1)


class _Covered(_Wrapped):
    def __init__(self, number: NumberByScan, image: Tensor, cover: Tensor) -> None:
        super().__init__(number)
        self.image, self.cover = image, cover

    def forward(self, shown: Tensor) -> Tensor:
        """The number where ``shown (M, 1, *spatial)`` is 0 the cover is seen, and where it is 1 the scan."""
        return self.number(self.cover + shown * (self.image - self.cover))


@torch.enable_grad()
def gradcam(number: NumberByScan, image: Tensor, *, layer: str | None = None) -> Tensor:
    """Compute GradCAM of a scan: regions that raise the number minus regions that lower it.

    Args:
        number: the number to explain, as :func:`fix_patient` makes it.
        image: one prepared scan ``(C, *spatial)``.
        layer: dotted name of a module of the encoder; None takes that of :func:`spatial_layer`.

    Returns:
        The map ``(*spatial)``, as coarse as the layer it is taken from; its scale has no unit.

    Raises:
        ValueError: if no layer of the encoder has spatial resolution.

    Example:
        >>> from monai_mvreg.networks.pools import MeanPool
        >>> encoder = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> net = MultiScanNet(encoder, MeanPool(1)).eval()
        >>> _ = [nn.init.ones_(weight) for weight in net.parameters()]  # the number is the mean of the pixels, plus 2
        >>> image, one = nn.functional.one_hot(torch.tensor([20]), 64).view(1, 8, 8).float(), torch.zeros(1)
        >>> number = fix_patient(net, [image], days=one, views=one, covariates=one, readout=lambda outputs: outputs)
        >>> int(gradcam(number, image).argmax())  # the only bright pixel
        20

    Source: Selvaraju et al., ICCV 2017. https://arxiv.org/abs/1610.02391
    """
    # A copy: MONAI leaves hooks and gradients behind, and frozen parts must learn for the moment.
    net = deepcopy(number.net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            setattr(module, name, getattr(child, "_orig_mod", child))  # what torch.compile wrapped
        if isinstance(module, PretrainedEncoder):
            module.frozen = False
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010, would write over the activations that GradCAM keeps
    net.requires_grad_(True)
    where = f"net.encoder.{spatial_layer(net.encoder, image) if layer is None else layer}"
    net.get_submodule(where.removeprefix("net."))
    scan = _plain(image, net).requires_grad_(True)
    cam = GradCAM(
        _BothDirections(replace(number, net=net)), where, upsampler=_upsampler, postprocessing=lambda coarse: coarse
    )
    # cuDNN has no gradients of a recurrent pool in evaluation mode.
    recurrent = any(isinstance(module, nn.RNNBase) for module in net.pool.modules())
    with torch.backends.cudnn.flags(enabled=not recurrent):
        raises, lowers = (cam(scan, class_idx=direction).detach()[0, 0] for direction in (0, 1))
    return torch.as_tensor(raises - lowers)


def spatial_layer(encoder: nn.Module, image: Tensor) -> str:
    """Find the last module of an encoder that has spatial resolution and that everything passes through.

    It has at least seven positions along an axis, as in a ResNet that sees 224 pixels, if there is such a module:
    fewer, as after five halvings of a small volume, cannot localise anything. A module in one branch of a residual
    block is not taken: what goes through the other branch would be missing from the map.

    Args:
        encoder: ``(M, C, *spatial) -> (M, E)``, none of it frozen.
        image: one prepared scan ``(C, *spatial)``.

    Returns:
        Its dotted name.

    Raises:
        ValueError: if there is none, as in transformers and in :class:`HistogramEncoder`.
    """
    scan = _plain(image, encoder).requires_grad_(True)
    outputs: list[tuple[str, tuple[int, ...]]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.append((name, tuple(output.shape)))

        return look

    with torch.no_grad():
        _run_watched(encoder, scan, {name: watch(name) for name, _ in encoder.named_modules() if name})
    # timm names the layout of those that keep channels last, where an axis of places would be taken for channels.
    last = any(getattr(module, "output_fmt", None) == "NHWC" for module in encoder.modules())
    tokens = 0  # of layers behind: places live on in them, out of sight of GradCAM
    coarse = None
    for name, shape in reversed(outputs if not last else []):
        if len(shape) == 3:
            tokens = max(tokens, shape[1])
        if not _keeps_places(shape, tuple(scan.shape[2:])):
            continue
        if tokens >= math.prod(shape[2:]):
            break
        if coarse is not None and max(shape[2:]) < _PLACES:
            continue
        embedding = _run_watched(encoder, scan, {name: _cut})
        if embedding.requires_grad and torch.autograd.grad(embedding.sum(), scan, allow_unused=True)[0] is None:
            if max(shape[2:]) >= _PLACES:
                return name
            coarse = name
    if coarse is not None:
        return coarse
    raise ValueError(
        f"expected an encoder with a layer (M, C, *spatial) of more than one place and with gradients for GradCAM, "
        f"{type(encoder).__name__} has none: take occlusion, which needs neither"
    )


def _cut(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    """An output that does not know what it was made from."""
    return output.detach().requires_grad_(True)


def _run_watched(encoder: nn.Module, scan: Tensor, watches: Mapping[str, Callable[..., Any]]) -> Tensor:
    hooks = [encoder.get_submodule(name).register_forward_hook(watch) for name, watch in watches.items()]
    try:
        embedding: Tensor = encoder(scan)
        return embedding
    finally:
        for hook in hooks:
            hook.remove()


def _keeps_places(shape: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether an output of one scan is a coarser picture of it, or of its slices by a 2D network."""
    if len(size) == 3 and len(shape) == 4 and shape[0] == size[2]:
        size = size[:2]
    elif shape[:1] != (1,) or len(shape) != len(size) + 2:
        return False
    places = shape[2:]
    return max(places) > 1 and all(coarse <= fine for coarse, fine in zip(places, size, strict=True))


def _upsampler(spatial: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def enlarge(coarse: Tensor) -> Tensor:
        if coarse.ndim == len(spatial) + 1:  # slices (D, 1, h, w) of a 2D network
            coarse = coarse.movedim(0, -1)[None]
        larger: Tensor = default_upsampler(spatial)(coarse)
        return larger

    return enlarge


@torch.no_grad()
def occlusion(number: NumberByScan, image: Tensor, *, boxes: int | None = None) -> Tensor:
    """Measure by how much the number falls when a box of the scan is blurred.

    Boxes overlap by half, and a voxel gets the mean of the boxes that cover it. A box is replaced by the scan blurred
    over half a box: a grey or black box would be a new object on another background.

    Args:
        number: the number to explain, as :func:`fix_patient` makes it.
        image: one prepared scan ``(C, *spatial)``.
        boxes: number of boxes along an axis without overlap; None takes 8 in an image and 5 in a volume, where the
            encoder runs 225 and 729 times.

    Returns:
        The map ``(*spatial)`` in target units, positive where the scan raises the number.

    Example:
        >>> from monai_mvreg.networks.pools import MeanPool
        >>> net = MultiScanNet(nn.Flatten(), MeanPool(64)).eval()
        >>> _ = nn.init.ones_(net.head.weight)  # the number is the sum of the pixels, plus a constant
        >>> image, one = nn.functional.one_hot(torch.tensor([20]), 64).view(1, 8, 8).float(), torch.zeros(1)
        >>> number = fix_patient(net, [image], days=one, views=one, covariates=one, readout=lambda outputs: outputs)
        >>> int(occlusion(number, image).argmax())  # the only bright pixel
        20

    Source: Zeiler, Fergus, ECCV 2014. https://arxiv.org/abs/1311.2901
    """
    scan = _plain(image, number.net)
    spatial = scan.shape[2:]
    across = boxes or (8 if len(spatial) == 2 else 5)
    box = [max(1, round(size / across)) for size in spatial]
    cover = GaussianSmooth(sigma=[side / 2 for side in box])(scan[0])[None]
    covered = OcclusionSensitivity(
        _Covered(number, scan, cover),
        mask_size=box,
        n_batch=number.net.chunk_size or _BATCH,
        mode=0.0,
        overlap=0.5,
        activate=False,
        verbose=False,
    )
    with warnings.catch_warnings():  # MONAI indexes by lists of slices, which torch warns of
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")
        seen, _ = covered(torch.ones_like(scan[:, :1]))
    return torch.as_tensor(number(scan)[0, 0] - _tensor(seen)[0, 0])


@dataclass(frozen=True)
class RandomisationCheck:
    """How alike maps of the trained network are to those of networks with random weights, 0 to 1.

    The mean absolute rank correlation of the maps: with the weights of the head drawn anew, and with all weights drawn
    anew. A map near 1 shows the scan, not what the network learned. Maps of few places are somewhat alike by chance.
    """

    head: float
    whole: float


def randomisation_check(
    numbers: Sequence[NumberByScan], image: Tensor, *, method: SaliencyMap, draws: int = 3
) -> RandomisationCheck:
    """Check that maps depend on what the network learned.

    Args:
        numbers: what to look at, one for each network of an ensemble.
        image: one prepared scan ``(C, *spatial)``.
        method: :func:`gradcam` or :func:`occlusion`.
        draws: how many random networks.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018. https://arxiv.org/abs/1810.03292
    """
    trained = mean_map(numbers, image, method)
    alike: dict[bool, list[float]] = {False: [], True: []}
    device = numbers[0].net.head.weight.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for whole, found in alike.items():
            for draw in range(draws):
                torch.manual_seed(draw)
                drawn = [replace(number, net=_drawn_anew(number.net, whole)) for number in numbers]
                found.append(abs(_rank_correlation(trained, mean_map(drawn, image, method))))
    return RandomisationCheck(head=sum(alike[False]) / draws, whole=sum(alike[True]) / draws)


def _drawn_anew(net: MultiScanNet, whole: bool) -> MultiScanNet:
    """A copy with new weights in the head, or everywhere; the scaling of the target stays."""
    net = deepcopy(net)
    for module in (net if whole else net.head).modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return net


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's; 0 for a map without differences."""
    ranks = []
    for values in (first.flatten(), second.flatten()):
        _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
        last = count.cumsum(0).double()
        ranks.append((last - (count - 1) / 2)[place])  # the mean rank of equal values
    centred = [rank - rank.mean() for rank in ranks]
    length = centred[0].norm() * centred[1].norm()
    return float(((centred[0] * centred[1]).sum() / length).clamp(-1, 1)) if length > 0 else 0.0


def _plain(image: Tensor, module: nn.Module) -> Tensor:
    """A scan as a batch ``(1, C, *spatial)`` of plain numbers where the module is."""
    first = next(module.parameters(), torch.empty(0))
    return _tensor(image).detach()[None].to(first.device, torch.float32)


def _tensor(image: Tensor) -> Tensor:
    """Without metadata."""
    return image.as_tensor() if hasattr(image, "as_tensor") else image

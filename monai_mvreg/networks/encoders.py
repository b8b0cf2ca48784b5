"""Scan -> embedding: what turns any network into an encoder ``(M, C, *spatial) -> (M, E)``.

Encoders come from timm (``timm.create_model(name, num_classes=0, in_chans=C)``), MONAI or your own module; the parts
here add what those lack: freezing that stays frozen, the end cut off, slices of a volume, weights from a file.
"""

import copy
import fnmatch
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]


class _Constants:
    """A frozen network compiled with its weights as constants, once, and anew when they have changed.

    As constants they are folded (batch normalisation into convolutions), cast and laid out for the processor before
    the first step. The copy that is compiled belongs to this process alone: no state dict, file or copy of the network
    holds it.
    """

    def __init__(self) -> None:
        self.copy: nn.Module | None = None
        self.compiled: Callable[[Tensor], Any]
        self.versions: list[tuple[int, int]]

    def __call__(self, network: nn.Module, image: Tensor) -> Tensor:
        """Embed ``(M, C, *spatial)`` as the network does."""
        weights = [*network.parameters(), *network.buffers()]
        # A change in place counts the version up; a move to a device or precision takes another place.
        versions = [(weight.data_ptr(), weight._version) for weight in weights]
        if self.copy is None or versions != self.versions:
            # Processes send each other buffers at every step, and a training ends by loading its best model.
            if self.copy is None or not _equal(weights, [*self.copy.parameters(), *self.copy.buffers()]):
                if self.copy is not None:
                    torch.compiler.reset()
                # The compiler lays constants out by itself, and for one channel fails on those that are channels last.
                self.copy = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
                self.compiled = torch.compile(self.copy, dynamic=True)
            self.versions = versions
        # It compiles at the first scans, and for another number or precision. Not imported above: that takes seconds.
        with torch._inductor.config.patch(freezing=True):
            embedding: Tensor = self.compiled(image)
        return embedding

    def __reduce__(self) -> Any:
        return _Constants, ()


def _equal(weights: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors are the same in value, precision and place."""
    pairs = list(zip(weights, others, strict=True))
    return all(a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in pairs)


class PretrainedEncoder(nn.Module):
    """Freeze a pretrained encoder, except for the parameters named to learn.

    Frozen parts stay in evaluation mode whatever ``train()`` says, and a fully frozen encoder builds no graph. Batch
    normalisation keeps its pretrained statistics everywhere: the scans of a few patients are too few and too similar
    to estimate them.

    Args:
        encoder: a network ``(M, C, *spatial) -> (M, E)``.
        learn: patterns of parameter names, such as ``["layer4.*"]`` or ``["*"]`` for all; ``[]`` freezes everything.

    Raises:
        ValueError: if a pattern matches no parameter.

    Example:
        >>> frozen = PretrainedEncoder(nn.Linear(3, 2), learn=[])
        >>> [p.requires_grad for p in frozen.train().parameters()], frozen.encoder.training
        ([False, False], False)
    """

    def __init__(self, encoder: nn.Module, *, learn: Sequence[str] = ()) -> None:
        super().__init__()
        self.encoder = encoder
        learn = [learn] if isinstance(learn, str) else learn  # one pattern is a list of one
        names = [name for name, _ in encoder.named_parameters()]
        for pattern in learn:
            if not fnmatch.filter(names, pattern):
                stages = [f"{name}.*" for name, child in encoder.named_children() if list(child.parameters())]
                raise ValueError(f"expected learn to name parameters of the encoder, such as {stages}, got {pattern!r}")
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad = any(fnmatch.fnmatchcase(name, pattern) for pattern in learn)
        self.frozen = not learn
        self._frozen_constants: _Constants | None = None
        self._parameters_of_encoder, self._learns = list(encoder.parameters()), list[bool]()
        self._fixed: list[nn.Module] = []
        self.train()

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Set the mode of the learning parts; frozen parts and batch normalisation stay in evaluation mode."""
        super().train(mode)
        learns = [parameter.requires_grad for parameter in self._parameters_of_encoder]
        if learns != self._learns:
            self._learns, self._fixed = learns, self._find_fixed()
        for module in self._fixed:  # found once: a trainer sets the mode before every step
            module.training = False
        return self

    def _find_fixed(self) -> list[nn.Module]:
        """Find the modules that stay in evaluation mode."""
        fixed: dict[nn.Module, None] = {}
        for module in self.encoder.modules():
            own = list(module.parameters())
            if (own or self.frozen) and not any(parameter.requires_grad for parameter in own):
                fixed |= dict.fromkeys(module.modules())
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                fixed[module] = None
        return list(fixed)

    def forward(self, image: Tensor) -> Tensor:
        """Embed ``(M, C, *spatial)`` as ``(M, E)``; embeddings ``(M, E)`` that it made before pass, if it is frozen.

        Raises:
            ValueError: if embeddings come to an encoder that learns.
        """
        if self.frozen:
            with torch.no_grad():
                if image.ndim == 2:
                    return image
                return self.encoder(image) if is_scripting() else self._embed(image)
        if image.ndim == 2:
            raise ValueError("expected scans (M, C, *spatial), got embeddings (M, E): the encoder is not frozen")
        return self.encoder(image)

    @torch.jit.unused
    def _embed(self, image: Tensor) -> Tensor:
        # What is exported keeps its weights as weights.
        if self._frozen_constants is None or is_tracing() or torch.compiler.is_compiling():
            embedding: Tensor = self.encoder(image)
            return embedding
        return self._frozen_constants(self.encoder, image)


class SliceEncoder(nn.Module):
    """Encode a volume slice by slice with a 2D encoder (2.5D): the mean over the slices of the last axis.

    Args:
        encoder: a 2D network ``(M, C, H, W) -> (M, E)``.

    Example:
        >>> volume = torch.stack([torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)], dim=4)  # two slices
        >>> SliceEncoder(nn.Flatten())(volume)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """Embed ``(M, C, H, W, D)`` as ``(M, E)``."""
        scans, depth = image.shape[0], image.shape[4]
        slices = image.permute(0, 4, 1, 2, 3).flatten(0, 1)
        return self.encoder(slices).unflatten(0, (scans, depth)).mean(1)


class TokenEncoder(nn.Module):
    """Average the tokens of a transformer such as ``monai.networks.nets.ViT`` (which returns tokens and hidden states).

    Args:
        network: returns a tuple whose first entry is the tokens ``(M, L, E)``.

    Example:
        >>> from monai.networks.nets import ViT
        >>> vit = ViT(1, (32, 32), (16, 16), hidden_size=24, mlp_dim=32, num_layers=1, num_heads=2, spatial_dims=2)
        >>> TokenEncoder(vit)(torch.zeros(3, 1, 32, 32)).shape
        torch.Size([3, 24])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Embed ``(M, C, *spatial)`` as ``(M, E)``."""
        return self.network(image)[0].mean(1)


class HistogramEncoder(nn.Module):
    """Describe a scan by its intensity histogram: the share of voxels in each bin, with nothing to learn.

    It needs few patients where the target depends on the share of a tissue. A value between the centres of two bins
    counts towards both in proportion, so gradients reach the image. Intensities must be comparable between scans, for
    example scaled between percentiles.

    Args:
        bins: number of bins for each channel.
        low: centre of the first bin; what is lower counts there.
        high: centre of the last bin; what is higher counts there.

    Raises:
        ValueError: for fewer than two bins, or ``low`` not below ``high``.

    Example:
        >>> HistogramEncoder(3)(torch.tensor([[[0.0, 0.25, 1.0, 2.0]]]))
        tensor([[0.3750, 0.1250, 0.5000]])
    """

    def __init__(self, bins: int, *, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if bins < 2 or not low < high:
            raise ValueError(f"expected at least two bins from low to high, got {bins} from {low} to {high}")
        self.bins, self.low, self.high = bins, low, high

    def forward(self, image: Tensor) -> Tensor:
        """Embed ``(M, C, *spatial)`` as ``(M, C * bins)``; the shares of a channel sum to 1."""
        place = (image.flatten(2).clamp(self.low, self.high) - self.low) * ((self.bins - 1) / (self.high - self.low))
        below = place.detach().floor().clamp(max=self.bins - 2)
        above = place - below
        shares = image.new_zeros(image.shape[0], image.shape[1], self.bins)
        shares = shares.scatter_add(2, below.long(), 1 - above).scatter_add(2, below.long() + 1, above)
        return (shares / place.shape[2]).flatten(1)


def cut_layer(network: nn.Module, name: str) -> nn.Module:
    """Take the classification layer off a network, so that it returns the embedding in front of it.

    Args:
        network: for example MONAI's ``DenseNet121`` or ``EfficientNetBN``.
        name: the layer's dotted name, ``"class_layers.out"`` or ``"_fc"`` in these two.

    Raises:
        AttributeError: if the network has no such layer.
    """
    network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    return network


def load_weights(network: nn.Module, path: str) -> nn.Module:
    """Load pretrained weights from a local file into a network whose classification layer may differ or be missing.

    Reads a bare state dict and the nested form of MedicalNet (``{"state_dict": {"module.conv1.weight": ...}}``).
    Tensors only: a file that holds code is refused by torch. Weights made for three colours are summed over them in the
    first layer of a network for one channel, which then gives what it gave for a grey picture in three colours.

    Args:
        network: the network the weights were made for, e.g. ``resnet10(n_input_channels=1, feed_forward=False,
            shortcut_type="B", bias_downsample=False, conv1_t_stride=2)`` for MedicalNet.
        path: the ``.pt`` or ``.pth`` file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file lacks a tensor of the network, or one has another shape.

    Source: MedicalNet, https://arxiv.org/abs/1904.00625.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected pretrained weights in {path}, found no such file")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = weights.get("state_dict", weights)
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    own = network.state_dict()
    for name, tensor in weights.items():
        grey = own.get(name)
        if grey is not None and tensor.ndim >= 4 and tensor.shape[1] == 3 and grey.shape[1:2] == (1,):
            weights[name] = tensor.sum(1, keepdim=True)  # three colours for one channel, as timm does
    # Counters of batches exist only since torch 0.4.1 and change nothing in evaluation.
    missing = [n for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    other = [n for n, t in own.items() if n in weights and weights[n].shape != t.shape]
    if missing or other:
        raise ValueError(
            f"expected weights of this network in {Path(path).name}: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(other)} have another shape {other[:3]}"
        )
    network.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
    return network


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay the weights of a network out in memory, channels last or as they are.

    Raises:
        ValueError: for a format that is for scans of another dimension.

    Example:
        >>> lay_out(nn.Conv3d(1, 1, 3), torch.channels_last)
        Traceback (most recent call last):
        ValueError: memory_format: expected torch.channels_last_3d for an encoder of volumes, got torch.channels_last
    """
    pictures, volumes = (any(p.ndim == axes for p in network.parameters()) for axes in (4, 5))
    if memory_format == torch.channels_last and volumes:
        right = "torch.channels_last_3d for an encoder of volumes"
    elif memory_format == torch.channels_last_3d and pictures:
        right = "torch.channels_last for an encoder of pictures"
    else:
        network.to(memory_format=memory_format)
        return
    raise ValueError(f"memory_format: expected {right}, got {memory_format}")


def compile_encoder(encoder: nn.Module) -> None:
    """Compile an encoder for any number of scans; one that is frozen with its weights as constants.

    A frozen one is compiled at its first scans, and again if other weights are loaded. ``state_dict``, exports and
    copies are those of the encoder that is not compiled.

    Args:
        encoder: a network ``(M, C, *spatial) -> (M, E)``, on the device and in the memory format that it shall run in.
    """
    if isinstance(encoder, PretrainedEncoder) and encoder.frozen:
        encoder._frozen_constants = _Constants()
    else:
        encoder.compile(dynamic=True)


def embedding_size(encoder: nn.Module, shape: Sequence[int]) -> int:
    """Find the width ``E`` of an encoder's embedding by encoding one empty scan.

    Args:
        encoder: a network ``(M, C, *spatial) -> (M, E)``.
        shape: ``(C, *spatial)`` of one scan.

    Raises:
        ValueError: if the encoder does not return ``(M, E)``.

    Example:
        >>> embedding_size(nn.Flatten(), (1, 4, 4))
        16
    """
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        embedding = encoder(torch.zeros(1, *shape))
    encoder.train(training)
    if not isinstance(embedding, Tensor) or embedding.ndim != 2:
        got = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
        raise ValueError(f"expected the encoder to return one embedding (1, E) for a scan {tuple(shape)}, got {got}")
    return int(embedding.shape[1])

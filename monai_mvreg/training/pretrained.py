"""Pretrained weights named in a config: refused where they are missing or not those of the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import timm.models
import torch
from torch import Tensor, nn


def expect_pretrained(encoder: nn.Module) -> None:
    """Refuse an encoder whose file of weights holds others: timm loads what fits and leaves the rest random.

    Args:
        encoder: as the config made it; a network of timm in it whose ``pretrained_cfg`` names a ``file`` is checked.

    Raises:
        ValueError: naming the file and the first tensors that it lacks.
    """
    for network in encoder.modules():
        known = getattr(network, "pretrained_cfg", None)
        file = known.get("file") if isinstance(known, Mapping) else None
        if not file:
            continue
        given = {name: t for name, t in timm.models.load_state_dict(str(file)).items() if isinstance(t, Tensor)}
        own = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
        missing = [name for name in own if name not in given]
        if len(missing) == len(own):  # timm may have renamed them
            missing = _without_equal(own, given)
            missing = missing if sum(own[name].numel() for name in missing) > 0.5 * _size(own) else []
        if missing:
            kind = str(known.get("architecture", "")) if isinstance(known, Mapping) else ""
            raise ValueError(
                f"{Path(str(file)).name}: expected the weights of {kind or type(network).__name__}, found none for "
                f"{len(missing)} of its {len(own)} tensors: {', '.join(missing[:3])}"
            )


def _without_equal(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that no given one equals, whatever its name and shape."""
    by_size: dict[int, list[Tensor]] = {}
    for tensor in given.values():
        by_size.setdefault(tensor.numel(), []).append(tensor.flatten().float())
    return [
        name
        for name, tensor in own.items()
        if not any(torch.equal(tensor.cpu().flatten().float(), other) for other in by_size.get(tensor.numel(), []))
    ]


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())

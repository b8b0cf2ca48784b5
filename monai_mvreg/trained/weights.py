"""Weights of a trained network: one file, ``model.pt`` or ``model.safetensors``, to tensors alone, and their hash.

Neither file can run code here: ``model.pt`` is a pickle that torch reads with ``weights_only``, ``model.safetensors``
can hold nothing but tensors.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

WEIGHTS_FILES = ("model.pt", "model.safetensors")


def weights_file(models: Path) -> Path:
    """Find the file of weights in the folder of a trained model.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if there are two.
    """
    found = [models / name for name in WEIGHTS_FILES if (models / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"expected trained weights in {models / 'model.pt'} or model.safetensors, found no such file: train first"
        )
    if len(found) > 1:
        raise ValueError(f"expected one file of weights in {models}, found model.pt and model.safetensors: remove one")
    return found[0]


def read_weights(models: Path) -> dict[str, Tensor]:
    """Read the weights in the folder of a trained model, as tensors on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there are two, or the file holds anything but tensors by name: nothing of it is run.
    """
    file = weights_file(models)
    found: Any = None
    try:
        if file.suffix == ".pt":
            found = torch.load(file, map_location="cpu", weights_only=True)
        else:
            found = safetensors.torch.load_file(file)
    except Exception as error:  # of pickle, zip, torch or safetensors: each has its own
        if isinstance(error, (OSError, MemoryError)):
            raise
    tensors = isinstance(found, Mapping) and all(isinstance(entry, Tensor) for entry in found.values())
    if not tensors or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{file}: expected weights alone, tensors by name, got something else: nothing of it was run")
    return dict(found)


def set_weights(network: nn.Module, weights: Mapping[str, Tensor], *, source: Path) -> None:
    """Give a network its trained weights.

    Args:
        network: it must have tensors of the same names and shapes.
        weights: as :func:`read_weights` reads them.
        source: where they are from, for the error.

    Raises:
        ValueError: naming the first tensors that are missing, not known, or of another shape.
    """
    own = network.state_dict()
    kinds = {
        "missing": [name for name in own if name not in weights],
        "unknown": [name for name in weights if name not in own],
        "of another shape": [name for name in own if name in weights and own[name].shape != weights[name].shape],
    }
    if any(kinds.values()):
        told = ", ".join(f"{len(names)} are {kind} {names[:3]}" for kind, names in kinds.items() if names)
        raise ValueError(f"{source}: expected the tensors of the network in settings.json: {told}")
    network.load_state_dict(weights)


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors with their names, types and shapes: the same whatever file they are kept in."""
    whole = hashlib.sha256()
    for name in sorted(weights):
        dense = weights[name].detach().cpu().contiguous()
        whole.update(f"{name} {dense.dtype} {tuple(dense.shape)}\n".encode())
        whole.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


class TrainedWeights:
    """Load the weights of a training into a network when an engine starts; for the handlers of a config.

    MONAI's ``CheckpointLoader`` reads pickles alone.

    Args:
        models: the folder of the trained model.
        network: what gets them.
    """

    def __init__(self, models: str, network: nn.Module) -> None:
        self.models, self.network = Path(models), network

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load."""
        set_weights(self.network, read_weights(self.models), source=weights_file(self.models))

"""Make a weights file for a timm model on a machine without network: random filters, statistics of smooth pictures.

    python tests/benchmarks/make_weights.py resnet50 resnet50.pt

Random weights alone are no stand-in for pretrained ones: without statistics, batch normalisation lets the signal of a
deep frozen network fade to nothing.
"""

from __future__ import annotations

import sys

import timm
import torch
from torch import nn


def make_weights(name: str, path: str) -> None:
    """Write the state dict of a three-colour ImageNet model of this name."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all pictures
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(nn.functional.interpolate(2 * torch.randn(16, 3, 12, 12), 96, mode="bicubic"))
    torch.save(network.state_dict(), path)


if __name__ == "__main__":
    make_weights(*sys.argv[1:])

"""Weights that do not fit are refused, also where timm would leave the encoder random."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from monai_mvreg.training.pretrained import expect_pretrained


def encoder(file: Path, *, name: str = "resnet10t") -> nn.Module:
    overlay = {"file": str(file)}
    made: nn.Module = timm.create_model(
        name, pretrained=True, num_classes=0, in_chans=1, pretrained_cfg_overlay=overlay
    )
    return made


def weights() -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = timm.create_model("resnet10t", num_classes=0).state_dict()
    return found


def test_weights_of_the_encoder_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "own.pt"
    torch.save(weights(), file)
    expect_pretrained(nn.Sequential(encoder(file)))


@pytest.mark.parametrize("kept", [0, 20])
def test_a_file_that_lacks_tensors_is_refused(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    named = list(weights().items())
    torch.save({(name if at < kept else f"backbone.{name}"): t + 1 for at, (name, t) in enumerate(named)}, file)
    made = encoder(file)
    with pytest.raises(ValueError, match=re.escape("other.pt: expected the weights of resnet10t, found none for ")):
        expect_pretrained(made)


def test_an_encoder_without_a_file_is_not_looked_at() -> None:
    expect_pretrained(nn.Sequential(timm.create_model("resnet10t", num_classes=0), nn.Linear(2, 2)))

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from ignite.engine import Engine
from tiny_model import BUNDLE, write_model
from torch import nn

from monai_mvreg.cli.main import main
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.trained.weights import TrainedWeights, read_weights, set_weights, weights_file, weights_hash

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "models")


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "models"))


def as_safetensors(models: Path, **changes: Any) -> Path:
    """Keep the weights as safetensors, with other tensors in place of some; None takes one away."""
    weights = {**read_weights(models), **changes}
    (models / "model.pt").unlink()
    safetensors.torch.save_file({n: t for n, t in weights.items() if t is not None}, models / "model.safetensors")
    return models


class Evil:
    """An object whose pickle touches a file when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.touch, (self.place,))


def test_both_files_hold_the_same_model_with_the_same_hash(models: Path) -> None:
    before = Predictor.from_bundle(BUNDLE, models=models)
    after = Predictor.from_bundle(BUNDLE, models=as_safetensors(models))
    assert after.model == before.model
    for one, other in zip(before.members[0].parameters(), after.members[0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_hash_is_that_of_names_types_shapes_and_numbers_and_of_no_order() -> None:
    known = weights_hash(TENSORS)
    assert weights_hash(dict(reversed(TENSORS.items()))) == known
    assert weights_hash({**TENSORS, "weight": TENSORS["weight"].T.contiguous().T}) == known  # laid out otherwise
    others = [
        {**TENSORS, "weight": TENSORS["weight"] + torch.eye(2, 3) * 1e-6},
        {**TENSORS, "weight": TENSORS["weight"].reshape(3, 2)},
        {**TENSORS, "count": torch.tensor(3, dtype=torch.int32)},
        {"weights": TENSORS["weight"], "count": TENSORS["count"]},
        {"weight": TENSORS["weight"]},
    ]
    assert len({known, *map(weights_hash, others)}) == 6


def test_the_hash_is_written_down_once_and_for_all() -> None:
    # SHA-256 of the lines "name dtype shape" and the bytes, by hand; predictions of years ago are compared by it.
    import hashlib
    import struct

    text = b"count torch.int64 ()\n" + struct.pack("<q", 3)
    text += b"weight torch.float32 (2, 3)\n" + struct.pack("<6f", *range(6))
    assert weights_hash(TENSORS) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("inside", ["alone", "as a tensor", "in a dictionary of the training"])
def test_code_in_a_pickle_is_refused_in_one_line_and_not_run(
    inside: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil: Any = Evil(tmp_path / "ran")
    if inside != "alone":
        evil = {**read_weights(models), "head.weight": evil} if inside == "as a tensor" else {"model": {}, "more": evil}
    torch.save(evil, models / "model.pt")
    assert main(["predict", str(models), "--bundle", str(BUNDLE), "--models", str(models)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "model.pt: expected weights alone, tensors by name, got something else: nothing of it was run" in error
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"weights", b"\xff" * 100])
def test_another_file_is_refused_in_one_line(name: str, content: bytes, models: Path) -> None:
    (models / "model.pt").unlink()
    (models / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: expected weights alone"):
        read_weights(models)


def test_a_checkpoint_of_more_than_weights_is_refused(models: Path) -> None:
    torch.save({"model": read_weights(models), "epoch": 3}, models / "model.pt")
    with pytest.raises(ValueError, match="expected weights alone"):
        read_weights(models)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head.weight": torch.zeros(1, 3)}, r"1 are of another shape \['head.weight'\]$"),
        ({"head.bias": None}, r"1 are missing \['head.bias'\]$"),
        ({"head.bias": None, "heads.bias": torch.zeros(1)}, r"1 are missing \['head.bias'\], 1 are unknown \['heads"),
    ],
)
def test_weights_of_another_network_are_told_by_their_names(changes: dict[str, Any], told: str, models: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors: expected the tensors of the network in sett.*: " + told):
        Predictor.from_bundle(BUNDLE, models=as_safetensors(models, **changes))


def test_no_file_and_two_files_of_weights_are_refused(models: Path) -> None:
    shutil.copy(models / "model.pt", models.parent)
    as_safetensors(models)
    shutil.copy(models.parent / "model.pt", models)
    with pytest.raises(ValueError, match=r"expected one file of weights in .*: remove one"):
        weights_file(models)
    for name in ("model.pt", "model.safetensors"):
        (models / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected trained weights in .*model\.pt or model\.safetensors"):
        weights_file(models)


def test_an_engine_has_the_trained_weights_when_it_starts(tmp_path: Path) -> None:
    trained, network = nn.Linear(3, 2), nn.Linear(3, 2)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "model.safetensors")
    seen = []
    engine = Engine(lambda *_: seen.append(network.weight.detach().clone()))
    TrainedWeights(str(tmp_path), network).attach(engine)
    engine.run([0])
    assert torch.equal(seen[0], trained.weight)


def test_a_network_that_gets_weights_keeps_no_tensor_of_the_caller() -> None:
    network, given = nn.Linear(3, 2), nn.Linear(3, 2).state_dict()
    set_weights(network, given, source=Path("model.pt"))
    given["bias"].zero_()
    assert not torch.equal(network.bias, given["bias"])

"""Embeddings on disk: what is in them, what makes a new one, and what neither a kill nor a neighbour can break."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged, RandFlipd, ScaleIntensityRanged
from torch import nn

from monai_mvreg.cache.scan_embeddings import EmbeddedScans
from monai_mvreg.errors import user_error
from monai_mvreg.networks.encoders import PretrainedEncoder, compile_encoder
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.networks.pools import MeanPool
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.reader import ScanReader
from monai_mvreg.training.transforms import PackScansd, UnpackScansd

KEY = "Erika Mustermann 1964"


class Counted(nn.Module):
    """A small convolutional network that counts the scans it has encoded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        COUNT.append(len(image))
        return self.layers(image)


COUNT: list[int] = []


def write_scan(path: Path, seed: int) -> str:
    voxels = np.random.default_rng(seed).normal(50, 20, (8, 7, 6)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return str(path)


@pytest.fixture
def patients(tmp_path: Path) -> list[dict[str, Any]]:
    """Three patients with 1, 2 and 3 scans."""
    scans = [write_scan(tmp_path / f"{number}.nii", number) for number in range(6)]
    return [
        {"patient": f"{KEY} {number}", "image": scans[start:end], "time": [0.0] * (end - start), "label": [1.0]}
        for number, (start, end) in enumerate([(0, 1), (1, 3), (3, 6)])
    ]


def steps(**intensity: float) -> Compose:
    scale = {"a_min": 0, "a_max": 100, "b_min": -1, "b_max": 1, **intensity}
    load = [UnpackScansd("image"), LoadImaged("image", reader=ScanReader(), ensure_channel_first=True)]
    return Compose([*load, ScaleIntensityRanged("image", **scale), PackScansd("image")])


def embed(
    patients: list[dict[str, Any]],
    folder: Path,
    *,
    transform: Compose | None = None,
    encoder: nn.Module | None = None,
    max_bytes: int = 10**9,
) -> tuple[EmbeddedScans, int]:
    """The embeddings, and how many scans were encoded for them."""
    COUNT.clear()
    made = EmbeddedScans(
        patients,
        transform=transform or steps(),
        encoder=PretrainedEncoder(Counted()) if encoder is None else encoder,
        folder=str(folder),
        max_bytes=max_bytes,
        batch_size=4,
    )
    return made, sum(COUNT)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.embedding"))


def test_a_compiled_encoder_computes_them_as_the_plain_one(
    patients: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, *, dynamic: lambda image: network(image) + 1)
    encoder = PretrainedEncoder(Counted())
    compile_encoder(encoder)
    plain, _ = embed(patients, tmp_path / "cache")
    _, count = embed(patients, tmp_path / "cache", encoder=encoder)
    other, _ = embed(patients, tmp_path / "other", encoder=encoder)
    assert count == 0 and torch.equal(other.embeddings, plain.embeddings)


# ---- What is in them -------------------------------------------------------------------------------------------------


def test_an_item_is_that_of_the_transform_with_its_scans_encoded(patients: list[Any], tmp_path: Path) -> None:
    embedded, count = embed(patients, tmp_path / "cache")
    assert count == 6
    encoder = Counted().eval()
    for patient in patients:
        whole, item = steps()(patient), embedded(patient)
        with torch.no_grad():
            torch.testing.assert_close(item.pop("image"), encoder(whole.pop("image")), rtol=1e-6, atol=1e-6)
        assert item == whole


def test_a_network_predicts_from_embeddings_what_it_predicts_from_scans(patients: list[Any], tmp_path: Path) -> None:
    net = MultiScanNet(PretrainedEncoder(Counted()), MeanPool(4)).eval()
    embedded, _ = embed(patients, tmp_path / "cache", encoder=net.encoder)
    mask = torch.tensor([[True, True, False]])
    with torch.no_grad():
        image, known = steps()(patients[1])["image"], embedded(patients[1])["image"]
        padded = [torch.cat([part, torch.full_like(part[:1], 9.0)])[None] for part in (image, known)]
        torch.testing.assert_close(net(padded[1], mask), net(padded[0], mask), rtol=1e-6, atol=1e-6)


def test_the_second_time_nothing_is_encoded_and_the_same_comes_out(
    patients: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, _ = embed(patients, tmp_path / "cache")
    second, count = embed(patients[::-1], tmp_path / "cache")
    assert count == 0
    assert [r.message for r in caplog.records if r.name == "monai_mvreg.cache.scan_embeddings"] == [
        "embeddings: 0 cached, 6 to compute",
        "embeddings: 6 cached, 0 to compute",
    ]
    assert all(torch.equal(first(patient)["image"], second(patient)["image"]) for patient in patients)


def test_once_made_no_file_is_read(patients: list[Any], tmp_path: Path) -> None:
    embedded, _ = embed(patients, tmp_path / "cache")
    for file in [*entries(tmp_path / "cache"), *tmp_path.glob("*.nii")]:
        file.unlink()
    assert embedded(patients[2])["image"].shape == (3, 4)


def test_no_random_number_is_drawn(patients: list[Any], tmp_path: Path) -> None:
    state = torch.get_rng_state()
    encoder = PretrainedEncoder(Counted())
    torch.set_rng_state(state)
    embed(patients, tmp_path / "cache", encoder=encoder)
    assert torch.equal(torch.get_rng_state(), state)


# ---- What makes a new one --------------------------------------------------------------------------------------------


def test_a_changed_file_of_the_same_size_and_time_is_encoded_again(patients: list[Any], tmp_path: Path) -> None:
    embed(patients, tmp_path / "cache")
    path = Path(patients[1]["image"][0])
    before = path.stat()
    write_scan(path, 99)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    embedded, count = embed(patients, tmp_path / "cache")
    assert count == 1
    with torch.no_grad():
        torch.testing.assert_close(embedded(patients[1])["image"], Counted().eval()(steps()(patients[1])["image"]))


def test_a_moved_or_copied_file_is_not_encoded_again(patients: list[Any], tmp_path: Path) -> None:
    embed(patients, tmp_path / "cache")
    copy = tmp_path / "copy.nii"
    copy.write_bytes(Path(patients[0]["image"][0]).read_bytes())
    assert embed([{**patients[0], "image": [str(copy)]}], tmp_path / "cache")[1] == 0


def test_one_picture_of_two_patients_is_encoded_once(patients: list[Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy.nii"
    copy.write_bytes(Path(patients[0]["image"][0]).read_bytes())
    assert embed([patients[0], {**patients[0], "image": [str(copy)]}], tmp_path / "cache")[1] == 1


def test_another_transform_encodes_everything_again(patients: list[Any], tmp_path: Path) -> None:
    embed(patients, tmp_path / "cache")
    assert embed(patients, tmp_path / "cache", transform=steps(b_max=1.5))[1] == 6
    assert embed(patients, tmp_path / "cache")[1] == 0


def test_one_other_weight_encodes_everything_again(patients: list[Any], tmp_path: Path) -> None:
    embed(patients, tmp_path / "cache")
    other = Counted()
    with torch.no_grad():
        other.layers[0].bias[2] += 1e-6
    assert embed(patients, tmp_path / "cache", encoder=PretrainedEncoder(other))[1] == 6


@pytest.mark.parametrize("size", [0, 20, 47])
def test_a_truncated_entry_is_never_used(size: int, patients: list[Any], tmp_path: Path) -> None:
    first, _ = embed(patients, tmp_path / "cache")
    entry = entries(tmp_path / "cache")[0]
    assert entry.stat().st_size == 48
    entry.write_bytes(entry.read_bytes()[:size])
    second, count = embed(patients, tmp_path / "cache")
    assert count == 1
    for patient in patients:  # encoded alone it may be rounded in another way than in a batch
        torch.testing.assert_close(second(patient)["image"], first(patient)["image"])
    assert embed(patients, tmp_path / "cache")[1] == 0


def test_a_flipped_bit_or_the_entry_of_another_scan_is_never_used(patients: list[Any], tmp_path: Path) -> None:
    embed(patients, tmp_path / "cache")
    one, other, *_, last = entries(tmp_path / "cache")
    whole = bytearray(one.read_bytes())
    whole[-1] ^= 1
    one.write_bytes(whole)
    other.write_bytes(last.read_bytes())
    assert embed(patients, tmp_path / "cache")[1] == 2


def test_a_scan_that_is_replaced_while_it_is_read_leaves_nothing_on_disk(patients: list[Any], tmp_path: Path) -> None:
    class Replacing(Counted):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            write_scan(Path(patients[0]["image"][0]), 77)
            return super().forward(image)

    with pytest.raises(ValueError, match=r"0\.nii: file changed on disk while it was being read"):
        embed(patients, tmp_path / "cache", encoder=PretrainedEncoder(Replacing()))
    assert entries(tmp_path / "cache") == []


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "got"),
    [
        (lambda: PretrainedEncoder(Counted(), learn=["layers.0.*"]), "PretrainedEncoder with trainable layers"),
        (Counted, "Counted"),
    ],
)
def test_an_encoder_that_learns_is_refused(
    encoder: Callable[[], nn.Module], got: str, patients: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"expected a frozen encoder, .* got {got}"):
        embed(patients, tmp_path / "cache", encoder=encoder())


def test_an_encoder_that_learns_refuses_embeddings() -> None:
    with pytest.raises(ValueError, match=r"expected scans \(M, C, \*spatial\), got embeddings"):
        PretrainedEncoder(nn.Linear(3, 3), learn=["*"])(torch.zeros(2, 3))


def test_a_random_transform_is_refused_by_name(patients: list[Any], tmp_path: Path) -> None:
    flipped = Compose([*steps().transforms[:-1], Compose([RandFlipd("image")]), PackScansd("image")])
    with pytest.raises(ValueError, match="expected deterministic transforms, got RandFlipd"):
        embed(patients, tmp_path / "cache", transform=flipped)


def test_a_transform_that_looks_at_more_than_the_scan_fails_loudly(patients: list[Any], tmp_path: Path) -> None:
    curious = Compose([lambda item: {**item, "image": [*item["image"][: len(item["label"])]]}, *steps().transforms])
    with pytest.raises(RuntimeError) as caught:
        embed(patients, tmp_path / "cache", transform=curious)
    assert isinstance(caught.value.__cause__, KeyError)


def test_scans_of_two_shapes_are_refused(patients: list[Any], tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.float32), np.eye(4)), patients[0]["image"][0])
    with pytest.raises(ValueError, match="expected scans of one shape"):
        embed(patients, tmp_path / "cache")


def test_an_unreadable_scan_is_named_and_what_was_done_before_is_kept(patients: list[Any], tmp_path: Path) -> None:
    Path(patients[2]["image"][1]).write_bytes(bytes(range(256)) * 20)
    with pytest.raises(RuntimeError) as caught:
        embed(patients, tmp_path / "cache")
    cause = user_error(caught.value)
    assert isinstance(cause, ScanError) and str(cause).startswith("4.nii: ")
    write_scan(Path(patients[2]["image"][1]), 4)
    assert embed(patients, tmp_path / "cache")[1] == 2


def test_weights_of_another_encoder_are_refused_afterwards_and_its_own_are_not(
    patients: list[Any], tmp_path: Path
) -> None:
    net = MultiScanNet(PretrainedEncoder(Counted()), MeanPool(4))
    embed(patients, tmp_path / "cache", encoder=net.encoder)
    own = {name: tensor.clone() * (1 + 1e-7) for name, tensor in net.state_dict().items()}
    net.load_state_dict(own)
    own["encoder.encoder.layers.0.weight"] *= 1.1
    with pytest.raises(ValueError, match="other encoder weights than the cached embeddings were"):
        net.load_state_dict(own)


# ---- Size ------------------------------------------------------------------------------------------------------------


def test_nothing_of_this_run_is_deleted_and_a_limit_that_is_too_small_is_told(
    patients: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embed(patients, tmp_path / "cache", transform=steps(b_max=3))
    embed(patients, tmp_path / "cache", max_bytes=100)
    assert len(entries(tmp_path / "cache")) == 6
    assert "embeddings in use take 288 bytes, more than max_bytes=100" in caplog.text
    assert embed(patients, tmp_path / "cache")[1] == 0


# ---- Several processes -----------------------------------------------------------------------------------------------


class Slow(list[int]):
    """A count that takes time, so that the encoder itself is that of the other tests."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.pause = pause

    def append(self, scans: int) -> None:
        time.sleep(self.pause)
        super().append(scans)


def work(folder: Path, pause: float, result: Path) -> None:
    global COUNT
    COUNT = Slow(pause)
    scans = sorted(map(str, folder.glob("*.nii")))
    embedded, count = embed([{"image": scans}], folder / "cache")
    torch.save({"count": count, "image": embedded({"image": scans})["image"]}, result)


def start(folder: Path, pause: float, result: str) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder, pause, folder / result))
    process.start()
    return process


def test_two_processes_that_compute_the_same_at_once_both_end_right(tmp_path: Path) -> None:
    scans = [write_scan(tmp_path / f"{number:02d}.nii", number) for number in range(40)]
    both = [start(tmp_path, 0.1, f"{number}.pt") for number in range(2)]
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    with torch.no_grad():
        expected = Counted().eval()(steps()({"image": scans})["image"])
    found = [torch.load(tmp_path / f"{number}.pt") for number in range(2)]
    assert sum(part["count"] for part in found) > 40  # they did meet
    for part in found:
        torch.testing.assert_close(part["image"], expected)
    assert len(entries(tmp_path / "cache")) == 40


def test_after_a_kill_in_the_middle_the_next_run_goes_on(tmp_path: Path) -> None:
    for number in range(40):
        write_scan(tmp_path / f"{number:02d}.nii", number)
    killed = start(tmp_path, 0.3, "0.pt")
    deadline = time.monotonic() + 60
    while len(entries(tmp_path / "cache")) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.join(timeout=30)
    done = len(entries(tmp_path / "cache"))
    assert killed.exitcode == -signal.SIGKILL and 8 <= done < 40
    goes_on = start(tmp_path, 0.0, "1.pt")
    goes_on.join(timeout=120)
    assert goes_on.exitcode == 0 and torch.load(tmp_path / "1.pt")["count"] == 40 - done

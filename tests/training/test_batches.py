"""Items to batch: padding, mask and refusals."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import CacheDataset, DataLoader
from monai.engines import PrepareBatchExtraInput
from monai.transforms import (
    Compose,
    EnsureTyped,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    Randomizable,
    RandomizableTransform,
)
from torch.testing import assert_close

from monai_mvreg.training.batches import AugmentedImages, PatientBatches, SeededScans, StreamedImages, collate_scans
from monai_mvreg.training.transforms import PackScansd, UnpackScansd


def patient(scans: int, **more: Any) -> dict[str, Any]:
    image = torch.arange(scans * 4.0).reshape(scans, 1, 2, 2) + 1
    return {"image": image, "time": [30.0 * k for k in range(scans)], "view": [1] * scans, **more}


def test_the_mask_is_true_where_a_scan_exists() -> None:
    batch = collate_scans([patient(2), patient(1), patient(3)])
    assert batch["mask"].tolist() == [[True, True, False], [True, False, False], [True, True, True]]


def test_real_scans_dates_and_views_come_back_and_padding_is_zero() -> None:
    batch = collate_scans([patient(1), patient(3)])
    assert batch["image"].shape == (2, 3, 1, 2, 2)
    assert_close(batch["image"][1], patient(3)["image"])
    assert_close(batch["image"][0, :1], patient(1)["image"])
    assert batch["image"][0, 1:].abs().sum() == 0
    assert batch["time"].tolist() == [[0.0, 0.0, 0.0], [0.0, 30.0, 60.0]]
    assert batch["view"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_labels_and_covariates_become_rows_and_names_lists() -> None:
    items = [patient(1, label=[2.0], covariates=[61.0, 0.0], patient="a", fold="0"), patient(2, label=[5.0])]
    items[1] |= {"covariates": [float("nan"), 1.0], "patient": "b", "fold": "3"}
    batch = collate_scans(items)
    assert batch["label"].tolist() == [[2.0], [5.0]]
    assert batch["covariates"].isnan().tolist() == [[False, False], [True, False]]
    assert (batch["patient"], batch["fold"]) == (["a", "b"], ["0", "3"])


def test_a_batch_without_labels_has_none() -> None:
    assert "label" not in collate_scans([patient(1)])


def test_every_tensor_has_the_type_the_network_reads() -> None:
    batch = collate_scans([patient(1, label=[2])])
    types = {key: batch[key].dtype for key in ("image", "mask", "time", "view", "label")}
    real = torch.float32
    assert types == {"image": real, "mask": torch.bool, "time": real, "view": torch.long, "label": real}


def test_a_patient_without_a_scan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one scan per patient, got counts \[2, 0\]"):
        collate_scans([patient(2), {**patient(1), "image": torch.zeros(0, 1, 2, 2), "time": [], "view": []}])


def test_scans_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 2\), \(1, 2, 3\)"):
        collate_scans([patient(1), {**patient(1), "image": torch.zeros(1, 1, 2, 3)}])


@pytest.mark.parametrize("key", ["time", "view"])
def test_a_date_or_view_for_each_scan_is_required(key: str) -> None:
    with pytest.raises(ValueError, match=f"expected one {key} per scan, got 2 for 3 scans"):
        collate_scans([{**patient(3), key: [0, 1]}, patient(3)])


# ---- Which patients --------------------------------------------------------------------------------------------------


def drawn(batches: PatientBatches, epoch: int = 1) -> list[list[int]]:
    batches.epoch = epoch
    return [[index for index, _ in batch] for batch in batches]


@pytest.mark.parametrize(("patients", "events", "batch_size"), [(40, 10, 8), (41, 3, 8), (7, 7, 3), (9, 0, 4)])
def test_events_are_spread_over_the_batches(patients: int, events: int, batch_size: int) -> None:
    has = [float(number < events) for number in range(patients)]
    batches = PatientBatches([1] * patients, batch_size, events=has)
    for epoch in (1, 2, 3):
        found = drawn(batches, epoch)
        held = [sum(number < events for number in batch) for batch in found if len(batch) == batch_size]
        assert max(held) - min(held) <= 1 and len(found) == len(batches)


@pytest.mark.parametrize("events", [None, [1.0, 0.0, 0.0] * 14])
def test_every_patient_comes_once_an_epoch_in_another_order(events: list[float] | None) -> None:
    batches = PatientBatches([1] * 42, 8, events=events)
    orders = [[index for batch in drawn(batches, epoch) for index in batch] for epoch in (1, 2)]
    assert all(sorted(order) == list(range(42)) for order in orders) and orders[0] != orders[1]
    assert len(batches) == 6


def test_a_last_batch_of_one_patient_is_left_out() -> None:
    batches = PatientBatches([1] * 9, 4)
    assert [len(batch) for batch in drawn(batches)] == [4, 4] and len(batches) == 2


@pytest.mark.parametrize("patients", [12, 13, 14, 15])
def test_processes_draw_together_what_one_process_draws(patients: int) -> None:
    events = [float(number % 3 == 0) for number in range(patients)]
    shards = [PatientBatches([1] * patients, 2, events=events, rank=rank, processes=2) for rank in (0, 1)]
    for epoch in (1, 2):
        for shard in shards:
            shard.epoch = epoch
        together = [sorted(first + second) for first, second in zip(*shards, strict=True)]
        alone = PatientBatches([1] * patients, 4, events=events)
        alone.epoch = epoch
        assert together == [sorted(batch) for batch in alone]
        assert all(batch for shard in shards for batch in shard)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=60), st.integers(12, 40), st.integers(1, 3), st.integers(1, 5))
def test_a_budget_of_scans_holds_and_batches_are_as_many_in_every_epoch(
    counts: list[int], max_scans: int, processes: int, epoch: int
) -> None:
    shards = [
        PatientBatches(counts, 1, max_scans=max_scans, rank=rank, processes=processes) for rank in range(processes)
    ]
    found = [batch for shard in shards for batch in drawn(shard, epoch)]
    assert {len(drawn(shard, epoch)) for shard in shards} == {len(shards[0])}
    assert all(0 < sum(counts[index] for index in batch) <= max_scans for batch in found)
    once = sorted(index for batch in found for index in batch)
    assert len(set(once)) == len(once)
    if processes == 1:
        assert once == list(range(len(counts)))


def test_batches_by_budget_pad_little() -> None:
    counts = np.random.default_rng(0).integers(1, 13, 400).tolist()
    batches = drawn(PatientBatches(counts, 1, max_scans=60))
    padded = sum(len(batch) * max(counts[index] for index in batch) for batch in batches)
    assert padded < 1.05 * sum(counts)
    taken = [sum(counts[index] for index in batch) for batch in batches]
    assert np.median(taken) > 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": [1], "processes": 2}, "a patient for each of 2 processes, got 1"),
        ({"counts": [3, 9], "max_scans": 8}, "max_scans of at least 9, the scans of one patient, got 8"),
        ({"counts": [1, 1], "max_scans": 8, "events": [1, 0]}, "either max_scans or events"),
    ],
)
def test_batches_that_cannot_be_formed_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatientBatches(options.pop("counts"), 2, **options)


# ---- Seeds -----------------------------------------------------------------------------------------------------------


class Noise(RandomizableTransform):
    """Adds noise from all three sources that transforms may draw from."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        drawn = [*self.R.uniform(size=2).tolist(), random.random(), np.random.rand(), torch.rand(1).item()]
        return {**data, "image": data["image"] + torch.tensor(drawn).sum()}


def noisy(workers: int, epoch: int = 1) -> list[torch.Tensor]:
    dataset = CacheDataset([patient(n % 3 + 1) for n in range(7)], Compose([Noise()]), progress=False)
    batches = PatientBatches([n % 3 + 1 for n in range(7)], 3, seed=4)
    batches.epoch = epoch
    loader = DataLoader(
        SeededScans(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_scans,
        generator=torch.Generator(),
    )
    return [batch["image"] for batch in loader]


def test_augmentation_is_the_same_with_any_number_of_workers() -> None:
    alone = noisy(0)
    for workers in (1, 2):
        assert_close(noisy(workers), alone, rtol=0, atol=0)
    assert (noisy(0, epoch=2)[0] != alone[0][..., :1, :1]).any()


def test_augmentation_leaves_the_random_states_of_the_process_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    noisy(0)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_images_may_stay_where_they_are() -> None:
    batch = collate_scans([patient(2, label=[1.0]), patient(1, label=[2.0])])
    prepare = StreamedImages(extra_keys={"mask": "mask", "time": "time"})
    image, label, _, extra = prepare(batch, device="meta")
    assert image is batch["image"]
    assert {label.device.type, extra["mask"].device.type, extra["time"].device.type} == {"meta"}


# ---- Augmented on the device -----------------------------------------------------------------------------------------


class AnySourced(MapTransform, Randomizable):
    """Adds noise to each scan from the three sources that transforms may draw from."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        drawn = self.R.uniform() + random.random() + np.random.rand()
        return {**data, "image": data["image"] + drawn + torch.rand(1, device=data["image"].device)}


def augmentation() -> list[Any]:
    """As in train.yaml, and one that draws from elsewhere."""
    return [
        RandFlipd("image", prob=0.5, spatial_axis=0),
        RandAffined("image", prob=0.5, rotate_range=[0.5] * 3, translate_range=[2] * 3, padding_mode="zeros"),
        AnySourced("image"),
        RandGaussianNoised("image", prob=0.5, std=0.1),
        RandAdjustContrastd("image", prob=0.5, gamma=[0.8, 1.25]),
    ]


def augmented(device: str | None, *, workers: int = 0, done: int = 0) -> list[torch.Tensor]:
    """Batches of patients with 1 to 3 scans, augmented in the loader or on a device."""
    draw = torch.Generator().manual_seed(0)
    counts = [n % 3 + 1 for n in range(7)]
    patients = [{**patient(n), "image": [*torch.rand(n, 1, 6, 5, 4, generator=draw)]} for n in counts]
    steps = [UnpackScansd("image"), EnsureTyped("image", track_meta=False)]
    steps += [*([] if device else augmentation()), PackScansd("image")]
    batches = PatientBatches(counts, 3, seed=4)
    batches.epoch, batches.done = 2, done
    loader = DataLoader(
        SeededScans(CacheDataset(patients, Compose(steps), progress=False)),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_scans,
        generator=torch.Generator(),
    )
    prepare = PrepareBatchExtraInput(extra_keys={"mask": "mask"})
    if device:
        prepare = AugmentedImages(prepare, augmentation())
    return [prepare({**batch, "label": batch["time"]}, torch.device(device or "cpu"))[0] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_on_the_device_a_scan_is_the_same_as_augmented_in_the_loader(workers: int) -> None:
    loaded = augmented(None)
    assert_close(augmented("cpu", workers=workers), loaded, rtol=0, atol=0)
    assert_close(augmented("cpu", workers=workers, done=1), loaded[1:], rtol=0, atol=0)
    assert type(augmented("cpu")[0]) is torch.Tensor


def test_augmenting_on_the_device_leaves_the_random_states_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    augmented("cpu")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # type: ignore[index]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
def test_on_a_gpu_the_transforms_of_the_training_draw_what_they_draw_in_the_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AnySourced, "__call__", lambda self, data: data)  # each device draws by itself
    on_gpu = augmented("cuda:0")
    assert {image.device.type for image in on_gpu} == {"cuda"}
    assert_close([image.cpu() for image in on_gpu], augmented(None), rtol=1e-3, atol=1e-3)


def test_images_in_host_memory_are_not_augmented_on_a_device() -> None:
    with pytest.raises(ValueError, match="expected images on the device, got StreamedImages"):
        AugmentedImages(StreamedImages(extra_keys={}), [])


def test_embeddings_are_not_augmented() -> None:
    batch = collate_scans([{**patient(2, label=[1.0]), "image": torch.ones(2, 5)}])
    with pytest.raises(ValueError, match="expected scans, got embeddings"):
        AugmentedImages(PrepareBatchExtraInput(extra_keys={}), [])(batch, torch.device("cpu"))

"""Items to batch: padding, mask and refusals."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from monai_mvreg.data import EventSampler, collate_scans


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


@pytest.mark.parametrize(("patients", "events", "batch_size"), [(40, 10, 8), (41, 3, 8), (7, 7, 3), (9, 0, 4)])
def test_events_are_spread_over_the_batches_and_every_patient_comes_once(
    patients: int, events: int, batch_size: int
) -> None:
    label = [[1.0, float(number < events)] for number in range(patients)]
    sampler = EventSampler(label, batch_size)
    orders = []
    for _ in range(3):
        order = list(sampler)
        assert sorted(order) == list(range(patients)) and len(sampler) == patients
        held = [
            sum(number < events for number in order[start : start + batch_size])
            for start in range(0, patients, batch_size)
        ]
        full = held[: patients // batch_size]
        assert max(full) - min(full) <= 1
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


def test_a_label_without_an_event_is_refused() -> None:
    with pytest.raises(ValueError, match="give columns#event"):
        EventSampler([[1.0], [2.0]], 2)

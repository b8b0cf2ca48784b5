"""Items -> batch: patients with different numbers of scans side by side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler


def collate_scans(patients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pad patients with different numbers of scans into one batch.

    Args:
        patients: one dictionary each: ``image`` ``(N, C, *spatial)``, ``time`` and ``view`` with ``N`` entries,
            and ``label`` ``K`` or ``covariates`` ``V`` numbers where there are any.

    Returns:
        ``image`` ``(B, N, C, *spatial)``, ``mask`` ``(B, N)`` true where a scan exists, ``time`` ``(B, N)`` in days,
        ``view`` ``(B, N)``; ``label`` ``(B, K)`` and ``covariates`` ``(B, V)``, which all patients or none must have;
        ``patient`` and ``fold`` as lists.

    Raises:
        ValueError: if a patient has no scan or not one date and view per scan, or scans of patients differ in shape.
    """
    counts = torch.tensor([len(patient["image"]) for patient in patients])
    if (counts == 0).any():
        raise ValueError(f"expected at least one scan per patient, got counts {counts.tolist()}")
    shapes = {tuple(patient["image"].shape[1:]) for patient in patients}
    if len(shapes) > 1:
        raise ValueError(f"expected scans of one shape (C, *spatial) in a batch, got {sorted(shapes)}")

    for key in ("time", "view"):
        for patient, count in zip(patients, counts.tolist(), strict=True):
            if len(patient[key]) != count:
                raise ValueError(f"expected one {key} per scan, got {len(patient[key])} for {count} scans")

    def padded(key: str, dtype: torch.dtype) -> torch.Tensor:
        rows = [torch.as_tensor(patient[key], dtype=dtype) for patient in patients]
        return pad_sequence(rows, batch_first=True)

    batch: dict[str, Any] = {
        "image": padded("image", torch.float32),
        "mask": torch.arange(int(counts.max())) < counts[:, None],
        "time": padded("time", torch.float32),
        "view": padded("view", torch.long),
    }
    for key in ("label", "covariates"):
        if any(key in patient for patient in patients):
            batch[key] = torch.tensor([patient[key] for patient in patients], dtype=torch.float32)
    for key in ("patient", "fold"):
        batch[key] = [patient.get(key, "") for patient in patients]
    return batch


class EventSampler(Sampler[int]):
    """A random order of patients in which the events are spread over the batches as evenly as they can be.

    A batch without an event teaches Cox's loss nothing. Every patient comes once an epoch.

    Args:
        label: one label per patient; the event, 1 or 0, is its second number.
        batch_size: patients in a batch.

    Raises:
        ValueError: if a label is not a time and an event.
    """

    def __init__(self, label: Sequence[Sequence[float]], batch_size: int) -> None:
        if any(len(row) < 2 for row in label):
            raise ValueError("expected labels of time and event, got one number: give columns#event")
        self.event = torch.tensor([row[1] > 0 for row in label])
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.event)

    def __iter__(self) -> Iterator[int]:
        """Draw events and the others by themselves, and lay the events out at even distances in a random order."""
        order = torch.randperm(len(self.event))
        events, others = order[self.event[order]].tolist(), order[~self.event[order]].tolist()
        batches = -(-len(order) // self.batch_size)
        sizes = [min(self.batch_size, len(order) - batch * self.batch_size) for batch in range(batches)]
        filled: list[list[int]] = [[] for _ in sizes]
        for place in torch.randperm(batches).tolist() * self.batch_size:
            if events and len(filled[place]) < sizes[place]:
                filled[place].append(events.pop())
        for batch, size in zip(filled, sizes, strict=True):
            batch += [others.pop() for _ in range(size - len(batch))]
            yield from (batch[i] for i in torch.randperm(size).tolist())

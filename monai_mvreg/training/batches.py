"""Items -> batch: which patients, drawn how, and their different numbers of scans side by side."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Events
from monai.engines import PrepareBatch, PrepareBatchExtraInput
from monai.transforms import Compose, Randomizable
from monai.utils import CommonKeys, convert_to_tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

Array = npt.NDArray[Any]


def collate_scans(patients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pad patients with different numbers of scans into one batch.

    Args:
        patients: one dictionary each: ``image`` ``(N, C, *spatial)``, ``time`` and ``view`` with ``N`` entries,
            and ``label`` ``K`` or ``covariates`` ``V`` numbers where there are any.

    Returns:
        ``image`` ``(B, N, C, *spatial)``, ``mask`` ``(B, N)`` true where a scan exists, ``time`` ``(B, N)`` in days,
        ``view`` ``(B, N)``; ``label`` ``(B, K)`` and ``covariates`` ``(B, V)``, which all patients or none must have;
        ``patient``, ``fold``, ``groups`` (texts by column) and the ``seed`` of random transforms as lists.

    Raises:
        ValueError: if a patient has no scan or not one date and view per scan, or the shapes of scans differ.

    Example:
        >>> one = {"image": torch.zeros(1, 1, 4, 4), "time": [0.0], "view": [0]}
        >>> two = {"image": torch.zeros(2, 1, 4, 4), "time": [0.0, 90.0], "view": [0, 0]}
        >>> batch = collate_scans([one, two])
        >>> batch["image"].shape, batch["mask"].tolist()
        (torch.Size([2, 2, 1, 4, 4]), [[True, False], [True, True]])
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
    for key in ("patient", "fold", "seed"):
        batch[key] = [patient.get(key, "") for patient in patients]
    batch["groups"] = [patient.get("groups", {}) for patient in patients]
    return batch


class PatientBatches(Sampler[list[tuple[int, int]]]):
    """Batches of patients in an order that seed and epoch alone decide, shared out to all processes.

    For ``DataLoader(SeededScans(dataset), batch_sampler=...)``: each patient comes as ``(index, seed)``, the seed being
    that of the random transforms. So neither the number of workers nor an interruption changes what is drawn, and
    several processes draw together what one process with so many times the patients in a batch would. Attached to a
    trainer, it knows the epoch, and begins behind the batches that were done before an interruption.

    Args:
        counts: number of scans of each patient.
        batch_size: patients in a batch of one process. A last batch of one patient, or of fewer than there are
            processes, is left out of the epoch: one scan alone is too little for batch normalisation.
        max_scans: a budget of scans for a batch of one process instead of patients. Batches are then formed of patients
            with like numbers of scans, so memory is even and the pool pads little.
        events: 1 or 0 for each patient; events are spread over the batches as evenly as they can be, since a batch
            without an event teaches Cox's loss nothing. None: at random.
        seed: of everything that is drawn.
        rank: of this process.
        processes: how many share the patients.

    Raises:
        ValueError: if there are fewer patients than processes, a patient has more scans than ``max_scans``, or
            ``max_scans`` and ``events`` are given together.
    """

    def __init__(
        self,
        counts: Sequence[int],
        batch_size: int,
        *,
        max_scans: int | None = None,
        events: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if len(counts) < processes:
            raise ValueError(f"expected a patient for each of {processes} processes, got {len(counts)} patients")
        if max_scans is not None and max(counts) > max_scans:
            raise ValueError(f"expected max_scans of at least {max(counts)}, the scans of one patient, got {max_scans}")
        if max_scans is not None and events is not None:
            raise ValueError("expected either max_scans or events to form batches by, got both")
        self.counts, self.batch_size, self.max_scans = np.asarray(counts), batch_size, max_scans
        self.events = None if events is None else np.asarray(events) > 0
        self.seed, self.rank, self.processes = seed, rank, processes
        self.epoch, self.done = 1, 0

    def attach(self, engine: Any) -> None:
        """Register with a trainer as a handler."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)

    def _begin(self, engine: Any) -> None:
        self.epoch, self.done = engine.state.epoch, engine.state.iteration % engine.state.epoch_length

    def __len__(self) -> int:
        """Batches of this process in an epoch, the same number in all of them."""
        return len(self._together(np.random.default_rng(0))) // self.processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Draw the batches of this process."""
        draw = np.random.default_rng([self.seed, self.epoch])
        seeds = draw.integers(2**32, size=len(self.counts)).tolist()
        own = self._together(draw)[self.rank :: self.processes]
        for batch in own[self.done :]:
            yield [(index, seeds[index]) for index in batch]

    def _together(self, draw: np.random.Generator) -> list[list[int]]:
        """Draw the batches of all processes; those that are computed together stand behind each other."""
        if self.max_scans is not None:
            return self._within_budget(draw, self.max_scans)
        order = draw.permutation(len(self.counts))
        size = self.batch_size * self.processes
        batches = np.array_split(order, range(size, len(order), size))
        if len(batches) > 1 and len(batches[-1]) < max(2, self.processes):
            batches.pop()
        if self.events is not None:
            batches = self._spread([len(batch) for batch in batches], np.concatenate(batches), draw)
        return [batch[rank :: self.processes].tolist() for batch in batches for rank in range(self.processes)]

    def _spread(self, sizes: list[int], order: Array, draw: np.random.Generator) -> list[Array]:
        """Deal events to batches of these sizes in turn, and fill up with the others."""
        assert self.events is not None
        events, others = order[self.events[order]].tolist(), order[~self.events[order]].tolist()
        batches: list[list[int]] = [[] for _ in sizes]
        for place in draw.permutation(len(sizes)).tolist() * max(sizes):
            if events and len(batches[place]) < sizes[place]:
                batches[place].append(events.pop())
        for batch, size in zip(batches, sizes, strict=True):
            batch += [others.pop() for _ in range(size - len(batch))]
        return [draw.permutation(batch) for batch in batches]

    def _within_budget(self, draw: np.random.Generator, max_scans: int) -> list[list[int]]:
        """Cut the patients, by number of scans, into batches of at most so many; their number is always the same."""
        order = draw.permutation(len(self.counts))
        order = order[np.argsort(self.counts[order], kind="stable")]
        batches: list[list[int]] = [[]]
        for index in order.tolist():
            if self.counts[[*batches[-1], index]].sum() > max_scans:
                batches.append([])
            batches[-1].append(index)
        while len(batches) % self.processes and max(map(len, batches)) > 1:
            most = batches.pop(max(range(len(batches)), key=lambda place: len(batches[place])))
            batches += [most[::2], most[1::2]]
        shared = len(batches) - len(batches) % self.processes
        return [batches[place] for place in draw.permutation(len(batches))[:shared]]


class SeededScans(Dataset[Any]):
    """Patients of a dataset by ``(index, seed)``: what random transforms draw depends on the seed alone.

    Args:
        dataset: any dataset of MONAI with a ``transform``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """Prepare a patient, and add its ``seed``; the random states of the process stay as they are."""
        index, seed = place
        with _seeded(self.dataset.transform, seed):
            return {**self.dataset[index], "seed": seed}


@contextlib.contextmanager
def _seeded(transform: Any, seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let a transform, computing on a device, draw by a seed; the random states of the process stay as they are."""
    if isinstance(transform, Randomizable):
        transform.set_random_state(seed)
    # Transforms from elsewhere draw from the global states.
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])


def end_with_training(worker: int) -> None:
    """Let a worker end by the SIGTERM of its own training alone, for ``worker_init_fn``.

    A cluster sends the signal to all processes of a training, whose main one still has to finish its batch. Where the
    system does not tell who sends a signal (other than Linux), workers end by any.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)  # killed by the signal, it would pass for a worker that failed

    threading.Thread(target=wait, daemon=True).start()


class StreamedImages(PrepareBatchExtraInput):
    """Prepare a batch whose images stay in host memory; a network with ``chunk_size`` moves them chunk by chunk."""

    def __call__(self, batchdata: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Move all but the image to the device."""
        _, *others = super().__call__({**batchdata, CommonKeys.IMAGE: batchdata["mask"]}, *args, **kwargs)
        return batchdata[CommonKeys.IMAGE], *others


class AugmentedImages(PrepareBatch):
    """Prepare a batch and augment it where it is then, on the GPU: each scan as the loader would have augmented it.

    For batches of :class:`SeededScans` whose dataset has no random transforms. They draw what they would have drawn in
    the loader, from the seed of the patient, so on a CPU the images are the same bit by bit.

    Args:
        prepare: what brings a batch to the device.
        augmentation: dictionary transforms that take and give tensors under ``image`` and read nothing else.

    Raises:
        ValueError: if ``prepare`` leaves the images in host memory.
    """

    def __init__(self, prepare: Callable[..., Any], augmentation: Sequence[Callable[[Any], Any]]) -> None:
        if isinstance(prepare, StreamedImages):
            raise ValueError(
                "augment_on_device: expected images on the device, got StreamedImages, which leaves them in host "
                "memory: augment in the loader"
            )
        self.prepare, self.augmentation = prepare, Compose(augmentation)

    def __call__(self, batchdata: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Prepare as ``prepare`` does, with ``image`` ``(B, N, C, *spatial)`` augmented.

        Raises:
            ValueError: for a batch of embeddings.
        """
        image, *others = self.prepare(batchdata, *args, **kwargs)
        if image.ndim == 3:
            raise ValueError("augment_on_device: expected scans, got embeddings of scans, which are not augmented")
        counts = batchdata["mask"].sum(1).tolist()
        augmented = []
        for scans, count, seed in zip(image, counts, batchdata["seed"], strict=True):
            with _seeded(self.augmentation, seed, image.device):
                done = self.augmentation([{CommonKeys.IMAGE: scan} for scan in scans[:count]])
            scans = [convert_to_tensor(scan[CommonKeys.IMAGE], track_meta=False).float() for scan in done]
            augmented.append(torch.stack(scans))
        return pad_sequence(augmented, batch_first=True), *others

"""Training scans -> what the training saw, so that a new patient outside of it is told; kept as JSON beside the model.

A model says nothing about scans of another kind. What can be told from a scan without knowing the truth is compared:
its modality, spacing and intensities with those of the training, and its embedding with the cloud of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

from monai_mvreg.cache.typed_json import strict, write_json
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.networks.multiscan import MultiScanNet
from monai_mvreg.scans.find import Scan
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import scan_at
from monai_mvreg.scans.reader import ScanReader

SHARES = (0.01, 0.25, 0.5, 0.75, 0.99)  # of the intensities of a scan that lie below each of its quantiles
_MARGIN = 0.1  # of the range that training saw: a value so little outside is none to speak of
_FEWEST = 10  # held-out scans: with fewer nobody can say how far is far


@dataclass(frozen=True)
class ScanFacts:
    """What is compared of a scan.

    ``modality`` is empty and ``spacing`` (mm, from fine to coarse) is empty where they are not known; ``intensity``
    holds the quantiles of the values as they were read, one for each of ``SHARES``.
    """

    modality: str
    spacing: tuple[float, ...]
    intensity: tuple[float, ...]


def facts_of(image: Array, *, modality: str, spacing: Sequence[float]) -> ScanFacts:
    """Take the facts of a scan; of a large one every n-th voxel counts.

    Args:
        image: values as they were read, of any shape.
        modality: DICOM modality or "".
        spacing: mm along each axis.
    """
    values = image.reshape(-1)[:: max(image.size // 100_000, 1)]
    quantiles = np.quantile(values.astype(np.float64), SHARES)
    return ScanFacts(modality, tuple(sorted(spacing)), tuple(quantiles.tolist()))


@dataclass(frozen=True)
class Cloud:
    """Where the embeddings of training scans lie: a normal distribution along its main axes, round in all others.

    Args:
        mean: ``(E,)``.
        axes: ``(R, E)``, orthonormal.
        variances: ``(R,)`` along them.
        rest: variance along every other axis.
        distances: how far scans of held-out patients lie, increasing.

    Source: Tipping, Bishop, J R Stat Soc B 1999. https://doi.org/10.1111/1467-9868.00196
    """

    mean: tuple[float, ...]
    axes: tuple[tuple[float, ...], ...]
    variances: tuple[float, ...]
    rest: float
    distances: tuple[float, ...]

    def distance(self, embeddings: Array) -> Array:
        """Mahalanobis distance ``(M,)`` of embeddings ``(M, E)``."""
        away = np.asarray(embeddings, dtype=np.float64) - self.mean
        along = away @ np.asarray(self.axes).T
        beside = np.maximum((away**2).sum(1) - (along**2).sum(1), 0.0)
        return np.asarray(np.sqrt((along**2 / self.variances).sum(1) + beside / self.rest))

    def rarity(self, embedding: Array) -> float:
        """Share of new scans of the training's kind that lie as far as the embedding ``(E,)``: a conformal p-value.

        Source: Bates et al., Ann Stat 2023. https://doi.org/10.1214/22-AOS2244
        """
        distance = self.distance(embedding[None])[0]
        nearer = np.searchsorted(self.distances, distance, side="left")
        return float((1 + len(self.distances) - nearer) / (1 + len(self.distances)))


def fit_cloud(training: Array, held_out: Array) -> Cloud | None:
    """Fit the cloud of training embeddings, and measure how far those of other patients lie.

    Args:
        training: embeddings ``(M, E)`` of scans that the network has learned from.
        held_out: embeddings ``(H, E)`` of scans of other patients of the same kind.

    Returns:
        The cloud; None where there are too few scans to say what is far.
    """
    if min(len(training), len(held_out)) < _FEWEST:
        return None
    mean = training.mean(0)
    _, strengths, axes = np.linalg.svd(training - mean, full_matrices=False)
    variances = strengths**2 / (len(training) - 1)
    count = min(16, len(training) // 8, max(training.shape[1] - 1, 1))
    total = variances.sum() or 1.0
    # An axis along which nothing varied in training must not turn a rounding error into a distance.
    rest = max(variances[count:].sum() / max(training.shape[1] - count, 1), 1e-6 * total)
    kept = np.maximum(variances[:count], rest)
    cloud = Cloud(_floats(mean), tuple(map(_floats, axes[:count])), _floats(kept), float(rest), ())
    return Cloud(cloud.mean, cloud.axes, cloud.variances, cloud.rest, _floats(np.sort(cloud.distance(held_out))))


@strict
@dataclass(frozen=True)
class Domain:
    """What a training saw.

    Args:
        patients: number of training patients.
        scans: fewest and most scans of one of them.
        follow_up: shortest and longest time between the first and the last scan of one of them, in days.
        modalities: DICOM modalities of their scans; those that are not known are not listed.
        spacing: least and largest spacing in mm, for each axis from fine to coarse; empty if not known.
        intensity: least and largest of each quantile.
        cloud: the embeddings; None where there were too few.
        targets: percentiles 0, 5, ... 100 of each target over the training patients.
    """

    patients: int
    scans: tuple[int, int]
    follow_up: tuple[float, float]
    modalities: tuple[str, ...]
    spacing: tuple[tuple[float, float], ...]
    intensity: tuple[tuple[float, float], ...]
    cloud: Cloud | None
    targets: Mapping[str, tuple[float, ...]]

    def check_scan(self, facts: ScanFacts, embedding: Array) -> dict[str, str]:
        """Say what of a scan lies outside of what the training saw: name of the check -> sentence."""
        found = {}
        if facts.modality and self.modalities and facts.modality not in self.modalities:
            found["modality"] = f"modality {facts.modality}, training saw {', '.join(self.modalities)}"
        if facts.spacing and self.spacing:
            if len(facts.spacing) != len(self.spacing):
                found["spacing"] = f"{len(facts.spacing)} axes with a spacing, training saw {len(self.spacing)}"
            elif outside := _outside(facts.spacing, self.spacing):
                at = outside[0]
                found["spacing"] = f"spacing {facts.spacing[at]:.3g} mm, training saw {_span(self.spacing[at])} mm"
        if outside := _outside(facts.intensity, self.intensity):
            at = outside[0]
            found["intensity"] = (
                f"{SHARES[at]:.0%} of its values lie below {facts.intensity[at]:.4g}, in training below "
                f"{_span(self.intensity[at])}"
            )
        if self.cloud is not None:
            known, rarity = len(self.cloud.distances), self.cloud.rarity(embedding)
            if rarity <= max(0.01, 1 / (known + 1)):
                farther = round(rarity * (known + 1)) - 1
                found["embedding"] = (
                    f"it looks unlike the training scans to the network: of {known} scans of other patients, "
                    f"{farther or 'none'} {'lies' if farther < 2 else 'lie'} as far from them"
                )
        return found

    def check_patient(self, scans: int, follow_up: float) -> dict[str, str]:
        """Say what of a patient's set of scans lies outside of what the training saw: name of the check -> sentence."""
        found = {}
        if not self.scans[0] <= scans <= self.scans[1]:
            found["scans"] = f"{scans} scans, training saw {_span(self.scans)} a patient"
        if scans > 1 and _outside([follow_up], [self.follow_up]):
            found["follow_up"] = f"scans over {follow_up:g} days, training saw {_span(self.follow_up)}"
        return found

    def check_value(self, target: str, value: float) -> dict[str, str]:
        """Say whether a predicted number lies outside of those of the training patients."""
        known = self.targets.get(target)
        if known is None or known[0] <= value <= known[-1]:
            return {}
        return {"value": f"{target} {value:.4g}, training patients had {_span((known[0], known[-1]))}"}


def header_of(address: str, reader: Any) -> Scan | None:
    """The header of a scan; None where scans are read by another reader than ours.

    Raises:
        ScanError: if there is not exactly one scan at the address.
    """
    return scan_at(address, resample=reader.choices.resample) if isinstance(reader, ScanReader) else None


def look(address: str, header: Scan | None, transform: Compose) -> tuple[ScanFacts, torch.Tensor]:
    """Read and prepare a scan.

    Args:
        address: of the scan.
        header: as :func:`header_of` finds it.
        transform: as in :class:`~monai_mvreg.trained.trained_model.Trained`.

    Returns:
        What is compared of it with the scans of the training, and the scan ``(C, *spatial)`` with its metadata.
    """
    loaded = transform({"image": address}, end=1)
    modality, spacing = (header.modality, header.spacing) if header is not None else ("", ())
    facts = facts_of(np.asarray(loaded["image"]), modality=modality, spacing=spacing)
    return facts, transform(loaded, start=1)["image"]


def embed_scan(network: MultiScanNet, image: torch.Tensor) -> torch.Tensor:
    """Encode one prepared scan ``(C, *spatial)`` as ``(E,)``, by itself: it cannot matter what else is encoded."""
    device = network.head.weight.device
    with torch.inference_mode():
        embedding: torch.Tensor = network.encoder(torch.as_tensor(image)[None].as_subclass(torch.Tensor).to(device))[0]
    return embedding.float().cpu()


def learn_domain(
    path: str,
    network: MultiScanNet,
    *,
    reader: Any,
    transform: Sequence[Any],
    items: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    target: Sequence[str],
) -> None:
    """Write down what a training saw; for the end of a training.

    Facts and embeddings are those of at most 256 scans of the training patients and 256 of the validation patients,
    drawn at random.

    Args:
        path: the JSON file.
        network: the trained network.
        reader: what reads a scan.
        transform: the steps that read and prepare one scan, the reading first.
        items: those of the training patients, and of the validation patients.
        target: names of the numbers in their labels.
    """
    mode = network.training
    network.eval()
    steps = Compose(list(transform))
    draw = np.random.default_rng(0)
    facts: list[ScanFacts] = []
    embeddings: list[list[Any]] = [[], []]
    for part, patients in enumerate(items):
        addresses = list(dict.fromkeys(scan for item in patients for scan in item["image"]))
        for place in sorted(draw.permutation(len(addresses))[:256].tolist()):
            try:
                header = header_of(addresses[place], reader)
            except ScanError:  # MONAI's readers read other files too
                header = None
            found, image = look(addresses[place], header, steps)
            facts.append(found)
            embeddings[part].append(embed_scan(network, image).numpy().astype(np.float64))
    network.train(mode)
    training, _ = items
    days = [max(item["time"]) - min(item["time"]) for item in training]
    counts = [len(item["image"]) for item in training]
    labels = np.array([item["label"] for item in training], dtype=np.float64)
    write_json(
        Domain(
            patients=len(training),
            scans=(min(counts), max(counts)),
            follow_up=(float(min(days)), float(max(days))),
            modalities=tuple(sorted({fact.modality for fact in facts} - {""})),
            spacing=ranges([fact.spacing for fact in facts]),
            intensity=ranges([fact.intensity for fact in facts]),
            cloud=fit_cloud(*(np.array(part) for part in embeddings)),
            targets={name: percentiles(labels[:, place].tolist()) for place, name in enumerate(target)},
        ),
        path,
    )


def ranges(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    """Least and largest of each column; nothing if rows differ in length."""
    if len({len(row) for row in rows}) != 1:
        return ()
    return tuple((float(min(column)), float(max(column))) for column in zip(*rows, strict=True))


def percentiles(values: Sequence[float]) -> tuple[float, ...]:
    """Percentiles 0, 5, ... 100 of finite values."""
    known = [value for value in values if math.isfinite(value)]
    return _floats(np.percentile(known, np.arange(0, 101, 5)))


def _outside(values: Sequence[float], spans: Sequence[tuple[float, float]]) -> list[int]:
    margins = [_MARGIN * max(high - low, abs(low) * _MARGIN) for low, high in spans]
    both = enumerate(zip(values, spans, margins, strict=False))
    return [at for at, (value, (low, high), margin) in both if not low - margin <= value <= high + margin]


def _span(ends: Sequence[float]) -> str:
    low, high = (f"{end:.4g}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _floats(values: Array) -> tuple[float, ...]:
    return tuple(float(f"{value:.8g}") for value in values)

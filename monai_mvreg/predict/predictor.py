"""Bundle + scans of a patient -> prediction: the only way to predict, for the command line, servers and scripts.

Each scan is read, prepared and encoded separately, so a prediction does not depend on which scans were known before.
Pool and head are cheap: they run on all scans, without each of them, and without the newest visit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cache.fingerprint import fingerprint
from monai_mvreg.cache.scan_embeddings import embedding_store, read_embedding, write_embedding
from monai_mvreg.cache.store import entry_name
from monai_mvreg.cohort.table import Cohort
from monai_mvreg.errors import user_error
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.networks.task import TimeToEvent
from monai_mvreg.predict.prediction import (
    ModelIdentity,
    NoPrediction,
    PredictedNumber,
    Prediction,
    PredictionWarning,
    SurvivalCurve,
    UnusedScan,
    UsedScan,
)
from monai_mvreg.predict.selection import FoundPatient, date_of, find_patient, inside
from monai_mvreg.results.calibration import cross_interval, unknown_horizons
from monai_mvreg.scans.content_hash import codec_releases, content_hashes, scan_content
from monai_mvreg.scans.find import Scan
from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.trained.model_files import has_model
from monai_mvreg.trained.trained_model import Member, Trained, read_residuals, read_trained
from monai_mvreg.trained.training_domain import SHARES, ScanFacts, embed_scan, header_of, look

_LEAST = 9  # patients for an interval that holds 90 % of new ones
_POINTS = 200  # of a survival curve in the result


@dataclass(frozen=True)
class _Seen:
    """One scan as the networks see it: an embedding ``(E,)`` for each of them."""

    address: str
    day: float
    view: int
    content: str
    facts: ScanFacts
    embeddings: tuple[Tensor, ...]


class Predictor:
    """Predict patients with a trained model, or with all models of a cross-validation.

    Args:
        trained: the networks of the training, their transforms and settings.
        kept: a folder that caches the embeddings of scans by content, so that a new visit costs one scan; None caches
            nothing.

    Example:
        >>> [number] = Predictor.from_bundle("study").predict_folder("patient").numbers
        >>> number.name, number.unit, round(number.high - number.low, 3)
        ('growth', 'mm/a', 6.0)
    """

    def __init__(self, trained: Trained, *, kept: str | Path | None = None) -> None:
        self.trained = trained
        self.store = None if kept is None else embedding_store(Path(kept))
        self.members = tuple(member.network for member in trained.members)
        self.transform = trained.transform
        steps = self.transform.transforms
        self.model = ModelIdentity(
            name=trained.name,
            version=trained.version,
            software=f"monai-mvreg {version('monai-mvreg')}",
            weights=tuple(member.weights for member in trained.members),
            preprocessing=fingerprint(list(steps), codec_releases()),
        )
        self.cache_keys: tuple[str, ...] = ()
        if self.store is not None:
            self.cache_keys = tuple(fingerprint(self.model.preprocessing, network.encoder) for network in self.members)
        self.residuals: pd.DataFrame | None = None

    @classmethod
    def from_bundle(
        cls,
        bundle: str | Path,
        *,
        models: str | Path | None = None,
        kept: str | Path | None = None,
        device: str = "cpu",
    ) -> Predictor:
        """Read a trained bundle.

        A bundle's configs and ``settings.json`` are code: read only those you trust.

        Args:
            bundle: the folder of the bundle.
            models: ``model_dir`` of a training, or the folder of a cross-validation, whose models then predict
                together; None takes ``models`` in the bundle.
            kept: as above.
            device: torch's name of a device, ``cpu`` or ``cuda``.

        Returns:
            A predictor for any number of patients.

        Raises:
            FileNotFoundError: if there is no trained model.
            ValueError: if one of its files is not what it should be, or there is no such device.
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"expected a GPU for the device {device}, found none")
        place = Path(models or Path(bundle, "models"))
        made = cls(read_trained(Path(bundle), place, torch.device(device)), kept=kept)
        if not has_model(place):
            made.residuals = read_residuals(place, made.trained.settings.target)
        return made

    def prepare(self, address: str) -> Tensor:
        """Read and prepare a scan as ``(C, *spatial)``, with its metadata and the applied transforms."""
        image: Tensor = self.transform({"image": address})["image"]
        return image

    def readout(self, outputs: Tensor) -> Tensor:
        """Convert outputs of a network ``(R, K)`` to numbers ``(R, T)`` in target units, or the log risk."""
        return self.trained.task.read(outputs).value

    def predict_folder(self, folder: str | Path, *, covariates: Mapping[str, float | str] | None = None) -> Prediction:
        """Predict one patient from a folder.

        Args:
            folder: folder, zip, DICOMDIR or file with the scans of one patient.
            covariates: values by the model's names of covariates; those not given are missing.

        Returns:
            The prediction; addresses in it are relative to the folder.

        Raises:
            ScanError: if there is no such folder, or no scan of it can be read.
            ValueError: as :func:`~monai_mvreg.predict.selection.find_patient`.
        """
        return self.predict(find_patient(folder, self.trained, covariates=covariates), home=folder)

    def predict_cohort(self, cohort: Cohort, *, home: str | Path) -> Iterator[Prediction | NoPrediction]:
        """Predict the patients of a table one by one; a patient without a readable scan does not stop the others.

        Args:
            cohort: as :func:`~monai_mvreg.cohort.table.read_cohort` reads it, with the model's covariates and views.
            home: the folder that addresses in the result are relative to.

        Yields:
            A prediction for each patient, or the reason why there is none.

        Raises:
            ValueError: if the cohort has other covariates or views than the model.
        """
        if cohort.covariates != self.trained.covariates or cohort.views != self.trained.views:
            raise ValueError(
                f"expected covariates {list(self.trained.covariates)} and views {list(self.trained.views)}, got "
                f"{list(cohort.covariates)} and {list(cohort.views)}"
            )
        for patient in tqdm(cohort.patients, "patients", unit="patient", disable=None):
            try:
                yield self.predict(FoundPatient(patient, {}, ()), home=home)
            except ScanError as error:
                yield NoPrediction(patient.key, str(error))

    def predict(self, found: FoundPatient, *, home: str | Path) -> Prediction:
        """Predict one patient; scans that cannot be read are listed in ``left_out``.

        Args:
            found: the scans.
            home: the folder that addresses in the result are relative to.

        Raises:
            ScanError: if no scan can be read; with the reasons.
        """
        home = Path(home)
        seen, left_out, warnings = self._look_at(found, home)
        days = [scan.day for scan in seen]
        covariates = torch.tensor([found.patient.covariates], dtype=torch.float32)
        outputs = [self._outputs(place, seen, covariates) for place in range(len(self.members))]
        values = torch.stack([self.readout(output) for output, _ in outputs])  # (members, subsets, numbers)
        parts = values.mean(0)
        weights = torch.stack([weight for _, weight in outputs]).mean(0)
        without = (parts[0] - parts[1:]).tolist()
        numbers = self._numbers([output[:1] for output, _ in outputs], values[:, 0].numpy())
        if missing := [
            n for n, v in zip(self.trained.covariates, found.patient.covariates, strict=True) if math.isnan(v)
        ]:
            warnings.append(PredictionWarning("covariates", f"missing: {', '.join(missing)}"))
        if beyond := unknown_horizons(self.trained.task, [member.curves for member in self._all]):
            text = f"no patient was followed until day {', '.join(f'{day:g}' for day in beyond)}"
            warnings.append(PredictionWarning("horizons", text))
        warnings += self._majority([m.domain.check_patient(len(seen), max(days) - min(days)) for m in self._all])
        for number in numbers:
            warnings += self._majority([m.domain.check_value(number.name, number.value) for m in self._all])
        for place, scan in enumerate(seen):
            found_outside = [
                member.domain.check_scan(scan.facts, embedding.numpy())
                for member, embedding in zip(self._all, scan.embeddings, strict=True)
            ]
            warnings += self._majority(found_outside, place)
        return Prediction(
            patient=found.patient.key,
            numbers=numbers,
            survival=self._survival(values[:, 0, 0].numpy()) if self.trained.survival else None,
            scans=tuple(
                UsedScan(
                    address=inside(scan.address, home),
                    day=scan.day - days[0],
                    view=self.trained.views[scan.view] if self.trained.views else None,
                    modality=scan.facts.modality,
                    weight=weight,
                    contributions=tuple(without[place]) if len(seen) > 1 else None,
                    content=scan.content,
                )
                for place, (scan, weight) in enumerate(zip(seen, weights.tolist(), strict=True))
            ),
            newest_visit=tuple(without[-1]) if len(set(days)) > 1 else None,
            left_out=tuple(left_out),
            warnings=tuple(warnings),
            model=self.model,
        )

    @property
    def _all(self) -> tuple[Member, ...]:
        return self.trained.members

    def _look_at(
        self, found: FoundPatient, home: Path
    ) -> tuple[list[_Seen], list[UnusedScan], list[PredictionWarning]]:
        """Read and encode the scans of a patient one by one; embeddings are looked up in the cache by content."""
        patient, left_out = found.patient, list(found.left_out)
        seen: list[_Seen] = []
        unreadable = 0
        rows = sorted(zip(patient.scans, patient.days, patient.views, strict=True), key=lambda row: row[1])
        if not self.trained.settings.dated:  # the model was trained without dates: all scans are one visit
            rows = [(address, 0.0, view) for address, _, view in rows]
        for address, day, view in tqdm(rows, "scans", unit="scan", disable=None, leave=False):
            try:
                header = found.headers.get(address) or header_of(address, self.trained.reader)
                content = scan_content(header) if header is not None else content_hashes([address])[address]
                entries = self._remembered(content)
                read = None if entries else self._read(address, header)
            except (ValueError, RuntimeError, OSError) as error:
                unreadable += 1
                left_out.append(UnusedScan(inside(address, home), _reason(error)))
                continue
            if twins := [place for place, other in enumerate(seen, start=1) if other.content == content]:
                left_out.append(UnusedScan(inside(address, home), f"the same bytes as scan {twins[0]}"))
                continue
            if read is not None:
                entries = self._encode(*read, content)
            modality, spacing = (header.modality, header.spacing) if header is not None else ("", ())
            facts = ScanFacts(modality, tuple(sorted(spacing)), tuple(entries[0][: len(SHARES)].tolist()))
            embeddings = tuple(entry[len(SHARES) :] for entry in entries)
            seen.append(_Seen(address, day, view, content, facts, embeddings))
        if not seen:
            reasons = "; ".join(dict.fromkeys(item.reason for item in left_out))
            raise ScanError(f"expected a scan that can be read, got none: {reasons}")
        warnings = list(found.warnings)
        if unreadable:
            warnings.append(PredictionWarning("left_out", f"{unreadable} of {len(rows)} scans could not be used"))
        undated = self.trained.settings.dated and found.headers and len(seen) > 1
        if undated and not any(date_of(scan, home) for scan in found.headers.values()):
            warnings.append(PredictionWarning("dates", "no scan has a date: all count as one visit"))
        return seen, left_out, warnings

    def _remembered(self, content: str) -> list[Tensor]:
        """Quantiles and embedding of a scan for each member, if all are in the cache."""
        if self.store is None:
            return []
        found = [read_embedding(self.store, entry_name(key, content)) for key in self.cache_keys]
        entries = [entry for entry in found if entry is not None]
        return entries if len(entries) == len(found) else []

    def _read(self, address: str, header: Scan | None) -> tuple[ScanFacts, Tensor]:
        facts, image = look(address, header, self.transform)
        channels, axes = self.trained.settings.channels, len(self.trained.settings.spatial_size)
        if image.ndim - 1 != axes or image.shape[0] != channels:
            got = f"{image.ndim - 1} and {image.shape[0]}"
            raise ValueError(f"expected {axes} dimensions and {channels} channels, got {got}")
        return facts, image

    def _encode(self, facts: ScanFacts, image: Tensor, content: str) -> list[Tensor]:
        entries = [torch.cat([torch.tensor(facts.intensity), embed_scan(net, image)]) for net in self.members]
        if self.store is not None:
            for key, entry in zip(self.cache_keys, entries, strict=True):
                write_embedding(self.store, entry_name(key, content), entry)
        return entries

    def _outputs(self, place: int, seen: Sequence[_Seen], covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs ``(R, K)`` of a member for all scans, without each, and without the newest day; weights ``(N,)``."""
        network = self.members[place]
        device = network.head.weight.device
        days = torch.tensor([scan.day for scan in seen])
        mask = torch.cat([torch.ones(1, len(seen), dtype=torch.bool), ~torch.eye(len(seen), dtype=torch.bool)])
        mask = torch.cat([mask, days[None] < days.max()])
        real = mask.any(1)  # a patient without scans has no prediction
        rows = torch.where(real[:, None], mask, mask[:1]).to(device)
        embeddings = torch.stack([scan.embeddings[place] for scan in seen]).to(device)
        with torch.inference_mode():
            views = torch.tensor([scan.view for scan in seen], device=device).expand(len(rows), -1)
            known = covariates.to(device).expand(len(rows), -1) if covariates.shape[1] else None
            embeddings = embeddings.expand(len(rows), -1, -1)
            outputs, weights = network.from_embeddings(
                embeddings, rows, days.to(device).expand(rows.shape), views, known
            )
        return outputs.cpu(), weights[0].double().cpu()

    def _numbers(self, outputs: Sequence[Tensor], values: Array) -> tuple[PredictedNumber, ...]:
        """Name the numbers, with their intervals; ``values`` are ``(members, T)``."""
        if self.trained.survival:
            return (PredictedNumber("log_risk", "1", float(values.mean(0)[0])),)
        spreads = np.ones_like(values)
        spread = None
        read = [self.trained.task.read(output).spread for output in outputs]
        if known := [of_member for of_member in read if of_member is not None]:
            spreads = torch.stack(known)[:, 0].numpy()
            spread = float(spreads.mean())
        numbers = []
        for place, name in enumerate(self.trained.settings.target):
            ends = self._ends(place, name, values[:, place], spreads[:, place])
            low, high, confidence = ends or (None, None, None)
            value = float(values[:, place].mean())
            numbers.append(PredictedNumber(name, self.trained.settings.unit, value, low, high, confidence, spread))
        return tuple(numbers)

    def _ends(self, place: int, name: str, values: Array, spreads: Array) -> tuple[float, float, float] | None:
        """Both ends of an interval and its confidence, from one model, or from all of a cross-validation (CV+)."""
        if self.residuals is None:
            interval = self._all[0].intervals[place]
            if interval is None:
                return None
            low, high = interval.around(values, spread=spreads)
            return float(low[0]), float(high[0]), interval.confidence
        known = self.residuals[self.residuals[name].notna()]
        if len(known) < _LEAST:
            return None
        folds = sorted(known["fold"].unique())
        by_fold = [[at for at, member in enumerate(self._all) if member.fold == fold] for fold in folds]
        each, wide = (np.array([[part[ats].mean()] for ats in by_fold]) for part in (values, spreads))
        fold = np.array([folds.index(name) for name in known["fold"]])
        low, high = cross_interval(each, known[name].to_numpy(np.float64), fold, spread=wide)
        return float(low[0]), float(high[0]), 0.9

    def _survival(self, risks: Array) -> SurvivalCurve:
        """The mean of the curves of all members, for their log risks ``(members,)``."""
        curves = [member.curves for member in self._all if member.curves is not None]
        days = np.unique(np.concatenate([curve.days for curve in curves]))
        days = days[np.all([curve.knows(days) for curve in curves], axis=0)]
        task = self.trained.task
        assert isinstance(task, TimeToEvent)
        horizons = np.array(
            [day for day in task.horizons if all(curve.knows(day) for curve in curves)], dtype=np.float64
        )

        def chance(at: Array) -> Array:
            each = [curve.survival(risks[[i]], at)[0] for i, curve in enumerate(curves)]
            return np.asarray(np.mean(each, axis=0))

        whole = chance(days)
        below = np.flatnonzero(whole <= 0.5)
        thinned = np.unique(np.linspace(0, len(days) - 1, min(_POINTS, len(days))).round().astype(int))
        return SurvivalCurve(
            median_days=float(days[below[0]]) if len(below) else None,
            horizons=tuple(horizons.tolist()),
            risks=tuple((1 - chance(horizons)).tolist()),
            days=tuple(days[thinned].tolist()),
            survival=tuple(whole[thinned].tolist()),
        )

    def _majority(self, found: Sequence[Mapping[str, str]], scan: int | None = None) -> list[PredictionWarning]:
        """The warnings that at least half of the members give, in the words of the first of them."""
        names = dict.fromkeys(name for one in found for name in one)
        often = [name for name in names if 2 * sum(name in one for one in found) >= len(found)]
        return [PredictionWarning(name, next(one[name] for one in found if name in one), scan) for name in often]


def _reason(error: BaseException) -> str:
    """Why a scan cannot be used, in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ScanError):
        cause = cause.__cause__ or cause.__context__
    cause = cause or user_error(error)
    if cause is not None:
        return str(cause)
    return f"it cannot be brought onto the grid of the model ({type(error).__name__})"

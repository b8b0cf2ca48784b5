"""Number -> prediction: the result for one patient, as JSON, which holds all of it, and as a row of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd

from monai_mvreg.cache.typed_json import Limits, RecordError, checked, json_schema, strict
from monai_mvreg.results.units import readable_unit

FORMAT: Literal["monai-mvreg predictions 1"] = "monai-mvreg predictions 1"
PURPOSE = "Research use only. Not a medical device: this may not guide the care of a patient."

Probability = Annotated[float, Limits(ge=0, le=1)]
Day = Annotated[float, Limits(ge=0)]
Weight = Annotated[float, Limits(ge=0, le=1.000001)]
Sha256 = Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]
Reason = Annotated[str, Limits(min_length=1)]


@dataclass(frozen=True)
class PredictedNumber:
    """One predicted number in target units, or for a time to event the log risk: higher is sooner.

    ``name`` is the column of the target, and ``unit`` that of the training's table, ``"1"`` for none. The true value
    lies between ``low`` and ``high`` for a share ``confidence`` of new patients; ``spread`` is the standard deviation
    that the network predicts. Each of these is None if it is not known; ``value`` is always there.

    Example:
        >>> PredictedNumber("volume", "mL", 52.3, low=49.0, high=55.5, confidence=0.9).spread is None
        True
    """

    name: str
    unit: str
    value: float
    low: float | None = None
    high: float | None = None
    confidence: Annotated[float, Limits(gt=0, lt=1)] | None = None
    spread: float | None = None


@dataclass(frozen=True)
class SurvivalCurve:
    """A log risk as probabilities: ``survival`` is the probability of no event through each of ``days``.

    ``horizons`` are the days that the model was made for, and ``risks`` the probability of the event by each.
    ``median_days`` is None if survival is still above one half at the last known day.
    """

    median_days: float | None
    horizons: tuple[float, ...]
    risks: tuple[Probability, ...]
    days: tuple[Day, ...]
    survival: tuple[Probability, ...]


@dataclass(frozen=True)
class UsedScan:
    """A scan that the prediction was made from.

    ``day`` counts from the first used scan; ``modality`` is empty if it is not known. ``weight`` is the scan's share in
    the pool; weights sum to 1. ``contributions`` say for each number how much lower it would be without this scan, in
    target units: exact for every pool, but they do not sum to the number; None if there is no other scan. ``content``
    is the SHA-256 of its bytes.
    """

    address: str
    day: float
    view: str | None
    modality: str
    weight: Weight
    contributions: tuple[float, ...] | None
    content: Sha256


@dataclass(frozen=True)
class UnusedScan:
    """A file or series that was not used, and why."""

    address: str
    reason: Reason


@dataclass(frozen=True)
class PredictionWarning:
    """An input outside the range of the training data, or missing; ``scan`` is the number of a used scan, from 0."""

    check: str
    message: str
    scan: Annotated[int, Limits(ge=0)] | None = None


@dataclass(frozen=True)
class ModelIdentity:
    """The model that made a prediction.

    ``weights`` are the SHA-256 of the tensors of each ensemble member, with their names, types and shapes, the same for
    ``model.pt`` and ``model.safetensors``; ``preprocessing`` is a hash of the transforms and their code.
    """

    name: str
    version: str
    software: str
    weights: Annotated[tuple[Sha256, ...], Limits(min_length=1)]
    preprocessing: Sha256


@dataclass(frozen=True)
class Prediction:
    """The ``numbers`` predicted for one patient, the ``scans`` they come from, and the ``warnings``.

    ``patient`` is the key in the user's table, or ``"1"`` if a folder was read. ``survival`` is the curve of a time to
    event, else None. ``newest_visit`` says for each number how much the scans of the newest day changed it; None if all
    scans are of one day. ``left_out`` are the scans and files that were not used, and ``model`` is what predicted.

    Example:
        >>> from monai_mvreg.predict import Predictor
        >>> prediction = Predictor.from_bundle("study").predict_folder("patient")
        >>> [scan.day for scan in prediction.scans], round(sum(scan.weight for scan in prediction.scans), 5)
        ([0.0, 204.0, 386.0, 524.0, 669.0], 1.0)
    """

    patient: str
    numbers: Annotated[tuple[PredictedNumber, ...], Limits(min_length=1)]
    survival: SurvivalCurve | None
    scans: Annotated[tuple[UsedScan, ...], Limits(min_length=1)]
    newest_visit: tuple[float, ...] | None
    left_out: tuple[UnusedScan, ...]
    warnings: tuple[PredictionWarning, ...]
    model: ModelIdentity


@dataclass(frozen=True)
class NoPrediction:
    """A patient for whom nothing can be predicted, and why."""

    patient: str
    reason: Reason


def in_words(number: PredictedNumber) -> str:
    """Format a number with its unit and interval for display.

    Args:
        number: the predicted number.

    Returns:
        One line.

    Example:
        >>> in_words(PredictedNumber("volume", "mL", 52.314, 49.0, 55.5, 0.9))
        'volume: 52.31 mL (90% interval 49 to 55.5)'
    """
    text = f"{number.name}: {number.value:.4g}" + f" {readable_unit(number.unit)}".rstrip()
    if number.low is not None and number.high is not None and number.confidence is not None:
        text += f" ({number.confidence:.0%} interval {number.low:.4g} to {number.high:.4g})"
    return text


@strict
@dataclass(frozen=True)
class Predictions:
    """A file of predictions, by patient. Research use only.

    ``unpredicted`` are the patients for whom nothing can be predicted, and why.
    """

    format: Literal["monai-mvreg predictions 1"]
    purpose: str
    predictions: tuple[Prediction, ...]
    unpredicted: tuple[NoPrediction, ...]


def to_json(predictions: Sequence[Prediction], *, unpredicted: Sequence[NoPrediction] = ()) -> str:
    """Convert predictions to JSON that follows :func:`prediction_schema`.

    Args:
        predictions: the predictions of one model.
        unpredicted: the patients without one.

    Returns:
        The text of a file of predictions.

    Raises:
        ValueError: if a number is not finite.

    Example:
        >>> sorted(json.loads(to_json([], unpredicted=[NoPrediction("p7", "no readable scan")])))
        ['format', 'predictions', 'purpose', 'unpredicted']
    """
    whole = Predictions(FORMAT, PURPOSE, tuple(predictions), tuple(unpredicted))
    return json.dumps(asdict(whole), indent=1, allow_nan=False, ensure_ascii=False)


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read a file of predictions, as :func:`to_json` and ``mvreg predict`` write it.

    Args:
        path: the JSON file.

    Returns:
        The predictions, in the order of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a file of predictions.

    Example:
        >>> import tempfile
        >>> from monai_mvreg.predict import Predictor
        >>> prediction = Predictor.from_bundle("study").predict_folder("patient")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "predictions.json").write_text(to_json([prediction]))
        ...     read_predictions(f"{folder}/predictions.json") == [prediction]
        True
    """
    path = Path(path)
    try:
        return list(checked(Predictions, json.loads(path.read_text(encoding="utf-8"))).predictions)
    except RecordError as error:  # its value may identify a patient
        wrong = f"its entry {error.where} is missing or of another kind" if error.where else "it holds something else"
    except ValueError:
        wrong = "it is not JSON"
    raise ValueError(f"{path.name}: expected predictions as mvreg predict writes them, {wrong}")


def prediction_schema() -> dict[str, Any]:
    """Give the JSON schema (draft 2020-12) of a file of predictions.

    Example:
        >>> prediction_schema()["$defs"]["PredictedNumber"]["properties"]["value"]["type"]
        'number'
    """
    return json_schema(Predictions)


def as_rows(predictions: Sequence[Prediction]) -> pd.DataFrame:
    """One row per patient; ``days``, ``weights`` and ``contributions`` hold one entry per scan, joined by ``;``."""
    return pd.DataFrame([_row(prediction) for prediction in predictions])


def _row(prediction: Prediction) -> dict[str, Any]:
    row: dict[str, Any] = {"patient": prediction.patient}
    for place, number in enumerate(prediction.numbers):
        if prediction.survival is not None:
            row["log_risk"] = number.value
            row["median_days"] = prediction.survival.median_days
            horizons = zip(prediction.survival.horizons, prediction.survival.risks, strict=True)
            row |= {f"risk_{day:g}": risk for day, risk in horizons}
        else:
            row |= {f"{number.name}_predicted": number.value, f"{number.name}_low": number.low}
            row |= {f"{number.name}_high": number.high}
        parts = [scan.contributions[place] for scan in prediction.scans if scan.contributions is not None]
        row[f"{number.name}_contributions"] = ";".join(f"{part:.6g}" for part in parts)
    row["unit"] = prediction.numbers[0].unit
    row["scans"] = len(prediction.scans)
    row["days"] = ";".join(f"{scan.day:g}" for scan in prediction.scans)
    row["weights"] = ";".join(f"{scan.weight:.4f}" for scan in prediction.scans)
    row["left_out"] = len(prediction.left_out)
    row["warnings"] = "; ".join(dict.fromkeys(warning.check for warning in prediction.warnings))
    return row

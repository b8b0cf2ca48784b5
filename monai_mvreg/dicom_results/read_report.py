"""A structured report -> its numbers, and the DICOM instances that they were made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydicom.dataset import Dataset

from monai_mvreg.dicom_results.structured_report import SCHEME
from monai_mvreg.predict.prediction import ModelIdentity, PredictedNumber, SurvivalCurve


@dataclass(frozen=True)
class ReportedScan:
    """A scan in a report, like :class:`~monai_mvreg.predict.prediction.UsedScan`.

    ``instances`` are the SOPInstanceUIDs of its files, each with the numbers of the used frames from 1, or none if all
    were used; a scan that is not DICOM has no instances.
    """

    day: float
    modality: str
    weight: float
    contributions: tuple[float, ...] | None
    content: str
    instances: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class ReadReport:
    """The content of a report; its curve has only the horizons. ``warnings`` include those of the scans."""

    numbers: tuple[PredictedNumber, ...]
    survival: SurvivalCurve | None
    scans: tuple[ReportedScan, ...]
    model: ModelIdentity
    warnings: tuple[str, ...]


def read_report(report: Dataset) -> ReadReport:
    """Read a report that :func:`~monai_mvreg.dicom_results.structured_report.make_report` made.

    Args:
        report: as ``pydicom.dcmread`` or ``highdicom.sr.srread`` returns it.

    Returns:
        The numbers, in full precision, the scans and the model.

    Raises:
        ValueError: if it is another DICOM object.

    Example:
        >>> from monai_mvreg.dicom_results import make_report
        >>> from monai_mvreg.predict import Predictor
        >>> prediction = Predictor.from_bundle("study").predict_folder("patient")
        >>> read_report(make_report(prediction, home="patient")).numbers == prediction.numbers
        True
    """
    try:
        root = list(report.ContentSequence)
        measurements = next(item for item in root if _code(item) == "DCM 126010")
        first, *others = measurements.ContentSequence
        numbers, survival = _numbers(first.ContentSequence)
        scans = tuple(_scan(group.ContentSequence, [one.name for one in numbers]) for group in others)
        groups = (root, *(group.ContentSequence for group in others))
        told = [item.TextValue for group in groups for item in _all(group, f"{SCHEME} warning")]
        return ReadReport(numbers, survival, scans, _model(first.ContentSequence), tuple(map(str, told)))
    except (AttributeError, LookupError, StopIteration, TypeError, ValueError):
        raise ValueError("expected a structured report of monai-mvreg, got another DICOM object") from None


def _code(item: Dataset) -> str:
    name = item.ConceptNameCodeSequence[0]
    return f"{name.CodingSchemeDesignator} {name.get('CodeValue') or name.LongCodeValue}"


def _all(items: Iterable[Dataset], code: str) -> list[Dataset]:
    return [item for item in items if _code(item) == code]


def _value(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].FloatingPointValue)


def _known(items: Iterable[Dataset], code: str) -> float | None:
    """The number of a code, None if there is none."""
    return next((_value(item) for item in _all(items, code) if item.ValueType == "NUM"), None)


def _named(items: Iterable[Dataset], kind: str) -> list[tuple[str, Dataset]]:
    """The items of a kind, each with what it is of: ``volume`` for ``target.volume``."""
    start = f"{SCHEME} {kind}."
    return [(_code(item).removeprefix(start), item) for item in items if _code(item).startswith(start)]


def _numbers(items: Iterable[Dataset]) -> tuple[tuple[PredictedNumber, ...], SurvivalCurve | None]:
    numbers = []
    for name, item in _named(items, "target"):
        below = item.get("ContentSequence", [])
        unit = item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]
        number = PredictedNumber(
            name=name,
            unit=str(unit.get("CodeValue") or unit.LongCodeValue),
            value=_value(item),
            low=_known(below, f"{SCHEME} low"),
            high=_known(below, f"{SCHEME} high"),
            confidence=_known(below, f"{SCHEME} confidence"),
            spread=_known(below, "SCT 386136009"),
        )
        numbers.append(number)
    risks = [(float(day), _value(item)) for day, item in _named(items, "risk")]
    if not numbers:
        raise ValueError
    if not risks:
        return tuple(numbers), None
    days, chances = zip(*risks, strict=True)
    return tuple(numbers), SurvivalCurve(_known(items, f"{SCHEME} median_time"), days, chances, (), ())


def _scan(items: Iterable[Dataset], names: list[str]) -> ReportedScan:
    parts = {name: _value(item) for name, item in _named(items, "contribution")}
    day, weight = _known(items, "DCM 128740"), _known(items, f"{SCHEME} weight")
    if day is None or weight is None:
        raise ValueError
    found = []
    for item in _all(items, "DCM 121112"):
        reference = item.ReferencedSOPSequence[0]
        frames = reference.get("ReferencedFrameNumber") or []
        frames = [frames] if isinstance(frames, int) else frames
        found.append((str(reference.ReferencedSOPInstanceUID), tuple(int(frame) for frame in frames)))
    return ReportedScan(
        day=day,
        modality="".join(str(item.ConceptCodeSequence[0].CodeValue) for item in _all(items, "DCM 121139")),
        weight=weight,
        contributions=tuple(parts[name] for name in names) if parts else None,
        content=str(_all(items, f"{SCHEME} content")[0].TextValue),
        instances=tuple(found),
    )


def _model(items: Iterable[Dataset]) -> ModelIdentity:
    (name,), (version,) = (_all(items, code) for code in ("DCM 111001", "DCM 111003"))
    told = [str(item.TextValue).rpartition(": ") for item in _all(items, "DCM 111002")]
    software, *weights, preprocessing = (value for _, _, value in told)
    return ModelIdentity(str(name.TextValue), str(version.TextValue), software, tuple(weights), preprocessing)

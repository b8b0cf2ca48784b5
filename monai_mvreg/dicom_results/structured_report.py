"""A prediction -> a DICOM structured report (TID 1500): numbers, and what each scan has to do with them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept, ContentItem, NumContentItem, TextContentItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from monai_mvreg.dicom_results.evidence import (
    MAKER,
    OF_EVERY_OBJECT,
    SERIES_NUMBER,
    DicomScan,
    Instance,
    fitted,
    model_uid,
    newest,
    read_header,
    result_uid,
    silent,
    take_over,
    used_instances,
)
from monai_mvreg.dicom_results.ucum import unit_concept
from monai_mvreg.predict.prediction import PURPOSE, PredictedNumber, Prediction, SurvivalCurve, UsedScan, in_words
from monai_mvreg.scans.addresses import ScanAddress

SCHEME = "99MVREG"
"""The private coding scheme of what no public one has a word for; the DICOM object declares it."""

_INSIDE = "HAS PROPERTIES"


def make_report(prediction: Prediction, *, home: str | Path) -> Dataset:
    """Make the structured report of one patient.

    It belongs to the patient and study of the newest DICOM scan, and is preliminary and unverified. The same prediction
    always gets the same UID. The files of the scans are read again and must not have changed since the prediction.

    Args:
        prediction: the prediction of one patient.
        home: the folder that its addresses are relative to.

    Returns:
        A Comprehensive 3D SR, to be saved by :func:`~monai_mvreg.dicom_results.evidence.write_object`; its items and
        codes are in ``docs/dicom.md``.

    Raises:
        ScanError: if a scan no longer exists, or cannot be read.
        ValueError: if a unit has no UCUM code; if a number is not finite; if no scan is DICOM; if the scans are of
            several patients, or have changed.

    Example:
        >>> from monai_mvreg.predict import Predictor
        >>> report = make_report(Predictor.from_bundle("study").predict_folder("patient"), home="patient")
        >>> report.Modality, report.PatientID, report.VerificationFlag
        ('SR', 'DEMO-000', 'UNVERIFIED')
    """
    home = Path(home)
    _check_finite(prediction)
    units = [unit_concept(number.unit, of=number.name) for number in prediction.numbers]
    sources = used_instances(prediction, home=home)
    by_place = {source.place: source for source in sources}
    index = newest(sources, prediction)
    uid = result_uid("report", prediction, sources)
    groups = [_numbers_group(prediction, units, uid)]
    groups += [
        _scan_group(prediction, at, by_place.get(at), units, result_uid("scan", prediction, sources, str(at)))
        for at in range(len(prediction.scans))
    ]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=model_uid(prediction.model),
        name=prediction.model.name,
        manufacturer_name=MAKER,
        model_name=prediction.model.name,
        serial_number=prediction.model.version,
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=device
            )
        ),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    root = content[0].ContentSequence
    root.insert(len(root) - 1, _text(codes.DCM.Comment, PURPOSE))  # to be read before any number
    root.extend(_remarks(prediction))
    return _document(content, sources, index, uid, prediction)


def private_concept(value: str, meaning: str) -> CodedConcept:
    """A concept of the private scheme; its meaning is cut to what DICOM holds."""
    return CodedConcept(value, SCHEME, fitted(meaning))


def _check_finite(prediction: Prediction) -> None:
    """DICOM has no word for NaN."""
    values = [
        value for one in prediction.numbers for value in (one.value, one.low, one.high, one.confidence, one.spread)
    ]
    values += prediction.newest_visit or ()
    for scan in prediction.scans:
        values += (scan.day, scan.weight, *(scan.contributions or ()))
    if (curve := prediction.survival) is not None:
        values += (curve.median_days, *curve.horizons, *curve.risks)
    if bad := sum(value is not None and not math.isfinite(value) for value in values):
        raise ValueError(f"expected finite numbers in a prediction, got {bad} that are NaN or infinite")


def _numbers_group(
    prediction: Prediction, units: Sequence[CodedConcept], uid: str
) -> sr.MeasurementsAndQualitativeEvaluations:
    """The predicted numbers with their intervals, and the model that they come from."""
    visit = prediction.newest_visit or (None,) * len(units)
    measured = [
        _measured(number, unit, change) for number, unit, change in zip(prediction.numbers, units, visit, strict=True)
    ]
    texts: list[ContentItem] = []
    if prediction.survival is not None:
        more, texts = _in_time(prediction.survival)
        measured += more
    model = prediction.model
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid, identifier="prediction"),
        algorithm_id=sr.AlgorithmIdentification(
            name=model.name,
            version=model.version,
            parameters=[
                f"software: {model.software}",
                *(f"SHA-256 of weights: {weights}" for weights in model.weights),
                f"hash of preprocessing: {model.preprocessing}",
            ],
        ),
        measurements=measured,
    )
    group[0].ContentSequence.extend(texts)
    return group


def _measured(number: PredictedNumber, unit: CodedConcept, change: float | None) -> sr.Measurement:
    """One number; what belongs to it is below it."""
    measured = sr.Measurement(private_concept(f"target.{number.name}", number.name), number.value, unit)
    share = unit_concept("1", of="confidence")
    below = [
        (private_concept("low", "Lower end of the prediction interval"), number.low, unit),
        (private_concept("high", "Upper end of the prediction interval"), number.high, unit),
        (private_concept("confidence", "Share of new patients that the interval holds"), number.confidence, share),
        (codes.SCT.StandardDeviation, number.spread, unit),
        (private_concept("newest_visit", "Change by the scans of the newest day"), change, unit),
    ]
    items = [
        NumContentItem(name, value, unit, relationship_type=_INSIDE) for name, value, unit in below if value is not None
    ]
    if items:
        measured[0].ContentSequence = sr.ContentSequence(items)
    return measured


def _in_time(curve: SurvivalCurve) -> tuple[list[sr.Measurement], list[ContentItem]]:
    """What a log risk means in time."""
    days, share = unit_concept("d", of="median time"), unit_concept("1", of="risk")
    median = private_concept("median_time", "Day by which half of such patients have the event")
    measured = [
        sr.Measurement(private_concept(f"risk.{day:g}", f"Chance of the event by day {day:g}"), risk, share)
        for day, risk in zip(curve.horizons, curve.risks, strict=True)
    ]
    if curve.median_days is None:
        return measured, [_text(median, "not reached in the time that the training patients were followed")]
    return [sr.Measurement(median, curve.median_days, days), *measured], []


def _scan_group(
    prediction: Prediction, at: int, source: DicomScan | None, units: Sequence[CodedConcept], uid: str
) -> sr.MeasurementsAndQualitativeEvaluations:
    """One scan: its weight, its contributions, and the instances that it was read from."""
    scan = prediction.scans[at]
    measured = [
        sr.Measurement(
            private_concept("weight", "Share of the scan in the pool"), scan.weight, unit_concept("1", of="weight")
        )
    ]
    for number, unit, part in zip(prediction.numbers, units, scan.contributions or (None,) * len(units), strict=True):
        if part is not None:
            name = private_concept(f"contribution.{number.name}", f"How much lower without this scan: {number.name}")
            measured.append(sr.Measurement(name, part, unit))
    modality = _modality(scan)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid, identifier=f"scan {at + 1}"),
        time_point_context=sr.TimePointContext(
            time_point=f"day {scan.day:g}",
            temporal_offset_from_event=sr.LongitudinalTemporalOffsetFromEvent(
                scan.day, unit_concept("d", of="day"), codes.DCM.Baseline
            ),
        ),
        measurements=measured,
        qualitative_evaluations=[sr.QualitativeEvaluation(codes.DCM.Modality, modality)] if modality else None,
        source_images=[
            sr.SourceImageForMeasurementGroup(one.kind, one.uid, list(one.frames) or None) for one in source.instances
        ]
        if source
        else None,
    )
    texts = [_text(private_concept("content", "SHA-256 of the bytes of the scan"), scan.content)]
    if source is None:
        texts.append(_text(private_concept("format", "Format of the scan"), "not DICOM: known by its SHA-256 alone"))
    elif source.scan.date is not None:
        name = codes.DCM.StudyDate if source.scan.date_from == "StudyDate" else codes.DCM.AcquisitionDate
        texts.append(sr.DateContentItem(name, source.scan.date.strftime("%Y%m%d"), relationship_type="CONTAINS"))
    if scan.view:
        texts.append(_text(private_concept("view", "View"), scan.view))
    texts += [_text(_WARNING, one.message) for one in prediction.warnings if one.scan == at]
    group[0].ContentSequence.extend(texts)
    return group


def _modality(scan: UsedScan) -> Code | None:
    listed = (getattr(codes.cid29, name) for name in codes.cid29.dir())
    return next((code for code in listed if code.value == scan.modality), None)


_WARNING = private_concept("warning", "Warning")


def _remarks(prediction: Prediction) -> list[ContentItem]:
    """What holds for the whole: the numbers again, for viewers that show text alone, warnings, what was left out."""
    words = private_concept("words", "The prediction in words")
    left_out = private_concept("left_out", "Not used, and why")
    return [
        *(_text(words, in_words(number)) for number in prediction.numbers),
        *(_text(_WARNING, one.message) for one in prediction.warnings if one.scan is None),
        *(_text(left_out, f"{ScanAddress.parse(one.address).short}: {one.reason}") for one in prediction.left_out),
    ]


def _text(name: CodedConcept | Code, value: str) -> TextContentItem:
    return TextContentItem(name, value, relationship_type="CONTAINS")


def _document(
    content: sr.MeasurementReport, sources: Sequence[DicomScan], index: DicomScan, uid: str, prediction: Prediction
) -> Dataset:
    """Put the content into an object of the patient and study of the newest scan."""
    header = read_header(index.instances[0].path)
    names = ", ".join(number.name for number in prediction.numbers)
    own = json.dumps(content[0].to_json_dict(), ensure_ascii=False, default=str)
    scheme = CodingSchemeIdentificationItem(SCHEME, name="monai-mvreg", responsible_organization=MAKER)
    evidence = [_reference(one) for source in (index, *sources) for one in source.instances]
    for name in OF_EVERY_OBJECT:  # who the patient is comes from the header, below
        setattr(evidence[0], name, "")
    with silent():
        report = sr.Comprehensive3DSR(
            evidence=evidence,
            content=content[0],
            series_instance_uid=str(generate_uid(entropy_srcs=["series", uid])),
            series_number=SERIES_NUMBER,
            sop_instance_uid=uid,
            instance_number=1,
            manufacturer=MAKER,
            is_complete=True,
            coding_schemes=[scheme],
            series_description=fitted(f"Research use only: {names}"),
            manufacturer_model_name=fitted(prediction.model.name),
            software_versions=fitted(prediction.model.software),
            device_serial_number=fitted(prediction.model.version),
        )
        take_over(header, report, ascii_only=own.isascii())
    return report


def _reference(instance: Instance) -> Dataset:
    """What highdicom reads of an instance."""
    found = Dataset()
    found.SOPClassUID, found.SOPInstanceUID = instance.kind, instance.uid
    found.StudyInstanceUID, found.SeriesInstanceUID = instance.study, instance.series
    return found

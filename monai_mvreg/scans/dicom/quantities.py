"""Values to quantities that a user asks for: standardised uptake (PET), Philips' precise values, display brightness.

Each needs more of a header than a scan does, so it is read from the files again, and a tag that lacks is named.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_mvreg.scans.dicom import acquisition_date, tags
from monai_mvreg.scans.dicom.elements import BIG_ENDIAN, Values, read_elements, read_head
from monai_mvreg.scans.dicom.headers import binary, name_of, number, numbers, text, words
from monai_mvreg.scans.dicom.pixels import lookup_table
from monai_mvreg.scans.dicom.private_blocks import in_any_block
from monai_mvreg.scans.dicom.slices import Slice
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_range

Array = npt.NDArray[Any]

_PET = {
    **dict.fromkeys((tags.PATIENT_WEIGHT, tags.UNITS, tags.SUV_TYPE, tags.DECAY_CORRECTION), False),
    **dict.fromkeys((tags.RADIONUCLIDE_TOTAL_DOSE, tags.RADIONUCLIDE_HALF_LIFE), False),
    **dict.fromkeys((tags.RADIOPHARMACEUTICAL_START_DATE_TIME, tags.RADIOPHARMACEUTICAL_START_TIME), False),
    tags.TIMEZONE_OFFSET_FROM_UTC: False,
    **dict.fromkeys((tags.PHILIPS_PET_CREATOR, tags.PHILIPS_SUV_FACTOR, *acquisition_date.TAGS), False),
    tags.RADIOPHARMACEUTICAL_INFORMATION_SEQUENCE: True,
}


def suv(slices: Sequence[Slice], series: Sequence[Slice]) -> list[Slice]:
    """Give each slice the scale of standardised uptake.

    Args:
        slices: those to be read.
        series: all slices of the scan, which tell when it began.

    Raises:
        ScanError: as :func:`suv_factor`, or if the images of the scan differ in what it needs.
    """
    times = [
        _moment(s.file.values.get(tags.ACQUISITION_DATE), s.file.values.get(tags.ACQUISITION_TIME)) for s in series
    ]
    began = min((time for time in times if time is not None), default=None)
    factors = {
        file.path: suv_factor(replace(slices[0], file=file), began)
        for file in {s.file.path: s.file for s in slices}.values()
    }
    low, high = min(factors.values()), max(factors.values())
    if high > low * (1 + 1e-6):
        raise _lack(slices[0], "expected one weight, dose and start of the scan, got others in other images of it")
    return [replace(s, slope=s.slope * low, intercept=s.intercept * low) for s in slices]


def suv_factor(s: Slice, began: datetime.datetime | None) -> float:
    """What turns the values of a PET image into standardised uptake by body weight, in g/ml.

    The uptake is activity times weight over the injected activity, decayed from the injection to the start of the scan
    (Decay Correction START, by Series Date and Time) or not at all (ADMIN).

    Args:
        s: a slice of the scan.
        began: the first acquisition of the scan, None if it is not known.

    Raises:
        ScanError: naming the attribute that is missing or says otherwise.

    Source: the vendor-neutral calculation of QIBA, https://qibawiki.rsna.org/index.php/Standardized_Uptake_Value_(SUV);
    DICOM PS3.3 C.8.9.1.
    """
    if not s.scaled:
        raise _lack(s, "expected RescaleSlope, got none: the stored values are no activity")
    values = _read(s, _PET)
    units = text(values, tags.UNITS)
    if units == "GML":
        if text(values, tags.SUV_TYPE) not in ("", "BW"):
            raise _lack(s, f"expected {name_of(tags.SUV_TYPE)} BW, got {text(values, tags.SUV_TYPE)!r}")
        return 1.0
    if units == "CNTS" and tags.PHILIPS_PET_CREATOR in values:
        factor = number(values, tags.PHILIPS_SUV_FACTOR)
        if factor:
            return factor
    if units != "BQML":
        raise _lack(s, f"expected Units BQML or GML, got {units!r}")
    tracer: Values = (values.get(tags.RADIOPHARMACEUTICAL_INFORMATION_SEQUENCE) or [{}])[0]
    weight, dose, half_life = (
        _positive(s, group, tag)
        for group, tag in (
            (values, tags.PATIENT_WEIGHT),
            (tracer, tags.RADIONUCLIDE_TOTAL_DOSE),
            (tracer, tags.RADIONUCLIDE_HALF_LIFE),
        )
    )
    correction = text(values, tags.DECAY_CORRECTION)
    if correction == "ADMIN":
        seconds = 0.0
    elif correction == "START":
        seconds = _seconds_of_decay(s, values, tracer, began)
    else:
        raise _lack(s, f"expected {name_of(tags.DECAY_CORRECTION)} START or ADMIN, got {correction!r}")
    if seconds > 50 * half_life:
        raise _lack(s, f"expected a tracer that is left at the scan, {seconds:.0f} s are more than 50 half-lives")
    return weight * 1000 / (dose * 2 ** (-seconds / half_life))


def _seconds_of_decay(s: Slice, values: Values, tracer: Values, began: datetime.datetime | None) -> float:
    """From the injection to the start of the scan."""
    start = _moment(values.get(tags.SERIES_DATE), values.get(tags.SERIES_TIME))
    if start is None:
        raise _lack(s, "expected SeriesDate and SeriesTime, got none")
    if began is not None and start > began:
        raise _lack(s, "expected SeriesTime before AcquisitionTime: when the scan began is not known")
    injected, _ = acquisition_date.acquired(
        {tags.ACQUISITION_DATE_TIME: tracer.get(tags.RADIOPHARMACEUTICAL_START_DATE_TIME, b"")}
    )
    if isinstance(injected, datetime.datetime):
        zone = (
            datetime.datetime.strptime(offset, "%z").tzinfo
            if (offset := text(values, tags.TIMEZONE_OFFSET_FROM_UTC))
            else None
        )
        if zone is not None and injected.tzinfo is not None:
            injected = injected.astimezone(zone)
        seconds = (start - injected.replace(tzinfo=None)).total_seconds()
    else:
        # A time without a date is of the day of the scan, or of the evening before, if the tracer is gone by then.
        clock = _moment(values.get(tags.SERIES_DATE), tracer.get(tags.RADIOPHARMACEUTICAL_START_TIME))
        if clock is None:
            raise _lack(s, "expected RadiopharmaceuticalStartDateTime or RadiopharmaceuticalStartTime, got none")
        seconds = (start - clock).total_seconds() % 86400
        if seconds > 43200 or _positive(s, tracer, tags.RADIONUCLIDE_HALF_LIFE) > 43200:
            raise _lack(s, "expected RadiopharmaceuticalStartDateTime: its time without a date leaves the day open")
    if not 0 <= seconds < 86400 * 3:
        raise _lack(s, f"expected the injection before the scan, got {seconds:.0f} s between them")
    return float(seconds)


def _moment(date: bytes | None, time: bytes | None) -> datetime.datetime | None:
    moment, _ = acquisition_date.acquired({tags.STUDY_DATE: date or b"", tags.STUDY_TIME: time or b""})
    return moment.replace(tzinfo=None) if isinstance(moment, datetime.datetime) else None


def _positive(s: Slice, values: Values, tag: int) -> float:
    found = number(values, tag)
    if found is None or found <= 0:
        raise _lack(s, f"expected {name_of(tag)} above 0, got {'none' if found is None else 'another number'}")
    return found


def philips_precise(slices: Sequence[Slice]) -> list[Slice]:
    """Give each slice the scale of Philips' precise values, which compare between the series of one scanner.

    A precise value is the displayed one over rescale slope times the private scale slope (2005,100E).

    Raises:
        ScanError: if a file lacks the private scale slope.

    Source: Chenevert et al., Errors in quantitative image analysis due to platform-dependent image scaling,
    Translational Oncology 2014. https://doi.org/10.1593/tlo.13811
    """
    scaled = []
    for s in slices:
        values = _read(s, {tags.PHILIPS_SCALE_SLOPE: False})
        scale = binary(values, tags.PHILIPS_SCALE_SLOPE, "f")
        if tags.PHILIPS_CREATOR not in values or not any(scale) or s.slope == 0:
            raise _lack(s, "expected Philips' private scale slope (2005,100E), got none")
        scaled.append(replace(s, slope=1 / scale[0], intercept=s.intercept / (s.slope * scale[0])))
    return scaled


def brightness(s: Slice, values: Array, *, inverted: bool) -> Array:
    """What a display would show of one slice, from 0 to 1, by the first VOI LUT or window of its header.

    Args:
        s: the slice.
        values: its values ``(rows, columns)``, rescaled and not inverted.
        inverted: whether the smallest value is white (MONOCHROME1).

    Raises:
        ScanError: if the header has neither a window nor a VOI LUT.

    Source: DICOM PS3.3 C.11.2.
    """
    header = _display_header(s)
    if tables := header.get(tags.VOI_LUT_SEQUENCE):
        shown = _looked_up(s, tables[0], values)
    else:
        centres, widths = numbers(header, tags.WINDOW_CENTER, 0), numbers(header, tags.WINDOW_WIDTH, 0)
        if not centres or not widths:
            raise _lack(s, "expected WindowCenter and WindowWidth or a VOI LUT, got none")
        centre, width, function = centres[0], widths[0], (words(header, tags.VOI_LUT_FUNCTION) or ("LINEAR",))[0]
        if function == "SIGMOID" and width > 0:
            shown = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width))
        elif function == "LINEAR_EXACT" and width > 0:
            shown = (values.astype(np.float64) - centre) / width + 0.5
        elif function == "LINEAR" and width >= 1:
            shown = (values.astype(np.float64) - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
        else:
            raise _lack(s, f"expected a window of a positive width, got {width:g} ({function})")
    shown = np.clip(shown, 0, 1).astype(np.float32)
    return np.asarray(1 - shown if inverted else shown)


def _display_header(s: Slice) -> Values:
    """What a header says of the display of one frame: in its own functional groups, the shared ones, or at the top."""
    header = _display_headers(s.file.path, read_range(s.file.path, 0, 0)[1], s.file.image)
    frames = header.get(tags.PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE) or []
    own = frames[s.frame] if s.frame < len(frames) else {}
    shared: Values = (header.get(tags.SHARED_FUNCTIONAL_GROUPS_SEQUENCE) or [{}])[0]
    items = own.get(tags.FRAME_VOI_LUT_SEQUENCE) or shared.get(tags.FRAME_VOI_LUT_SEQUENCE) or [header]
    found: Values = items[0]
    return found


@lru_cache(maxsize=1)  # the frames of one file are shown one after the other
def _display_headers(path: str, size: int, image: str) -> Values:
    plain = (tags.WINDOW_CENTER, tags.WINDOW_WIDTH, tags.VOI_LUT_FUNCTION, tags.LUT_DESCRIPTOR, tags.LUT_DATA)
    groups = (tags.PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, tags.SHARED_FUNCTIONAL_GROUPS_SEQUENCE)
    sequences = (tags.VOI_LUT_SEQUENCE, tags.FRAME_VOI_LUT_SEQUENCE, *groups)
    wanted = {**dict.fromkeys(plain, False), **dict.fromkeys(sequences, True)}
    return read_elements(path, read_head(path), wanted).values


def _looked_up(s: Slice, table: Values, values: Array) -> Array:
    order = ">" if s.file.pixels.syntax == BIG_ENDIAN else "<"
    first, entries, bits = lookup_table(table, "VOI LUT", order=order, signed=s.file.pixels.signed or s.intercept < 0)
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)] / (2.0**bits - 1)


def _read(s: Slice, wanted: dict[int, bool]) -> Values:
    return read_elements(s.file.path, read_head(s.file.path), in_any_block(wanted)).values


def _lack(s: Slice, sentence: str) -> ScanError:
    return ScanError(f"{PurePath(s.file.path).name}: {sentence}")

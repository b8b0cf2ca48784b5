"""When a scan was acquired: the right one of DICOM's many dates, and unknown where none is known (PS3.3 C.7.6.1)."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from monai_mvreg.scans.dicom import tags

Moment = datetime.date  # a datetime.datetime where the time of day is known too

# The moment of acquisition first; what lies further from it comes later. Each is a date with its time, or both in one.
SOURCES: tuple[tuple[str, int, int | None], ...] = (
    ("AcquisitionDateTime", tags.ACQUISITION_DATE_TIME, None),
    ("AcquisitionDate", tags.ACQUISITION_DATE, tags.ACQUISITION_TIME),
    ("SeriesDate", tags.SERIES_DATE, tags.SERIES_TIME),
    ("ContentDate", tags.CONTENT_DATE, tags.CONTENT_TIME),
    ("StudyDate", tags.STUDY_DATE, tags.STUDY_TIME),
)

_DUMMIES = {
    datetime.date(1900, 1, 1),
    datetime.date.min,
    datetime.date.max,
}  # what de-identification writes for "no date"
_DATE = re.compile(r"(\d{4})(\.?)(\d\d)\2(\d\d)")
_TIME = re.compile(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(?:\.(\d{1,6}))?)?)?")
_ZONE = re.compile(r"([+-])(\d\d)(\d\d)")


TAGS = (
    tags.LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED,  # REMOVED: dates stand for nothing
    *(tag for _, date, time in SOURCES for tag in (date, time) if tag is not None),
)


def acquired(values: Mapping[int, Any]) -> tuple[Moment | None, str]:
    """Find when an image was acquired, and the DICOM attribute that says so.

    Args:
        values: bytes of the date and time elements by tag.

    Returns:
        A ``date``, or a ``datetime`` if a time of day is known (with its offset from UTC if the file states one), and
        the name of the attribute; ``(None, "")`` if no date is known or if the file says that dates were removed.

    Example:
        >>> acquired({tags.STUDY_DATE: b"2018.03.04", tags.STUDY_TIME: b"10:20:30"})
        (datetime.datetime(2018, 3, 4, 10, 20, 30), 'StudyDate')
    """
    if values.get(tags.LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED, b"").strip(b"\0 ") == b"REMOVED":
        return None, ""
    for name, date, time in SOURCES:
        if raw := values.get(date):
            moment = moment_of(raw, b"" if time is None else values.get(time, b""), time is None)
            if moment is not None:
                return moment, name
    return None, ""


def in_order(moment: Moment) -> tuple[int, int]:
    """Sort key of a date or datetime, by the clock on the wall where it was acquired; a bare date comes first."""
    if isinstance(moment, datetime.datetime):
        clock = moment.hour * 3600 + moment.minute * 60 + moment.second
        return moment.toordinal(), clock * 1_000_000 + moment.microsecond
    return moment.toordinal(), -1


@lru_cache(maxsize=4096)
def moment_of(date: bytes, time: bytes, together: bool) -> Moment | None:
    """A date and time from DA and TM, or from DT; a text that is no date is none."""
    text = date.decode("ascii", "replace").strip("\0 ")
    found = _DATE.match(text)
    if found is None or (not together and found.end() != len(text)):
        return None
    try:
        day = datetime.date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:
        return None
    if day in _DUMMIES:
        return None
    clock = text[found.end() :] if together else time.decode("ascii", "replace").strip("\0 ")
    zone = _ZONE.search(clock)
    hand = _TIME.fullmatch(clock[: zone.start()] if zone else clock)
    if hand is None:
        return day
    second, part = min(int(hand[3] or 0), 59), int((hand[4] or "0").ljust(6, "0"))  # 60: a leap second
    offset = None
    try:
        if zone:
            ahead = datetime.timedelta(hours=int(zone[2]), minutes=int(zone[3]))
            offset = datetime.timezone(-ahead if zone[1] == "-" else ahead)
        return datetime.datetime.combine(day, datetime.time(int(hand[1]), int(hand[2] or 0), second, part, offset))
    except ValueError:
        return day

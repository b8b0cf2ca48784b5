"""Dates: the moment of acquisition by the right attribute, and unknown where none is known."""

from __future__ import annotations

import datetime

import pytest

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.acquisition_date import acquired, in_order

ZONE = datetime.timezone(datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    ("known", "moment", "source"),
    [
        ({}, None, ""),
        ({tags.STUDY_DATE: b"20190505"}, datetime.date(2019, 5, 5), "StudyDate"),
        (
            {tags.ACQUISITION_DATE_TIME: b"20200110093000.000000+0100 ", tags.STUDY_DATE: b"20200109"},
            datetime.datetime(2020, 1, 10, 9, 30, tzinfo=ZONE),
            "AcquisitionDateTime",
        ),
        (
            {tags.ACQUISITION_DATE: b"20210301", tags.ACQUISITION_TIME: b"101112.5"},
            datetime.datetime(2021, 3, 1, 10, 11, 12, 500000),
            "AcquisitionDate",
        ),
        (
            {tags.SERIES_DATE: b"20200110", tags.SERIES_TIME: b"1500", tags.CONTENT_DATE: b"20200111"},
            datetime.datetime(2020, 1, 10, 15),
            "SeriesDate",
        ),
        ({tags.CONTENT_DATE: b"20200111\0"}, datetime.date(2020, 1, 11), "ContentDate"),
        (
            {tags.STUDY_DATE: b"2018.03.04", tags.STUDY_TIME: b"10:20:30"},
            datetime.datetime(2018, 3, 4, 10, 20, 30),
            "StudyDate",
        ),
        ({tags.ACQUISITION_DATE: b"19000101", tags.STUDY_DATE: b"20200101"}, datetime.date(2020, 1, 1), "StudyDate"),
        ({tags.STUDY_DATE: b"20209999"}, None, ""),
        ({tags.STUDY_DATE: b"20200230"}, None, ""),
        ({tags.STUDY_DATE: b"2020"}, None, ""),
        ({tags.STUDY_DATE: b"unknown!"}, None, ""),
        ({tags.STUDY_DATE: b"20200101", tags.STUDY_TIME: b"noon"}, datetime.date(2020, 1, 1), "StudyDate"),
        ({tags.STUDY_DATE: b"20200101", tags.STUDY_TIME: b"2599"}, datetime.date(2020, 1, 1), "StudyDate"),
        (
            {tags.STUDY_DATE: b"20161231", tags.STUDY_TIME: b"235960"},
            datetime.datetime(2016, 12, 31, 23, 59, 59),
            "StudyDate",
        ),
        ({tags.STUDY_DATE: b"21500310"}, datetime.date(2150, 3, 10), "StudyDate"),
    ],
)
def test_the_first_real_date_counts_and_is_named(
    known: dict[int, bytes], moment: datetime.date | None, source: str
) -> None:
    assert acquired(known) == (moment, source)


def test_dates_that_the_file_says_were_removed_stand_for_nothing() -> None:
    known = {tags.STUDY_DATE: b"20200101", tags.LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED: b"REMOVED "}
    assert acquired(known) == (None, "")
    known[tags.LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED] = b"MODIFIED"
    assert acquired(known)[0] == datetime.date(2020, 1, 1)


def test_a_shift_of_all_dates_keeps_their_differences() -> None:
    days = [acquired({tags.STUDY_DATE: text})[0] for text in (b"20200228", b"20200301", b"19040228", b"19040301")]
    assert days[1].toordinal() - days[0].toordinal() == days[3].toordinal() - days[2].toordinal() == 2


def test_moments_sort_by_the_clock_on_the_wall_and_bare_dates_first() -> None:
    day = datetime.date(2020, 1, 10)
    early = datetime.datetime(2020, 1, 10, 9, 30, tzinfo=ZONE)
    late = datetime.datetime(2020, 1, 10, 15)
    assert sorted([late, early, day, datetime.date(2020, 1, 9)], key=in_order)[1:] == [day, early, late]

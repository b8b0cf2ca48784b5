"""What the model must not be used for is said from the patients that were seen."""

import pandas as pd

from monai_mvreg.report.limits import must_not

TABLE = pd.DataFrame({"volume": [48.06, 180.0], "scans": [1, 4], "days": ["0", "0;30;400"]})


def test_the_range_of_the_patients_seen_is_named() -> None:
    text = must_not(TABLE, "volume", unit="mL", time=False).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "unlike the 2 seen here (with values from 48.1 mL to 180 mL, 1 to 4 scans each, 400 days at most" in text
    assert "research use only" in text and "not a medical device" in text


def test_scans_of_one_day_and_one_number_are_said_so() -> None:
    same = TABLE.assign(scans=2, days="0;0")
    assert "2 scans each, all of one day" in must_not(same, "volume", unit="1", time=False).text


def test_a_time_to_event_is_not_used_beyond_its_horizons() -> None:
    text = must_not(TABLE.drop(columns=["scans", "days"]), "volume", unit="d", time=True).text
    assert "beyond the last horizon" in text and "followed for" in text and "scans each" not in text

"""Tables of predictions for tests, from the columns that a test is about."""

import pandas as pd

from monai_mvreg.results.predictions_table import PredictionsTable

REST = {"fold": "0", "unit": "1", "scans": 1, "days": "0", "weights": "1"}


def whole(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with all columns that predictions have, and keys of patients where it has none."""
    keys = {"patient": [f"p{number}" for number in range(len(frame))]}
    return frame.assign(**{name: cells for name, cells in {**keys, **REST}.items() if name not in frame})


def table_of(frame: pd.DataFrame) -> PredictionsTable:
    """The frame, made whole, as predictions; groups and folds may be numbers."""
    texts = {name: str for name in frame if str(name).startswith("group_") or name == "fold"}
    return PredictionsTable(whole(frame).astype(texts))

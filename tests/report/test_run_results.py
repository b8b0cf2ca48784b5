"""The results of a run follow from its task: intervals for numbers, a curve for a time to event, metrics for both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn

from monai_mvreg.losses import CoxLoss
from monai_mvreg.networks.task import Number, Task, TimeToEvent
from monai_mvreg.report.run_results import report_evaluation, report_training
from monai_mvreg.results.calibration import Baseline, read_calibration

DRAW = np.random.default_rng(0)
TABLE = pd.DataFrame({"patient": [f"p{i}" for i in range(60)], "fold": "1", "unit": "1", "scans": 1})
TABLE = TABLE.assign(days="0", weights="1.0")
RISK = DRAW.normal(size=60)
TIME = TABLE.assign(days_to_event=(1000 * DRAW.exponential(size=60) * np.exp(-RISK)).round(1), event=1, log_risk=RISK)
VOLUME = TABLE.assign(volume=DRAW.normal(50, 10, 60)).assign(volume_predicted=lambda t: t["volume"] + 1)
CASES: list[tuple[Task, str, pd.DataFrame, str, str]] = [
    (Number(nn.HuberLoss()), "volume", VOLUME, "intervals.json", "mae"),
    (TimeToEvent(CoxLoss(), horizons=[300, 600]), "days_to_event", TIME, "survival.json", "harrell"),
]


@pytest.mark.parametrize(("task", "target", "table", "calibration", "metric"), CASES, ids=["number", "time to event"])
def test_a_training_is_calibrated_and_reported_and_an_evaluation_reported(
    task: Task, target: str, table: pd.DataFrame, calibration: str, metric: str, tmp_path: Path
) -> None:
    table.to_csv(tmp_path / "predictions.csv", index=False)
    models = tmp_path / "models"
    report_training(task, str(tmp_path), str(models), target=[target], training_mean=[50.0])
    assert [path.name for path in models.iterdir()] == [calibration]
    assert isinstance(read_calibration(task, models, [target]), Baseline) == isinstance(task, TimeToEvent)
    fitted = (models / calibration).read_bytes()
    first = json.loads((tmp_path / "metrics.json").read_text())[target]
    assert first["patients"] == 60 and np.isfinite(first[metric]["value"])
    for name in ("metrics.json", "report.html"):
        (tmp_path / name).unlink()
    report_evaluation(task, str(tmp_path), str(models), target=[target], training_mean=[50.0])
    assert json.loads((tmp_path / "metrics.json").read_text())[target] == first
    assert (models / calibration).read_bytes() == fitted and (tmp_path / "report.html").exists()

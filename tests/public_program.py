"""A small program of a user: test_public_names.py runs it, and mypy checks it with the types of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from monai_mvreg import (
    Cohort,
    Columns,
    MeanPool,
    MultiScanNet,
    Number,
    Prediction,
    Predictor,
    ScanError,
    cohort_metrics,
    collate_scans,
    find_scans,
    read_cohort,
    read_scan,
)


def scans_of(folder: Path) -> dict[str, tuple[int, ...]]:
    scans, left_out = find_scans(folder)
    print([item.reason for item in left_out])
    return {scan.address: read_scan(scan).array.shape for scan in scans}


def network() -> MultiScanNet:
    task = Number(nn.HuberLoss())
    return MultiScanNet(nn.Flatten(), MeanPool(16), outputs=task.outputs(1))


def mean_absolute_error(bundle: str, table: str) -> float:
    cohort: Cohort = read_cohort(table, Columns(day="day", target=("growth",), unit="unit"), images=".")
    found = [
        one for one in Predictor.from_bundle(bundle).predict_cohort(cohort, home=".") if isinstance(one, Prediction)
    ]
    predicted = np.array([prediction.numbers[0].value for prediction in found])
    return cohort_metrics(predicted, np.array([patient.target[0] for patient in cohort.patients]))["mae"].value


def main() -> None:
    print(scans_of(Path("patient")))
    batch = collate_scans([{"image": torch.zeros(2, 1, 4, 4), "time": [0, 90], "view": [0, 0]}])
    print(network()(batch["image"], batch["mask"], batch["time"]).shape)
    print(mean_absolute_error("study", "cohort.csv"))
    try:
        read_scan(3)  # type: ignore[arg-type]  # mypy asks for this comment only while the package has types
    except ScanError as error:
        print(error)


if __name__ == "__main__":
    main()

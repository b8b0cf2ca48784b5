"""Brain volume of all people of ``oasis2_long``: ``pytest -m slow tests/benchmarks/test_oasis_crossval.py``.

Cross-validation, about 20 minutes on one core; ``docs/benchmarks.md`` has the figures.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_mvreg.experiments.crossval import Plan, average, crossvalidate
from monai_mvreg.metrics.regression import cohort_metrics

ROOT = Path(__file__).parents[2]
PACK = ROOT.parent / "shared" / "data" / "oasis2_long"
SEEDS = (0, 1, 2, 3)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PACK.is_dir(), reason="the data pack oasis2_long is not beside the project"),
]


def r2(table: pd.DataFrame) -> float:
    pred, target = (table[name].to_numpy(np.float64) for name in ("nwbv_last_predicted", "nwbv_last"))
    return cohort_metrics(pred, target)["r2"].value


def test_brain_volume_is_predicted_for_everybody_also_with_a_view_missing(tmp_path: Path) -> None:
    files = tuple(ROOT / f"tests/benchmarks/{name}.yaml" for name in ("oasis2_long", "oasis2_histogram"))
    plan = Plan(ROOT / "bundle", files, PACK, {"columns#fold": None})
    table = crossvalidate(plan, tmp_path, seeds=SEEDS)
    assert len(table) == 110 and r2(table) >= 0.65

    rows, generator = pd.read_csv(PACK / "manifest.csv"), np.random.default_rng(0)
    views = ["axial", "coronal", "sagittal"]
    dropped = {patient: generator.choice(views) for patient in sorted(rows["patient_id"].unique())}
    rows[rows["view"] != rows["patient_id"].map(dropped)].to_csv(tmp_path / "dropped.csv", index=False)
    folds = json.loads((tmp_path / "plan.json").read_text())["settings"]  # with the seed that the folds were drawn by
    parts = []
    for run in sorted(tmp_path.glob("fold-*_seed-*")):
        fold = run.name.removeprefix("fold-").split("_")[0]
        own = {"cohort_file": str(tmp_path / "dropped.csv"), "test_folds": [fold], "evaluate_folds": [fold]}
        own |= {"validation_folds": [], "model_dir": str(run / "models"), "output_dir": str(run / "dropped")}
        changed = replace(plan, settings={**folds, **own})
        subprocess.run(changed.arguments("evaluate"), check=True)
        parts.append(pd.read_csv(run / "dropped/predictions.csv", dtype={"fold": str}))
    by_fold = [average([part for part in parts if part["fold"].iloc[0] == fold]) for fold in table["fold"].unique()]
    assert r2(pd.concat(by_fold)) >= 0.5

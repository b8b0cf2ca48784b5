"""Time to event from real heads with a planted lesion: ``pytest -m slow tests/benchmarks/test_survival_benchmarks.py``.

The lesions grow or shrink by a known law, so what dates and order are worth is known too: see docs/benchmarks.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_mvreg.metrics.survival import Forecast, d_calibration, survival_differences
from monai_mvreg.results.calibration import fit_baseline, fit_lower_bound

ROOT = Path(__file__).parents[2]
PACK = ROOT.parent / "shared/data/growth3d"
POOLS, LOSSES = "monai_mvreg.networks.pools", "monai_mvreg.losses"
EDGES = "[50, 150, 300, 600, 1000, 1499]"
LAST, MEAN = (f"{{'_target_':'{POOLS}.{name}','size':'@embedding_size'}}" for name in ("LastPool", "MeanPool"))
RUNS = {
    "trend, Cox": ("--epochs", "30"),
    "trend, discrete hazard": (
        "--loss",
        f"{{'_target_':'{LOSSES}.DiscreteHazardLoss','edges':{EDGES}}}",
        "--outputs",
        "6",
        "--epochs",
        "30",
    ),
    "trend, Weibull": (
        "--loss",
        f"{{'_target_':'{LOSSES}.WeibullLoss','scale':1500.0}}",
        "--outputs",
        "2",
        "--epochs",
        "30",
    ),
    "last scan alone, Cox": ("--pool", LAST),
    "mean of scans, Cox": ("--pool", MEAN),
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PACK.is_dir(), reason="the data pack shared/data/growth3d is not beside the project"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every run, trained."""
    place = tmp_path_factory.mktemp("runs")
    files = ["bundle/configs/train.yaml", "tests/benchmarks/growth3d.yaml", "bundle/configs/survival.yaml"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), "--bundle_root", "bundle"]
    command += ["--dataset_dir", str(PACK), "--target", "['tte_days']", "--horizons", "[300,700,1200]"]
    found = {}
    for at, (name, overrides) in enumerate(RUNS.items()):
        found[name] = place / str(at)
        folders = ["--output_dir", str(found[name]), "--model_dir", str(found[name])]
        subprocess.run([*command, *folders, *overrides], cwd=ROOT, check=True)
    return found


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "metrics.json").read_text())["tte_days"]
    return found


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("trend")])
def test_dates_and_order_are_read_from_the_scans(name: str, results: dict[str, Path]) -> None:
    assert metrics(results[name])["harrell"]["value"] >= 0.88
    assert metrics(results[name])["d_calibration_p"] > 0.05  # type: ignore[operator]


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("trend")])
def test_curves_of_one_half_of_the_patients_are_calibrated_on_the_other(name: str, results: dict[str, Path]) -> None:
    table = pd.read_csv(results[name] / "predictions.csv")
    risk, label = table["log_risk"].to_numpy(), table[["tte_days", "event"]].to_numpy(np.float64)
    rejected = 0
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(table))
        known, new = order[: len(order) // 2], order[len(order) // 2 :]
        curves = fit_baseline(risk[known], label[known])
        own = np.diagonal(curves.survival(risk[new], label[new, 0]))
        rejected += d_calibration(own, label[new]) < 0.05
    assert rejected <= 2


@pytest.mark.parametrize("blind", ["last scan alone, Cox", "mean of scans, Cox"])
def test_what_does_not_see_them_orders_patients_worse(blind: str, results: dict[str, Path]) -> None:
    best, other = (
        pd.read_csv(results[name] / "predictions.csv").sort_values("patient") for name in ("trend, Cox", blind)
    )
    label = best[["tte_days", "event"]].to_numpy(np.float64)
    a, b = (Forecast(table["log_risk"].to_numpy(), [1200.0]) for table in (best, other))
    assert survival_differences(a, b, label)["harrell"].low > 0


def test_the_bound_of_a_censored_time_keeps_its_promise_to_the_true_times(results: dict[str, Path]) -> None:
    table = pd.read_csv(results["trend, Cox"] / "predictions.csv").set_index("patient")
    facts = pd.read_csv(PACK / "patients.csv").set_index("patient_id").loc[table.index]
    # The law of the pack without its censoring: days until 60 mm at constant growth.
    growth = facts["v_mm_per_year"] / 365.25
    truth = np.where(growth > 0, (60 - facts["diam_last_mm"]).clip(lower=0) / growth.where(growth > 0, 1), np.inf)
    guess = 1500 * np.exp(-(table["log_risk"] - table["log_risk"].mean()).to_numpy())
    label = table[["tte_days", "event"]].to_numpy(np.float64)
    held = []
    for seed in range(50):
        order = np.random.default_rng(seed).permutation(len(table))
        known, new = order[: len(order) // 2], order[len(order) // 2 :]
        bound = fit_lower_bound(guess[known], label[known], horizon=1200, confidence=0.8)
        held.append((truth[new] >= bound.before(guess[new])).mean())
    assert np.mean(held) >= 0.8

"""Train on the data packs and hold the figures of docs/benchmarks.md: ``pytest -m slow tests/benchmarks -k digits``.

Each run is the command printed in docs/benchmarks.md. The packs lie beside the project and are not part of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_mvreg.metrics.regression import difference
from monai_mvreg.results.calibration import fit_interval

ROOT = Path(__file__).parents[2]
PACKS = ROOT.parent / "shared" / "data"
POOLS = "monai_mvreg.networks.pools"
DATED_LSTM = (
    f"{{'_target_':'{POOLS}.LSTMPool','size':'@embedding_size','time_encoding':{{'_target_':'{POOLS}.TimeEncoding'}}}}"
)
TREND = f"{{'_target_':'{POOLS}.TrendPool','size':'@embedding_size','ridge_days':1.0}}"
# The head of a sum has far to go, from the mean to zero at no scans: it takes larger steps than the encoder.
SUM = ("--pool#_target_", f"{POOLS}.SumPool", "--encoder_learning_rate", "0.003")
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    """One training: settings of a pack, overrides, and the largest validation MAE it may end with."""

    pack: str
    target: str
    overrides: tuple[str, ...]
    mae: float


RUNS = {
    "digits mean, mean pool": Run("digits_bags", "mean", (), 0.55),
    "digits sum, sum pool": Run("digits_bags", "sum", (*SUM, "--learning_rate", "0.01"), 2.1),
    "digits max, max pool": Run("digits_bags", "max", ("--pool#_target_", f"{POOLS}.MaxPool"), 0.70),
    "digits last, LSTM": Run("digits_bags", "last", ("--pool", DATED_LSTM), 0.35),
    "digits delta, LSTM": Run("digits_bags", "delta", ("--pool", DATED_LSTM), 0.85),
    "digits slope, trend pool": Run("digits_bags", "slope", ("--pool", TREND), 0.90),
    "hippo mean, mean pool": Run("hippo3d_bags", "mean_mm3", (), 130.0),
    "hippo sum, sum pool": Run("hippo3d_bags", "sum_mm3", (*SUM, "--learning_rate", "0.03"), 560.0),
    "oasis brain volume, gated attention": Run("oasis2_long", "nwbv_last", (), 0.0181),
    "knees, summed grade, mean pool": Run(
        "knee_kl", "kl_sum", ("--pool#_target_", f"{POOLS}.MeanPool", "--epochs", "30"), 1.05
    ),
    "growth rate, trend pool": Run("growth3d", "v_mm_per_year", (), 4.5),
}


def bundle_run(config: str, run: Run, output: Path, *overrides: str) -> dict[str, float]:
    """Run a config of the bundle on a pack and return the MAE and R2 of its report."""
    if not (PACKS / run.pack).is_dir():
        pytest.skip(f"the data pack {run.pack} is not beside the project")
    configs = [f"bundle/configs/{config}.yaml", f"tests/benchmarks/{run.pack}.yaml"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), "--bundle_root", "bundle"]
    command += ["--dataset_dir", str(PACKS / run.pack), "--target", str([run.target]), "--output_dir", str(output)]
    subprocess.run([*command, "--model_dir", str(output), *run.overrides, *overrides], cwd=ROOT, check=True)
    metrics = json.loads((output / "metrics.json").read_text())[run.target]
    return {name: metrics[name]["value"] for name in ("mae", "r2")}


@pytest.mark.parametrize("name", RUNS)
def test_the_validation_error_of_the_benchmark_is_reached(name: str, tmp_path: Path) -> None:
    assert bundle_run("train", RUNS[name], tmp_path)["mae"] <= RUNS[name].mae


@pytest.mark.parametrize(
    "name", ["digits last, LSTM", "digits delta, LSTM", "digits slope, trend pool", "growth rate, trend pool"]
)
def test_shuffled_dates_destroy_what_needs_dates(name: str, tmp_path: Path) -> None:
    run = RUNS[name]
    true = bundle_run("train", run, tmp_path)["mae"]
    table = pd.read_csv(PACKS / run.pack / "manifest.csv")
    generator = np.random.default_rng(0)
    table["day_offset"] = table.groupby("patient_id")["day_offset"].transform(generator.permutation)
    table.to_csv(tmp_path / "shuffled.csv", index=False)
    shuffled = bundle_run("evaluate", run, tmp_path, "--cohort_file", str(tmp_path / "shuffled.csv"))
    measured = pd.read_csv(PACKS / run.pack / "patients.csv").query("split == 'val'")[run.target]
    assert shuffled["mae"] > 2 * true
    assert shuffled["mae"] > 0.85 * float((measured - measured.mean()).abs().mean())


def test_mean_pooling_cannot_know_the_last_digit(tmp_path: Path) -> None:
    assert bundle_run("train", Run("digits_bags", "last", (), 0.0), tmp_path)["mae"] > 1.8


def test_mean_pooling_cannot_know_the_growth_rate(tmp_path: Path) -> None:
    run = Run("growth3d", "v_mm_per_year", ("--pool#_target_", f"{POOLS}.MeanPool"), 0.0)
    assert bundle_run("train", run, tmp_path)["mae"] > 7.5


def test_both_knees_tell_more_than_one_and_their_intervals_hold(tmp_path: Path) -> None:
    run = Run("knee_kl", "kl_max", (), 0.60)
    assert bundle_run("train", run, tmp_path)["mae"] <= run.mae
    both = pd.read_csv(tmp_path / "predictions.csv").sort_values("patient")
    table = pd.read_csv(PACKS / run.pack / "manifest.csv")
    table[table["view"] == "left"].to_csv(tmp_path / "left.csv", index=False)
    bundle_run("evaluate", run, tmp_path, "--cohort_file", str(tmp_path / "left.csv"))
    one = pd.read_csv(tmp_path / "predictions.csv").sort_values("patient")
    pred, target = both["kl_max_predicted"].to_numpy(), both["kl_max"].to_numpy(np.float64)
    assert difference(pred, one["kl_max_predicted"].to_numpy(), target).high < 0
    held = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(pred))
        known, new = order[: len(order) // 2], order[len(order) // 2 :]
        low, high = fit_interval(pred[known], target[known], confidence=0.9).around(pred[new])
        held.append(((target[new] >= low) & (target[new] <= high)).mean())
    assert 0.88 <= np.mean(held) <= 0.92


def test_the_length_of_the_follow_up_is_read_from_the_dates_alone(tmp_path: Path) -> None:
    pool = DATED_LSTM.replace("LSTMPool", "GRUPool")
    settings = ("--spatial_size", "[32,32]", "--epochs", "40", "--pool", pool)
    run = Run("oasis2_long", "followup_years", settings, 0.0)
    assert bundle_run("train", run, tmp_path / "dated")["r2"] > 0.95
    assert bundle_run("train", run, tmp_path / "undated", "--columns#day", "$None")["r2"] < 0.3

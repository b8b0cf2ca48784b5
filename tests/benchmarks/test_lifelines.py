"""Losses and metrics beside lifelines: ``pip install lifelines && pytest -m slow tests/benchmarks/test_lifelines.py``.

Not among the test dependencies: it asks for an older pandas than the package is tested with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from monai_mvreg.losses import CoxLoss, LogNormalLoss, WeibullLoss
from monai_mvreg.metrics.survival import concordance, kaplan_meier

lifelines = pytest.importorskip("lifelines", reason="lifelines is not installed: pip install lifelines")
pytestmark = pytest.mark.slow


def cohort(name: str) -> tuple[Any, np.ndarray, str, str]:
    """A published cohort with numbers alone, its label, and the names of time and event."""
    from lifelines import datasets

    time, event = {"rossi": ("week", "arrest"), "gbsg2": ("time", "cens"), "lung": ("time", "status")}[name]
    table = getattr(datasets, f"load_{name}")().select_dtypes("number").dropna().astype(float)
    return table, table[[time, event]].to_numpy(), time, event


@pytest.mark.parametrize("name", ["rossi", "gbsg2", "lung"])
def test_the_partial_likelihood_the_order_and_the_curve_are_those_of_lifelines(name: str) -> None:
    table, label, time, event = cohort(name)
    model = lifelines.CoxPHFitter().fit(table, time, event)
    risk = model.predict_log_partial_hazard(table).to_numpy()
    ours = CoxLoss()(torch.from_numpy(risk)[:, None], torch.from_numpy(label))
    assert -float(ours) * label[:, 1].sum() == pytest.approx(model.log_likelihood_, rel=1e-7)
    theirs = lifelines.utils.concordance_index(label[:, 0], -risk, label[:, 1])
    assert concordance(risk, label) == pytest.approx(theirs, abs=1e-12)
    days, chance = kaplan_meier(label)
    curve = lifelines.KaplanMeierFitter().fit(label[:, 0], label[:, 1]).survival_function_at_times(days)
    np.testing.assert_allclose(chance, curve, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), [(WeibullLoss, "WeibullAFTFitter"), (LogNormalLoss, "LogNormalAFTFitter")])
def test_the_likelihood_of_an_accelerated_failure_time_is_that_of_lifelines(ours: Any, theirs: str) -> None:
    table, label, time, event = cohort("rossi")
    model = getattr(lifelines, theirs)().fit(table, time, event)
    first, second = ("lambda_", "rho_") if theirs.startswith("W") else ("mu_", "sigma_")
    features = table.drop(columns=[time, event]).assign(Intercept=1.0)
    location = features[model.params_[first].index].to_numpy() @ model.params_[first].to_numpy()
    spread = float(model.params_[second].iloc[0]) * (-1 if theirs.startswith("W") else 1)
    prediction = torch.from_numpy(np.stack([-location, np.full(len(table), spread)], 1))
    loss = ours(1.0, shortest=1e-6)(prediction, torch.from_numpy(label))
    assert -float(loss) * len(table) == pytest.approx(model.log_likelihood_, rel=1e-7)

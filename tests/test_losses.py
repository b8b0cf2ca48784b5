"""Prediction to loss: no unit of the target matters; survival as its definitions, its references and its ties say."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from sksurv.datasets import load_gbsg2, load_veterans_lung_cancer, load_whas500
from sksurv.nonparametric import kaplan_meier_estimator
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from monai_mvreg.losses import (
    CoxLoss,
    DiscreteHazardLoss,
    GatheredLoss,
    GaussianLoss,
    LogNormalLoss,
    QuantileLoss,
    WeibullLoss,
)
from monai_mvreg.networks.multiscan import MultiScanNet, TargetScaling
from monai_mvreg.networks.pools import MeanPool
from monai_mvreg.networks.task import StandardisedLoss

LOSSES = [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(delta=0.5)]


def first_step(loss: nn.Module, factor: float) -> tuple[Tensor, Tensor]:
    """Loss and head after one step towards labels in a unit smaller by a factor."""
    torch.manual_seed(0)
    net, image = MultiScanNet(nn.Flatten(), MeanPool(9)), torch.randn(5, 2, 1, 3, 3)
    label = torch.tensor([[1.2], [3.4], [2.2], [9.1], [5.0]]) * factor
    net.scaling.fit(label)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    value = StandardisedLoss(loss, net.scaling)(net(image), label)
    value.backward()
    optimizer.step()
    return value.detach(), net.head.weight.detach()


@pytest.mark.parametrize("loss", LOSSES)
def test_another_unit_changes_neither_loss_nor_step(loss: nn.Module) -> None:
    assert_close(first_step(loss, 1000.0), first_step(loss, 1.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_the_loss_of_standardised_numbers(loss: nn.Module) -> None:
    net = MultiScanNet(nn.Flatten(), MeanPool(4))
    net.scaling.fit(torch.tensor([[10.0], [30.0]]))
    prediction, label = torch.tensor([[20.0], [50.0]]), torch.tensor([[40.0], [45.0]])
    expected = loss(torch.tensor([[0.0], [3.0]]), torch.tensor([[2.0], [2.5]]))
    assert_close(StandardisedLoss(loss, net.scaling)(prediction, label), expected)


COHORTS = {"gbsg2": load_gbsg2, "whas500": load_whas500, "veterans": load_veterans_lung_cancer}
EDGES = [1.0, 2.0, 4.0]
# A loss of each kind with the number of its outputs.
SURVIVAL = {
    "cox efron": (CoxLoss(), 1),
    "cox breslow": (CoxLoss(efron=False), 1),
    "discrete hazard": (DiscreteHazardLoss(EDGES), 3),
    "competing risks": (DiscreteHazardLoss(EDGES, causes=2), 6),
    "weibull": (WeibullLoss(2.0), 2),
    "log-normal": (LogNormalLoss(2.0), 2),
}


def real_label(name: str, unit: float) -> Tensor:
    """Event and time of a published cohort, in whole units of so many days."""
    _, outcome = COHORTS[name]()
    event, days = (np.array([row[column] for row in outcome]) for column in (0, 1))
    return torch.tensor(np.stack([np.ceil(days / unit), event], 1), dtype=torch.float64)


def cox_by_definition(log_risk: Tensor, label: Tensor, *, efron: bool) -> float:
    """The sum over the events in plain loops, in the wording of Efron's paper."""
    risk, time, event = log_risk[:, 0].double().exp().tolist(), label[:, 0].tolist(), label[:, 1].tolist()
    total = 0.0
    for moment in {t for t, e in zip(time, event, strict=True) if e}:
        at_risk = sum(r for r, t in zip(risk, time, strict=True) if t >= moment)
        failing = [r for r, t, e in zip(risk, time, event, strict=True) if t == moment and e]
        for number, own in enumerate(failing):
            gone = number / len(failing) * sum(failing) if efron else 0.0
            total -= math.log(own / (at_risk - gone))
    return total


@pytest.mark.parametrize("efron", [True, False])
@pytest.mark.parametrize("unit", [1.0, 30.0, 365.0], ids=["days", "months", "years"])
@pytest.mark.parametrize("name", COHORTS)
def test_cox_is_its_definition_on_real_times_in_any_batch(name: str, unit: float, efron: bool) -> None:
    label, generator = real_label(name, unit), torch.Generator().manual_seed(0)
    for size in [*range(2, 33), len(label)]:
        rows = torch.randperm(len(label), generator=generator)[:size]
        log_risk = torch.randn(size, 1, generator=generator)
        events = float(label[rows, 1].sum())
        expected = cox_by_definition(log_risk, label[rows], efron=efron) / max(events, 1)
        assert float(CoxLoss(efron=efron)(log_risk.double(), label[rows])) == pytest.approx(expected, rel=1e-10)
        assert float(CoxLoss(efron=efron)(log_risk, label[rows].float())) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_patient_censored_at_the_time_of_an_event_is_at_risk_whichever_row_comes_first() -> None:
    label = torch.tensor([[1.0, 1], [2, 0], [2, 1], [3, 1]])
    log_risk = torch.tensor([[0.3], [2], [-0.5], [0.7]])
    for order in itertools.permutations(range(4)):
        assert 3 * float(CoxLoss()(log_risk[list(order)], label[list(order)])) == pytest.approx(4.934, abs=1e-3)


def test_ties_do_not_change_the_scale_of_cox() -> None:
    log_risk = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    days = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 3650
    exact, yearly = (
        float(CoxLoss()(log_risk, torch.stack([time, torch.ones(500)], 1))) for time in (days, (days / 365).ceil())
    )
    assert yearly == pytest.approx(exact, rel=0.05)


def test_strata_are_cohorts_of_their_own_within_one_mean_over_events() -> None:
    generator = torch.Generator().manual_seed(3)
    log_risk, label = torch.randn(40, 1, generator=generator), real_label("veterans", 30)[:40]
    stratum = torch.randint(3, (40, 1), generator=generator).double()
    parts = [
        cox_by_definition(log_risk[rows], label[rows], efron=True) for rows in (stratum[:, 0] == i for i in range(3))
    ]
    whole = CoxLoss()(log_risk.double(), torch.cat([label, stratum], 1))
    assert float(whole) == pytest.approx(sum(parts) / float(label[:, 1].sum()), rel=1e-10)


@pytest.mark.parametrize("kind", SURVIVAL)
def test_gradients_are_right(kind: str) -> None:
    loss, outputs = SURVIVAL[kind]
    label = torch.tensor([[1.0, 1], [2, 0], [2, 1], [2, 1], [3, 1], [0.5, 0], [9, 1]], dtype=torch.float64)
    prediction = torch.randn(7, outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda p: loss(p, label), prediction.requires_grad_())


@pytest.mark.parametrize("kind", SURVIVAL)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_batch_has_a_finite_loss_and_a_way_down_where_an_event_exists(kind: str, data: st.DataObject) -> None:
    loss, outputs = SURVIVAL[kind]
    size = data.draw(st.integers(1, 6))
    time = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1, 2, 3, 4, 7]), min_size=size, max_size=size))
    event = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    number = st.floats(-100, 100, width=32)
    prediction = torch.tensor(
        data.draw(st.lists(st.lists(number, min_size=outputs, max_size=outputs), min_size=size, max_size=size)),
        requires_grad=True,
    )
    value = loss(prediction, torch.tensor([time, event]).T)
    value.backward()
    assert prediction.grad is not None
    assert value.isfinite() and prediction.grad.isfinite().all() and value.grad_fn is not None
    patients = list(zip(time, event, strict=True))
    # Cox compares an event with those who are left after it; the others judge each event alone, before the last edge.
    judged = [
        any(u > t or (u == t and not f) for u, f in patients) if "cox" in kind else t <= 4 for t, e in patients if e
    ]
    if any(judged) and prediction.detach().abs().max() < 10:
        assert prediction.grad.abs().max() > 0


@pytest.mark.parametrize("label", [[[5.0, 1.0]], [[5.0, 0.0]], [[5.0, 0.0], [6.0, 0.0]]])
def test_cox_of_one_patient_or_without_an_event_is_a_zero_that_hangs_on_the_graph(label: list[list[float]]) -> None:
    prediction = torch.full((len(label), 1), 3.0, requires_grad=True)
    loss = CoxLoss()(prediction, torch.tensor(label))
    loss.backward()
    assert loss == 0 and prediction.grad is not None and (prediction.grad == 0).all()


def test_cox_stays_exact_where_risks_are_many_powers_of_ten_apart() -> None:
    log_risk = torch.tensor([[100.0], [-100.0], [95.0], [-95.0]], requires_grad=True)
    label = torch.tensor([[1.0, 1], [1, 1], [1, 1], [2, 1]])
    loss = CoxLoss()(log_risk, label)
    loss.backward()
    assert log_risk.grad is not None and log_risk.grad.isfinite().all()
    # Of the sum over those at risk, only the first matters; it leaves by thirds.
    expected = 100 + math.log(1) + (100 + math.log(2 / 3)) + (100 + math.log(1 / 3)) - 95 + 0
    assert float(loss) == pytest.approx(expected / 4, rel=1e-4)


def person_periods(prediction: Tensor, label: Tensor) -> float:
    """The classic data set of one row per patient and interval lived through, and its log loss by scikit-learn."""
    rows, happened = [], []
    for logits, (time, event) in zip(prediction.sigmoid().tolist(), label.tolist(), strict=True):
        for hazard, start, end in zip(logits, [0.0, *EDGES], EDGES, strict=False):
            if event and start < time <= end:
                rows, happened = [*rows, hazard], [*happened, 1]
            elif end <= time:
                rows, happened = [*rows, hazard], [*happened, 0]
    return float(sklearn.metrics.log_loss(happened, rows, normalize=False, labels=[0, 1])) / len(label)


def test_discrete_hazard_is_the_log_loss_of_person_periods() -> None:
    label = torch.tensor([[0.5, 1], [1, 1], [1, 0], [1.5, 0], [2, 1], [3, 1], [3, 0], [4, 1], [4, 0], [5, 1], [5, 0]])
    prediction = torch.randn(len(label), 3, generator=torch.Generator().manual_seed(0)).double()
    assert float(DiscreteHazardLoss(EDGES)(prediction, label)) == pytest.approx(person_periods(prediction, label))


def test_the_best_discrete_hazard_of_all_is_kaplan_meier() -> None:
    label = real_label("veterans", 30)
    edges = [float(month) for month in range(1, 10)]
    logits = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    loss = DiscreteHazardLoss(edges)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits.expand(len(label), 9), label)
        value.backward()
        return value

    optimizer.step(step)
    times, survival = kaplan_meier_estimator(label[:, 1].numpy() > 0, label[:, 0].numpy())
    ours = loss.log_hazards(logits.detach()[None])[1].cumsum(1).exp()[0]
    np.testing.assert_allclose(ours, survival[np.searchsorted(times, edges)], atol=1e-5)


def test_an_interval_censored_event_is_the_sum_of_where_it_may_have_happened() -> None:
    loss, prediction = DiscreteHazardLoss(EDGES), torch.randn(1, 3, generator=torch.Generator().manual_seed(1)).double()
    within = [math.exp(-float(loss(prediction, torch.tensor([[time, 1.0]])))) for time in (1.0, 2.0, 4.0)]
    assert float(loss(prediction, torch.tensor([[4.0, 1.0, 1.0]]))) == pytest.approx(-math.log(within[1] + within[2]))
    assert float(loss(prediction, torch.tensor([[2.0, 1.0, 0.0]]))) == pytest.approx(-math.log(within[0] + within[1]))
    # Between 2 and some day after the last edge: all that is known is survival to 2.
    assert float(loss(prediction, torch.tensor([[9.0, 1.0, 2.0]]))) == pytest.approx(-math.log(1 - sum(within[:2])))


def test_the_chances_of_every_cause_and_interval_and_of_none_sum_to_one() -> None:
    loss, prediction = (
        DiscreteHazardLoss(EDGES, causes=2),
        torch.randn(1, 6, generator=torch.Generator().manual_seed(1)),
    )
    outcomes = [[time, cause] for time in EDGES for cause in (1.0, 2.0)] + [[4.0, 0.0]]
    assert sum(math.exp(-float(loss(prediction.double(), torch.tensor([row])))) for row in outcomes) == pytest.approx(1)


def test_a_batch_of_censored_patients_has_the_loss_of_their_survival() -> None:
    prediction = torch.zeros(2, 3, requires_grad=True)
    loss = DiscreteHazardLoss(EDGES)(prediction, torch.tensor([[2.5, 0.0], [1.0, 0.0]]))
    assert float(loss) == pytest.approx(1.5 * math.log(2))
    loss.backward()
    assert prediction.grad is not None and (prediction.grad > 0).any()


@pytest.mark.parametrize(
    ("loss", "theirs"),
    [
        (
            WeibullLoss(300.0),
            lambda risk, spread: scipy.stats.weibull_min(math.exp(-spread), scale=300 * math.exp(-risk)),
        ),
        (LogNormalLoss(300.0), lambda risk, spread: scipy.stats.lognorm(math.exp(spread), scale=300 * math.exp(-risk))),
    ],
    ids=["weibull", "log-normal"],
)
def test_accelerated_failure_is_the_likelihood_of_its_distribution(loss: nn.Module, theirs) -> None:  # type: ignore[no-untyped-def]
    prediction = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    label = torch.tensor([[10.0, 1], [300, 1], [900, 1], [10, 0], [300, 0], [900, 0]])
    expected = []
    for (risk, spread), (time, event) in zip(prediction.tolist(), label.tolist(), strict=True):
        expected.append(theirs(risk, spread).logpdf(time) if event else theirs(risk, spread).logsf(time))
        chance = loss.log_survival(torch.tensor([[risk, spread]]), torch.tensor([time]))  # type: ignore[operator]
        assert float(chance) == pytest.approx(theirs(risk, spread).logsf(time), rel=1e-6)
    assert float(loss(prediction, label)) == pytest.approx(-np.mean(expected), rel=1e-6)


def test_the_pinball_loss_equals_that_of_scikit_learn_and_the_gaussian_one_that_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, label = torch.randn(9, 2, generator=generator).double(), torch.randn(9, 1, generator=generator).double()
    theirs = [
        sklearn.metrics.mean_pinball_loss(label[:, 0], prediction[:, i], alpha=q) for i, q in enumerate((0.05, 0.8))
    ]
    assert float(QuantileLoss([0.05, 0.8])(prediction, label)) == pytest.approx(np.mean(theirs))
    likelihood = scipy.stats.norm(prediction[:, 0], prediction[:, 1].exp()).logpdf(label[:, 0])
    assert float(GaussianLoss()(prediction, label)) == pytest.approx(-likelihood.mean() - math.log(2 * math.pi) / 2)


@pytest.mark.parametrize(
    ("loss", "prediction", "label", "says"),
    [
        (CoxLoss(), (3, 2), (3, 2), r"expected predictions \(B, 1\), got shape \(3, 2\)"),
        (CoxLoss(), (3, 1), (3, 1), r"expected a label \(3, 2\) or \(3, 3\), got shape \(3, 1\)"),
        (WeibullLoss(1), (3, 2), (2, 2), r"expected a label \(3, 2\), got shape \(2, 2\)"),
        (DiscreteHazardLoss(EDGES), (3, 2), (3, 2), r"expected predictions \(B, 3\)"),
    ],
)
def test_a_wrong_shape_is_refused(
    loss: nn.Module, prediction: tuple[int, int], label: tuple[int, int], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        loss(torch.zeros(prediction), torch.zeros(label))


def test_wrong_levels_edges_and_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="levels between 0 and 1"):
        QuantileLoss([0.5, 1.0])
    with pytest.raises(ValueError, match="increase from above 0"):
        DiscreteHazardLoss([1.0, 1.0])
    with pytest.raises(ValueError, match="above 0 days"):
        WeibullLoss(0.0)


def test_a_hundred_thousand_patients_take_time_and_memory_of_their_number() -> None:
    label = torch.stack([torch.randint(3000, (100_000,)).float(), (torch.rand(100_000) < 0.3).float()], 1)
    for loss, outputs in SURVIVAL.values():
        prediction = torch.randn(100_000, outputs, requires_grad=True)
        # A table of all pairs would need 37 GiB.
        loss(prediction, label).backward()
        assert prediction.grad is not None and prediction.grad.isfinite().all()


def patients_of_two(events: bool) -> Tensor:
    label = real_label("veterans", 30)[:8].clone()
    label[5:, 1] *= events
    return label


def train_on_two(rank: int, folder: str, events: bool) -> None:
    """One process of two: patients 0-4, or 5-7; the gradient that DistributedDataParallel leaves is kept."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    net, label = DistributedDataParallel(nn.Linear(4, 1)), patients_of_two(events)
    image = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    rows = slice(0, 5) if rank == 0 else slice(5, 8)
    loss = GatheredLoss(CoxLoss())(net(image[rows]), label[rows])
    loss.backward()
    torch.save((loss.detach(), net.module.weight.grad), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("events", [True, False])
def test_cox_over_processes_is_that_of_all_their_patients_also_if_one_has_no_event(
    tmp_path: Path, events: bool
) -> None:
    multiprocessing.spawn(train_on_two, (str(tmp_path), events), nprocs=2)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    net, label = nn.Linear(4, 1), patients_of_two(events)
    loss = GatheredLoss(CoxLoss())(net(torch.randn(8, 4, generator=torch.Generator().manual_seed(1))), label)
    loss.backward()
    for rank in range(2):
        value, gradient = torch.load(tmp_path / f"{rank}.pt")
        assert_close(value, loss.detach())
        assert_close(gradient, net.weight.grad, rtol=1e-5, atol=1e-7)


def test_a_standardised_gaussian_is_the_likelihood_in_target_units_less_the_log_of_their_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    label = 50 + 10 * torch.randn(64, 1, generator=generator)
    scaling, loss = TargetScaling(2), GaussianLoss()
    loss.fit_scaling(scaling, label)
    std = label.std(unbiased=False)
    # An untrained head says: the mean of the patients, give or take their standard deviation.
    value, spread = loss.value_and_spread(scaling(torch.zeros(1, 2)))
    assert value.item() == pytest.approx(label.mean().item()) and spread.item() == pytest.approx(std.item())
    prediction = scaling(torch.randn(64, 2, generator=generator))
    value, spread = loss.value_and_spread(prediction)
    likelihood = torch.distributions.Normal(value, spread).log_prob(label).mean()
    expected = -likelihood - 0.5 * math.log(2 * math.pi) - std.log()
    assert StandardisedLoss(loss, scaling)(prediction, label).item() == pytest.approx(expected.item(), rel=1e-5)


def test_standardised_quantiles_share_one_scale_and_are_put_in_order() -> None:
    label = torch.tensor([[40.0], [60.0]])
    scaling, loss = TargetScaling(3), QuantileLoss([0.05, 0.5, 0.95])
    loss.fit_scaling(scaling, label)
    assert scaling.mean.tolist() == [50.0] * 3 and scaling.std.tolist() == [10.0] * 3
    prediction = torch.tensor([[30.0, 50.0, 70.0], [70.0, 30.0, 50.0]])
    value, spread = loss.value_and_spread(prediction)
    assert value.tolist() == [[50.0], [50.0]] and spread.tolist() == [[20.0], [20.0]]
    found = StandardisedLoss(loss, scaling)(prediction, label).item()
    assert found == pytest.approx(loss(prediction, label).item() / 10)
    other = QuantileLoss([0.9, 0.1])
    assert other.value_and_spread(torch.tensor([[9.0, 1.0]]))[1].tolist() == [[4.0]]


def test_one_edge_or_one_level_is_a_list_of_one() -> None:
    assert DiscreteHazardLoss(365).edges.tolist() == [365]  # type: ignore[arg-type]
    assert QuantileLoss(0.5).quantiles.tolist() == [0.5]  # type: ignore[arg-type]

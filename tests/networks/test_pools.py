"""Embeddings to pooled: promises of every pool, then each pool against its formula."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from monai_mvreg.networks import pools

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
Embedded = tuple[Tensor, Tensor, Tensor]
ORDER_AWARE = [
    pools.LSTMPool(6, hidden=8),
    pools.LSTMPool(6, hidden=8, layers=2, time_encoding=pools.TimeEncoding()),
    pools.GRUPool(6, hidden=8),
    pools.GRUPool(6, hidden=8, layers=2, time_encoding=pools.TimeEncoding()),
]


def one_patient(values: list[list[float]], days: list[float]) -> Embedded:
    return torch.tensor([values]), torch.ones(1, len(days), dtype=torch.bool), torch.tensor([days])


def by_visit(embeddings: Tensor, days: Tensor) -> tuple[Tensor, list[list[int]]]:
    """One patient's visits in order of time, by plain loops: their mean embeddings, and the rows of each."""
    rows = [[i for i, day in enumerate(days.tolist()) if day == visit] for visit in sorted(set(days.tolist()))]
    return torch.stack([embeddings[r].mean(0) for r in rows]), rows


# ---- Promises of every pool ------------------------------------------------------------------------------------------


def test_padding_and_batch_mates_never_change_a_patient(pool: nn.Module, embedded: Embedded) -> None:
    embeddings, mask, time = embedded
    pooled, weights = pool(*embedded)
    for row, scans in enumerate(mask.sum(1).tolist()):
        alone = [x[row : row + 1, :scans] for x in (embeddings, mask, time)]
        assert_close(pool(*alone)[0], pooled[row : row + 1])
        assert_close(pool(*alone)[1], weights[row : row + 1, :scans])


def test_what_stands_in_the_padding_never_matters(pool: nn.Module, embedded: Embedded) -> None:
    embeddings, mask, time = embedded
    other = torch.where(mask[:, :, None], embeddings, -7.0), mask, torch.where(mask, time, 12345.0)
    assert_close(pool(*other), pool(*embedded))


def test_padding_may_stand_in_front_or_between(pool: nn.Module, embedded: Embedded) -> None:
    flipped = tuple(x.flip(1) for x in embedded)
    assert_close(pool(*flipped)[0], pool(*embedded)[0])


def test_row_order_never_changes_the_pooled_vector(pool: nn.Module, embedded: Embedded) -> None:
    order = torch.randperm(6)
    assert_close(pool(*(x[:, order] for x in embedded))[0], pool(*embedded)[0])


def test_weights_follow_their_scans_through_a_new_row_order(pool: nn.Module, embedded: Embedded) -> None:
    order = torch.randperm(6)
    assert_close(pool(*(x[:, order] for x in embedded))[1], pool(*embedded)[1][:, order])


def test_shifting_all_dates_of_a_patient_changes_nothing(pool: nn.Module, embedded: Embedded) -> None:
    embeddings, mask, time = embedded
    assert_close(pool(embeddings, mask, time + torch.tensor([[4000.0], [-365.0], [17.0], [1.0]])), pool(*embedded))


def test_weights_sum_to_one_over_real_scans(pool: nn.Module, embedded: Embedded) -> None:
    weights = pool(*embedded)[1]
    assert_close((weights * embedded[1]).sum(1), torch.ones(4))


def test_weights_are_never_negative_and_zero_on_padding(pool: nn.Module, embedded: Embedded) -> None:
    weights = pool(*embedded)[1]
    assert (weights >= 0).all()
    assert (weights[embedded[1].logical_not()] == 0).all()


def test_a_single_scan_weighs_one(pool: nn.Module, embedded: Embedded) -> None:
    assert_close(pool(*embedded)[1][0], torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))


def test_a_pool_states_the_size_of_its_result(pool: nn.Module, embedded: Embedded) -> None:
    assert pool(*embedded)[0].shape == (4, pool.pooled_size)


def test_gradients_are_finite_and_padding_gets_none(pool: nn.Module, embedded: Embedded) -> None:
    embeddings, mask, time = embedded
    embeddings.requires_grad_()
    pool.train()(embeddings, mask, time)[0].square().sum().backward()
    assert embeddings.grad is not None and embeddings.grad.isfinite().all()
    assert (embeddings.grad[mask.logical_not()] == 0).all()
    assert embeddings.grad[mask].abs().sum() > 0


def test_scripted_equals_eager(pool: nn.Module, embedded: Embedded) -> None:
    assert_close(torch.jit.script(pool)(*embedded), pool(*embedded))


def test_traced_equals_eager_for_other_numbers_of_patients_and_scans(pool: nn.Module, embedded: Embedded) -> None:
    traced = torch.jit.trace(pool, tuple(x[1:3, :4] for x in embedded), check_trace=False)
    assert_close(traced(*embedded), pool(*embedded))
    first = tuple(x[:1, :1] for x in embedded)
    assert_close(traced(*first), pool(*first))


# ---- Each pool against its formula -----------------------------------------------------------------------------------


def test_mean_and_sum_are_those_of_numpy() -> None:
    patient = one_patient([[1.0, 4.0], [2.0, 6.0], [6.0, 2.0]], [0.0, 1.0, 2.0])
    assert pools.MeanPool(2)(*patient)[0].tolist() == [[3.0, 4.0]]
    assert pools.SumPool(2)(*patient)[0].tolist() == [[9.0, 12.0, 3.0]]  # three scans


def test_max_weighs_a_scan_by_the_coordinates_it_holds_and_shares_ties() -> None:
    patient = one_patient([[9.0, 9.0, 0.0, 5.0], [1.0, 1.0, 8.0, 5.0]], [0.0, 1.0])
    pooled, weights = pools.MaxPool(4)(*patient)
    assert pooled.tolist() == [[9.0, 9.0, 8.0, 5.0]]
    assert weights.tolist() == [[0.625, 0.375]]


def test_last_averages_all_scans_of_the_newest_day() -> None:
    patient = one_patient([[1.0, 3.0], [100.0, 100.0], [5.0, 5.0]], [30.0, 2.0, 30.0])
    pooled, weights = pools.LastPool(2)(*patient)
    assert pooled.tolist() == [[3.0, 4.0]]
    assert weights.tolist() == [[0.5, 0.0, 0.5]]


@pytest.mark.parametrize("gated", [False, True])
def test_attention_is_the_formula_of_ilse_et_al(gated: bool) -> None:
    pool = (pools.GatedAttentionPool if gated else pools.AttentionPool)(6, hidden=8)
    scans = torch.randn(4, 6)
    keys = np.tanh((scans @ pool.project.weight.T + pool.project.bias).detach().numpy())
    if gated:
        keys = keys / (1 + np.exp(-(scans @ pool.gate.weight.T + pool.gate.bias).detach().numpy()))
    raw = np.exp(keys @ pool.score.weight.detach().numpy()[0])
    expected = raw / raw.sum()
    pooled, weights = pool(scans[None], torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4))
    np.testing.assert_allclose(weights[0].detach(), expected, rtol=1e-5)
    np.testing.assert_allclose(pooled[0].detach(), expected @ scans.numpy(), rtol=1e-4, atol=1e-6)


def test_attention_without_a_time_encoding_ignores_dates(embedded: Embedded) -> None:
    pool = pools.AttentionPool(6)
    embeddings, mask, time = embedded
    assert_close(pool(embeddings, mask, time), pool(embeddings, mask, time.square()))


def test_attention_with_a_time_encoding_reads_dates(embedded: Embedded) -> None:
    pool = pools.AttentionPool(6, time_encoding=pools.TimeEncoding())
    embeddings, mask, time = embedded
    assert not torch.allclose(pool(embeddings, mask, time)[1], pool(embeddings, mask, time * 2)[1])


def test_the_time_encoding_has_years_logarithm_and_doubling_periods() -> None:
    code = pools.TimeEncoding(periods=2)(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0.0, 30.0]]))[0]
    # 30 days before the newest scan: half of the period of 60 days and a quarter of that of 120.
    assert_close(code[0], torch.tensor([30 / 365.25, math.log(2), 0.0, 1.0, -1.0, 0.0]), atol=1e-6, rtol=0)
    assert_close(code[1], torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0]))


def test_a_transformer_reads_one_patient_as_torch_does_without_a_mask() -> None:
    pool = pools.TransformerPool(6, hidden=8, heads=2)
    scans = torch.randn(1, 4, 6)
    context = pool.layers(pool.project(scans))
    weights = pool.pool.score(torch.tanh(pool.pool.project(context))).softmax(1)
    pooled = pool(scans, torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4))[0]
    assert_close(pooled, (weights * context).sum(1))


@pytest.mark.parametrize("pool", ORDER_AWARE)
def test_a_recurrent_pool_is_the_last_state_of_a_loop_over_sorted_visits(pool: nn.Module, embedded: Embedded) -> None:
    embeddings, mask, time = embedded
    pooled, weights = pool(*embedded)
    for row in range(4):
        scans, days = embeddings[row][mask[row]], time[row][mask[row]]
        if pool.time_encoding is not None:
            scans = torch.cat([scans, pool.time_encoding(mask, time)[row][mask[row]]], dim=1)
        visits, rows = by_visit(scans, days)
        states = pool.recurrent(visits)[0]
        assert_close(pooled[row], states[-1])
        moves = torch.diff(states, dim=0, prepend=torch.zeros(1, 8)).norm(dim=1).detach()
        for visit, members in enumerate(rows):
            share = torch.full([len(members)], float(moves[visit] / moves.sum() / len(members)))
            assert_close(weights[row][mask[row]][members], share)


@pytest.mark.parametrize("pool", ORDER_AWARE)
def test_a_recurrent_pool_reads_the_order_of_days(pool: nn.Module, embedded: Embedded) -> None:
    embeddings, mask, time = embedded
    assert not torch.allclose(pool(embeddings, mask, time)[0][1:], pool(embeddings, mask, -time)[0][1:], atol=1e-4)


@pytest.mark.parametrize("pool", ORDER_AWARE)
def test_scans_of_one_day_are_one_visit(pool: nn.Module) -> None:
    early, left, right = torch.randn(3, 6).tolist()
    middle = [(a + b) / 2 for a, b in zip(left, right, strict=True)]
    once = pool(*one_patient([early, middle], [0.0, 9.0]))[0]
    assert_close(pool(*one_patient([early, left, right], [0.0, 9.0, 9.0]))[0], once)
    assert_close(pool(*one_patient([right, early, left], [9.0, 0.0, 9.0]))[0], once)


@pytest.mark.parametrize("visits", [2, 5, 20])
@pytest.mark.parametrize("scans", [2, 3, 5, 6, 7, 9, 10, 11, 25, 49, 50])
def test_each_scan_is_in_the_visit_of_its_day_and_no_other_however_many_scans_a_day_has(
    scans: int, visits: int
) -> None:
    days = [7.0 * number for number in range(visits)] * scans
    share, _, count = pools.merge_visits(*one_patient([[1.0]] * len(days), days))
    assert share[0].T.nonzero().tolist() == [[scan, sorted(set(days)).index(day)] for scan, day in enumerate(days)]
    assert count.tolist() == [visits]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_hundreds_of_visits_stay_apart_in_every_precision(dtype: torch.dtype) -> None:
    embeddings, mask, time = one_patient([[1.0]] * 600, [float(day % 300) for day in range(600)])
    share, _, count = pools.merge_visits(embeddings.to(dtype), mask, time)
    assert share[0].argmax(0).tolist() == [day % 300 for day in range(600)] and count.tolist() == [300]
    assert ((share > 0).sum(1) == 1).all() and share.dtype == dtype


@pytest.mark.parametrize("pool", ORDER_AWARE)
def test_the_exported_path_of_a_recurrent_pool_equals_the_packed_one(pool: nn.Module, embedded: Embedded) -> None:
    program = torch.export.export(pool.eval(), embedded).module()
    assert_close(program(*embedded), pool(*embedded))


def test_a_trend_without_ridge_is_polyfit(embedded: Embedded) -> None:
    embeddings, mask, time = embedded
    pool = pools.TrendPool(6)
    nn.init.constant_(pool.log_ridge, -40.0)
    pooled = pool(*embedded)[0].detach()
    for row in (1, 2, 3):
        years = (time[row] - time[row][mask[row]].max())[mask[row]].double().numpy() / 365.25
        slope, level = np.polyfit(years, embeddings[row][mask[row]].double().numpy(), 1)
        np.testing.assert_allclose(pooled[row], [*level, *slope], rtol=2e-3, atol=1e-4)


def test_a_trend_is_ridge_regression_whose_intercept_is_free(embedded: Embedded) -> None:
    embeddings, mask, time = embedded
    pooled = pools.TrendPool(6, ridge_days=200.0)(*embedded)[0].detach()
    for row in (1, 2, 3):
        years = (time[row] - time[row][mask[row]].max())[mask[row]].double().numpy() / 365.25
        scans = embeddings[row][mask[row]].double().numpy()
        # One more observation, of the slope alone: zero, with weight sqrt(lambda). Its column is of centred dates.
        design = np.column_stack([np.ones(len(years)), years - years.mean()])
        design = np.vstack([design, [0.0, 200.0 / 365.25]])
        centre, slope = np.linalg.lstsq(design, np.vstack([scans, np.zeros(6)]), rcond=None)[0]
        np.testing.assert_allclose(pooled[row], [*(centre - slope * years.mean()), *slope], rtol=1e-3, atol=1e-4)


def test_a_single_scan_has_slope_zero_and_its_own_level(embedded: Embedded) -> None:
    pooled = pools.TrendPool(6)(*embedded)[0][0]
    assert_close(pooled, torch.cat([embedded[0][0, 0], torch.zeros(6)]))


def test_a_trend_learns_its_ridge(embedded: Embedded) -> None:
    pool = pools.TrendPool(6)
    pool(*embedded)[0].sum().backward()
    assert pool.log_ridge.grad is not None and pool.log_ridge.grad.abs() > 0


def test_mixed_precision_does_not_round_the_trend() -> None:
    pool = pools.TrendPool(2, ridge_days=1.0)
    embeddings, mask = torch.tensor([[[1.0, 2.0], [1.5, 1.0]]]), torch.ones(1, 2, dtype=torch.bool)
    time = torch.tensor([[0.0, 7.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = pool(embeddings, mask, time)[0]
    torch.testing.assert_close(mixed, pool(embeddings, mask, time)[0])

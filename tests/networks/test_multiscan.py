"""Batch to number: the whole network, its target scaling and its covariates."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from monai_mvreg.networks.encoders import PretrainedEncoder
from monai_mvreg.networks.multiscan import Covariates, MultiScanNet, TargetScaling
from monai_mvreg.networks.pools import AttentionPool, LSTMPool, MeanPool

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
SIZE = 6
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])


class Encoder(nn.Module):
    """A small convolution with batch normalisation that counts the scans it sees."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.conv, self.norm, self.seen = nn.Conv2d(1, size, 3), nn.BatchNorm2d(size), 0

    def forward(self, image: Tensor) -> Tensor:
        self.seen += image.shape[0]
        return torch.relu(self.norm(self.conv(image))).mean([2, 3])


def batch() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(3, 3, 1, 6, 6), MASK, torch.tensor([[0.0, 90.0, 30.0], [5.0, 0.0, 0.0], [7.0, 7.0, 0.0]])


# ---- Promises with every pool ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_and_batch_mates_never_change_a_prediction(pool: nn.Module) -> None:
    net, (image, mask, time) = MultiScanNet(Encoder(), pool).eval(), batch()
    together = net(image, mask, time)
    for row, scans in enumerate([3, 1, 2]):
        one = slice(row, row + 1)
        assert_close(net(image[one, :scans], mask[one, :scans], time[one, :scans]), together[one])


@torch.no_grad()
def test_row_order_never_changes_a_prediction(pool: nn.Module) -> None:
    net, inputs = MultiScanNet(Encoder(), pool).eval(), batch()
    assert_close(net(*(x[:, [2, 0, 1]] for x in inputs)), net(*inputs))


@torch.no_grad()
def test_a_patient_without_a_scan_is_refused(pool: nn.Module) -> None:
    image, mask, time = batch()
    mask = mask.clone()
    mask[1] = False
    with pytest.raises(AssertionError, match="at least one scan per patient"):
        MultiScanNet(Encoder(), pool).eval()(image, mask, time)


@torch.no_grad()
def test_a_batch_without_scans_is_refused(pool: nn.Module) -> None:
    with pytest.raises(AssertionError, match="at least one scan per patient"):
        MultiScanNet(Encoder(), pool).eval()(torch.zeros(2, 0, 1, 6, 6))


@torch.no_grad()
def test_the_image_alone_is_enough(pool: nn.Module) -> None:
    net, image = MultiScanNet(Encoder(), pool, outputs=2).eval(), batch()[0]
    mask, time = torch.ones(3, 3, dtype=torch.bool), torch.tensor([[0.0, 1.0, 2.0]] * 3)
    assert_close(net(image), net(image, mask, time))
    assert net(image[:, :1]).shape == (3, 2)


@torch.no_grad()
@pytest.mark.parametrize("extras", [{}, {"views": 2, "covariates": 3}])
def test_scripted_equals_eager(pool: nn.Module, extras: dict[str, int]) -> None:
    net, inputs = MultiScanNet(Encoder(), pool, **extras).eval(), batch()
    scripted = torch.jit.script(net)
    assert_close(scripted(*inputs), net(*inputs))
    assert_close(scripted(inputs[0]), net(inputs[0]))


@torch.no_grad()
def test_traced_equals_eager_for_other_numbers_of_patients_and_scans(pool: nn.Module) -> None:
    net, image = MultiScanNet(Encoder(), pool, covariates=2).eval(), torch.randn(4, 5, 1, 6, 6)
    traced = torch.jit.trace(net, image[:2, :2], check_trace=False)
    assert_close(traced(image), net(image))
    assert_close(traced(image[:1, :1]), net(image[:1, :1]))


# ---- Padding and the encoder -----------------------------------------------------------------------------------------


def test_the_encoder_never_sees_padding() -> None:
    net = MultiScanNet(Encoder(), MeanPool(6))
    net(*batch())
    assert net.encoder.seen == 6


def test_batch_statistics_in_training_are_those_of_the_real_scans() -> None:
    net, alone, (image, mask, time) = MultiScanNet(Encoder(), MeanPool(6)).train(), Encoder().train(), batch()
    alone.load_state_dict(net.encoder.state_dict())
    alone(torch.cat([image[0], image[1, :1], image[2, :2]]))
    net(image.masked_fill(mask.logical_not()[:, :, None, None, None], 1e4), mask, time)
    assert_close(dict(net.encoder.norm.named_buffers()), dict(alone.norm.named_buffers()))


def test_padding_changes_no_gradient() -> None:
    net, (image, mask, time) = MultiScanNet(Encoder(), AttentionPool(6)).eval(), batch()
    parameters = list(net.parameters())
    padded = torch.autograd.grad(net(image, mask, time).sum(), parameters, allow_unused=True)
    alone = sum(net(image[i : i + 1, :n], mask[i : i + 1, :n]).sum() for i, n in enumerate([3, 1, 2]))
    assert_close(padded, torch.autograd.grad(alone, parameters, allow_unused=True), rtol=1e-4, atol=1e-6)


def test_embeddings_give_the_prediction_of_their_images_and_the_weights_of_the_pool() -> None:
    net, (image, mask, time) = MultiScanNet(Encoder(), LSTMPool(6)).eval(), batch()
    embeddings = net.embed(image, mask)
    outputs, weights = net.from_embeddings(embeddings, mask, time)
    assert_close(weights, net.pool(embeddings, mask, time)[1])
    assert_close(weights.sum(1), torch.ones(3))
    assert_close(outputs, net(image, mask, time))


# ---- Target scaling --------------------------------------------------------------------------------------------------


def test_target_scaling_goes_there_and_back() -> None:
    scaling, label = TargetScaling(2), torch.tensor([[5000.0, 1.0], [3200.0, 4.0], [7100.0, 2.5]])
    scaling.fit(label)
    assert_close(scaling(scaling.standardise(label)), label)
    assert_close(scaling.standardise(label).mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    assert_close(scaling.standardise(label).std(0, unbiased=False), torch.ones(2))


def test_target_scaling_changes_nothing_before_it_is_fitted() -> None:
    assert_close(TargetScaling(1)(torch.tensor([[1.5]])), torch.tensor([[1.5]]))


@pytest.mark.parametrize("value", [4999.0, 5000.0, 5001.0])
def test_half_precision_keeps_litres_to_half_a_millilitre(value: float) -> None:
    scaling = TargetScaling(1)
    scaling.fit(torch.tensor([[4500.0], [5500.0]]))
    number = scaling.standardise(torch.tensor([[value]])).half()
    assert scaling(number).dtype == torch.float32
    assert abs(float(scaling(number)) - value) < 0.5


def test_one_target_for_all_patients_is_refused() -> None:
    with pytest.raises(ValueError, match="differ between the 7 training patients"):
        TargetScaling(1).fit(torch.full((7, 1), 0.1))


def test_a_label_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite labels"):
        TargetScaling(1).fit(torch.tensor([[1.0], [float("nan")]]))


def test_the_state_dict_carries_the_scaling() -> None:
    net, other, inputs = MultiScanNet(Encoder(), MeanPool(6)), MultiScanNet(Encoder(), MeanPool(6)), batch()
    net.scaling.fit(torch.tensor([[4000.0], [6000.0], [5500.0]]))
    other.load_state_dict(net.state_dict())
    assert_close(other.eval()(*inputs), net.eval()(*inputs))
    assert other.scaling.mean.item() == pytest.approx(5166.667, abs=1e-2)


# ---- Covariates and views --------------------------------------------------------------------------------------------


def fitted() -> Covariates:
    covariates = Covariates(2)
    covariates.fit(torch.tensor([[50.0, 1.0], [70.0, 3.0], [float("nan"), 2.0]]))
    return covariates


def test_covariates_are_standardised_by_the_known_values() -> None:
    assert_close(fitted()(torch.tensor([[70.0, 2.0]])), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))


def test_a_missing_covariate_is_neither_the_mean_nor_zero() -> None:
    rows = fitted()(torch.tensor([[float("nan"), 2.0], [60.0, 2.0], [0.0, 2.0]]))
    assert rows[0].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_all_covariates_may_be_missing() -> None:
    net, inputs = MultiScanNet(Encoder(), MeanPool(6), covariates=2).eval(), batch()
    missing = net(*inputs, covariates=torch.full((3, 2), torch.nan))
    assert missing.isfinite().all()
    assert_close(net(*inputs), missing)


def test_a_covariate_nobody_has_changes_no_number_to_nan() -> None:
    covariates = Covariates(1)
    covariates.fit(torch.full((3, 1), torch.nan))
    assert covariates(torch.tensor([[2.0]])).isfinite().all()


def test_the_stand_in_for_a_missing_covariate_learns() -> None:
    net, inputs = MultiScanNet(Encoder(), MeanPool(6), covariates=2), batch()
    values = torch.tensor([[torch.nan, 1.0], [60.0, 2.0], [55.0, 0.0]])
    net(*inputs, covariates=values).sum().backward()
    gradient = net.covariates.stand_in.grad
    assert gradient[0] != 0 and gradient[1] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_views_enter_as_a_vector_added_to_each_scan_of_that_view() -> None:
    net, (image, mask, time) = MultiScanNet(Encoder(), MeanPool(6), views=3).eval(), batch()
    nn.init.normal_(net.view.weight)
    view = torch.tensor([[0, 1, 2], [2, 0, 0], [1, 1, 0]])
    expected, _ = net.from_embeddings(net.embed(image, mask) + net.view.weight[view], mask, time)
    assert_close(net(image, mask, time, view), expected)
    assert not torch.allclose(net(image, mask, time), expected)


def test_the_view_of_padding_never_matters() -> None:
    net, (image, mask, time) = MultiScanNet(Encoder(), MeanPool(6), views=3).eval(), batch()
    nn.init.normal_(net.view.weight)
    view = torch.tensor([[0, 1, 2], [2, 0, 0], [1, 1, 0]])
    assert_close(net(image, mask, time, view), net(image, mask, time, view.masked_fill(mask.logical_not(), 1)))


def test_views_start_without_a_difference() -> None:
    net, (image, mask, time) = MultiScanNet(Encoder(), MeanPool(6), views=2).eval(), batch()
    assert_close(net(image, mask, time, mask.long()), net(image, mask, time))


# ---- Chunks ----------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A small encoder with dropout and a normalisation of each scan by itself."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, SIZE, 3), nn.GroupNorm(2, SIZE), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(2)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image).mean(2)


def gradients(net: nn.Module, inputs: tuple[Tensor, ...], *, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    net.zero_grad()
    net(*inputs).square().sum().backward()
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


def like(net: MultiScanNet, chunk_size: int | None) -> MultiScanNet:
    """The same network, encoded in other chunks."""
    other = copy.deepcopy(net)
    other.chunk_size = chunk_size
    return other


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 6, 100])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_in_chunks_equal_those_of_plain_backpropagation(chunk_size: int, masked: bool) -> None:
    inputs = batch() if masked else batch()[:1]
    net = MultiScanNet(Plain(), AttentionPool(SIZE))
    assert_close(like(net, chunk_size)(*inputs), net(*inputs))
    assert_close(gradients(like(net, chunk_size), inputs), gradients(net, inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_is_replayed_when_a_chunk_is_encoded_again(dtype: torch.dtype) -> None:
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in batch())
    net = MultiScanNet(Plain(0.5), MeanPool(SIZE)).to(dtype)

    def unchunked(image: Tensor, mask: Tensor, time: Tensor) -> Tensor:
        """The same two scans at a time in the same order, with all graphs kept."""
        embeddings = torch.zeros(*mask.shape, SIZE, dtype=dtype)
        embeddings[mask] = torch.cat([net.encoder(part) for part in image[mask].split(2)])
        return net.from_embeddings(embeddings, mask, time)[0]

    torch.manual_seed(3)
    unchunked(*inputs).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]  # type: ignore[union-attr]
    after = torch.rand(1)
    got = gradients(like(net, 2), inputs, seed=3)
    assert_close(got, expected, rtol=1e-5, atol=1e-7)
    torch.manual_seed(3)
    like(net, 2)(*inputs)
    assert torch.rand(1) == after  # and what is drawn next is what would have been


def test_memory_does_not_grow_with_the_number_of_scans() -> None:
    """Counts the numbers that are kept for the gradients, which torch hands to the hooks."""
    net, kept = MultiScanNet(Plain(), MeanPool(SIZE), chunk_size=2), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def size_of(scans: int) -> int:
        kept.clear()
        image = torch.randn(1, scans, 1, 64, 64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net(image, torch.ones(1, scans, dtype=torch.bool), torch.arange(scans)[None].float())
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        return sum(storages.values()) - image.untyped_storage().nbytes()

    few, many = size_of(4), size_of(64)
    # What is left to grow is the embeddings, 60 scans of SIZE numbers.
    assert many <= 1.15 * few
    net.chunk_size = None
    assert size_of(64) > 10 * few


def test_batch_normalisation_in_chunks_is_refused_unless_it_is_frozen() -> None:
    inputs = batch()
    with pytest.raises(ValueError, match=r"expected an encoder without BatchNorm2d in training mode for chunk_size"):
        MultiScanNet(Encoder(), MeanPool(SIZE), chunk_size=2)(*inputs)
    frozen = MultiScanNet(PretrainedEncoder(Encoder(), learn=["*"]), MeanPool(SIZE))
    assert_close(gradients(like(frozen, 2), inputs), gradients(frozen, inputs), rtol=1e-5, atol=1e-6)
    in_use = MultiScanNet(Encoder(), MeanPool(SIZE), chunk_size=2).eval()
    assert_close(in_use(*inputs), like(in_use, None)(*inputs))


def test_a_chunk_of_no_scans_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size of at least one scan, got 0"):
        MultiScanNet(Plain(), MeanPool(SIZE), chunk_size=0)


def test_chunks_work_under_automatic_mixed_precision() -> None:
    inputs, net = batch(), MultiScanNet(Plain(), MeanPool(SIZE))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked, whole = gradients(like(net, 2), inputs), gradients(net, inputs)
    assert_close(chunked, whole, rtol=2e-2, atol=2e-3)


def test_chunks_work_compiled() -> None:
    inputs, net = batch(), MultiScanNet(Plain(), MeanPool(SIZE))
    compiled = like(net, 2)
    compiled.encoder.compile(backend="aot_eager")
    assert_close(gradients(compiled, inputs), gradients(net, inputs), rtol=1e-5, atol=1e-6)


def test_a_network_with_chunks_is_scripted_to_one_without() -> None:
    net = MultiScanNet(Plain(), MeanPool(SIZE), chunk_size=2).eval()
    inputs = batch()
    assert_close(torch.jit.script(net)(*inputs), net(*inputs))


@pytest.mark.parametrize("values", [[14.62] * 7, [0.0] * 7, [14.62, 14.620001] * 3, [torch.nan] * 7, [5.0, torch.nan]])
def test_a_covariate_that_is_the_same_for_all_changes_nothing_in_a_new_patient(values: list[float]) -> None:
    covariates = Covariates(2)
    varying = torch.arange(len(values), dtype=torch.float32)
    covariates.fit(torch.stack([torch.tensor(values), varying], dim=1))
    known = covariates(torch.tensor([[15.0, 1.0], [-1e6, 1.0], [torch.nan, 1.0]]))
    assert known[:, 0].abs().max() < 1e-6 and known.isfinite().all()
    assert_close(known[:, 1], ((1 - varying.mean()) / varying.std(unbiased=False)).expand(3))

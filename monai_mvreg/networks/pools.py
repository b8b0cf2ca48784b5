"""Embeddings -> pooled: a patient's scan embeddings become one vector, and each scan gets a weight.

Every pool is called as ``pool(embeddings, mask, time)`` with embeddings ``(B, N, E)``, mask ``(B, N)`` (true where a
scan exists) and time ``(B, N)`` in days, and returns ``pooled (B, pooled_size)`` and ``weights (B, N)``, each row of
which is non-negative and sums to 1 over the real scans. Padding, the order of the rows and the other patients of the
batch never change the result; neither does shifting all dates of a patient by the same number of days.
"""

import math

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

DAYS_PER_YEAR = 365.25


def uniform_weights(mask: Tensor) -> Tensor:
    """Give the real scans of each patient equal weights ``(B, N)``."""
    real = mask.to(torch.float32)
    return real / real.sum(1, keepdim=True).clamp(min=1.0)


def merge_visits(embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Average the scans of each day into one visit, and sort the visits by time.

    Scans of one day have no order: a recurrent pool that read them one by one would depend on the order of the rows.

    Args:
        embeddings: ``(B, N, E)``.
        mask: ``(B, N)``, true where a scan exists.
        time: ``(B, N)`` in days.

    Returns:
        The share of each scan in each visit ``(B, V, N)`` with ``V = N``; the visits ``(B, V, E)``, padded with zeros
        after the last; and the number of visits ``(B,)``.
    """
    # Counted in float32: bfloat16 holds no exact integers above 256.
    real = mask.to(torch.float32)
    same_day = (time[:, :, None] == time[:, None, :]).to(torch.float32) * real[:, None, :]
    scans_that_day = same_day.sum(2).clamp(min=1.0)
    earlier = (time[:, None, :] < time[:, :, None]).to(torch.float32) * real[:, None, :]
    # Each earlier day counts once, however many scans it has.
    visit = (earlier / scans_that_day[:, None, :]).sum(2).round()
    slots = torch.arange(mask.shape[1], device=mask.device, dtype=visit.dtype)
    own = (real.to(embeddings.dtype) / scans_that_day.to(embeddings.dtype))[:, None, :]
    share = (visit[:, None, :] == slots[None, :, None]).to(embeddings.dtype) * own
    return share, torch.bmm(share, embeddings), (share.sum(2) > 0).sum(1)


class TimeEncoding(nn.Module):
    """Encode the days before the patient's newest scan as features: years, a logarithm, and sinusoids.

    Args:
        periods: number of sinusoids; their periods double from 60 days on (8 reach 21 years).

    Example:
        >>> years = TimeEncoding(periods=1)(torch.ones(1, 2).bool(), torch.tensor([[0.0, 365.25]]))[:, :, 0]
        >>> years  # the first scan was one year before the newest
        tensor([[1., 0.]])

    Source: continuous time instead of a position, after Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.
    """

    frequency: Tensor

    def __init__(self, periods: int = 8) -> None:
        super().__init__()
        self.size = 2 + 2 * periods
        self.year = DAYS_PER_YEAR
        frequency = 2 * math.pi / (60.0 * 2.0 ** torch.arange(periods, dtype=torch.float32))
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, mask: Tensor, time: Tensor) -> Tensor:
        """Encode ``time (B, N)`` in days as ``(B, N, size)``."""
        newest = time.masked_fill(mask.logical_not(), -torch.inf).amax(1, keepdim=True)
        age = (newest - time).masked_fill(mask.logical_not(), 0.0)
        angle = age[:, :, None] * self.frequency
        linear = torch.stack([age / self.year, torch.log1p(age / 30.0)], dim=2)
        return torch.cat([linear, angle.sin(), angle.cos()], dim=2)


class MeanPool(nn.Module):
    """The mean of the scan embeddings.

    Args:
        size: width ``E`` of an embedding.

    Example:
        >>> scans, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])
        >>> MeanPool(1)(scans, mask, torch.zeros(1, 3))  # the third scan is padding
        (tensor([[2.]]), tensor([[0.5000, 0.5000, 0.0000]]))
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.pooled_size = size

    def forward(self, embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Pool ``(B, N, E)`` to ``(B, E)`` with equal weights."""
        weights = uniform_weights(mask)
        return (weights[:, :, None] * embeddings).sum(1), weights


class SumPool(nn.Module):
    """The sum of the scan embeddings, followed by the number of scans, for a target that adds up over scans.

    Args:
        size: width ``E`` of an embedding.

    Example:
        >>> SumPool(1)(torch.tensor([[[1.0], [3.0]]]), torch.ones(1, 2).bool(), torch.zeros(1, 2))[0]
        tensor([[4., 2.]])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.pooled_size = size + 1

    def forward(self, embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Pool ``(B, N, E)`` to ``(B, E + 1)`` with equal weights; the number of scans is last."""
        real = mask.to(embeddings.dtype)
        total = (embeddings * real[:, :, None]).sum(1)
        return torch.cat([total, real.sum(1, keepdim=True)], dim=1), uniform_weights(mask)


class MaxPool(nn.Module):
    """The maximum of each coordinate of the embeddings; a scan's weight is the share of coordinates it is largest in.

    Args:
        size: width ``E`` of an embedding.

    Example:
        >>> MaxPool(2)(torch.tensor([[[1.0, 5.0], [3.0, 2.0]]]), torch.ones(1, 2).bool(), torch.zeros(1, 2))
        (tensor([[3., 5.]]), tensor([[0.5000, 0.5000]]))
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.pooled_size = size

    def forward(self, embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Pool ``(B, N, E)`` to ``(B, E)``."""
        real = embeddings.masked_fill(mask.logical_not()[:, :, None], -torch.inf)
        pooled = real.amax(1)
        holds = ((real == pooled[:, None, :]) & mask[:, :, None]).to(torch.float32)
        return pooled, (holds / holds.sum(1, keepdim=True).clamp(min=1.0)).mean(2)


class LastPool(nn.Module):
    """The mean of the embeddings of the newest day.

    Args:
        size: width ``E`` of an embedding.

    Example:
        >>> LastPool(1)(torch.tensor([[[1.0], [3.0]]]), torch.ones(1, 2).bool(), torch.tensor([[90.0, 0.0]]))
        (tensor([[1.]]), tensor([[1., 0.]]))
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.pooled_size = size

    def forward(self, embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Pool ``(B, N, E)`` to ``(B, E)``."""
        newest = time.masked_fill(mask.logical_not(), -torch.inf).amax(1, keepdim=True)
        weights = uniform_weights(mask & (time == newest))
        return (weights[:, :, None] * embeddings).sum(1), weights


class AttentionPool(nn.Module):
    """A weighted mean whose weights are learned from the embeddings, and from the dates if an encoding is given.

    Args:
        size: width ``E`` of an embedding.
        hidden: width of the attention layer.
        time_encoding: how dates enter the weights; ``None`` leaves them out.

    Example:
        >>> AttentionPool(2)(torch.ones(1, 4, 2), torch.ones(1, 4).bool(), torch.zeros(1, 4))[1].detach()
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])

    Source: Ilse, Tomczak, Welling, ICML 2018, equations 7 and 8. https://arxiv.org/abs/1802.04712
    """

    def __init__(self, size: int, *, hidden: int = 128, time_encoding: TimeEncoding | None = None) -> None:
        super().__init__()
        self.size = size
        self.pooled_size = size
        self.time_encoding = time_encoding
        width = size + (0 if time_encoding is None else time_encoding.size)
        self.project = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def hidden(self, keys: Tensor) -> Tensor:
        """Map keys ``(B, N, W)`` to the attention layer ``(B, N, hidden)``."""
        return torch.tanh(self.project(keys))

    def forward(self, embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Pool ``(B, N, E)`` to ``(B, E)``."""
        keys = embeddings
        if self.time_encoding is not None:
            keys = torch.cat([embeddings, self.time_encoding(mask, time).to(embeddings.dtype)], dim=2)
        scores = self.score(self.hidden(keys)).squeeze(2).to(torch.float32)
        weights = scores.masked_fill(mask.logical_not(), -torch.inf).softmax(1)
        return (weights[:, :, None] * embeddings).sum(1), weights


class GatedAttentionPool(AttentionPool):
    """Attention pooling whose attention layer is gated by a sigmoid.

    Args:
        size, hidden, time_encoding: as in :class:`AttentionPool`.

    Example:
        >>> pool = GatedAttentionPool(2, time_encoding=TimeEncoding())  # equal scans of two days weigh differently
        >>> pool(torch.ones(1, 2, 2), torch.ones(1, 2).bool(), torch.tensor([[0.0, 90.0]]))[1].unique().numel()
        2

    Source: Ilse, Tomczak, Welling, ICML 2018, equation 9. https://arxiv.org/abs/1802.04712
    """

    def __init__(self, size: int, *, hidden: int = 128, time_encoding: TimeEncoding | None = None) -> None:
        super().__init__(size, hidden=hidden, time_encoding=time_encoding)
        self.gate = nn.Linear(self.project.in_features, hidden)

    def hidden(self, keys: Tensor) -> Tensor:
        """Map keys ``(B, N, W)`` to the gated attention layer ``(B, N, hidden)``."""
        return torch.tanh(self.project(keys)) * torch.sigmoid(self.gate(keys))


class TransformerPool(nn.Module):
    """Self-attention between the scans, then attention pooling.

    Args:
        size: width ``E`` of an embedding.
        hidden: width of the transformer, a multiple of ``heads``.
        layers: number of transformer layers.
        heads: number of attention heads.
        dropout: dropout inside the transformer.
        time_encoding: how dates enter; ``None`` leaves them out.

    Example:
        >>> TransformerPool(2, hidden=8)(torch.ones(1, 3, 2), torch.ones(1, 3).bool(), torch.zeros(1, 3))[0].shape
        torch.Size([1, 8])

    Source: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762 (pre-norm layers).
    """

    def __init__(
        self,
        size: int,
        *,
        hidden: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        time_encoding: TimeEncoding | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.pooled_size = hidden
        self.time_encoding = time_encoding
        width = size + (0 if time_encoding is None else time_encoding.size)
        self.project = nn.Linear(width, hidden)
        layer = nn.TransformerEncoderLayer(hidden, heads, 2 * hidden, dropout, batch_first=True, norm_first=True)
        # Nested tensors would change the padded width of the output, and with it the shape of the weights.
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden), enable_nested_tensor=False)
        self.pool = AttentionPool(hidden)

    def forward(self, embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Pool ``(B, N, E)`` to ``(B, hidden)``."""
        keys = embeddings
        if self.time_encoding is not None:
            keys = torch.cat([embeddings, self.time_encoding(mask, time).to(embeddings.dtype)], dim=2)
        context = self.layers(self.project(keys), src_key_padding_mask=mask.logical_not())
        return self.pool(context, mask, time)


class LSTMPool(nn.Module):
    """The last state of an LSTM that reads the visits in order of time.

    A scan's weight is the share that its visit has in the path length of the state, split among the scans of that day.

    Args:
        size: width ``E`` of an embedding.
        hidden: width of the state.
        layers: number of stacked LSTM layers.
        time_encoding: how dates enter; ``None`` lets only their order count.

    Example:
        >>> days = torch.tensor([[0.0, 0.0, 90.0]])  # two scans of one day, so of equal weight
        >>> LSTMPool(1)(torch.rand(1, 3, 1), torch.ones(1, 3).bool(), days)[1][0, :2].unique().numel()
        1

    Source: Hochreiter, Schmidhuber, Neural Computation 1997. https://doi.org/10.1162/neco.1997.9.8.1735
    """

    def __init__(
        self, size: int, *, hidden: int = 128, layers: int = 1, time_encoding: TimeEncoding | None = None
    ) -> None:
        super().__init__()
        self.size = size
        self.pooled_size = hidden
        self.time_encoding = time_encoding
        width = size + (0 if time_encoding is None else time_encoding.size)
        self.recurrent: nn.Module = nn.LSTM(width, hidden, layers, batch_first=True)

    def forward(self, embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Pool ``(B, N, E)`` to ``(B, hidden)``."""
        steps = embeddings
        if self.time_encoding is not None:
            steps = torch.cat([embeddings, self.time_encoding(mask, time).to(embeddings.dtype)], dim=2)
        share, visits, count = merge_visits(steps, mask, time)
        count = count.clamp(min=1)
        if is_tracing() or torch.compiler.is_compiling():
            # Packed sequences cannot be exported; what follows the last visit is never read, so the states are equal.
            states = self.recurrent(visits)[0]
        else:
            packed = pack_padded_sequence(visits, count.cpu(), batch_first=True, enforce_sorted=False)
            states = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=visits.shape[1])[0]
        slots = torch.arange(visits.shape[1], device=mask.device)
        last = (slots[None, :] == count[:, None] - 1).to(states.dtype)
        pooled = (states * last[:, :, None]).sum(1)
        moves = torch.cat([states[:, :1], states[:, 1:] - states[:, :-1]], dim=1).detach().to(torch.float32)
        # The tiny term keeps the weights finite for a state that never moved.
        travelled = (moves.square().sum(2).sqrt() + 1e-12) * (slots[None, :] < count[:, None])
        travelled = travelled / travelled.sum(1, keepdim=True)
        return pooled, torch.bmm(travelled[:, None, :], share.to(torch.float32)).squeeze(1)


class GRUPool(LSTMPool):
    """The last state of a GRU that reads the visits in order of time; weights as in :class:`LSTMPool`.

    Args:
        size, hidden, layers, time_encoding: as in :class:`LSTMPool`.

    Example:
        >>> GRUPool(2, hidden=8)(torch.ones(1, 3, 2), torch.ones(1, 3).bool(), torch.zeros(1, 3))[0].shape
        torch.Size([1, 8])

    Source: Cho et al., EMNLP 2014. https://arxiv.org/abs/1406.1078
    """

    def __init__(
        self, size: int, *, hidden: int = 128, layers: int = 1, time_encoding: TimeEncoding | None = None
    ) -> None:
        super().__init__(size, hidden=hidden, layers=layers, time_encoding=time_encoding)
        width = size + (0 if time_encoding is None else time_encoding.size)
        self.recurrent = nn.GRU(width, hidden, layers, batch_first=True)


class TrendPool(nn.Module):
    r"""A line through the embeddings over time: its level at the newest scan and its slope per year.

    Ridge regression of each coordinate on the dates: with :math:`t` in years and
    :math:`S = \sum_i (t_i - \bar t)^2`, the slope is :math:`\sum_i (t_i - \bar t) e_i / (S + \lambda)`. The learned
    :math:`\lambda` shrinks slopes from visits that lie close together; a single scan has slope zero.

    Args:
        size: width ``E`` of an embedding.
        ridge_days: :math:`\sqrt\lambda` at the start of training, in days.

    Example:
        >>> pool = TrendPool(1, ridge_days=0.01)  # from 1 to 3 in a year: level 3, slope 2 a year
        >>> days = torch.tensor([[0.0, 365.25]])
        >>> pool(torch.tensor([[[1.0], [3.0]]]), torch.ones(1, 2).bool(), days)[0].detach().round(decimals=3)
        tensor([[3., 2.]])
    """

    def __init__(self, size: int, *, ridge_days: float = 7.0) -> None:
        super().__init__()
        self.size = size
        self.pooled_size = 2 * size
        self.year = DAYS_PER_YEAR
        self.log_ridge = nn.Parameter(torch.tensor(2 * math.log(ridge_days / DAYS_PER_YEAR)))

    def forward(self, embeddings: Tensor, mask: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Pool ``(B, N, E)`` to ``(B, 2 E)``: levels first, then slopes per year."""
        equal = uniform_weights(mask)
        newest = time.masked_fill(mask.logical_not(), -torch.inf).amax(1, keepdim=True)
        years = (time - newest).masked_fill(mask.logical_not(), 0.0) / self.year
        centre = (equal * years).sum(1, keepdim=True)
        offset = (years - centre) * mask
        slope = offset / (offset.square().sum(1, keepdim=True) + self.log_ridge.exp())
        level = equal - centre * slope
        # Sums and no matrix product: mixed precision would round the coefficients of visits that lie close together.
        exact = embeddings.to(torch.float32)
        pooled = torch.cat([(level[:, :, None] * exact).sum(1), (slope[:, :, None] * exact).sum(1)], dim=1)
        weights = level.abs() / level.abs().sum(1, keepdim=True).clamp(min=1e-12)
        spread = offset.abs() / offset.abs().sum(1, keepdim=True).clamp(min=1e-12)
        weights = torch.where(spread.sum(1, keepdim=True) > 0.5, (weights + spread) / 2, weights)
        return pooled, weights.detach()

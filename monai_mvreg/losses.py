"""Prediction -> loss: what torch lacks to learn a number per patient, or a time that may be censored.

A label of time to event is ``(B, 2)``: the time in days, and 1 if the event happened then or 0 if the patient was last
seen without it. The first output of every survival loss grows with risk: higher is sooner.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_mvreg.networks.multiscan import TargetScaling


class QuantileLoss(nn.Module):
    r"""Pinball loss of several quantiles of one target, :math:`\max(q\,(y - \hat y), (q - 1)(y - \hat y))`, averaged.

    Args:
        quantiles: the levels, each between 0 and 1, one per output.

    Raises:
        ValueError: if there is no level, or one is out of range.

    Example:
        >>> QuantileLoss([0.5])(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
        tensor(1.)

    Source: Koenker, Bassett, Econometrica 1978. https://doi.org/10.2307/1913643
    """

    quantiles: Tensor

    def __init__(self, quantiles: Sequence[float]) -> None:
        super().__init__()
        quantiles = [quantiles] if isinstance(quantiles, (int, float)) else quantiles
        if not quantiles or not all(0 < level < 1 for level in quantiles):
            raise ValueError(f"expected levels between 0 and 1, got {list(quantiles)}")
        self.register_buffer("quantiles", torch.tensor(quantiles, dtype=torch.float64), persistent=False)
        self.outputs = len(quantiles)

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Compare ``prediction (B, Q)`` with ``label (B, 1)``, in one unit; their unit is the unit of the loss."""
        _expect(prediction, label, outputs=len(self.quantiles), columns=(1,))
        above, level = label - prediction, self.quantiles.to(prediction)
        return torch.maximum(level * above, (level - 1) * above).mean()

    def fit_scaling(self, scaling: TargetScaling, label: Tensor) -> None:
        """Fit the scaling of the network, one for all outputs, to the labels ``(P, 1)`` of the training patients."""
        scaling.fit(label.expand(-1, len(self.quantiles)))

    def value_and_spread(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """The quantile nearest to the median, and half the distance between the outer two, each ``(B, 1)``."""
        # Where predicted quantiles cross they are put in order, which is never further from the truth.
        ordered = prediction[:, self.quantiles.argsort()].sort(dim=1).values
        middle = int((self.quantiles.sort().values - 0.5).abs().argmin())
        return ordered[:, middle : middle + 1], 0.5 * (ordered[:, -1:] - ordered[:, :1])


class GaussianLoss(nn.Module):
    r"""Negative log likelihood of a normal target whose spread is predicted too, less :math:`\tfrac12 \log 2\pi`.

    The second output is the logarithm of the standard deviation, so that no network can predict a negative spread.

    Example:
        >>> GaussianLoss()(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]]))
        tensor(2.)

    Source: Nix, Weigend, ICNN 1994. https://doi.org/10.1109/ICNN.1994.374138
    """

    outputs = 2

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Compare ``prediction (B, 2)``, mean and log standard deviation, with ``label (B, 1)``, averaged."""
        _expect(prediction, label, outputs=2, columns=(1,))
        mean, log_std = _exact(prediction).unbind(1)
        apart = (_exact(label)[:, 0] - mean) * _limited_exp(-log_std)
        return (log_std + 0.5 * apart**2).mean().to(prediction.dtype)

    def fit_scaling(self, scaling: TargetScaling, label: Tensor) -> None:
        """Fit the scaling of the network to the labels ``(P, 1)`` of the training patients, and their log spread."""
        scaling.fit(label.expand(-1, 2))
        scaling.mean[1] = scaling.std[0].log()
        scaling.std[1] = 1.0

    def value_and_spread(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each ``(B, 1)`` in target units."""
        return prediction[:, :1], prediction[:, 1:].exp()


class CoxLoss(nn.Module):
    r"""Negative log partial likelihood of Cox's proportional hazards, per event; exact with ties.

    .. math:: -\frac1D \sum_{i:\,e_i=1} \Big(\eta_i - \log \sum_{j:\,t_j \ge t_i} \exp \eta_j\Big)

    A patient censored at the time of an event is still at risk. Without an event, and for one patient alone, the loss
    is zero with zero gradients. It compares patients with each other, so it needs the whole batch: see
    :class:`GatheredLoss` for several processes.

    Args:
        efron: for events at the same time, Efron's correction; false: Breslow's, which keeps all of them at risk.

    Example:
        >>> label = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
        >>> CoxLoss()(torch.zeros(2, 1), label)
        tensor(0.6931)

    Source: Cox, J R Stat Soc B 1972; Efron, J Am Stat Assoc 1977. https://doi.org/10.1080/01621459.1977.10480613
    """

    outputs = 1

    def __init__(self, *, efron: bool = True) -> None:
        super().__init__()
        self.efron = efron

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Compare log risk and survival.

        Args:
            prediction: ``(B, 1)``, the log risk, of any origin.
            label: ``(B, 2)``, time in days and event; or ``(B, 3)`` with the number of the patient's stratum:
                patients are compared within their stratum only.
        """
        _expect(prediction, label, outputs=1, columns=(2, 3))
        log_risk, label = _exact(prediction)[:, 0], _exact(label)
        events = label[:, 1].sum()
        if label.shape[1] == 2:
            total = self._of_stratum(log_risk, label)
        else:
            strata = [label[:, 2] == number for number in label[:, 2].unique()]
            total = torch.stack([self._of_stratum(log_risk[rows], label[rows]) for rows in strata]).sum()
        return (total / events.clamp(min=1)).to(prediction.dtype)

    def log_risk(self, prediction: Tensor) -> Tensor:
        """The log risk ``(B, 1)`` in a prediction."""
        return prediction

    def _of_stratum(self, log_risk: Tensor, label: Tensor) -> Tensor:
        """Sum over the events; patients are sorted from last to first, so that a risk set is all rows so far."""
        order = label[:, 0].argsort(descending=True, stable=True)
        log_risk, earlier, event = log_risk[order], -label[order, 0].contiguous(), label[order, 1] > 0
        # All patients of the same time are at risk together, whichever row comes first.
        at_risk = torch.logcumsumexp(log_risk, 0)[torch.searchsorted(earlier, earlier, right=True) - 1][event]
        log_risk, earlier = log_risk[event], earlier[event].contiguous()
        if self.efron:
            first, end = torch.searchsorted(earlier, earlier), torch.searchsorted(earlier, earlier, right=True)
            gone = (torch.arange(len(first), device=first.device) - first) / (end - first).to(log_risk.dtype)
            at_risk = at_risk + torch.log1p(-gone * torch.exp(_log_sum_by_group(log_risk, first) - at_risk))
        return (at_risk - log_risk).sum()


class DiscreteHazardLoss(nn.Module):
    r"""Negative log likelihood of time in intervals, per patient; with one cause, logistic hazard.

    The outputs are logits of the hazard in each interval :math:`(0, a_1], (a_1, a_2], \dots, (a_{J-1}, a_J]`. With
    several causes the hazards of an interval and staying free of all events sum to 1, and the event is the number of
    its cause, ``1 ... C``. What happens after the last edge counts as censored there.

    A patient censored within an interval counts as free of the event in the intervals that were completed.

    Args:
        edges: ends of the intervals in days, increasing, the first above 0.
        causes: number of causes ``C``.

    Raises:
        ValueError: if the edges do not increase from above 0.

    Source: Gensheimer, Narasimhan, PeerJ 2019. https://doi.org/10.7717/peerj.6257; Kvamme, Borgan, Lifetime Data
    Anal 2021. https://doi.org/10.1007/s10985-021-09532-6
    """

    edges: Tensor

    def __init__(self, edges: Sequence[float], *, causes: int = 1) -> None:
        super().__init__()
        edges = [edges] if isinstance(edges, (int, float)) else edges
        if not edges or any(low >= high for low, high in zip([0.0, *edges], edges, strict=False)):
            raise ValueError(f"expected edges in days that increase from above 0, got {list(edges)}")
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float64), persistent=False)
        self.causes, self.outputs = causes, causes * len(edges)

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Compare hazards and survival.

        Args:
            prediction: ``(B, C * J)``, logits, all intervals of the first cause first.
            label: ``(B, 2)``, time in days and event, 0 for censored or the number of the cause; or ``(B, 3)`` with
                the last day on which the patient was seen without the event, which then came between the two.
        """
        intervals = len(self.edges)
        _expect(prediction, label, outputs=self.causes * intervals, columns=(2, 3))
        log_hazard, log_free = self.log_hazards(prediction)
        label, edges = _exact(label), self.edges.to(log_hazard)
        cause, time = label[:, 1].long(), label[:, 0].contiguous()
        # Intervals completed without an event: for a censored patient at most all of them.
        completed = torch.searchsorted(edges, time, right=True)
        last = torch.searchsorted(edges, time)
        seen = label[:, 2].contiguous() if label.shape[1] == 3 else time
        first = torch.where(seen < time, torch.searchsorted(edges, seen, right=True), last)
        happened = (cause > 0) & (last < intervals)
        log_survival = torch.cat([log_free.new_zeros(len(time), 1), log_free.cumsum(1)], dim=1)
        # Event after the last edge: nothing is known but survival until it was last seen, or until the last edge.
        known = torch.where(cause > 0, first.clamp(max=intervals), completed)
        censored = log_survival.gather(1, known[:, None])[:, 0]
        of_cause = log_hazard[torch.arange(len(time), device=time.device), (cause - 1).clamp(min=0)]
        number = torch.arange(intervals, device=time.device)
        possible = (number >= first[:, None]) & (number <= last[:, None])
        event = torch.logsumexp(
            torch.where(possible | ~happened[:, None], log_survival[:, :-1] + of_cause, -torch.inf), 1
        )
        return -torch.where(happened, event, censored).mean().to(prediction.dtype)

    def log_risk(self, prediction: Tensor) -> Tensor:
        """The log risk ``(B, 1)`` in a prediction: the log cumulative hazard of all causes through the last edge."""
        hazard = -self.log_hazards(prediction)[1].sum(1, keepdim=True)
        return torch.log(hazard.clamp(min=1e-30)).to(prediction.dtype)

    def log_hazards(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Turn logits ``(B, C * J)`` into log hazards ``(B, C, J)`` and the log chance to stay free ``(B, J)``."""
        logits = _exact(prediction).unflatten(1, (self.causes, len(self.edges)))
        total = nn.functional.pad(logits, (0, 0, 1, 0)).logsumexp(1)  # to stay free has a logit of 0
        return logits - total[:, None], -total


class _AcceleratedFailure(nn.Module):
    """log T = log scale - log risk + spread W: what the two distributions of W share."""

    outputs = 2

    def __init__(self, scale: float, *, shortest: float = 0.5) -> None:
        super().__init__()
        if not (scale > 0 and shortest > 0):
            raise ValueError(f"expected a scale and a shortest time above 0 days, got {scale} and {shortest}")
        self.scale, self.shortest = scale, shortest

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Compare ``prediction (B, 2)``, log risk and log spread, with ``label (B, 2)``, time in days and event."""
        _expect(prediction, label, outputs=2, columns=(2,))
        label = _exact(label)
        time, event = label[:, 0].clamp(min=self.shortest), label[:, 1] > 0
        residual = self._residual(prediction, time[:, None])[:, 0]
        density = self._log_density(residual) - _exact(prediction)[:, 1] - time.log()
        return -torch.where(event, density, self._log_survival(residual)).mean().to(prediction.dtype)

    def log_risk(self, prediction: Tensor) -> Tensor:
        """The log risk ``(B, 1)`` in a prediction: what shortens all times by one factor."""
        return prediction[:, :1]

    def log_survival(self, prediction: Tensor, days: Tensor) -> Tensor:
        """Log chance ``(B, T)`` that the event comes after each of ``days (T,)``, from ``prediction (B, 2)``."""
        return self._log_survival(self._residual(prediction, _exact(days).clamp(min=self.shortest)))

    def _residual(self, prediction: Tensor, time: Tensor) -> Tensor:
        log_risk, log_spread = _exact(prediction).split(1, dim=1)
        return (torch.log(time / self.scale) + log_risk) * _limited_exp(-log_spread)

    def _log_density(self, residual: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_survival(self, residual: Tensor) -> Tensor:
        raise NotImplementedError


class WeibullLoss(_AcceleratedFailure):
    r"""Negative log likelihood of an accelerated failure time with Weibull times, per patient.

    With the outputs :math:`\eta, s`: :math:`\log T = \log\tau - \eta + e^{s}\,W`, :math:`W` of the standard minimum
    extreme value distribution; :math:`e^{-s}` is Weibull's shape.

    Args:
        scale: :math:`\tau` in days, a typical time, such as the median follow-up: outputs of zero then mean that.
        shortest: the least time in days that is told apart from 0, which has no logarithm.

    Raises:
        ValueError: if one of them is not above 0.

    Source: Kalbfleisch, Prentice, The Statistical Analysis of Failure Time Data, 2002, chapter 2.
    """

    def _log_density(self, residual: Tensor) -> Tensor:
        return residual - _limited_exp(residual)

    def _log_survival(self, residual: Tensor) -> Tensor:
        return -_limited_exp(residual)


class LogNormalLoss(_AcceleratedFailure):
    r"""Negative log likelihood of an accelerated failure time with log-normal times, per patient.

    As :class:`WeibullLoss`, with :math:`W` of the standard normal distribution.

    Args:
        scale: a typical time in days, such as the median follow-up: outputs of zero then mean that.
        shortest: the least time in days that is told apart from 0, which has no logarithm.

    Raises:
        ValueError: if one of them is not above 0.

    Source: Kalbfleisch, Prentice, The Statistical Analysis of Failure Time Data, 2002, chapter 2.
    """

    def _log_density(self, residual: Tensor) -> Tensor:
        return -0.5 * residual**2 - 0.5 * math.log(2 * math.pi)

    def _log_survival(self, residual: Tensor) -> Tensor:
        # torch's own has an infinite gradient far out, where Mills' ratio is right to 1e-4 in the logarithm.
        far = -0.5 * residual**2 - residual.clamp(min=100).log() - 0.5 * math.log(2 * math.pi)
        return torch.where(residual > 100, far, torch.special.log_ndtr(-residual.clamp(max=100)))


class GatheredLoss(nn.Module):
    """Apply a loss to the patients of all processes: what a loss needs that compares patients, such as Cox's.

    Every process gets the same number, the loss of the whole batch. Gradients reach the own rows and are as large as
    the average over processes needs that ``DistributedDataParallel`` takes. On one process it is the loss itself.

    Args:
        loss: any loss ``(prediction, label)``.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Compare prediction and label ``(B, K)``; ``B`` may differ between processes, which must all call it."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self.loss(prediction, label)
        counts = [torch.zeros(1, dtype=torch.long, device=label.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(label)], device=label.device))
        sizes = [int(count) for count in counts]
        loss = self.loss(_gather(prediction, sizes), _gather(label, sizes))
        # The same value, with as many times the gradient as there are processes.
        return loss + (len(sizes) - 1) * (loss - loss.detach())


def _gather(rows: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all processes, in their order; the own ones keep their gradient."""
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    shards = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(shards, padded)
    shards = [shard[:size] for shard, size in zip(shards, sizes, strict=True)]
    shards[dist.get_rank()] = rows
    return torch.cat(shards)


def _expect(prediction: Tensor, label: Tensor, *, outputs: int, columns: tuple[int, ...]) -> None:
    if prediction.ndim != 2 or prediction.shape[1] != outputs:
        raise ValueError(f"expected predictions (B, {outputs}), got shape {tuple(prediction.shape)}")
    if label.ndim != 2 or label.shape[1] not in columns or len(label) != len(prediction):
        shapes = " or ".join(f"({len(prediction)}, {count})" for count in columns)
        raise ValueError(f"expected a label {shapes}, got shape {tuple(label.shape)}")


def _exact(number: Tensor) -> Tensor:
    """As float64: sums over thousands of patients, and risks many powers of ten apart."""
    return number.float() if number.device.type == "mps" else number.double()  # mps has none


def _limited_exp(number: Tensor) -> Tensor:
    """exp, from 30 on its tangent: an early network may say anything, and its loss must still have a way down."""
    return torch.exp(number.clamp(max=30)) * (1 + (number - 30).clamp(min=0))


def _log_sum_by_group(number: Tensor, group: Tensor) -> Tensor:
    """Log of the sum of exp over all rows of the same group, for each row; groups are row numbers."""
    largest = torch.full_like(number, -torch.inf).scatter_reduce(0, group, number.detach(), "amax")[group]
    total = torch.zeros_like(number).index_add(0, group, torch.exp(number - largest))
    return torch.log(total[group]) + largest

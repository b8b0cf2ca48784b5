"""Batch -> number: the network that stacks an encoder, a pool over scans and a linear head."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


class TargetScaling(nn.Module):
    """Mean and spread of the targets of the training patients, kept with the weights of the network.

    The head learns standardised numbers; this turns them into target units, so no file beside the model can be lost or
    mixed up. Before :meth:`fit` it changes nothing, which is right for targets that have no scale, such as a log risk.

    Args:
        outputs: number of outputs ``K``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("std", torch.ones(outputs))

    def fit(self, label: Tensor) -> None:
        """Learn mean and standard deviation from the labels ``(P, K)`` of the training patients.

        Raises:
            ValueError: if a label is not finite, or all patients have the same.
        """
        label = label.to(torch.float64)
        if label.ndim != 2 or not label.isfinite().all():
            raise ValueError(f"expected finite labels (P, K), got shape {tuple(label.shape)}")
        if label.shape[1] != len(self.mean):
            raise ValueError(f"expected a label for each of {len(self.mean)} outputs, got {label.shape[1]}")
        std = label.std(0, unbiased=False)
        if (std == 0).any():
            raise ValueError(f"expected targets that differ between the {len(label)} training patients, got one value")
        self.mean.copy_(label.mean(0))
        self.std.copy_(std)

    def standardise(self, label: Tensor) -> Tensor:
        """Turn target units ``(B, K)`` into standardised numbers."""
        return (label - self.mean) / self.std

    def forward(self, number: Tensor) -> Tensor:
        """Turn standardised numbers ``(B, K)`` into target units."""
        # In half precision 5000 mL would be rounded to 4 mL.
        return number.to(torch.float32) * self.std + self.mean


class Covariates(nn.Module):
    """Age, sex, stage ... as numbers for the head; a missing value is stated as missing and gets a learned stand-in.

    Args:
        count: number of covariates ``V``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.size = 2 * count
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        self.stand_in = nn.Parameter(torch.zeros(count))

    def fit(self, covariates: Tensor) -> None:
        """Learn mean and spread from the covariates ``(P, V)`` of the training patients, NaN where missing."""
        known = covariates.isfinite()
        count = known.sum(0).clamp(min=1)
        mean = torch.where(known, covariates, 0.0).sum(0) / count
        std = (torch.where(known, covariates - mean, 0.0).square().sum(0) / count).sqrt()
        self.mean.copy_(mean)
        # What is the same for all but rounding says nothing, and another value of it must change nothing.
        lowest = torch.where(known, covariates, torch.inf).amin(0)
        highest = torch.where(known, covariates, -torch.inf).amax(0)
        constant = (std == 0) | ~(highest - lowest > 1e-6 * torch.maximum(lowest.abs(), highest.abs()))
        self.std.copy_(torch.where(constant, torch.finfo(self.std.dtype).max, std))

    def forward(self, covariates: Tensor) -> Tensor:
        """Map ``(B, V)``, NaN where missing, to ``(B, 2 V)``: standardised values, then flags of what is missing."""
        missing = covariates.isnan()
        values = torch.where(missing, self.stand_in, (covariates - self.mean) / self.std)
        return torch.cat([values, missing.to(values.dtype)], dim=1)


class MultiScanNet(nn.Module):
    """Predict from all scans of a patient: encode each real scan, pool over scans, one linear layer.

    Args:
        encoder: any network ``(M, C, *spatial) -> (M, E)``; it only ever sees real scans, never padding.
        pool: any module ``(embeddings, mask, time) -> (pooled, weights)`` with attributes ``size`` and
            ``pooled_size``; see :mod:`monai_mvreg.networks.pools`.
        outputs: number of outputs ``K`` per patient.
        covariates: number of covariates ``V`` per patient, concatenated to the pooled vector before the head.
        views: kinds of scans (modality, view) that are distinguished.
        dropout: dropout before the head.
        chunk_size: scans encoded at once. In training all but the last chunk are encoded a second time for the
            gradients, which stay exact (the random state is replayed), so memory does not grow with the number of
            scans; images may stay in host memory and move to the device chunk by chunk. None: all scans at once.

    Example:
        >>> from monai_mvreg.networks.pools import MeanPool
        >>> net = MultiScanNet(nn.Flatten(), MeanPool(16))
        >>> net(torch.zeros(2, 3, 1, 4, 4)).shape  # two patients with three images each
        torch.Size([2, 1])
    """

    covariate_count: Final[int]
    chunk_size: Final[int | None]

    def __init__(
        self,
        encoder: nn.Module,
        pool: nn.Module,
        *,
        outputs: int = 1,
        covariates: int = 0,
        views: int = 0,
        dropout: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"expected a chunk_size of at least one scan, got {chunk_size}")
        self.covariate_count = covariates
        self.chunk_size = chunk_size
        self.encoder = encoder
        self.pool = pool
        # None rather than zero: TorchScript compiles a branch unless it knows that it is never taken.
        self.view = nn.Embedding(views, int(pool.size)) if views else None  # type: ignore[arg-type]
        if self.view is not None:
            nn.init.zeros_(self.view.weight)
        self.covariates = Covariates(covariates) if covariates else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(pool.pooled_size) + 2 * covariates, outputs)  # type: ignore[arg-type]
        self.scaling = TargetScaling(outputs)

    def embed(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode the real scans of ``image (B, N, C, *spatial)`` as ``(B, N, E)``; padding means nothing."""
        patients, scans = image.shape[0], image.shape[1]
        if mask is None:
            if not is_tracing():
                torch._assert(scans > 0, "expected at least one scan per patient, got none")
            embeddings = self._encode(image.flatten(0, 1), None).unflatten(0, (patients, scans))
        else:
            torch._assert(bool(mask.any(1).all()), "expected at least one scan per patient, got a patient without")
            # The one place that waits for a GPU, before there is work for it: indices, not a mask, from here on.
            patient, scan = mask.nonzero().unbind(1)
            encoded = self._encode(image.flatten(0, 1), patient * scans + scan)
            embeddings = encoded.new_zeros([patients, scans, encoded.shape[1]])
            embeddings[patient, scan] = encoded
        return embeddings

    def _encode(self, scans: Tensor, real: Tensor | None) -> Tensor:
        """Encode the scans at the indices ``real (M,)`` of ``scans (B * N, C, *spatial)`` as ``(M, E)``."""
        if not is_scripting() and self.chunk_size is not None:
            return self._encode_in_chunks(scans, real, self.chunk_size)
        return self.encoder(scans if real is None else scans[real])

    @torch.jit.unused
    def _encode_in_chunks(self, scans: Tensor, real: Tensor | None, chunk_size: int) -> Tensor:
        """Encode with the graph of one chunk in memory.

        Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174.
        """
        for module in self.encoder.modules():
            if isinstance(module, _NormBase) and module.training and module.track_running_stats:
                raise ValueError(
                    f"expected an encoder without {type(module).__name__} in training mode for chunk_size, which would "
                    "normalise each chunk by itself: freeze it by PretrainedEncoder, take group or instance "
                    "normalisation, or leave out chunk_size"
                )

        def encode(places: Tensor, anchor: Tensor) -> Tensor:
            embeddings: Tensor = self.encoder(scans[places].to(anchor.device))
            return embeddings

        places = torch.arange(len(scans)) if real is None else real
        *others, last = places.to(scans.device).split(chunk_size)
        # The anchor tells checkpoint whose random state to replay: scans in host memory would not.
        anchor = self.head.weight
        if torch.is_grad_enabled():
            embeddings = [checkpoint(encode, chunk, anchor, use_reentrant=False) for chunk in others]
        else:
            embeddings = [encode(chunk, anchor) for chunk in others]
        # Gradients reach the last chunk first: to encode it twice would save nothing.
        return torch.cat([*embeddings, encode(last, anchor)])

    def from_embeddings(
        self,
        embeddings: Tensor,
        mask: Tensor | None = None,
        time: Tensor | None = None,
        view: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict from embeddings, as training, prediction and explanation all do.

        Args:
            embeddings: ``(B, N, E)``, as the encoder makes them.
            mask: as in :meth:`forward`, and so the others.
            time: days.
            view: index of the kind of each scan.
            covariates: NaN where missing.

        Returns:
            Outputs ``(B, K)`` in target units, and weights ``(B, N)`` of the scans.
        """
        shape = [embeddings.shape[0], embeddings.shape[1]]
        if mask is None:
            mask = torch.ones(shape, dtype=torch.bool, device=embeddings.device)
        if time is None:
            time = torch.arange(shape[1], dtype=torch.float32, device=embeddings.device).expand(shape)
        if self.view is not None and view is not None:
            embeddings = embeddings + self.view(view)
        pooled, weights = self.pool(embeddings, mask, time.to(torch.float32))
        if self.covariates is not None:
            if covariates is None:
                covariates = torch.full([pooled.shape[0], self.covariate_count], torch.nan, device=pooled.device)
            pooled = torch.cat([pooled, self.covariates(covariates).to(pooled.dtype)], dim=1)
        return self.scaling(self.head(self.dropout(pooled))), weights

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        time: Tensor | None = None,
        view: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """Predict in target units.

        Args:
            image: ``(B, N, C, *spatial)``.
            mask: ``(B, N)``, true where a scan exists; ``None``: all exist.
            time: ``(B, N)`` in days from any origin; ``None``: rows are in order of time, a day apart.
            view: ``(B, N)``, the index of the kind of scan; read only if the network has ``views``.
            covariates: ``(B, V)``, NaN where missing; ``None``: all missing.

        Returns:
            ``(B, K)`` in target units.
        """
        return self.from_embeddings(self.embed(image, mask), mask, time, view, covariates)[0]

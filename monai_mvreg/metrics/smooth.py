"""Predicted value -> what was observed at that prediction, as a smooth curve: how far predictions lie off the truth."""

from __future__ import annotations

import numpy as np

from monai_mvreg.metrics.bootstrap import Array

_PLACES = 50  # where the curve is computed; straight between


class CalibrationCurve:
    """Local linear regression of what was observed on what was predicted, for many resamples at once.

    At each place the nearest share ``span`` of the patients counts, the nearer the more (tricube weights).

    Args:
        pred: predictions ``(P,)``, chances or values.
        span: share of the patients, above 0 and at most 1.

    Raises:
        ValueError: if there is no patient, or the span is out of range.

    Source: Cleveland, J Am Stat Assoc 1979. https://doi.org/10.1080/01621459.1979.10481038
    """

    def __init__(self, pred: Array, *, span: float = 0.5) -> None:
        if pred.ndim != 1 or not len(pred) or not 0 < span <= 1:
            raise ValueError(f"expected predictions (P,) and a span in (0, 1], got shape {pred.shape} and {span}")
        self.pred = pred
        self.places = np.unique(np.quantile(pred, np.linspace(0, 1, _PLACES), method="inverted_cdf"))
        apart = pred[:, None] - self.places
        reach = np.sort(np.abs(apart), axis=0)[max(2, int(span * len(pred) + 1e-10)) - 1 if len(pred) > 1 else 0]
        # Many equal predictions may leave no reach: then these alone count.
        near = np.abs(apart) / np.where(reach > 0, reach, np.inf)
        kernel = np.where(reach > 0, np.clip(1 - np.clip(near, 0, 1) ** 3, 0, 1) ** 3, apart == 0)
        self._moments = [kernel * apart**power for power in range(3)]
        self._scale = np.maximum(reach, np.finfo(float).tiny) ** 2

    def heights(self, weights: Array, observed: Array) -> Array:
        """The curve ``(R, G)`` at the places ``(G,)``.

        Args:
            weights: how much each patient counts, ``(R, P)``.
            observed: ``(P,)`` or ``(R, P)``.
        """
        total, first, second = (weights @ moment for moment in self._moments)
        value, slant = ((weights * observed) @ moment for moment in self._moments[:2])
        with np.errstate(invalid="ignore", divide="ignore"):
            straight = (second * value - first * slant) / (total * second - first**2)
            level = value / total
        # One distinct prediction within reach has no slope.
        return np.where(total * second - first**2 > 1e-9 * total**2 * self._scale, straight, level)

    def calibration_error(self, counts: Array, weights: Array, observed: Array, *, high: float = np.inf) -> Array:
        """Mean distance ``(R,)`` between predictions and curve, over patients ``counts (R, P)``.

        The curve is kept between 0 and ``high`` where that is finite.
        """
        heights = self.heights(weights, observed)
        if np.isfinite(high):
            heights = np.clip(heights, 0, high)
        after = np.clip(np.searchsorted(self.places, self.pred), 1, max(len(self.places) - 1, 1))
        if len(self.places) == 1:
            curve = np.broadcast_to(heights, counts.shape)
        else:
            gap = self.places[after] - self.places[after - 1]
            share = (self.pred - self.places[after - 1]) / gap
            curve = heights[:, after - 1] * (1 - share) + heights[:, after] * share
        return np.asarray((counts * np.abs(curve - self.pred)).sum(1) / counts.sum(1))

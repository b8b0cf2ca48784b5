"""Predicted value -> the mean observed value at that prediction, as a smooth curve: how well calibrated it is."""

from __future__ import annotations

import numpy as np

from monai_mvreg.metrics.bootstrap import Array

_PLACES = 50  # where the curve is computed; linear in between


class CalibrationCurve:
    """Local linear regression of observed on predicted values, for many resamples at once.

    At each point of the curve the nearest ``span`` of the patients count, with tricube weights.

    Args:
        pred: predictions ``(P,)``, probabilities or values.
        span: share of the patients, above 0 and at most 1.

    Raises:
        ValueError: if there is no patient, or the span is out of range.

    Example:
        >>> pred = np.array([0.0, 1.0, 2.0, 3.0])
        >>> curve = CalibrationCurve(pred, span=1.0)
        >>> curve.places, curve.heights(np.ones((1, 4)), pred + 0.5).round(6)  # all measured 0.5 higher
        (array([0., 1., 2., 3.]), array([[0.5, 1.5, 2.5, 3.5]]))

    Source: Cleveland, J Am Stat Assoc 1979. https://doi.org/10.1080/01621459.1979.10481038
    """

    def __init__(self, pred: Array, *, span: float = 0.5) -> None:
        if pred.ndim != 1 or not len(pred) or not 0 < span <= 1:
            raise ValueError(f"expected predictions (P,) and a span in (0, 1], got shape {pred.shape} and {span}")
        self.pred = pred
        self.places = np.unique(np.quantile(pred, np.linspace(0, 1, _PLACES), method="inverted_cdf"))
        apart = pred[:, None] - self.places
        reach = np.sort(np.abs(apart), axis=0)[max(2, int(span * len(pred) + 1e-10)) - 1 if len(pred) > 1 else 0]
        # Many equal predictions may leave no reach: then only these count.
        near = np.abs(apart) / np.where(reach > 0, reach, np.inf)
        kernel = np.where(reach > 0, np.clip(1 - np.clip(near, 0, 1) ** 3, 0, 1) ** 3, apart == 0)
        self._moments = [kernel * apart**power for power in range(3)]
        self._scale = np.maximum(reach, np.finfo(float).tiny) ** 2

    def heights(self, weights: Array, observed: Array) -> Array:
        """Compute the curve ``(R, G)`` at its ``places`` ``(G,)``.

        Args:
            weights: weight of each patient in each resample, ``(R, P)``.
            observed: ``(P,)`` or ``(R, P)``.
        """
        total, first, second = (weights @ moment for moment in self._moments)
        value, slant = ((weights * observed) @ moment for moment in self._moments[:2])
        with np.errstate(invalid="ignore", divide="ignore"):
            straight = (second * value - first * slant) / (total * second - first**2)
            level = value / total
        # With one distinct prediction within reach there is no slope.
        return np.where(total * second - first**2 > 1e-9 * total**2 * self._scale, straight, level)

    def calibration_error(self, counts: Array, weights: Array, observed: Array, *, high: float = np.inf) -> Array:
        """Compute the mean distance ``(R,)`` between predictions and curve, over patients ``counts (R, P)``.

        The curve is clipped to between 0 and ``high`` where that is finite.
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

"""A scan -> a small picture as radiologists look at it, with outlines of what raised and lowered the number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ScanPicture:
    """A slice of a scan to show.

    Args:
        grey: brightness ``(rows, columns)``, or ``(rows, columns, 3)`` in colour, with square pixels, turned as it is
            looked at; None where nothing may be shown, for example because a name may be burned in.
        saliency: ``(rows, columns)``; above 0 raised the number, below lowered it. None for no outlines.
        caption: what it is, or why nothing is shown.
    """

    grey: Array | None
    saliency: Array | None
    caption: str


def picture_of(
    image: npt.ArrayLike, saliency: npt.ArrayLike | None = None, *, spacing: Sequence[float], caption: str = ""
) -> ScanPicture:
    """Take the slice with the strongest saliency, else the middle one, right on the left and front or head up.

    Args:
        image: ``(H, W)`` or ``(H, W, D)``, or with channels first, of which the first is shown; axes to the patient's
            right, then front or head (RAS+).
        saliency: of the same shape, with or without channels, which are summed; None for none.
        spacing: distance of the voxels along each axis of space, 2 or 3 numbers in any unit.
        caption: what the picture is.

    Raises:
        ValueError: if the shapes do not fit each other or the spacing.

    Example:
        >>> picture_of(np.zeros((1, 20, 30, 9)), spacing=(1.0, 1.0, 5.0)).grey.shape
        (30, 20)
    """
    axes = len(spacing)
    grey = np.asarray(image, dtype=np.float32)
    strength = None if saliency is None else np.asarray(saliency, dtype=np.float32)
    grey = grey[0] if grey.ndim == axes + 1 else grey
    strength = strength.sum(0) if strength is not None and strength.ndim == axes + 1 else strength
    if axes not in (2, 3) or grey.ndim != axes or (strength is not None and strength.shape != grey.shape):
        raise ValueError(
            f"expected an image with 2 or 3 axes of space, a spacing for each, and saliency of the same shape, got "
            f"{np.shape(image)}, {axes} and {None if saliency is None else np.shape(saliency)}"
        )
    if axes == 3:
        at = grey.shape[2] // 2 if strength is None else int(np.abs(strength).max((0, 1)).argmax())
        grey, strength = grey[..., at], None if strength is None else strength[..., at]
    return ScanPicture(_turned(grey, spacing), None if strength is None else _turned(strength, spacing), caption)


def square_pixels(plane: npt.ArrayLike, *, across: float, down: float) -> Array:
    """Stretch a slice ``(rows, columns[, 3])`` so that its pixels are as wide as they are high.

    Args:
        plane: brightness.
        across: width of a pixel.
        down: its height, in the same unit; taken as at most 10 times the width, and at least a tenth of it.

    Example:
        >>> square_pixels(np.zeros((20, 30)), across=1.0, down=5.0).shape
        (100, 30)
    """
    grey, ratio = np.asarray(plane, dtype=np.float32), min(max(down / across, 0.1), 10.0)
    rows, columns = round(grey.shape[0] * max(ratio, 1.0)), round(grey.shape[1] * max(1 / ratio, 1.0))
    return grey if grey.shape[:2] == (rows, columns) else _resized(grey, columns, rows)


def as_jpeg(picture: ScanPicture, edge: int) -> bytes:
    """The picture with its longer side of so many pixels; empty where nothing may be shown."""
    if picture.grey is None:
        return b""
    grey = np.nan_to_num(picture.grey)
    low, high = np.percentile(grey, [1, 99])
    rows, columns = (max(round(edge * side / max(grey.shape[:2])), 1) for side in grey.shape[:2])
    grey = np.clip((grey - low) / max(float(high - low), 1e-12) * 255, 0, 255).astype(np.float32)
    shown = _resized(grey, columns, rows).round().astype(np.uint8)
    shown = shown if shown.ndim == 3 else np.repeat(shown[..., None], 3, axis=2)
    if picture.saliency is not None:
        _outline(shown, _resized(np.nan_to_num(picture.saliency), columns, rows))
    file = io.BytesIO()
    # Lines of one colour need its full resolution, and grey costs nothing by it.
    Image.fromarray(shown).save(file, "JPEG", quality=85, subsampling=0)
    return file.getvalue()


def _outline(shown: Bytes, strength: Array) -> None:
    """Draw around what raises and what lowers the number, the latter hatched, each with its sign at the strongest."""
    edge, most = max(strength.shape), float(np.abs(strength).max())
    row, column = np.indices(strength.shape)
    for sign, colour in ((1, (255, 211, 77)), (-1, (159, 220, 255))):
        side = sign * strength
        inside = side > most / 2
        if not inside.any():
            continue
        hatch = (row + column) % (edge // 12) < 1 + edge // 300
        line = inside & (_spread(~inside, 1 + edge // 150) | (sign < 0) & hatch)
        radius, width = edge // 26 + 1, edge // 200 + 1
        peak = np.unravel_index(side.argmax(), side.shape)
        y, x = (min(max(int(at), radius), n - 1 - radius) for at, n in zip(peak, side.shape, strict=True))
        away, aside = np.abs(row - y), np.abs(column - x)
        round_it = away**2 + aside**2 <= radius**2
        bars = (away < width) | (sign > 0) & (aside < width)
        line = line & ~round_it | bars & (away**2 + aside**2 <= (0.7 * radius) ** 2)
        shown[_spread(line, 1) | round_it] = 0
        shown[line] = colour


def _spread(mask: npt.NDArray[np.bool_], pixels: int) -> npt.NDArray[np.bool_]:
    wider = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * pixels + 1))
    return np.asarray(wider, dtype=np.bool_)


def _turned(plane: Array, spacing: Sequence[float]) -> Array:
    """Right on the left, the second axis up, pixels square."""
    return square_pixels(np.rot90(plane)[:, ::-1], across=spacing[0], down=spacing[1])


def _resized(plane: Array, columns: int, rows: int) -> Array:
    if plane.ndim == 3:
        return np.stack([_resized(channel, columns, rows) for channel in np.moveaxis(plane, 2, 0)], axis=2)
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    # Averages where it shrinks, and never goes beyond the values where it grows.
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))

"""Slices to memory: one after the other as a file has them, or turned on the way into the order of the axes.

A volume is stored slice by slice, and MONAI wants x first. To turn it afterwards takes ten times as long as to read it
and as much memory again. Turned in blocks of 16 slices, which is one cache line of floats, it takes twice as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BLOCK = 16


class SliceWriter:
    """Memory for slices ``(n, rows, columns[, 3])``, float32, that is filled slice by slice.

    Args:
        count: number of slices.
        shape: of one slice.
        turned: lay the memory out as ``(columns, rows, n)``; only for grey slices.

    Example:
        >>> writer = SliceWriter(2, (3, 4), turned=True)
        >>> for number in range(2):
        ...     writer.next()[...] = number
        >>> writer.array.T.flags.c_contiguous, writer.array[:, 0, 0].tolist()
        (True, [0.0, 1.0])
    """

    def __init__(self, count: int, shape: tuple[int, ...], *, turned: bool = False) -> None:
        self.turned = turned and count > 1 and len(shape) == 2
        self._memory = np.empty((*shape[::-1], count) if self.turned else (count, *shape), np.float32)
        self._block = np.empty((min(_BLOCK, count), *shape), np.float32) if self.turned else self._memory
        self._at = 0

    def next(self) -> Array:
        """The next slice, to be filled before the one after it is asked for."""
        if not self.turned:
            self._at += 1
            return np.asarray(self._memory[self._at - 1])
        if self._at and self._at % _BLOCK == 0:
            self._flush()
        self._at += 1
        return np.asarray(self._block[(self._at - 1) % _BLOCK])

    @property
    def array(self) -> Array:
        """All slices, in the order in which they came."""
        if not self.turned:
            return self._memory
        self._flush()
        return self._memory.T

    def _flush(self) -> None:
        end = self._at
        start = (end - 1) // _BLOCK * _BLOCK
        for row in range(self._memory.shape[1]):
            self._memory[:, row, start:end] = self._block[: end - start, row].T

"""Blocks: slices come out as they went in, whatever the order in memory."""

from __future__ import annotations

import numpy as np
import pytest

from monai_mvreg.scans.formats.slice_buffer import SliceWriter


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 32, 50])
@pytest.mark.parametrize("shape", [(3, 5), (64, 1), (2, 3, 3)])
def test_slices_come_out_in_the_order_they_went_in(shape: tuple[int, ...], count: int, turned: bool) -> None:
    slices = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    writer = SliceWriter(count, shape, turned=turned)
    for one in slices:
        writer.next()[...] = one
    np.testing.assert_array_equal(writer.array, slices)
    np.testing.assert_array_equal(writer.array, slices)  # and may be asked for again
    laid_out = writer.array.T if turned and len(shape) == 2 and count > 1 else writer.array
    assert laid_out.flags.c_contiguous

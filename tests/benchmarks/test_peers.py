"""Hold the ratios of peers.py: ``pytest -m slow tests/benchmarks/test_peers.py`` (minutes).

``KERAS_PYTHON`` names a Python with Keras and TensorFlow; without it they are looked for in this one. Limits lie
10 to 30 % under what docs/benchmarks.md shows, on a CPU that computes in bfloat16: so much cost neighbours on it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import peers
import pytest

pytestmark = pytest.mark.slow
FROZEN, ATTENTION, LSTM, WHOLE, RAGGED = (
    "ResNet50 frozen, mean",
    "MobileNetV2 frozen, attention",
    "VGG16 frozen, LSTM",
    "ResNet50 end to end, mean",
    "ResNet50 frozen, mean, ragged",
)
FAST, KEPT = "monai_mvreg, + channels-last, bfloat16", "monai_mvreg, embeddings kept"
KERAS, MIL = "Keras TimeDistributed", "MONAI MILModel"


@dataclass(frozen=True)
class Limit:
    """One of our rows is at least so many times as fast as another row of the same run."""

    work: str
    ours: str
    other: str
    times: float


LIMITS = [
    Limit(FROZEN, FAST, KERAS, 1.6),
    Limit(FROZEN, FAST, f"{MIL}, frozen parameters", 2.2),
    Limit(FROZEN, FAST, f"{MIL}, as it comes", 6.0),
    Limit(ATTENTION, FAST, KERAS, 1.3),
    Limit(ATTENTION, FAST, f"{MIL}, frozen parameters", 2.8),
    Limit(LSTM, FAST, KERAS, 1.35),
    Limit(WHOLE, FAST, KERAS, 1.6),
    Limit(WHOLE, FAST, MIL, 1.9),
    Limit(RAGGED, FAST, "the same, padded", 2.1),
    Limit(RAGGED, FAST, KERAS, 3.5),
    Limit(RAGGED, FAST, f"{MIL}, frozen parameters", 5.0),
    *(Limit(work, KEPT, KERAS, 50.0) for work in (FROZEN, ATTENTION, LSTM)),
]


@pytest.fixture(scope="module")
def keras() -> Iterator[peers.Keras | None]:
    worker = peers.start_keras(os.environ.get("KERAS_PYTHON"), threads=1)
    yield worker
    if worker:
        worker.close()


@cache
def rows(work: str, keras: peers.Keras | None) -> dict[str, peers.Row]:
    return {row.name: row for row in peers.measure(work, keras, runs=3, compiled=False)}


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit.work}: {limit.other}, {limit.times}")
def test_a_step_is_faster_than_the_peers_step(limit: Limit, keras: peers.Keras | None) -> None:
    if limit.ours == FAST and not peers.bfloat16_is_built_in():
        pytest.skip("this processor has no bfloat16 of its own")
    if limit.other == KERAS and keras is None:
        pytest.skip("Keras with TensorFlow is not here: set KERAS_PYTHON")
    found = rows(limit.work, keras)
    assert found[limit.other].seconds / found[limit.ours].seconds >= limit.times


@pytest.mark.parametrize("work", [FROZEN, ATTENTION, LSTM, WHOLE, RAGGED])
def test_what_makes_it_fast_keeps_the_embeddings(work: str, keras: peers.Keras | None) -> None:
    for row in rows(work, keras).values():
        if row.difference is not None:
            assert row.difference <= (0.02 if "bfloat16" in row.name else 1e-5), row.name


def test_the_ragged_batch_is_that_of_the_cohort_it_is_named_for() -> None:
    counts = np.array(peers.ragged_counts())
    assert len(counts) == 16 and counts.min() >= 1 and counts.max() <= 12
    assert counts.max() * 16 / counts.sum() == pytest.approx(2.7, abs=0.15)


def test_without_keras_its_rows_are_left_out_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("keras"):
        pytest.skip("Keras is installed here")
    assert peers.start_keras(None, threads=1) is None
    assert "its rows are left out" in capsys.readouterr().out

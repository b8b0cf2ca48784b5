"""MONAI's MILModel for gpu.py: the trainer of the bundle and padded steps of its users take turns.

Both sides get host memory that is pinned and collated. The ratio that is judged is between equal precisions, bfloat16
where the device has it; that to MILModel in float32 stands in a column of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import peers
import torch
from gpu_rows import Bench, Measurement, Row, repeated, take_turns
from gpu_steps import BFLOAT16, FLOAT32, Case, Mode, Ours


def against_milmodel(bench: Bench, counts: tuple[int, ...], *, gradients: bool, aim: float) -> Measurement:
    """Our frozen encoder and MILModel with the same, whose patients are padded to the longest."""
    if bench.full:
        work = peers.Work("resnet50_mean", "ResNet50", "mean", counts)
    else:
        work = peers.Work("mobilenetv2_attention", "MobileNetV2", "attention", counts, size=32)
    case = Case(work.encoder, ("radiograph", work.config), (work.size, work.size), counts, frozen=True)
    built_in = peers.bfloat16_is_built_in()
    ours = Ours(case, Mode(BFLOAT16 if built_in else FLOAT32, channels_last=True), bench)
    sides: dict[str, Any] = {"ours": ours.run}
    for precision in (torch.bfloat16, torch.float32) if built_in else (torch.float32,):
        step = peers.milmodel(work, gradients=gradients, precision=precision)
        sides[str(precision)] = repeated(bench, step)
    turns = take_turns(bench, sides)
    same = "torch.bfloat16" if built_in else "torch.float32"
    ratio = turns.ratio(same, "ours")
    milliseconds = turns.milliseconds("ours")
    return {
        "scans_per_second": 1000 * sum(counts) / milliseconds,
        "milliseconds": milliseconds,
        "milmodel_milliseconds": turns.milliseconds(same),
        "times_milmodel": ratio,
        "milmodel_float32_milliseconds": turns.milliseconds("torch.float32"),
        "times_milmodel_float32": turns.ratio("torch.float32", "ours"),
        "precision": same.removeprefix("torch."),
        "padding": max(counts) * len(counts) / sum(counts),
        "aim": f"at least {aim} times MILModel",
        "met": ratio >= aim,
        "rounds": turns.rounds,
        "steps_per_round": turns.steps,
    }


def peer_rows(full: bool) -> list[Row]:
    """As it comes, with frozen parameters, and a cohort in which patients have 1 to 12 scans."""
    encoder = "ResNet50" if full else "MobileNetV2"
    even = (4,) * 16 if full else (2, 2)
    ragged = peers.ragged_counts() if full else (1, 1, 3)
    return [
        Row(
            "peers",
            f"frozen {encoder}, {len(counts)} patients, {sum(counts)} scans: MILModel {name}",
            10.0 if full else 1.0,
            partial(against_milmodel, counts=counts, gradients=gradients, aim=aim),
        )
        for name, counts, gradients, aim in (
            ("as it comes", even, True, 3.0),
            ("with frozen parameters", even, False, 1.5),
            ("with frozen parameters, 1 to 12 scans", ragged, False, 2.5),
        )
    ]

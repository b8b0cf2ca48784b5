"""Measured times of an epoch -> a table, a picture and advice in plain words."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.report.page import INK, QUIET, Section, calm, write_report

READ, PREPARE, KEPT, AUGMENT, PACK = "read and decode", "prepare", "read from cache_dir", "augment", "pack"
LOADER, STEP, VALIDATION, HANDLERS, REST = "loader", "step", "validation", "handlers", "everything else"
WAIT, COLLATE = "waiting for the loader", "collate"
STEPS = (
    "copy to the device",
    "forward: encoder",
    "forward: pool and head",
    "loss",
    "backward",
    "optimizer step",
)
COPY, ENCODER, HEAD, LOSS, BACKWARD, OPTIMIZER = STEPS
_LOADING = {READ, PREPARE, KEPT, AUGMENT, PACK, LOADER}
_COLOURS = {LOADER: "#b8860b", STEP: INK, VALIDATION: "#6b8e6b", HANDLERS: "#8e6b8e", REST: "#9a9a9a"}


@dataclass(frozen=True)
class Times:
    """Seconds of one epoch, or of what comes before the first: as a whole, by part, and by part inside the workers."""

    seconds: float
    parts: dict[str, float]
    workers: dict[str, float]


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Args:
        device: where the network ran.
        workers: processes that load.
        cores: cores that this process may use.
        kinds: what each part belongs to, in the order of the way of the data.
        before: until the first epoch; what was prepared into memory is here.
        epochs: each epoch; the last one is warm.
    """

    device: str
    workers: int
    cores: int
    kinds: dict[str, str]
    before: Times
    epochs: tuple[Times, ...]

    def of(self, kinds: set[str]) -> float:
        """Seconds of the warm epoch in parts of these kinds, in the main process."""
        return sum(seconds for part, seconds in self.epochs[-1].parts.items() if self.kinds[part] in kinds)

    def work(self, kinds: set[str]) -> dict[str, float]:
        """Seconds of loading by part in the warm epoch, summed over the workers if there are any."""
        warm = self.epochs[-1]
        spent = warm.workers if self.workers else warm.parts
        return {part: seconds for part, seconds in spent.items() if self.kinds[part] in kinds}


def advise(profile: Profile) -> list[str]:
    """Say in plain words what limits the epoch and what would help, from the measured shares."""
    whole = profile.epochs[-1].seconds
    groups = {name: profile.of(_LOADING if name == LOADER else {name}) for name in (LOADER, STEP, VALIDATION, HANDLERS)}
    share = {name: f"{100 * seconds / whole:.0f} %" for name, seconds in groups.items()}
    most = max(groups, key=lambda name: groups[name])
    said = {
        LOADER: f"The loader is the bottleneck: {share[LOADER]} of the epoch is spent waiting for scans; without "
        f"that it would take {whole - groups[LOADER]:.3g} s instead of {whole:.3g} s.",
        STEP: f"The step of the network is the bottleneck, as it should be: {share[STEP]} of the epoch; "
        f"{share[LOADER]} is spent waiting for scans.",
        VALIDATION: f"Validation is the bottleneck: {share[VALIDATION]} of an epoch with one. Validate less often: "
        "--val_interval 5",
        HANDLERS: f"Handlers are the bottleneck: {share[HANDLERS]} of the epoch. Those that write or compute in every "
        "iteration cost most: leave them out of train#handlers.",
    }
    told = [said[most]]
    if most == LOADER or groups[LOADER] > 0.2 * whole:
        told += _advise_loader(profile, groups[STEP])
    if most == STEP:
        told.append(_advise_step(profile))
    if most != VALIDATION and groups[VALIDATION] > 0.2 * whole:
        told.append(f"Validation takes {share[VALIDATION]} of an epoch with one: --val_interval 5 does it less often.")
    copy = profile.epochs[-1].parts[COPY]
    if copy > 0.1 * whole:
        told.append(
            f"Copying to the device takes {100 * copy / whole:.0f} %: smaller scans (spatial_size) copy faster."
        )
    return told


def _advise_loader(profile: Profile, step: float) -> list[str]:
    """What would make scans come sooner."""
    told = []
    parts = profile.work(_LOADING - {LOADER})
    work = sum(parts.values())
    prepare, augment = (sum(profile.work(kinds).values()) for kinds in ({READ, PREPARE}, {AUGMENT}))
    if not work:
        return ["No transform takes time; the waiting is for the workers themselves: use fewer, --workers 0 for none."]
    slowest = max(parts, key=lambda part: parts[part])
    told.append(f"{slowest} takes {100 * parts[slowest] / work:.0f} % of the {work:.3g} s of loading.")
    if prepare > max(augment, 0.2 * work):
        told.append(
            "Scans are prepared again in every epoch: --cache_rate 1.0 keeps them in memory, --cache_dir FOLDER on "
            "disk for all runs."
        )
    elif profile.kinds[slowest] == KEPT:
        told.append("Reading prepared scans from cache_dir takes most: --cache_rate 1.0 keeps them in memory as well.")
    elif profile.kinds[slowest] == AUGMENT:
        told.append(f"Random transforms run in every epoch: a smaller prob of {slowest}, or going without it, helps.")
    needed = math.ceil(work / max(step, 1e-9))
    best = min(profile.cores, max(needed, profile.workers + 1))
    if profile.workers < best and profile.cores > 1:
        told.append(
            f"--workers {best} loads beside the step, in processes of their own ({needed} would keep up with its "
            f"{step:.3g} s; there are {profile.cores} cores)."
        )
    elif needed > profile.cores:
        told.append(f"{needed} workers would keep up with the step; there are {profile.cores} cores.")
    return told


def _advise_step(profile: Profile) -> str:
    """What would make the step itself faster."""
    parts = {part: profile.epochs[-1].parts[part] for part in STEPS}
    slowest = max(parts, key=lambda part: parts[part])
    told = f"Most of it is {slowest!r} ({100 * parts[slowest] / sum(parts.values()):.0f} % of the step)."
    if slowest in (ENCODER, BACKWARD):
        told += " A smaller encoder or spatial_size, or an encoder that is frozen (PretrainedEncoder), makes it faster"
        told += ", and so does a GPU." if profile.device == "cpu" else "."
    return told


def as_table(profile: Profile) -> pd.DataFrame:
    """The parts in the order of the way of the data: seconds before and in each epoch, and the share of the last."""
    rows, warm = [], profile.epochs[-1]
    for part, kind in profile.kinds.items():
        row: dict[str, Any] = {"part": part, "belongs to": kind, "before [s]": profile.before.parts[part]}
        row |= {f"epoch {i} [s]": times.parts[part] for i, times in enumerate(profile.epochs, 1)}
        row["share [%]"] = 100 * warm.parts[part] / warm.seconds
        if profile.workers:
            row["in workers [s]"] = warm.workers[part]
        rows.append(row)
    whole = {"part": "all", "belongs to": "", "before [s]": profile.before.seconds, "share [%]": 100.0}
    whole |= {f"epoch {i} [s]": times.seconds for i, times in enumerate(profile.epochs, 1)}
    if profile.workers:
        whole["in workers [s]"] = sum(warm.workers.values())
    return pd.DataFrame([*rows, whole], columns=list(rows[0]))


def write_profile(profile: Profile, out: Path) -> None:
    """Write ``profile.json`` and ``profile.html``, a page that needs nothing else, into a folder."""
    advice, table = advise(profile), as_table(profile)
    content = {**asdict(profile), "advice": advice}
    atomic_write_text(out / "profile.json", json.dumps(content, indent=1, allow_nan=False))
    where = f"{profile.workers} workers" if profile.workers else "no workers: the main process loads"
    text = (
        f"On {profile.device}, {where}. The last of {len(profile.epochs)} epochs is shown; each ends with a validation."
    )
    note = (
        "Before the first epoch the scans that are kept in memory are prepared, in threads, so its parts need not add "
        "up. In an epoch they do."
    )
    kept = table[(table.drop(columns=["part", "belongs to", "share [%]"]) > 0).any(axis=1)]
    caption = "Seconds of the last epoch by part, and its share of the epoch; colours: " + ", ".join(_COLOURS) + "."
    sections = [
        Section("Advice", "\n\n".join(advice)),
        Section("One epoch", text, _picture(profile), caption),
        Section("All parts", note, table=kept),
    ]
    write_report(out / "profile.html", title="Where the time of an epoch goes", sections=sections)


def _picture(profile: Profile) -> Figure:
    warm = profile.epochs[-1]
    shown = {part: seconds for part, seconds in warm.parts.items() if seconds >= 0.001 * warm.seconds}
    figure = Figure(figsize=(7, 0.9 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    groups = [LOADER if profile.kinds[part] in _LOADING else profile.kinds[part] for part in shown]
    bars = axes.barh(list(shown), list(shown.values()), color=[_COLOURS[group] for group in groups], height=0.7)
    labels = [f"{100 * seconds / warm.seconds:.1f} %" for seconds in shown.values()]
    axes.bar_label(bars, labels, padding=4, color=QUIET)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    calm(axes, "Time in the epoch", "", "s")
    axes.set_ylabel("")
    seen = {group: bar for group, bar in zip(groups, bars, strict=True)}
    axes.legend(list(seen.values()), list(seen), frameon=False, labelcolor=QUIET)
    return figure

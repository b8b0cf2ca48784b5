"""Training on the device that is there: ``python tests/benchmarks/gpu.py --minutes 6 --out gpu.json``.

Each row is printed and saved as soon as it is measured; when the time is up the others are marked as skipped, so the
file always holds every row. Without a GPU the sizes are tiny, which tries the script and says nothing about speed.
``--docs gpu.json`` measures nothing and writes the tables of a file into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu_clock
import torch
from docs_tables import into_docs
from gpu_chunks import chunk_rows
from gpu_epochs import epoch_rows
from gpu_peers import peer_rows
from gpu_rows import Bench, Row, ceilings
from gpu_steps import compiled_rows, cudnn_rows, step_rows
from gpu_table import line, table

RESERVE = 3.0  # seconds to end in
CONDITIONS = [
    "cudnn.benchmark is on for both sides of a comparison, except in epochs, which run as the bundle sets it. Matrix "
    "products and convolutions in float32 may use TF32, which the bundle leaves as torch has it (convolutions only).",
    "Milliseconds are medians over rounds, of synchronised wall time on a GPU and of CPU time of one thread on a CPU; "
    "ratios are medians of the ratios of each round. Inputs are "
    "random. Operations are counted by torch's FlopCounterMode on the bare step; AMP is related to the ceiling in "
    "bfloat16. A copy counts what is read and what is written.",
]


def rows_of(full: bool) -> list[Row]:
    """All rows, the most important first: compilation takes a minute each."""
    return [
        *ceilings(full),
        *step_rows(full, usual_layout=True),
        *peer_rows(full),
        *chunk_rows(full),
        *epoch_rows(full),
        *cudnn_rows(full),
        *step_rows(full, usual_layout=False),
        *compiled_rows(full),
    ]


# ---- The machine -----------------------------------------------------------------------------------------------------


def hardware(device: torch.device) -> dict[str, Any]:
    """The device and its memory."""
    found: dict[str, Any] = {"device": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    found |= {"threads": torch.get_num_threads(), "platform": platform.platform()}
    if device.type != "cuda":
        return found
    properties = torch.cuda.get_device_properties(device)
    found |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    found |= {"compute_capability": f"{properties.major}.{properties.minor}", "driver": None}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.splitlines()[0]
    return found


def versions() -> dict[str, str | None]:
    """What the figures depend on."""
    found: dict[str, str | None] = {"Python": platform.python_version(), "torch": torch.__version__}
    found |= {"CUDA": torch.version.cuda, "cuDNN": None}
    if torch.cuda.is_available():
        found["cuDNN"] = str(torch.backends.cudnn.version())
    for name, package in {"MONAI": "monai", "Ignite": "pytorch-ignite", "timm": "timm"}.items():
        found[name] = version(package)
    try:
        found["monai_mvreg"] = version("monai-mvreg")
    except PackageNotFoundError:
        found["monai_mvreg"] = "not installed"
    return found


# ---- The run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """The file of a run, whole at any moment."""

    path: Path
    content: dict[str, Any]

    def put(self, place: int, row: Row, found: dict[str, Any]) -> dict[str, Any]:
        """Replace a row, and save."""
        figures = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in found.items()}
        self.content["rows"][place] = {"name": row.name, "group": row.group, **figures}
        self.save()
        done: dict[str, Any] = self.content["rows"][place]
        return done

    def save(self) -> None:
        """Write the file next to its place, and move it there."""
        self.content["seconds"] = round(time.perf_counter() - gpu_clock.BEGAN, 1)
        unfinished = self.path.with_name(f"{self.path.name}.part")
        unfinished.write_text(json.dumps(self.content, indent=1, allow_nan=False), encoding="utf-8")
        unfinished.replace(self.path)


def measure(bench: Bench, row: Row) -> dict[str, Any]:
    """The figures of a row, or why there are none; what is raised ends the row and not the run."""
    if row.cuda and bench.device.type != "cuda":
        return {"skipped": "needs a GPU"}
    if bench.budget.left() < row.needs:
        return {"skipped": "no time left"}
    try:
        with bench.budget.enforced():
            found = row.measure(bench)
    except gpu_clock.TimeUp:
        found = {"skipped": "no time left"}
    except Exception as error:
        found = {"error": one_line(error)}
    # What the row held, after an error too.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def one_line(error: BaseException) -> str:
    """The error that others were raised from, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def run(bench: Bench, rows: list[Row], result: Result) -> None:
    """Measure row by row."""
    for place, row in enumerate(rows):
        began = time.perf_counter()
        found = measure(bench, row)
        found["seconds"] = round(time.perf_counter() - began, 2)
        if "skipped" not in found and "error" not in found:
            bench.measured[row.name] = found
        if "aim" in found and not bench.full:
            found["met"] = None  # aims are for the sizes of a GPU
        print(line(result.put(place, row, found)), flush=True)
    result.content["finished"] = True
    result.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0, help="when measuring ends")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the file of the result")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the tables of a result into the docs, and end")
    options = parser.parse_args()
    if options.docs:
        into_docs("gpu", table(json.loads(options.docs.read_text(encoding="utf-8"))))
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # a row that fails says why in one line
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    full = torch.cuda.is_available()
    device = torch.device("cuda:0" if full else "cpu")
    if not full:
        torch.set_num_threads(1)  # threads of a processor that others use too wait for each other
    rows = rows_of(full)
    content: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "finished": False,
        "command": " ".join(["python", "tests/benchmarks/gpu.py", "--minutes", f"{options.minutes:g}"]),
        "minutes": options.minutes,
        "seconds": 0.0,
        "hardware": hardware(device),
        "versions": versions(),
        "conditions": CONDITIONS,
        "rows": [{"name": row.name, "group": row.group, "skipped": "not reached", "seconds": 0.0} for row in rows],
    }
    result = Result(options.out, content)
    result.save()
    gc.freeze()  # the libraries' objects stay anyway
    folder = Path(tempfile.mkdtemp())
    try:
        bench = Bench(device, full, folder, gpu_clock.Budget(gpu_clock.BEGAN + 60 * options.minutes - RESERVE))
        run(bench, rows, result)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(content))


if __name__ == "__main__":
    sys.exit(main())

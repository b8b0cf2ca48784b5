"""How time and memory grow with a cohort: ``python tests/benchmarks/cohort_scale.py --patients 1000 3000 10000``.

Synthetic cohorts of 5 scans a patient. Each step does what the command or the bundle does: reading the table, splitting
it, the audit of ``mvreg audit``, finding all embeddings in the cache (every scan is hashed, none is encoded), and one
epoch of the head. A process of its own measures each cohort, with one thread: two that wait for each other on cores
with other work make the small steps of a head up to a hundred times slower, and by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

SCANS, EDGE, WIDTH = 5, 16, 512
STEPS = ("read", "split", "audit", "cache", "epoch")


def write_cohort(folder: Path, patients: int) -> None:
    """Volumes of ``16^3`` of a common anatomy: two people correlate by about 0.9, and two visits of one by 0.999."""
    draw = np.random.default_rng(0)
    low = draw.normal(size=(31, 4, 4, 4)).repeat(4, 1).repeat(4, 2).repeat(4, 3).reshape(31, -1).astype(np.float32)
    header = nib.Nifti1Image(np.zeros((EDGE,) * 3, np.int16), np.diag([3.0, 3.0, 3.0, 1.0])).to_bytes()
    header = header[: len(header) - 2 * EDGE**3]
    rows = []
    for patient in range(patients):
        traits = draw.normal(size=30).astype(np.float32)
        own = 600 * low[0] + 35 * (traits @ low[1:])
        (folder / "scans" / f"{patient}").mkdir(parents=True)
        for visit in range(SCANS):
            voxels = own + 15 * draw.standard_normal(EDGE**3, np.float32) + 2000
            name = f"scans/{patient}/{visit}.nii"
            (folder / name).write_bytes(header + voxels.astype(np.int16).tobytes())
            row: dict[str, Any] = {"patient": f"p{patient}", "path": name, "day": 180 * visit, "unit": "mL"}
            rows.append(row | {"target": f"{50 + 10 * traits[0]:.3f}", "age": int(60 + 9 * traits[1])})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)


def preparation() -> tuple[Any, Any]:
    """The transforms of ``train.yaml`` and a frozen encoder with embeddings of 512 numbers."""
    import torch
    from monai.bundle import ConfigParser

    from monai_mvreg.networks.encoders import PretrainedEncoder

    parser = ConfigParser()
    parser.read_config(str(Path(__file__).parents[2] / "bundle/configs/train.yaml"))
    parser.update({"spatial_size": [EDGE] * 3})
    torch.manual_seed(0)
    return parser.get_parsed_content("validate#preprocessing"), PretrainedEncoder(parser.get_parsed_content("encoder"))


def fill_cache(folder: Path) -> None:
    """Write random embeddings under the names that those of the scans have."""
    import torch

    from monai_mvreg.cache.scan_embeddings import cache_key, embedding_store, write_embedding
    from monai_mvreg.cache.store import entry_name
    from monai_mvreg.scans.content_hash import content_hashes

    store = embedding_store(folder / "cache")
    key = cache_key(*preparation())
    addresses = [str(folder / path) for path in pd.read_csv(folder / "cohort.csv")["path"]]
    for content in content_hashes(addresses).values():
        write_embedding(store, entry_name(key, content), torch.randn(WIDTH))


def measure(folder: Path) -> dict[str, float]:
    """Seconds of each step, CPU seconds of all, and the peak of memory in GiB of this process."""
    import torch
    from monai.data import DataLoader, Dataset

    from monai_mvreg.cache.scan_embeddings import EmbeddedScans
    from monai_mvreg.cohort.audit import Audited, audit
    from monai_mvreg.cohort.split import select, split_cohort
    from monai_mvreg.cohort.table import Columns, datalist, read_cohort
    from monai_mvreg.networks.multiscan import MultiScanNet
    from monai_mvreg.networks.pools import GatedAttentionPool, TimeEncoding
    from monai_mvreg.networks.task import StandardisedLoss
    from monai_mvreg.training.batches import collate_scans

    taken: dict[str, float] = {}
    cpu, start = 0.0, (time.perf_counter(), time.process_time())

    def lap(step: str) -> None:
        nonlocal cpu, start
        now = time.perf_counter(), time.process_time()
        taken[step], cpu, start = now[0] - start[0], cpu + now[1] - start[1], now

    columns = Columns(day="day", target=["target"], unit="unit", covariates={"age": "number"})
    table = folder / "cohort.csv"
    cohort = read_cohort(str(table), columns, images=str(folder))
    lap("read")
    cohort = split_cohort(cohort, 5)
    lap("split")
    findings = audit(table, folder, Audited(fold=None, target="target", covariates=("age",)))
    lap("audit")
    transform, encoder = preparation()
    items = datalist(select(cohort, "01234"))
    before = {path.name: path.stat().st_ino for path in (folder / "cache").iterdir()}
    start = time.perf_counter(), time.process_time()
    embedded = EmbeddedScans(
        items, transform=transform, encoder=encoder, folder=str(folder / "cache"), max_bytes=10**10
    )
    lap("cache")
    if {path.name: path.stat().st_ino for path in (folder / "cache").iterdir()} != before or findings:
        raise RuntimeError(f"expected a cache that holds every scan and no finding, got {findings[:3]}")
    network = MultiScanNet(encoder, GatedAttentionPool(WIDTH, time_encoding=TimeEncoding()), dropout=0.1).train()
    network.scaling.fit(torch.tensor([item["label"] for item in items]))
    loss = StandardisedLoss(torch.nn.HuberLoss(), network.scaling)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loader = DataLoader(Dataset(items, embedded), batch_size=8, shuffle=True, collate_fn=collate_scans)
    start = time.perf_counter(), time.process_time()
    steps = 0
    for batch in loader:
        optimizer.zero_grad()
        loss(network(batch["image"], batch["mask"], batch["time"]), batch["label"]).backward()
        optimizer.step()
        steps += 1
    lap("epoch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # One thread, and every patient once: an epoch that does other work must not pass for a fast one.
    if torch.get_num_threads() != 1 or steps != -(-len(items) // 8):
        raise RuntimeError(f"expected one thread and a step for every 8 patients, got {steps} steps")
    return taken | {"sum": sum(taken.values()), "cpu": cpu, "peak": peak, "patients": float(len(items))}


def run(folder: Path, patients: int) -> dict[str, float]:
    """Write a cohort and its cache, and measure it in a process of its own."""
    write_cohort(folder, patients)
    fill_cache(folder)
    command = [sys.executable, __file__, "--measure", str(folder)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(f"| patients | scans | {' s | '.join(STEPS)} s | sum s | CPU s | CPU ms per patient | peak GiB |")
    print("|" + "---|" * (len(STEPS) + 6))
    for patients in options.patients:
        with tempfile.TemporaryDirectory() as folder:
            found = run(Path(folder), patients)
        steps = " | ".join(f"{found[step]:.2f}" for step in STEPS)
        each = 1000 * found["cpu"] / patients
        figures = f"{found['sum']:.1f} | {found['cpu']:.1f} | {each:.1f} | {found['peak']:.2f}"
        print(f"| {patients} | {SCANS * patients} | {steps} | {figures} |", flush=True)


if __name__ == "__main__":
    main()

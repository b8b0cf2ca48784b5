"""Explanations where the truth is known, into docs/benchmarks.md: ``python tests/benchmarks/explain.py --docs``.

Trains the networks of TRAININGS into --runs, unless they are there already, and asks: does the scan that decides have
the largest contribution, in patients that are new to the network and in those that it learned from, and does saliency
of new patients lie on what was planted?
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
from docs_tables import into_docs
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from monai_mvreg.cohort.split import select
from monai_mvreg.cohort.table import Columns, Patient, read_cohort
from monai_mvreg.explain.explanation import numbers_by_scan
from monai_mvreg.explain.native_space import to_native_space
from monai_mvreg.explain.saliency import SaliencyMap, gradcam, mean_map, occlusion, randomisation_check
from monai_mvreg.metrics.bootstrap import Array, Estimate, estimates
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.predict.selection import FoundPatient

ROOT = Path(__file__).parents[2]
PACKS = ROOT.parent / "shared" / "data"
POOLS = "monai_mvreg.networks.pools"
VOXEL = 4.5  # mm, of growth3d
MOST = 20  # patients with volumes whose maps are made: occlusion of one takes five to ten seconds of CPU
LEARNED = 300  # patients that a network learned from whose contributions are computed


@dataclass(frozen=True)
class Training:
    """A training; ``size`` is the column of the manifest whose largest value in a patient decides.

    Of several seeds the first is told alone, then the mean of all, whose contributions are the mean of theirs. One that
    is ``told`` learns that size of each scan, which no target of patients tells: the best these scans allow.
    """

    pack: str
    target: str
    pool: str
    epochs: int
    size: str
    config: str
    seeds: tuple[int, ...] = (0,)
    told: bool = False


TRAININGS = {
    "digits_max": Training("digits_bags", "max", "MaxPool", 60, "digit", "digits_bags"),
    "hippo_max": Training("hippo3d_bags", "max_mm3", "MaxPool", 60, "mm3_this_volume", "hippo3d_max", (0, 2)),
    "hippo_told": Training(
        "hippo3d_bags", "mm3_this_volume", "MeanPool", 100, "mm3_this_volume", "hippo3d_max", told=True
    ),
    "growth_max": Training("growth3d", "diam_max_mm", "MaxPool", 60, "diam_this_visit", "growth3d"),
}


def train(name: str, seed: int, runs: Path) -> Path:
    """Train a network, with the settings of its pack, unless it is there."""
    training, folder = TRAININGS[name], (runs / name / f"seed-{seed}").resolve()
    if not (folder / "domain.json").is_file():
        configs = ["bundle/configs/train.yaml"]
        configs += [f"tests/benchmarks/{config}.yaml" for config in dict.fromkeys((training.pack, training.config))]
        settings = {
            "--config_file": str(configs),
            "--bundle_root": "bundle",
            "--dataset_dir": str(PACKS / training.pack),
            "--target": str([training.target]),
            "--pool#_target_": f"{POOLS}.{training.pool}",
            "--workers": "0",
            "--seed": str(seed),
            "--epochs": str(training.epochs),
            "--patience": str(training.epochs),
            "--output_dir": str(folder),
            "--model_dir": str(folder),
        }
        if training.told:
            folder.mkdir(parents=True, exist_ok=True)
            manifest = pd.read_csv(PACKS / training.pack / "manifest.csv")
            manifest.drop_duplicates("image").to_csv(folder / "scans.csv", index=False)
            settings |= {"--cohort_file": str(folder / "scans.csv"), "--outcomes_file": "$None"}
            settings |= {"--columns#patient": "image"}
        command = [sys.executable, "-m", "monai.bundle", "run", *(word for pair in settings.items() for word in pair)]
        subprocess.run(command, cwd=ROOT, check=True)
    return folder


def patients_of(training: Training, fold: str) -> list[Patient]:
    pack = PACKS / training.pack
    columns = Columns(patient="patient_id", path="image", day="day_offset", target=[training.target], fold="split")
    cohort = read_cohort(pack / "manifest.csv", columns, images=pack, outcomes_file=pack / "patients.csv")
    return list(select(cohort, [fold]))


def sizes_of(training: Training, patient: Patient) -> list[float]:
    manifest = pd.read_csv(PACKS / training.pack / "manifest.csv")
    known = manifest[manifest["patient_id"] == patient.key].set_index("image")[training.size]
    return [float(known[Path(scan).relative_to(PACKS / training.pack).as_posix()]) for scan in patient.scans]


def mean_of(values: npt.ArrayLike) -> Estimate:
    """The mean over patients with its interval."""
    found = np.asarray(values, dtype=np.float64)

    def mean(counts: Array) -> Array:
        return np.asarray(counts @ found / counts.sum(1))

    return estimates({"mean": mean}, len(found), resamples=2000, confidence=0.95, seed=0)["mean"]


def told(values: npt.ArrayLike, form: str = ".2f") -> str:
    found = mean_of(values)
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


# ---- The scan that decides -------------------------------------------------------------------------------------------
def contributions(predictor: Predictor, patient: Patient, home: Path) -> dict[str, float]:
    prediction = predictor.predict(FoundPatient(patient, {}, ()), home=home)
    return {str(home / scan.address): scan.contributions[0] for scan in prediction.scans if scan.contributions}


def error_of(name: str, folders: Sequence[Path]) -> float:
    """The mean error of new patients by the mean of trainings."""
    target = TRAININGS[name].target
    tables = [pd.read_csv(folder / "predictions.csv").set_index("patient") for folder in folders]
    mean = pd.concat([table[f"{target}_predicted"] for table in tables], axis=1).mean(axis=1)
    return float((mean - tables[0][target]).abs().mean())


def several_sizes(training: Training, fold: str) -> Iterator[tuple[Patient, list[float]]]:
    """Patients of at least two scans one of which is larger than all others, and the sizes of their scans."""
    for patient in patients_of(training, fold):
        sizes = sizes_of(training, patient)
        if len(sizes) > 1 and sorted(sizes)[-2] < max(sizes):
            yield patient, sizes


def deciding(name: str, predictors: Sequence[Predictor], fold: str) -> pd.DataFrame:
    """Of each patient: whether the largest scan has the largest contribution, what chance would find, its lead in size
    over the next one, and how far its contribution is from that lead."""
    training = TRAININGS[name]
    rows = []
    for patient, sizes in islice(several_sizes(training, fold), LEARNED):
        parts = pd.DataFrame([contributions(one, patient, PACKS / training.pack) for one in predictors]).mean()
        largest = str(Path(patient.scans[int(np.argmax(sizes))]))
        lead = max(sizes) - sorted(sizes)[-2]
        hit = parts.abs().idxmax() == largest
        rows.append({"hit": hit, "chance": 1 / len(sizes), "lead": lead, "error": abs(parts[largest] - lead)})
    return pd.DataFrame(rows)


def told_of_deciding(name: str, predictors: Sequence[Predictor], folders: Sequence[Path]) -> str:
    """One row: new patients and patients that the networks learned from, each also without those whose largest scan
    leads by less than the mean error of new patients, where the networks could not know."""
    training, error = TRAININGS[name], error_of(name, folders)
    several = f", mean of {len(folders)} trainings" if len(folders) > 1 else ""
    row = f"| `{training.pack}` {training.target} | {training.pool}{several} | {error:.3g} |"
    for fold in ("val", "train"):
        found = deciding(name, predictors, fold)
        for some in (found, found[found["lead"] > error]):
            row += f" {told(some['hit'])}, {len(some)} |"
        if fold == "val":
            row += f" {found['chance'].mean():.2f} | {told(found['error'], '.3g')} |"
    return row


def told_of_scans(name: str, folder: Path) -> str:
    """One row: how often a network that was told the size of each scan gives the largest number to the largest scan."""
    training = TRAININGS[name]
    found = pd.read_csv(folder / "predictions.csv").set_index("patient")
    numbers = {PACKS / training.pack / scan: number for scan, number in found[f"{training.target}_predicted"].items()}
    hits = [
        np.argmax([numbers[Path(scan)] for scan in patient.scans]) == np.argmax(sizes)
        for patient, sizes in several_sizes(TRAININGS["hippo_max"], "val")
    ]
    correlation = found[training.target].corr(found[f"{training.target}_predicted"])
    return f"| `{training.pack}` {training.target} | {len(found)} | {correlation:.2f} | {told(hits)} |"


# ---- What was planted ------------------------------------------------------------------------------------------------
def digits(patients: list[Patient]) -> Iterator[tuple[Patient, int, Array]]:
    """The largest digit of each patient, and where it is written; a picture has columns first."""
    from PIL import Image

    for patient in patients:
        sizes = sizes_of(TRAININGS["digits_max"], patient)
        place = int(np.argmax(sizes))
        yield patient, place, np.asarray(Image.open(patient.scans[place])).T > 127


def lesions(patients: list[Patient]) -> Iterator[tuple[Patient, int, Array]]:
    """The largest lesion of each patient as a sphere of its known diameter.

    Its centre is not in the pack: it is where the scan differs most from the median of the same head in other patients,
    averaged over such a sphere less what surrounds it. Patients whose visits do not agree by two voxels are left out.
    """
    pack = PACKS / "growth3d"
    manifest = pd.read_csv(pack / "manifest.csv")
    manifest["head"] = manifest["patient_id"].map(pd.read_csv(pack / "patients.csv").set_index("patient_id")["head"])
    made = 0
    far = np.linalg.norm(np.mgrid[-14:15, -14:15, -14:15], axis=0) * VOXEL
    for patient in patients:
        rows = manifest[manifest["patient_id"] == patient.key]
        same = manifest[(manifest["head"] == rows["head"].iloc[0]) & (manifest["patient_id"] != patient.key)]
        if same["patient_id"].nunique() < 2:
            continue
        usual = np.median([_volume(pack / image) for image in same["image"]], axis=0)
        centres = []
        for image, diameter in zip(rows["image"], rows["diam_this_visit"], strict=True):
            volume = _volume(pack / image)
            gain = np.median(volume[usual > 50]) / np.median(usual[usual > 50])
            inside = (far < diameter / 2 + 2).astype(float)
            around = ((far > diameter / 2 + 5) & (far < diameter / 2 + 12)).astype(float)
            filtered = fftconvolve(
                gaussian_filter(volume / gain - usual, 0.5), inside / inside.sum() - around / around.sum(), mode="same"
            )
            centres.append(
                np.add(np.unravel_index(filtered[3:-3, 3:-3, 3:-3].argmax(), np.subtract(volume.shape, 6)), 3)
            )
        centres = np.array(centres)
        if np.abs(centres - np.median(centres, axis=0)).max() > 2:
            continue
        place = int(rows["diam_this_visit"].to_numpy().argmax())
        grid = np.moveaxis(np.indices(usual.shape), 0, -1)
        away = np.linalg.norm(grid - centres[place], axis=-1) * VOXEL
        path = rows["image"].iloc[place]
        place = [Path(scan).name for scan in patient.scans].index(Path(path).name)
        yield patient, place, away < rows["diam_this_visit"].max() / 2
        if (made := made + 1) == MOST:
            return


def _volume(path: Path) -> Array:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def brightness(number: object, image: object) -> object:
    """No explanation at all: the scan above its darkest value, what any method must beat."""
    plain = image.as_tensor()[0]  # type: ignore[attr-defined]
    return plain - plain.min()


def pointing(
    name: str,
    predictor: Predictor,
    planted: Callable[[list[Patient]], Iterator[tuple[Patient, int, Array]]],
    methods: dict[str, SaliencyMap],
) -> list[str]:
    """One row for each method: the share of saliency on what was planted, and how often its peak lies there."""
    training = TRAININGS[name]
    energy: dict[str, list[float]] = {method: [] for method in methods}
    hits: dict[str, list[bool]] = {method: [] for method in methods}
    alike: dict[str, list[tuple[float, float]]] = {method: [] for method in methods}
    share = []
    for patient, place, truth in planted(patients_of(training, "val")):
        images, fixed = numbers_by_scan(predictor, patient)
        numbers = [replace(one, place=place) for one in fixed]
        share.append(truth.mean())
        for method, make in methods.items():
            found = mean_map(numbers, images[place], make)
            own = np.abs(np.asarray(to_native_space(found, images[place], predictor.transform)))
            if own.any():
                energy[method].append(own[truth].sum() / own.sum() / truth.mean())
                hits[method].append(bool(truth[np.unravel_index(own.argmax(), own.shape)]))
            else:  # a map of nothing points nowhere
                energy[method].append(0.0)
                hits[method].append(False)
            if len(alike[method]) < 5:
                check = randomisation_check(numbers, images[place], method=make, draws=1)
                alike[method].append((check.head, check.whole))
    return [
        f"| `{training.pack}` {training.target}, {training.pool} | {method} | {len(share)} | "
        f"{told(energy[method])} | {told(hits[method])} | {np.mean(share):.3f} | "
        f"{np.mean(alike[method], axis=0)[0]:.2f} | {np.mean(alike[method], axis=0)[1]:.2f} |"
        for method in methods
    ]


DECIDING = (
    "| target | pool | MAE | new patients | whose largest scan leads by more than the MAE | chance "
    "| error of its contribution | patients it learned from | those of a clear lead |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
TOLD = "| told of each scan | new scans | correlation | largest scan has the largest number |\n|---|---|---|---|"
POINTING = (
    "| network | map | patients | energy on it, times its share of the scan | peak on it | its share | "
    "alike, random head | alike, random network |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/explain"), help="where trained networks are kept")
    parser.add_argument("--only", nargs="*", default=list(TRAININGS), choices=list(TRAININGS))
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/benchmarks.md")
    options = parser.parse_args()
    first, told_rows, second = [DECIDING], [TOLD], [POINTING]
    own = {"the scan itself": brightness, "GradCAM": gradcam}
    for name in options.only:
        folders = [train(name, seed, options.runs) for seed in TRAININGS[name].seeds]
        if TRAININGS[name].told:
            told_rows.append(told_of_scans(name, folders[0]))
            print(told_rows[-1], flush=True)
            continue
        predictors = [Predictor.from_bundle(ROOT / "bundle", models=folder) for folder in folders]
        predictor = predictors[0]
        for number in sorted({1, len(folders)}):
            first.append(told_of_deciding(name, predictors[:number], folders[:number]))
            print(first[-1], flush=True)
        if TRAININGS[name].pack == "digits_bags":
            coarser = {"GradCAM, `class_layers.relu`": partial(gradcam, layer="class_layers.relu")}
            second += pointing(name, predictor, digits, {**own, **coarser, "occlusion": occlusion})
        elif TRAININGS[name].pack == "growth3d":
            coarser = {f"GradCAM, `{layer}`": partial(gradcam, layer=layer) for layer in ("layer3", "layer4")}
            second += pointing(name, predictor, lesions, {**own, **coarser, "occlusion": occlusion})
        print("\n".join(second), flush=True)
    text = "\n\n".join("\n".join(table) for table in (first, told_rows, second))
    print(text)
    if options.docs:
        into_docs("explanations", text)


if __name__ == "__main__":
    main()

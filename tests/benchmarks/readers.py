"""What each reader does with real and broken series, into docs/benchmarks.md: ``python tests/benchmarks/readers.py``.

A pack is a folder with ``expected.json`` in the form of shared/data/dicom; another one may be named: ``--pack FOLDER``.
Each reader runs in a process of its own, which a crash or a minute without an answer ends for that item alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from docs_tables import into_docs

ROOT = Path(__file__).parents[2]
PACK = ROOT.parent / "shared/data/dicom"
Volumes = list[tuple[np.ndarray, np.ndarray | None]]
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def ours(folder: Path) -> Volumes:
    from monai_mvreg.scans.find import find_scans
    from monai_mvreg.scans.read import read_scan

    scans, left_out = find_scans(folder)
    scans += [item.scan for item in left_out if item.scan is not None]
    refused = [item.reason for item in left_out if item.reason.startswith("series")]
    if refused or not scans:
        raise ValueError("; ".join([*refused, *(f"{i.path.parent.name}/{i.path.name}: {i.reason}" for i in left_out)]))
    found = [(scan, read_scan(scan)) for scan in scans]
    return [(d.array[:, :, None] if len(s.shape) == 2 else d.array, d.affine) for s, d in found]


def monai(reader: str) -> Callable[[Path], Volumes]:
    def read(folder: Path) -> Volumes:
        import monai.data

        made = getattr(monai.data, reader)()
        path = folder if len(list(folder.iterdir())) > 1 else next(folder.iterdir())
        array, meta = made.get_data(made.read(str(path)))
        affine = np.asarray(meta["affine"])
        return [(np.asarray(array), affine if affine.shape == (4, 4) else None)]

    return read


def simple_itk(folder: Path) -> Volumes:
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise ValueError("no series")
    found: Volumes = []
    for uid in series:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        image = sitk.ReadImage(names if len(names) > 1 else names[0])
        array = sitk.GetArrayFromImage(image)
        size = image.GetDimension()
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (size, size))[:3, :3] * image.GetSpacing()[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
        colours = image.GetNumberOfComponentsPerPixel() > 1
        axes = tuple(range(size))[::-1] + ((size,) if colours else ())
        found.append((array.transpose(axes), FLIP @ affine))
    return found


def nifti_files(folder: str) -> Volumes:
    found: Volumes = []
    for path in sorted(Path(folder).rglob("*.nii*")):
        image = nib.load(path)
        kind = image.get_data_dtype()
        array = np.asarray(image.dataobj)
        if kind.names:
            array = np.ascontiguousarray(array).view("u1").reshape(*array.shape, len(kind.names))
        found.append((array if array.ndim > 2 else array[..., None], image.affine))
    if not found:
        raise ValueError("no file came out")
    return found


def dcm2niix(folder: Path) -> Volumes:
    with tempfile.TemporaryDirectory() as out:
        command = ["dcm2niix", "-p", "n", "-b", "n", "-z", "n", "-m", "o", "-f", "%s_%n", "-o", out, str(folder)]
        subprocess.run(command, capture_output=True, check=False)
        evened = list(Path(out).glob("*_Eq*"))
        if evened:  # it resampled what is uneven and says so, which is one right answer
            raise ValueError("resampled")
        return nifti_files(out)


def dicom2nifti(folder: Path) -> Volumes:
    import dicom2nifti.convert_dir

    with tempfile.TemporaryDirectory() as out:
        dicom2nifti.convert_dir.convert_directory(str(folder), out, compression=False, reorient=False)
        return nifti_files(out)


def highdicom(folder: Path) -> Volumes:
    import highdicom as hd
    import pydicom

    files = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[128:132] == b"DICM"]
    images = [pydicom.dcmread(path) for path in files]
    if len(images) == 1 and "NumberOfFrames" in images[0]:
        volume = hd.image.Image.from_dataset(images[0]).get_volume(apply_icc_profile=False)
    else:
        volume = hd.get_volume_from_series(images)
    lps = np.asarray(volume.get_affine("LPS") if hasattr(volume, "get_affine") else volume.affine)
    return [(volume.array, FLIP @ lps)]


TOOLS: dict[str, tuple[Callable[[Path], Volumes], str]] = {
    "monai_mvreg": (ours, "monai-mvreg"),
    "MONAI PydicomReader": (monai("PydicomReader"), "monai"),
    "MONAI ITKReader": (monai("ITKReader"), "monai"),
    "SimpleITK": (simple_itk, "SimpleITK"),
    "dicom2nifti": (dicom2nifti, "dicom2nifti"),
    "highdicom": (highdicom, "highdicom"),
    "dcm2niix": (dcm2niix, "dcm2niix"),
}


def is_volume(found: tuple[np.ndarray, np.ndarray | None], wanted: dict[str, Any], scale: float) -> bool:
    """Whether a volume has the wanted shape, corners within 0.01 mm, mean and spread within 1e-5; for any axis order.

    A radiograph stored inverted may come either way, and a dose in stored integers or in Gy: each is one convention.
    """
    array, affine = found
    array = np.squeeze(array) if array.ndim > 3 else array
    shape = [n for n in wanted["shape"] if n > 1]
    if wanted["affine"] is not None and array.ndim >= 2:
        if affine is None:
            return False
        array = array[..., None] if array.ndim == 2 else array
        image = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.float32), affine))
        array = np.asarray(image.dataobj)
        if list(array.shape[:3]) != wanted["shape"][:3]:
            return False
        ends = np.stack(np.meshgrid(*[[0, n - 1] for n in array.shape[:3]], indexing="ij"), -1).reshape(-1, 3)
        apart = ends @ (image.affine[:3, :3] - np.array(wanted["affine"])[:3, :3]).T
        if np.abs(apart + image.affine[:3, 3] - np.array(wanted["affine"])[:3, 3]).max() > 0.01:
            return False
    if sorted(n for n in array.shape if n > 1) != sorted(shape):
        return False
    mean, spread = array.mean(dtype=np.float64), array.std(dtype=np.float64)
    means = [wanted["mean"], wanted["mean"] * scale, wanted["min"] + wanted["max"] - wanted["mean"]]
    spreads = [wanted["std"], wanted["std"] * scale]
    return any(np.isclose(mean, m, rtol=1e-5) for m in means) and any(np.isclose(spread, s, rtol=1e-5) for s in spreads)


def is_safely(found: tuple[np.ndarray, np.ndarray | None], wanted: dict[str, Any], scale: float) -> bool:
    """The same; an affine that is no geometry at all is not the wanted one."""
    try:
        return is_volume(found, wanted, scale)
    except (np.linalg.LinAlgError, nib.orientations.OrientationError, nib.spatialimages.HeaderDataError, ValueError):
        return False


def verdict(tool: str, pack: Path, item: dict[str, Any]) -> tuple[str, str]:
    """``right``, ``WRONG`` (something came out that is not so, and no error) or ``refused``; and what was said."""
    wanted = item.get("volumes", [])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = TOOLS[tool][0](pack / item["folder"])
    except Exception as error:
        return ("right" if item["expect"] == "error" else "refused"), f"{type(error).__name__}: {error}"
    if item["expect"] == "error" or not found:
        return ("WRONG" if found else "right"), f"shapes {[array.shape for array, _ in found]}"
    if "step_mm" in item:
        ((array, affine),) = found[:1]
        step = 0.0 if affine is None else float(np.linalg.norm(affine[:3, 2]))
        good = len(found) == 1 and item["n_slices"] in array.shape and abs(step - item["step_mm"]) < 0.01
        return ("right" if good else "WRONG"), f"step {step:.4f} mm"
    scale = 1e-6 if item["id"] == "rtdose" else 1.0
    left = list(found)
    for volume in wanted:
        match = next((at for at, one in enumerate(left) if is_safely(one, volume, scale)), None)
        if match is None:
            return "WRONG", f"shapes {[array.shape for array, _ in found]}"
        left.pop(match)
    return ("WRONG" if left else "right"), f"{len(left)} volumes too many" if left else ""


def serve(tool: str, pack: Path, pipe: Connection) -> None:
    """Answer one item after the other, in a process of its own."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    while (item := pipe.recv()) is not None:
        pipe.send(verdict(tool, pack, item))


def run(tool: str, pack: Path, items: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """The verdicts of one reader."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, tuple[str, str]] = {}
    process = None
    for item in items:
        if process is None or not process.is_alive():
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(tool, pack, there), daemon=True)
            process.start()
            there.close()
        here.send(item)
        try:
            found[item["id"]] = here.recv() if here.poll(60) else ("crash", "no answer in a minute")
        except EOFError:
            found[item["id"]] = ("crash", "the process ended")
        if found[item["id"]][0] == "crash":
            process.kill()
            process = None
    if process is not None:
        here.send(None)
        process.join(5)
    return found


def table(verdicts: dict[str, dict[str, tuple[str, str]]], items: list[dict[str, Any]]) -> str:
    """The counts and the whole table, as Markdown."""
    tools = list(verdicts)
    kinds = ("right", "WRONG", "refused", "crash")
    lines = [f"| reader | version | {' | '.join(kinds)} |", f"|---|---|{'---|' * len(kinds)}"]
    for tool in tools:
        said = [kind for kind, _ in verdicts[tool].values()]
        counts = " | ".join(str(said.count(kind)) for kind in kinds)
        lines.append(f"| {tool} | {version(TOOLS[tool][1])} | {counts} |")
    lines += ["", f"| series | {' | '.join(tools)} |", f"|---|{'---|' * len(tools)}"]
    for item in items:
        cells = [verdicts[tool][item["id"]][0].replace("WRONG", "**WRONG**") for tool in tools]
        lines.append(f"| `{item['id']}` {item['quirk']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare readers on a pack of series.")
    parser.add_argument("--pack", type=Path, default=PACK, help="a folder with expected.json")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--docs", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    expected = json.loads((options.pack / "expected.json").read_text(encoding="utf-8"))
    items = [item for part in ("series", "broken") for item in expected.get(part, [])]
    verdicts = {}
    for tool in options.tools:
        verdicts[tool] = run(tool, options.pack, items)
        for name, (kind, said) in verdicts[tool].items():
            if kind != "right":
                print(f"{tool}: {name}: {kind} ({said[:200]})", flush=True)
    text = table(verdicts, items)
    print(text)
    if options.docs:
        into_docs("readers", text)


if __name__ == "__main__":
    main()

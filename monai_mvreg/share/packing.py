"""A trained bundle -> one file that can be sent, checked and unpacked; its configs are code, its weights are not.

A pack is a zip of a strict form: known file names only, nothing compressed, and ``manifest.json`` with the size and
SHA-256 of every file. So it cannot grow when it is read, hide a file, or write outside its folder. The same bundle
gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.predict.prediction import PURPOSE
from monai_mvreg.trained.model_files import check_files, read_whole
from monai_mvreg.trained.model_settings import parse_settings, read_settings
from monai_mvreg.trained.trained_model import model_folders, read_residuals, read_trained
from monai_mvreg.trained.weights import read_weights, weights_hash

FORMAT = "monai-mvreg pack 1"
_MANIFEST = "manifest.json"
_LARGEST = 8 * 2**30  # bytes: a pack is checked in memory
_OF_MODEL = ("settings.json", "domain.json", "intervals.json", "survival.json", "training.json")
# Every place a file may have. No pickle, no Python, nothing that a viewer would run.
_PLACES = re.compile(
    r"LICENSE|configs/[^/]+\.(yaml|yml|json|conf)|docs/.+\.(md|txt|png|jpg)|models/residuals\.csv"
    rf"|models/(fold-[^/]+_seed-[^/]+/models/)?(model\.safetensors|{'|'.join(map(re.escape, _OF_MODEL))})"
)
_CODE = re.compile(r"configs/.*|models/(.*/)?settings\.json")
_KNOWN = {"torch", "monai", "monai_mvreg", "ignite"}


@dataclass(frozen=True)
class PackFacts:
    """What a pack holds, from its files.

    Args:
        sha256: of the whole pack.
        name: of the bundle.
        version: of the bundle.
        target: what it predicts.
        unit: of that.
        weights: SHA-256 of the tensors of each network, as in a prediction.
        versions: of the software that made the pack.
        files: size in bytes by name.
        expressions: what is run as Python when the bundle is used, by file: ``$`` expressions, other files that are
            read in (``%``), and what Python's logging evaluates.
        foreign: by file, each ``_target_`` that is not of torch, MONAI, Ignite or this package.
    """

    sha256: str
    name: str
    version: str
    target: tuple[str, ...]
    unit: str
    weights: tuple[str, ...]
    versions: Mapping[str, str]
    files: Mapping[str, int]
    expressions: Mapping[str, tuple[str, ...]]
    foreign: Mapping[str, tuple[str, ...]]


def pack_bundle(bundle: str | Path, models: str | Path, path: str | Path) -> PackFacts:
    """Write a trained bundle as one file, after checking that it can predict.

    The file holds LICENSE, configs and docs, and of each model what a prediction needs, with the weights as
    safetensors. It holds no checkpoints, predictions or patients: of a cross-validation only the fold and the error of
    each patient, without keys and in another order, which its intervals need.

    Args:
        bundle: the folder of the bundle.
        models: ``model_dir`` of a training, or the folder of a cross-validation.
        path: the file to write.

    Returns:
        The contents of the pack, as :func:`verify_bundle` reads them.

    Raises:
        FileNotFoundError: if something is missing that a prediction needs.
        ValueError: as :func:`~monai_mvreg.trained.trained_model.read_trained`, or if the pack would be larger than
            8 GiB.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     facts = pack_bundle("study", "study/models", f"{folder}/study.zip")
        >>> facts.target, facts.unit
        (('growth',), 'mm/a')
    """
    bundle, models, path = Path(bundle), Path(models), Path(path)
    trained = read_trained(bundle, models, torch.device("cpu"))
    files = {name: (bundle / name).read_bytes() for name in _files_of(bundle)}
    places = model_folders(models)
    for place in places:
        home = "models" if place == models else f"models/{place.parent.name}/models"
        files |= {f"{home}/{name}": content for name, content in read_whole(place, _model_of).items()}
    if places != [models]:
        residuals = read_residuals(models, trained.settings.target)
        residuals = residuals.sort_values(list(residuals.columns))
        files["models/residuals.csv"] = residuals.to_csv(index=False).encode()
    manifest = {
        "format": FORMAT,
        "purpose": PURPOSE,
        "versions": {name: version(name) for name in ("monai-mvreg", "monai", "torch")},
        "files": {name: {"size": len(files[name]), "sha256": _sha256(files[name])} for name in sorted(files)},
    }
    files[_MANIFEST] = json.dumps(manifest, indent=1).encode()
    if sum(map(len, files.values())) > _LARGEST:
        raise ValueError(f"expected a bundle of at most {_LARGEST} bytes, got {sum(map(len, files.values()))}")
    with atomic_write(path) as unfinished:
        with zipfile.ZipFile(unfinished, "w") as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name)  # of 1980
                entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                archive.writestr(entry, files[name])
        return verify_bundle(unfinished)


def verify_bundle(path: str | Path, *, sha256: str | None = None) -> PackFacts:
    """Check a pack and list its contents, without running any of it.

    Args:
        path: the pack.
        sha256: the hash of the whole file as its makers published it; None if it is not known. The hashes inside show
            that a pack is intact; only this one shows that it comes from its makers.

    Returns:
        The contents of the pack, with everything in it that runs as Python when the bundle is used.

    Raises:
        ValueError: if its files do not match its manifest, its form is not that of a pack, or its hash is not
            ``sha256``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     packed = pack_bundle("study", "study/models", f"{folder}/study.zip")
        ...     verify_bundle(f"{folder}/study.zip", sha256=packed.sha256) == packed
        True
    """
    return _checked(Path(path), sha256)[0]


def unpack_bundle(path: str | Path, out: str | Path, *, sha256: str | None = None) -> PackFacts:
    """Check a pack and write its files to a folder that ``mvreg predict --bundle`` and ``Predictor`` take.

    Args:
        path: the pack.
        out: a folder that does not exist yet, or is empty.
        sha256: as in :func:`verify_bundle`.

    Returns:
        The contents of the pack.

    Raises:
        ValueError: as :func:`verify_bundle`, or if ``out`` is not empty.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     packed = pack_bundle("study", "study/models", f"{folder}/study.zip")
        ...     _ = unpack_bundle(f"{folder}/study.zip", f"{folder}/copy", sha256=packed.sha256)
        ...     sorted(path.name for path in Path(folder, "copy").iterdir())
        ['LICENSE', 'configs', 'manifest.json', 'models']
    """
    out = Path(out)
    facts, files = _checked(Path(path), sha256)
    if out.exists():
        if not out.is_dir() or any(out.iterdir()):
            raise ValueError(f"expected a new or an empty folder, got {out}: name another one")
        out.rmdir()
    unfinished = out.with_name(out.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    for name, content in files.items():
        place = unfinished / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    unfinished.rename(out)
    return facts


def _model_of(folder: Path) -> dict[str, bytes]:
    """The files of a model that go into a pack; the hashes of its patients stay where it was trained."""
    files = {name: (folder / name).read_bytes() for name in _OF_MODEL if (folder / name).is_file()}
    weights = {name: tensor.contiguous().clone() for name, tensor in read_weights(folder).items()}
    check_files(folder, read_settings(folder / "settings.json").files, weights=weights_hash(weights))
    return {**files, "model.safetensors": safetensors.torch.save(weights)}


def _files_of(bundle: Path) -> list[str]:
    names = [file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()]
    return [name for name in names if _PLACES.fullmatch(name) and not name.startswith("models/")]


def _checked(path: Path, sha256: str | None) -> tuple[PackFacts, dict[str, bytes]]:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name}: expected a pack of at most {_LARGEST} bytes, got {path.stat().st_size}")
    data = path.read_bytes()
    found = _sha256(data)
    if sha256 is not None and found != sha256.strip().lower():
        raise ValueError(f"{path.name}: expected the SHA-256 {sha256.strip().lower()}, got {found}: it is another file")
    try:
        files = _entries(data)
        told = files.pop(_MANIFEST)
        manifest = json.loads(told)
        _compare(files, manifest)
        return _facts(found, files, manifest), {**files, _MANIFEST: told}
    except _PackError as error:
        raise ValueError(f"{path.name}: expected a pack of mvreg pack, got {error}") from None
    # What a hostile file makes zipfile, json, yaml or safetensors raise.
    except (zipfile.BadZipFile, safetensors.SafetensorError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name}: expected a pack of mvreg pack, got a damaged one: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, NotImplementedError, RecursionError):
        raise ValueError(f"{path.name}: expected a pack of mvreg pack, got something else") from None


class _PackError(Exception):
    """What is wrong with a pack."""


def _entries(data: bytes) -> dict[str, bytes]:
    """Read the entries of a zip of the strict form."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len({name.casefold() for name in names}) < len(names):
            raise _PackError("one name twice")
        for entry in entries:
            name = entry.filename
            # zipfile mends such names; what the zip itself says counts.
            odd = name != entry.orig_filename or not name.isprintable() or set(name) & set('\\:*?"<>|')
            if odd or {"", ".", ".."} & set(name.split("/")) or not (name == _MANIFEST or _PLACES.fullmatch(name)):
                raise _PackError(f"a file that is none of a bundle: {name[:100]!r}")
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG) or entry.external_attr & 0x10:
                raise _PackError(f"a link or a folder instead of a file: {name[:100]!r}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise _PackError(f"a file that is compressed or encrypted: {name[:100]!r}")
        # Nothing is compressed: entries that are larger than the file, or lie in each other, are a trick.
        inside = sum(entry.file_size for entry in entries)
        if inside > len(data) or archive.comment or min((entry.header_offset for entry in entries), default=0):
            raise _PackError("something else beside its files")
        if _MANIFEST not in names:
            raise _PackError(f"no {_MANIFEST}")
        return {name: archive.read(name) for name in names}


def _compare(files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        told_format = str(manifest["format"])[:100]
        raise _PackError(f"one of the format {told_format!r}, not {FORMAT!r}: of another version")
    told = manifest["files"]
    if extra := sorted(set(files) - set(told)):
        raise _PackError(f"a file that its manifest does not name: {extra[0]!r}")
    if missing := sorted(set(told) - set(files)):
        raise _PackError(f"no {missing[0][:100]!r}, which its manifest names")
    for name, content in files.items():
        if told[name] != {"size": len(content), "sha256": _sha256(content)}:
            raise _PackError(f"another {name!r} than its manifest says: it is damaged or was changed")


def _facts(sha256: str, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> PackFacts:
    metadata = json.loads(files["configs/metadata.json"])
    of_models = sorted(name for name in files if name.endswith("settings.json"))
    places = [name.removesuffix("settings.json") + "model.safetensors" for name in of_models]
    if not places or sorted(places) != sorted(name for name in files if name.endswith(".safetensors")):
        raise _PackError("models without settings, or settings without a model")
    settings = parse_settings(files[of_models[0]], where=of_models[0])
    found = {name: tuple(_code(name, files[name])) for name in sorted(files) if _CODE.fullmatch(name)}
    return PackFacts(
        sha256=sha256,
        name=str(metadata["name"]),
        version=str(metadata["version"]),
        target=settings.target,
        unit=settings.unit,
        weights=tuple(weights_hash(safetensors.torch.load(files[place])) for place in places),
        versions={str(name): str(release) for name, release in manifest["versions"].items()},
        files={name: len(content) for name, content in sorted(files.items())},
        expressions={name: tuple(text for kind, text in both if kind == "$") for name, both in found.items()},
        foreign={name: tuple(text for kind, text in both if kind == "_target_") for name, both in found.items()},
    )


def _code(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    """What MONAI would evaluate of a file, as ``$`` or ``_target_`` and the text."""
    text = content.decode("utf-8")
    if name.endswith(".conf"):
        yield from (("$", line) for line in re.findall(r"(?im)^\s*(?:kwargs|args|class)\s*[=:].*", text))
        return
    waiting = [yaml.safe_load(text) if name.endswith(("yaml", "yml")) else json.loads(text)]
    seen = set()
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, (dict, list)):
            if id(thing) in seen:  # an alias of YAML
                continue
            seen.add(id(thing))
            parts = dict(enumerate(thing)) if isinstance(thing, list) else thing
            waiting += list(parts.values())[::-1]
            target = parts.get("_target_")
            if isinstance(target, str) and target[:1] not in ("$", "%"):  # without a dot too: open, or __import__
                yield from [("_target_", target)] if target.partition(".")[0] not in _KNOWN else []
        elif isinstance(thing, str) and thing[:1] in ("$", "%"):
            yield "$", thing


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Scans -> embeddings of a frozen encoder, computed once and kept on disk by what they were computed from.

The name of an entry is a hash of the bytes of the scan, of the transforms with their code, and of the encoder with its
weights. What differs in any of these has another name, so nothing has to be declared out of date.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, RandomizableTrait
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cache.fingerprint import fingerprint
from monai_mvreg.networks.encoders import PretrainedEncoder
from monai_mvreg.scans.content_hash import codec_releases, content_hashes

logger = logging.getLogger(__name__)

_ENDING, _UNFINISHED = ".embedding", ".part"
_CHECK = hashlib.sha256().digest_size
_ABANDONED = 86_400.0  # seconds after which a file that was never finished has no writer any more


class EmbeddedScans:
    """Replace the scans of a patient by their embeddings; a transform for a dataset of MONAI.

    All embeddings are looked up, or computed and kept, when this is made; then they stay in memory, and no file is
    read any more. Files are written whole under another name and then renamed, so several processes may share a folder,
    and a run that is killed leaves nothing to mend: the next one goes on from there. An entry is checked when it is
    read, and computed anew if it is damaged.

    Embeddings are computed in float32 whatever precision the training uses.

    Args:
        patients: items of a dataset, whose ``image`` lists the addresses of scans.
        transform: from an item with addresses to ``image`` ``(N, C, *spatial)``, each scan by itself.
        encoder: a frozen encoder on the device that it shall run on.
        folder: where the embeddings are kept; made if it does not exist.
        max_bytes: size the folder is brought back to by deleting what was not used for longest, except what this run
            uses.
        batch_size: scans that are encoded at once.

    Raises:
        ValueError: if the encoder is not frozen, a transform is random, or a file changes while it is read.
        ScanError: if a scan cannot be read.
    """

    def __init__(
        self,
        patients: Sequence[Mapping[str, Any]],
        *,
        transform: Compose,
        encoder: nn.Module,
        folder: str,
        max_bytes: int,
        batch_size: int = 16,
    ) -> None:
        key = cache_key(transform, encoder)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        addresses = list(dict.fromkeys(scan for patient in patients for scan in patient["image"]))
        contents = content_hashes(tqdm(addresses, "contents", unit="scan", disable=None))
        names = {address: entry_name(key, contents[address]) for address in addresses}
        found = {name: read_embedding(self.folder, name) for name in dict.fromkeys(names.values())}
        missing = {name: address for address, name in names.items() if found[name] is None}
        logger.info("embeddings: %d are on disk, %d are computed", len(found) - len(missing), len(missing))

        weights = next(encoder.parameters(), torch.empty(0))
        encoder.eval()
        # The network inside, which is never compiled: the same bits whatever the settings.
        plain: Any = encoder.encoder
        with torch.no_grad(), tqdm(total=len(missing), desc="embeddings", unit="scan", disable=None) as bar:
            for start in range(0, len(missing), batch_size):
                batch = list(missing.items())[start : start + batch_size]
                # Alone, so that nothing else that is known of the patient can matter.
                images = [transform({"image": [address]})["image"] for _, address in batch]
                if len(shapes := {tuple(image.shape) for image in images}) > 1:
                    raise ValueError(f"expected scans of one shape (1, C, *spatial), got {sorted(shapes)}")
                embedded = plain(torch.cat(images).to(weights.device, weights.dtype)).float().cpu()
                # A file that is replaced after it was hashed must not leave its embedding under the old name.
                if content_hashes([a for _, a in batch]) != {a: contents[a] for _, a in batch}:
                    raise ValueError("expected scans that do not change while they are read, got one that did")
                for (name, _), embedding in zip(batch, embedded, strict=True):
                    found[name] = embedding
                    write_embedding(self.folder, name, embedding)
                bar.update(len(batch))
        rows = {name: row for row, name in enumerate(found)}
        self.rows = {address: rows[name] for address, name in names.items()}
        self.embeddings = torch.stack([embedding for embedding in found.values() if embedding is not None])
        prune_embeddings(self.folder, max_bytes, keep=set(found))
        encoder.register_load_state_dict_post_hook(_same_weights(encoder))  # type: ignore[no-untyped-call]

    def __call__(self, patient: Mapping[str, Any]) -> dict[str, Any]:
        """Give the item of a patient with ``image`` ``(N, E)``.

        Raises:
            KeyError: for a scan that was not among those this was made with.
        """
        return {**patient, "image": self.embeddings[[self.rows[address] for address in patient["image"]]]}


def cache_key(transform: Compose, encoder: nn.Module) -> str:
    """Hash how a scan becomes an embedding.

    Raises:
        ValueError: if the encoder is not frozen, or a transform is random.
    """
    if not isinstance(encoder, PretrainedEncoder) or not encoder.frozen:
        raise ValueError(
            "expected an encoder wrapped whole in PretrainedEncoder, with learn: [], got "
            f"{type(encoder).__name__}{' with parts that learn' if isinstance(encoder, PretrainedEncoder) else ''}"
        )
    steps = transform.flatten().transforms
    if random := [type(step).__name__ for step in steps if isinstance(step, RandomizableTrait)]:
        raise ValueError(f"expected transforms that do the same every time, got {', '.join(random)}")
    return fingerprint(steps, encoder, [transform.map_items, transform.unpack_items, transform.lazy, codec_releases()])


def entry_name(key: str, content: str) -> str:
    """Name the entry of a scan: by the hash of its content, and the key of how it is embedded."""
    return hashlib.sha256(f"{key} {content}".encode()).hexdigest()


def read_embedding(folder: Path, name: str) -> Tensor | None:
    """Read an entry ``(E,)`` and note that it was used; None if there is none, or it is damaged."""
    path = folder / (name + _ENDING)
    try:
        whole = path.read_bytes()
        os.utime(path)
    except FileNotFoundError:
        return None
    values = whole[_CHECK:]
    if whole[:_CHECK] != _check(name, values):
        logger.warning("an embedding on disk is damaged: it is computed anew")
        return None
    return torch.from_numpy(np.frombuffer(values, "<f4").astype(np.float32))


def write_embedding(folder: Path, name: str, embedding: Tensor) -> None:
    """Write an entry ``(E,)``; other processes see it whole or not at all."""
    values = embedding.numpy().astype("<f4").tobytes()
    unfinished = folder / (uuid.uuid4().hex + _UNFINISHED)
    unfinished.write_bytes(_check(name, values) + values)
    unfinished.replace(folder / (name + _ENDING))


def prune_embeddings(folder: Path, max_bytes: int, *, keep: Container[str]) -> None:
    """Delete what was not used for longest until ``max_bytes`` are left, but none of the entries to keep.

    Files that a killed process left unfinished are deleted after a day.
    """
    found = []
    for path in folder.iterdir():
        if path.suffix in (_ENDING, _UNFINISHED):
            with contextlib.suppress(FileNotFoundError):  # another process prunes too
                found.append((path.stat(), path))
    total = sum(facts.st_size for facts, _ in found)
    for facts, path in sorted(found, key=lambda file: file[0].st_mtime_ns):
        if path.suffix == _UNFINISHED:
            superfluous = time.time() - facts.st_mtime > _ABANDONED
        else:
            superfluous = total > max_bytes and path.stem not in keep
        if superfluous:
            path.unlink(missing_ok=True)
            total -= facts.st_size
    if total > max_bytes:
        logger.warning("%d bytes of embeddings are in use, more than the limit of %d", total, max_bytes)


def _check(name: str, values: bytes) -> bytes:
    """The first bytes of an entry; the name is in them, so that an entry under another name is damaged too."""
    return hashlib.sha256(name.encode() + values).digest()


def _norms(network: nn.Module) -> list[float]:
    return [float(tensor.double().norm()) for tensor in network.state_dict().values()]


def _same_weights(encoder: nn.Module) -> Callable[[nn.Module, Any], None]:
    """Refuse other weights that are loaded later, from a checkpoint of another run: the embeddings would not be theirs.

    Norms are compared, and not exactly: a running mean of weights that never change is off by a rounding error.
    """
    norms = _norms(encoder)

    def check(module: nn.Module, _: Any) -> None:
        if not np.allclose(_norms(module), norms, rtol=1e-4, atol=1e-6):
            raise ValueError("expected the weights of the encoder that the embeddings are of, a checkpoint has others")

    return check

"""Scan -> embedding of a frozen encoder, computed once and kept on disk.

The name of an entry is a hash of the bytes of the scan, of the transforms with their code, and of the encoder with its
weights. Whatever changes, the entry has another name, so no entry is ever out of date.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, RandomizableTrait
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from monai_mvreg.cache.fingerprint import fingerprint
from monai_mvreg.cache.store import ContentStore, DamagedEntryError, entry_name
from monai_mvreg.networks.encoders import PretrainedEncoder
from monai_mvreg.scans.content_hash import codec_releases, content_hashes

logger = logging.getLogger(__name__)


class EmbeddedScans:
    """Replace the scans of a patient by their embeddings; a transform for a MONAI dataset.

    When this is made, all embeddings are read from the folder, or computed and added to it; then they stay in memory.
    Processes may share the folder, and a run that follows a killed one continues with the embeddings it finds. A
    damaged entry is computed again.

    Embeddings are computed in float32 whatever precision the training uses.

    Args:
        patients: items of a dataset, whose ``image`` lists the addresses of scans.
        transform: from an item with addresses to ``image`` ``(N, C, *spatial)``, each scan independently.
        encoder: a frozen encoder on the device it runs on.
        folder: of the cache; made if it does not exist.
        max_bytes: size to which the folder is reduced by deleting the least recently used entries, but none of this
            run.
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
        store = embedding_store(Path(folder))
        addresses = list(dict.fromkeys(scan for patient in patients for scan in patient["image"]))
        contents = content_hashes(tqdm(addresses, "contents", unit="scan", disable=None))
        names = {address: entry_name(key, contents[address]) for address in addresses}
        found = {name: read_embedding(store, name) for name in dict.fromkeys(names.values())}
        missing = {name: address for address, name in names.items() if found[name] is None}
        logger.info("embeddings: %d cached, %d to compute", len(found) - len(missing), len(missing))

        weights = next(encoder.parameters(), torch.empty(0))
        encoder.eval()
        # The inner network is never compiled, so the embeddings do not depend on the settings of compilation.
        plain: Any = encoder.encoder
        with torch.no_grad(), tqdm(total=len(missing), desc="embeddings", unit="scan", disable=None) as bar:
            for start in range(0, len(missing), batch_size):
                batch = list(missing.items())[start : start + batch_size]
                # Only the address goes in, so nothing else about the patient can matter.
                images = [transform({"image": [address]})["image"] for _, address in batch]
                if len(shapes := {tuple(image.shape) for image in images}) > 1:
                    raise ValueError(f"expected scans of one shape (1, C, *spatial), got {sorted(shapes)}")
                embedded = plain(torch.cat(images).to(weights.device, weights.dtype)).float().cpu()
                # A file that is replaced after it was hashed must not leave its embedding under the old name.
                for address, content in content_hashes([address for _, address in batch]).items():
                    if content != contents[address]:
                        raise ValueError(f"{Path(address).name}: file changed on disk while it was being read")
                for (name, _), embedding in zip(batch, embedded, strict=True):
                    found[name] = embedding
                    write_embedding(store, name, embedding)
                bar.update(len(batch))
        rows = {name: row for row, name in enumerate(found)}
        self.rows = {address: rows[name] for address, name in names.items()}
        self.embeddings = torch.stack([embedding for embedding in found.values() if embedding is not None])
        in_use = store.prune(max_bytes, keep=set(found))
        if in_use > max_bytes:
            logger.warning("embeddings in use take %d bytes, more than max_bytes=%d", in_use, max_bytes)
        encoder.register_load_state_dict_post_hook(_same_weights(encoder))  # type: ignore[no-untyped-call]

    def __call__(self, patient: Mapping[str, Any]) -> dict[str, Any]:
        """Replace ``image`` of a patient by embeddings ``(N, E)``.

        Raises:
            KeyError: for a scan of none of the patients this was made with.
        """
        return {**patient, "image": self.embeddings[[self.rows[address] for address in patient["image"]]]}


def cache_key(transform: Compose, encoder: nn.Module) -> str:
    """Hash how a scan becomes an embedding.

    Raises:
        ValueError: if the encoder is not frozen, or a transform is random.
    """
    if not isinstance(encoder, PretrainedEncoder) or not encoder.frozen:
        raise ValueError(
            "expected a frozen encoder, that is PretrainedEncoder with learn: [], got "
            f"{type(encoder).__name__}{' with trainable layers' if isinstance(encoder, PretrainedEncoder) else ''}"
        )
    steps = transform.flatten().transforms
    if random := [type(step).__name__ for step in steps if isinstance(step, RandomizableTrait)]:
        raise ValueError(f"expected deterministic transforms, got {', '.join(random)}")
    return fingerprint(steps, encoder, [transform.map_items, transform.unpack_items, transform.lazy, codec_releases()])


def embedding_store(folder: Path) -> ContentStore:
    """Open a folder of embeddings; it is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    return ContentStore(folder, ".embedding")


def read_embedding(store: ContentStore, name: str) -> Tensor | None:
    """Read an embedding, and note that it was used.

    Args:
        store: made by :func:`embedding_store`.
        name: made by :func:`~monai_mvreg.cache.store.entry_name`.

    Returns:
        The embedding ``(E,)``, or None if it is not cached or damaged.
    """
    try:
        content = store.read_bytes(name)
    except DamagedEntryError:
        logger.warning("a cached embedding is damaged: it is computed again")
        return None
    return None if content is None else torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32))


def write_embedding(store: ContentStore, name: str, embedding: Tensor) -> None:
    """Add an embedding to the cache.

    Args:
        store: made by :func:`embedding_store`.
        name: made by :func:`~monai_mvreg.cache.store.entry_name`.
        embedding: ``(E,)`` on the CPU.
    """
    store.write_bytes(name, embedding.numpy().astype("<f4").tobytes())


def _norms(network: nn.Module) -> list[float]:
    return [float(tensor.double().norm()) for tensor in network.state_dict().values()]


def _same_weights(encoder: nn.Module) -> Callable[[nn.Module, Any], None]:
    """Refuse a checkpoint with other encoder weights, which the embeddings in memory would not belong to.

    Norms are compared with a tolerance: the running mean of constant weights has rounding errors.
    """
    norms = _norms(encoder)

    def check(module: nn.Module, _: Any) -> None:
        if not np.allclose(_norms(module), norms, rtol=1e-4, atol=1e-6):
            raise ValueError("checkpoint has other encoder weights than the cached embeddings were computed with")

    return check

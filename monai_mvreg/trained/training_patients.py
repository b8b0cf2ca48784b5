"""``patients.json`` beside a model: which patients it was trained on, as keyed hashes that name nobody.

An evaluation asks it whether it sees new patients. Who holds the file and a list of keys can find out which of them
were trained on, so it stays where the model was trained: a pack does not hold it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_mvreg.cache.atomic import atomic_write_text


@dataclass(frozen=True)
class TrainingPatients:
    """Patients of a training.

    Args:
        key: hexadecimal, of the hashes; drawn at random for each training.
        training: hashes of the patients that the network learned from.
        validation: hashes of those that chose the epoch.
    """

    key: str
    training: frozenset[str]
    validation: frozenset[str]

    def learned_from(self, patients: Iterable[str]) -> int:
        """Count the patients that the network learned from, by their keys."""
        return sum(_hashed(patient, self.key) in self.training for patient in patients)

    def has_any(self, patients: Iterable[str]) -> bool:
        """Whether any of these patients took part in the training, by their keys."""
        return any(_hashed(patient, self.key) in self.training | self.validation for patient in patients)


def write_training_patients(path: str | Path, patients: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write which patients a training had.

    Args:
        path: the JSON file.
        patients: the items of the datasets ``training`` and ``validation``.
    """
    key = secrets.token_hex(16)
    hashes = {part: sorted(_hashed(item["patient"], key) for item in items) for part, items in patients.items()}
    atomic_write_text(Path(path), json.dumps({"key": key, **hashes}, indent=1))


def read_training_patients(path: Path) -> TrainingPatients | None:
    """Read what :func:`write_training_patients` wrote; None if there is no such file, as in a pack.

    Raises:
        ValueError: if it holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return TrainingPatients(content["key"], *(frozenset(content[part]) for part in ("training", "validation")))
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path}: expected the hashed patients of a training, got something else") from None


def _hashed(patient: str, key: str) -> str:
    return hashlib.blake2b(patient.encode(), key=bytes.fromhex(key), digest_size=16).hexdigest()

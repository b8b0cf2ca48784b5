"""JSON of a client -> what it asks: which scans, and whether for a map; checked before anything is opened."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monai_mvreg.explain.explanation import METHODS

# The key of a config is what the fields are called in /info and in Slicer, where the first choice is the default.
CHOICES = {"scans": ["image", "patient"], "saliency": list(METHODS)}
_FIELDS = ("images", "scans", "patient", "covariates", "saliency", "saliency_image", "result_dtype", "result_extension")
_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
_MOST = 256  # scans of a request
# The name of a file in the folder, or a UID: nothing that leads elsewhere, and no wildcard of DICOM.
_NAME = re.compile(r"(?!\.)[^/\\*?\x00-\x1f\x7f]{1,200}")


@dataclass(frozen=True)
class Question:
    """What a client asks.

    ``images`` are ids of the datastore, each once. With ``whole`` all scans of the patient of the only image are meant,
    with ``patient`` all of that patient, one of which is the image. ``method`` is that of the map, None for none;
    ``mapped`` the image that it is of. ``label`` asks for a map of where it is strong instead of its values.
    """

    images: tuple[str, ...]
    whole: bool
    patient: str | None
    covariates: Mapping[str, float]
    method: str | None
    mapped: str | None
    label: bool
    extension: str


def read_question(request: Mapping[str, Any], *, session: bool = False) -> Question:
    """Check the JSON of a request; what other clients of MONAI Label send besides is left alone.

    A name that looks like one of ours is a slip: it would change which scans are meant without a word.

    Args:
        request: ``image`` and, of ``params``, ``images``, ``scans``, ``patient``, ``covariates``, ``saliency``,
            ``saliency_image``, ``result_dtype`` and ``result_extension``.
        session: whether the scans are those of a session, and no ids are looked at.

    Raises:
        ValueError: if a field is none of what it may be, or two of them contradict each other.
    """
    for name in set(request) - {"image", *_FIELDS}:
        if meant := difflib.get_close_matches(str(name), _FIELDS, n=1, cutoff=0.8):
            raise ValueError(f"expected {meant[0]}, got {str(name)[:40]!r}")
    image, others = request.get("image"), request.get("images") or []
    patient = request.get("patient") or None
    if not isinstance(others, list) or len(others) >= _MOST:
        raise ValueError(f"expected images to be a list of at most {_MOST} ids of the datastore")
    images = () if session else tuple(dict.fromkeys([_name(image, "image"), *(_name(one, "images") for one in others)]))
    if patient is not None:
        patient = _name(patient, "patient")
    whole = _choice(request, "scans", tuple(CHOICES["scans"])) == "patient"
    if session and (others or patient or whole):
        raise ValueError("expected the scans of the session or those of the datastore, got both")
    if len(images) > 1 and (patient or whole):
        raise ValueError("expected either images or all scans of a patient, got both")
    method = _choice(request, "saliency", ("none", *METHODS))
    mapped = request.get("saliency_image")
    return Question(
        images=images,
        whole=whole,
        patient=patient,
        covariates=_numbers(request.get("covariates") or {}),
        method=None if method == "none" else method,
        mapped=_name(mapped, "saliency_image") if mapped else None,
        label=_choice(request, "result_dtype", ("float32", "uint8")) == "uint8",
        extension=_choice(request, "result_extension", _EXTENSIONS),
    )


def _name(value: Any, field: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"expected {field} to be an id of the datastore, not a path, got {str(value)[:40]!r}")
    return value


def _choice(request: Mapping[str, Any], field: str, choices: tuple[str, ...]) -> str:
    """The value of a field, by default the first that it may have."""
    value = request.get(field) or choices[0]
    if value not in choices:
        raise ValueError(f"expected {field} to be one of {', '.join(choices)}, got {str(value)[:40]!r}")
    return str(value)


def _numbers(covariates: Any) -> dict[str, float]:
    if not isinstance(covariates, dict):
        raise ValueError("expected covariates to be an object of names and numbers")
    for name, value in covariates.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"expected the covariate {name[:40]!r} to be a number, got {str(value)[:40]!r}")
    return {name: float(value) for name, value in covariates.items()}

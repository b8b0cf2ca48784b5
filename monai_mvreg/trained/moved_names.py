"""Dotted paths of version 0.1 -> those of today, so that models that were trained then are still read.

A trained ``settings.json``, and a config that a pack brought along, name modules of this package. Where a module or a
name has moved since, its old path is rewritten when the file is read; the file stays as it is.
"""

from __future__ import annotations

import re
from typing import Any

_MOVED = {
    "monai_mvreg.calibration": "monai_mvreg.results.calibration",
    "monai_mvreg.checkpoint": "monai_mvreg.training.checkpoint",
    "monai_mvreg.data": "monai_mvreg.training.batches",
    "monai_mvreg.deploy.federated": "monai_mvreg.share.federated",
    "monai_mvreg.domain": "monai_mvreg.trained.training_domain",
    "monai_mvreg.embeddings": "monai_mvreg.cache.scan_embeddings",
    "monai_mvreg.embeddings.recipe_of": "monai_mvreg.cache.scan_embeddings.cache_key",
    "monai_mvreg.fingerprint": "monai_mvreg.cache.fingerprint",
    "monai_mvreg.handlers": "monai_mvreg.training.handlers",
    "monai_mvreg.metrics.survival.uncensored": "monai_mvreg.metrics.survival.censoring_survival",
    "monai_mvreg.predict.trained": "monai_mvreg.trained.trained_model",
    "monai_mvreg.predict.trained.embed_scan": "monai_mvreg.trained.training_domain.embed_scan",
    "monai_mvreg.predict.trained.header_of": "monai_mvreg.trained.training_domain.header_of",
    "monai_mvreg.predict.trained.learn_domain": "monai_mvreg.trained.training_domain.learn_domain",
    "monai_mvreg.predict.trained.look": "monai_mvreg.trained.training_domain.look",
    "monai_mvreg.prediction": "monai_mvreg.predict.prediction",
    "monai_mvreg.prediction.Caution": "monai_mvreg.predict.prediction.PredictionWarning",
    "monai_mvreg.prepared": "monai_mvreg.cache.prepared_scans",
    "monai_mvreg.prepared.KeptScand": "monai_mvreg.cache.prepared_scans.CachedScand",
    "monai_mvreg.report.intervals": "monai_mvreg.results.intervals",
    "monai_mvreg.report.limits": "monai_mvreg.report.page",
    "monai_mvreg.report.recipe": "monai_mvreg.report.settings_in_words",
    "monai_mvreg.report.record": "monai_mvreg.report.card_data",
    "monai_mvreg.report.risk": "monai_mvreg.report.survival",
    "monai_mvreg.report.training": "monai_mvreg.trained.training_record",
    "monai_mvreg.scans.blocks": "monai_mvreg.scans.formats.slice_buffer",
    "monai_mvreg.scans.content": "monai_mvreg.scans.content_hash",
    "monai_mvreg.scans.copies": "monai_mvreg.scans.dicom.duplicates",
    "monai_mvreg.scans.dates": "monai_mvreg.scans.dicom.acquisition_date",
    "monai_mvreg.scans.elements": "monai_mvreg.scans.dicom.elements",
    "monai_mvreg.scans.files": "monai_mvreg.scans.formats.byte_ranges",
    "monai_mvreg.scans.headers": "monai_mvreg.scans.dicom.headers",
    "monai_mvreg.scans.layouts": "monai_mvreg.scans.dicom.multiframe",
    "monai_mvreg.scans.listing": "monai_mvreg.scans.discovery",
    "monai_mvreg.scans.nifti": "monai_mvreg.scans.formats.nifti",
    "monai_mvreg.scans.packed": "monai_mvreg.scans.dicom.codecs",
    "monai_mvreg.scans.pictures": "monai_mvreg.scans.formats.raster",
    "monai_mvreg.scans.pixels": "monai_mvreg.scans.dicom.pixels",
    "monai_mvreg.scans.quantities": "monai_mvreg.scans.dicom.quantities",
    "monai_mvreg.scans.slices": "monai_mvreg.scans.dicom.slices",
    "monai_mvreg.scans.stacks": "monai_mvreg.scans.dicom.volumes",
    "monai_mvreg.scans.tags": "monai_mvreg.scans.dicom.tags",
    "monai_mvreg.transforms": "monai_mvreg.training.transforms",
    "monai_mvreg.weights": "monai_mvreg.trained.weights",
    "monai_mvreg.whole": "monai_mvreg.cache.atomic",
    "monai_mvreg.workflow": "monai_mvreg.training.workflow",
    "monai_mvreg.workflow.user_error": "monai_mvreg.errors.user_error",
}
_FROM = re.compile(r"\bfrom (monai_mvreg(?:\.\w+)*) import (\w+)(?: as (\w+))?")
# The longest path first: that of a name before that of its module.
_OLD = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, sorted(_MOVED, key=len, reverse=True))) + r")(?!\w)")


def with_current_names(settings: Any) -> Any:
    """Rewrite the dotted paths of version 0.1 in every text of a mapping, a list or a text.

    Args:
        settings: what JSON or YAML can hold: the content of ``settings.json``, or a config.

    Returns:
        The same with the paths of today; what names nothing that moved is unchanged.

    Example:
        >>> with_current_names({"collate_fn": {"_target_": "monai_mvreg.data.collate_scans"}})
        {'collate_fn': {'_target_': 'monai_mvreg.training.batches.collate_scans'}}
    """
    if isinstance(settings, dict):
        return {name: with_current_names(entry) for name, entry in settings.items()}
    if isinstance(settings, list):
        return [with_current_names(entry) for entry in settings]
    if isinstance(settings, str):
        return _OLD.sub(lambda match: _MOVED[match[1]], _FROM.sub(_imported_from, settings))
    return settings


def _imported_from(match: re.Match[str]) -> str:
    """Rewrite ``from package import name``, under the name that expressions know it by."""
    package, name, alias = match.groups()
    moved = _MOVED.get(f"{package}.{name}")
    if moved is None:
        return match[0]
    source, _, current = moved.rpartition(".")
    return f"from {source} import {current} as {alias or name}"

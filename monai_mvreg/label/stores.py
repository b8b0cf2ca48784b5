"""Ids of a datastore -> a folder with the scans of one patient, as the prediction takes it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from monai_mvreg.label.request import Question
from monai_mvreg.scans.addresses import ScanAddress

_UID = re.compile(r"[0-9.]{1,64}")
_PATIENT, _SERIES, _MODALITY = "00100020", "0020000E", "00080060"


class NotThereError(LookupError):
    """An id, a patient or a session that is asked for is not there."""


class ScanStore(Protocol):
    """Where the scans are: a folder or a DICOM archive."""

    def patient_of(self, image: str) -> str:
        """Whose scan it is; raises NotThereError if there is none of this id."""

    def images_of(self, patient: str) -> list[str]:
        """All scans of a patient."""

    def put(self, image: str, folder: Path) -> None:
        """Put the files of a scan into a folder."""


class FolderStore:
    """The images of a folder: their patient is ``patient`` in their info, or else their name up to the first ``_``.

    Args:
        datastore: MONAI Label's, of a folder.
        folder: the folder; a file that is linked to from elsewhere is not read.
    """

    def __init__(self, datastore: Any, folder: Path) -> None:
        self.datastore, self.folder = datastore, folder.resolve()

    def patient_of(self, image: str) -> str:
        """The key of the patient."""
        if image not in self.datastore.list_images():
            raise NotThereError("expected an id of the datastore, there is none such")
        return str(self.datastore.get_image_info(image).get("patient") or image.partition("_")[0])

    def images_of(self, patient: str) -> list[str]:
        """All images with the key of the patient."""
        return sorted(image for image in self.datastore.list_images() if self.patient_of(image) == patient)

    def put(self, image: str, folder: Path) -> None:
        """Link to the file by its own name, which may hold the date."""
        path = Path(self.datastore.get_image_uri(image))
        if not path.resolve().is_relative_to(self.folder):
            raise NotThereError("expected an image inside the folder of the datastore")
        (folder / path.name).symlink_to(path)


class ArchiveStore:
    """The series of a DICOM archive; each is fetched anew, so that nothing of it is kept.

    Args:
        datastore: MONAI Label's, of a DICOMweb address.
        modalities: those that the model knows; others are not fetched.
    """

    def __init__(self, datastore: Any, modalities: Sequence[str]) -> None:
        self.client, self.modalities = datastore._client, frozenset(modalities)

    def patient_of(self, image: str) -> str:
        """The PatientID of a series."""
        found = self._search(_SERIES, image) if _UID.fullmatch(image) else []
        if len(found) != 1:
            raise NotThereError("expected the SeriesInstanceUID of a series in the archive, there is none such")
        return _value(found[0], _PATIENT)

    def images_of(self, patient: str) -> list[str]:
        """All series of a PatientID of a modality that the model knows."""
        found = self._search(_PATIENT, patient)
        known = [one for one in found if not self.modalities or _value(one, _MODALITY) in self.modalities]
        return sorted({uid for one in known if _UID.fullmatch(uid := _value(one, _SERIES))})

    def put(self, image: str, folder: Path) -> None:
        """Fetch the series into a folder of its name."""
        from monailabel.datastore.utils.dicom import dicom_web_download_series

        dicom_web_download_series(None, image, os.fspath(folder / image), self.client)

    def _search(self, tag: str, value: str) -> list[dict[str, Any]]:
        """Series with exactly this value: an archive may take it for a pattern, or leave a filter alone."""
        found = self.client.search_for_series(
            search_filters={tag: value}, fields=[_PATIENT, _SERIES, _MODALITY], get_remaining=True
        )
        return [one for one in found if _value(one, tag) == value]


def gather(question: Question, store: ScanStore, folder: Path) -> None:
    """Put the scans that are asked for into an empty folder.

    Raises:
        NotThereError: if an id or patient is not in the store.
        ValueError: if the image is not of the patient that is named, or all of a patient are wanted who has no name.
    """
    first = question.images[0]
    images: Sequence[str] = question.images
    if question.patient is not None:
        images = store.images_of(question.patient)
        if not images:
            raise NotThereError("expected a patient with images in the datastore, there is none such")
        # A patient left in a form must not lend the number to the image of another one.
        if first not in images and first != question.patient:
            raise ValueError("expected the image to be one of the patient that is named, got another one's")
    elif question.whole:
        patient = store.patient_of(first)
        if not patient:  # all who have none would be one
            raise ValueError("expected an image with a PatientID, to find the others of the patient, it has none")
        images = store.images_of(patient)
    else:
        for image in images:
            store.patient_of(image)
    for image in images:
        store.put(image, folder)


def image_at(address: str) -> str:
    """The id of the image that an address below the gathered folder is of, or the name of its file in a session."""
    first = (*ScanAddress.parse(address).place.parts, ".")[0]
    return re.sub(r"(\.nii\.gz|\.nii|\.nrrd)$", "", first)


def _value(entry: dict[str, Any], tag: str) -> str:
    values = entry.get(tag, {}).get("Value") or [""]
    return str(values[0])

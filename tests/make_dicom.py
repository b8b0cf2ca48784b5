"""Small DICOM files for tests, written with pydicom."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RTDoseStorage, generate_uid

from monai_mvreg.scans.formats.byte_ranges import ScanError
from monai_mvreg.scans.read import read_scan

PACK = Path(__file__).parents[2] / "shared/data/dicom"
needs_pack = pytest.mark.skipif(not PACK.is_dir(), reason="the data pack shared/data/dicom is not beside the project")
CANARY = "ZZPHI"


def new_image(z: float = 0.0, **tags: Any) -> Dataset:
    """A 3 x 4 slice at height z whose pixels are 10 z plus their number; tags set to None are removed."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, generate_uid()
    image.SeriesInstanceUID, image.Modality, image.PatientID, image.StudyDate = "1.2.3", "MR", CANARY, "20200131"
    image.PatientName = f"{CANARY}^Z"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 3, 4, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelSpacing, image.SliceThickness = [0.5, 0.25], 9
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, 20, z]
    image.PixelData = (np.arange(12) + round(10 * z)).astype("<u2").tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    return image


def save(image: Dataset, path: Path) -> Path:
    """Write it with the file meta information it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    with pydicom.config.disable_value_validation():
        image.save_as(path, enforce_file_format=True)
    return path


def write_slice(path: Path, z: float = 0.0, **tags: Any) -> Path:
    return save(new_image(z, **tags), path)


def write_series(folder: Path, heights: tuple[float, ...] = (4, 0, 2), **tags: Any) -> Path:
    for number, z in enumerate(heights):
        write_slice(folder / f"im{number}", z, **tags)
    return folder


def item(**tags: Any) -> Dataset:
    """A data set to stand in a sequence."""
    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def enhanced(frames: list[dict[str, Any]], *, shared: dict[str, Any] | None = None, **tags: Any) -> Dataset:
    """An enhanced MR object: each frame holds its number in every pixel, and its functional groups by keyword."""

    def groups(given: dict[str, Any]) -> Dataset:
        return item(**{name: Sequence([value]) for name, value in given.items()})

    image = new_image(SOPClassUID=pydicom.uid.EnhancedMRImageStorage, ImagePositionPatient=None)
    for name in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(image, name)
    image.NumberOfFrames = len(frames)
    image.PixelData = np.repeat(np.arange(len(frames), dtype="<u2"), 12).tobytes()
    usual = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        "PixelMeasuresSequence": item(PixelSpacing=[0.5, 0.25], SliceThickness=9),
    }
    image.SharedFunctionalGroupsSequence = Sequence([groups({**usual, **(shared or {})})])
    image.PerFrameFunctionalGroupsSequence = Sequence([groups(frame) for frame in frames])
    for name, value in tags.items():
        setattr(image, name, value)
    return image


def at(z: float) -> Dataset:
    """A plane position."""
    return item(ImagePositionPatient=[-10, 20, z])


def refusal(address: Path | str, **options: Any) -> str:
    """The sentence with which a scan is refused; it never names the patient."""
    with pytest.raises(ScanError) as error:
        read_scan(address, **options)
    assert CANARY not in str(error.value)
    return str(error.value)


def dose(**tags: Any) -> Dataset:
    image = new_image(SOPClassUID=RTDoseStorage, Modality="RTDOSE", NumberOfFrames=3, DoseGridScaling=0.5)
    image.DoseUnits, image.GridFrameOffsetVector = "GY", [0, 3, 6]
    image.BitsAllocated, image.BitsStored, image.HighBit = 32, 32, 31
    image.PixelData = np.arange(36, dtype="<u4").tobytes()
    for name, value in tags.items():
        setattr(image, name, value)
    return image


def csa_header(count: int, normal: tuple[float, ...]) -> bytes:
    """The private header of a Siemens mosaic, with the two entries that matter (its format is known from nibabel)."""

    def entry(name: str, kind: bytes, values: list[str]) -> bytes:
        made = struct.pack("<64si4siii", name.encode(), len(values), kind, 0, max(len(values), 6), 77)
        for value in [*values, *[""] * (6 - len(values))]:
            text = value.encode().ljust(-(-len(value) // 4) * 4, b"\0")
            made += struct.pack("<4i", len(value), len(value), 77, len(value)) + text
        return made

    entries = [entry("NumberOfImagesInMosaic", b"US", [str(count)])]
    entries.append(entry("SliceNormalVector", b"FD", [str(n) for n in normal]))
    return b"SV10\4\3\2\1" + struct.pack("<II", len(entries), 77) + b"".join(entries)


def mosaic(**tags: Any) -> Dataset:
    """Three tiles of 2 x 2, each with its number in every pixel, in a picture of 4 x 4."""
    image = new_image(Rows=4, Columns=4, SpacingBetweenSlices=3, PixelSpacing=[1, 1])
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    image.PixelData = np.kron([[0, 1], [2, 9]], np.ones((2, 2))).astype("<u2").tobytes()
    image.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    image.add_new(0x00291010, "OB", csa_header(3, (0, 0, 1)))
    for name, value in tags.items():
        setattr(image, name, value)
    return image

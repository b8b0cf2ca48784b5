"""Scan -> whether its pixels may show who the patient is: ultrasound, screenshots and scanned paper often do."""

from __future__ import annotations

from monai_mvreg.scans.dicom import tags
from monai_mvreg.scans.dicom.headers import text
from monai_mvreg.scans.dicom.volumes import Stack
from monai_mvreg.scans.find import Scan

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_RISKY = {"US", "SC", "OT", "XC", "ES"}  # kinds of images with a name in their pixels, unless they say otherwise


def may_name_patient(scan: Scan) -> bool:
    """Whether a name may be burned into the pixels of a DICOM scan; of other formats nothing is known, and not assumed.

    Source: DICOM PS3.3 C.7.6.1.1.7, Burned In Annotation (0028,0301).
    """
    if not isinstance(scan.content, Stack):
        return False
    files = [s.file for place in scan.content.slices for s in place]
    said = {text(file.values, tags.BURNED_IN_ANNOTATION) for file in files}
    risky = scan.modality in _RISKY or files[0].kind.startswith(_SECONDARY_CAPTURE)
    return "YES" in said or (said != {"NO"} and risky)

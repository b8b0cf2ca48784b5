"""Tags: each constant is what the standard calls by that name."""

from __future__ import annotations

import re

from pydicom.datadict import dictionary_VR, keyword_for_tag

from monai_mvreg.scans.dicom import tags

PRIVATE = re.compile("SIEMENS_|GE_|UIH_|PHILIPS_")


def test_every_public_constant_is_the_attribute_of_that_name() -> None:
    for name, tag in vars(tags).items():
        if name.isupper() and isinstance(tag, int) and not PRIVATE.match(name):
            assert keyword_for_tag(tag).lower() == name.replace("_", "").lower()
            assert (tag in tags.SEQUENCES) == (dictionary_VR(tag) == "SQ")


def test_private_constants_have_odd_groups() -> None:
    private = [tag for name, tag in vars(tags).items() if PRIVATE.match(name)]
    assert private and all(tag >> 16 & 1 for tag in private)

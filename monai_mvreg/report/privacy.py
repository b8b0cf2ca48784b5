"""Texts about a patient -> the same without the patient: reasons and messages may quote names of files."""

from __future__ import annotations

import re
from collections.abc import Callable

from monai_mvreg.predict.prediction import Prediction
from monai_mvreg.scans.addresses import ScanAddress

_HIDDEN = "[hidden]"
# A file or a path that a reason quotes, and what stands alone before a colon and is no plain word.
_FILES = (
    r"[^\s:;,()]*[^\s:;,().\\/]\.[A-Za-z][A-Za-z0-9]{1,7}(?:\.gz)?(?![\w.])"
    r"|[^\s:;,()]+/[^\s:;,()]*|(?<=: )(?=\S*[A-Z0-9_])[^\s:]+(?=: )"
)


def cleaner(prediction: Prediction) -> Callable[[str], str]:
    """Make what takes the patient's key and the names in the addresses out of a text.

    Names of folders that are short or one small word, as ``images``, are taken out of paths alone: they are words of
    sentences.
    """
    anywhere, alone, in_paths = set[str](), set[str](), set[str]()
    key = prediction.patient
    # A short number is the place of a patient in a list, and stands in many sentences.
    if not re.fullmatch(r"\d{0,4}", key):
        (anywhere if len(key) > 4 else alone).add(key)
        alone |= {part for part in re.split(r"[\^,\s]+", key) if len(part) > 2}
    addresses = [scan.address for scan in prediction.scans] + [item.address for item in prediction.left_out]
    for address in addresses:
        place = ScanAddress.parse(address).place.as_posix()
        parts = [part for part in re.split(r"[\\/]", place) if part.strip(".")]
        names = {part for part in parts if not re.fullmatch("[a-z]+", part)}
        names |= {address, place, *parts[-1:], *(part.partition(".")[0] for part in parts[-1:])}
        alone |= {name for name in names if len(name) > 3}
        in_paths |= set(parts)
    patterns = {name: rf"(?<=[\\/]){re.escape(name)}(?!\w)|(?<!\w){re.escape(name)}(?=[\\/])" for name in in_paths}
    patterns |= {name: rf"(?<!\w){re.escape(name)}(?!\w)" for name in alone}
    patterns |= {name: re.escape(name) for name in anywhere}
    patterns["files"] = _FILES
    # The longest first: of a name, its first part alone would leave the rest.
    ordered = sorted(patterns, key=lambda name: (name != "files", len(name)), reverse=True)
    either = "|".join(patterns[name] for name in ordered)
    pattern = re.compile(rf"(?:{either})(?:[\\/]+(?:{either}))*")
    return lambda text: pattern.sub(_HIDDEN, text)

"""Texts about a patient -> the same without the patient: reasons and messages may quote names of files."""

from __future__ import annotations

import re
from collections.abc import Callable

from monai_mvreg.prediction import Prediction

_HIDDEN = "[hidden]"


def cleaner(prediction: Prediction) -> Callable[[str], str]:
    """Make what takes the patient's key and the names in the addresses out of a text.

    Names of folders that are one small word, as ``images``, are taken out of paths alone: they are words of sentences.
    """
    key, hidden = re.escape(prediction.patient), []
    # A short number is the place of a patient in a list, and stands in many sentences.
    if not re.fullmatch(r"\d{0,4}", prediction.patient):
        hidden.append(key if len(prediction.patient) > 4 else rf"(?<!\w){key}(?!\w)")
    addresses = [scan.address for scan in prediction.scans] + [item.address for item in prediction.left_out]
    for address in addresses:
        place = address.partition("#")[0]
        parts = [part for part in re.split(r"[\\/]", place) if part.strip(".")]
        names = {part for part in parts if len(part) > 3 and not re.fullmatch("[a-z]+", part)}
        names |= {address, place, *parts[-1:], *(part.partition(".")[0] for part in parts[-1:])}
        hidden += [rf"(?<!\w){re.escape(name)}(?!\w)" for name in names if len(name) > 3]
        hidden += [rf"(?<=[\\/]){re.escape(part)}(?!\w)|(?<!\w){re.escape(part)}(?=[\\/])" for part in parts]
    if not hidden:
        return str
    name = "|".join(sorted(set(hidden), key=len, reverse=True))
    pattern = re.compile(rf"(?:{name})(?:[\\/]+(?:{name}))*")
    return lambda text: pattern.sub(_HIDDEN, text)

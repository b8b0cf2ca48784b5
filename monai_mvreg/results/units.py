"""Units of UCUM, as tables and DICOM objects have them -> the words that people read: mm/a -> mm/year."""

from __future__ import annotations

import re

_PER = {"a": "year", "mo": "month", "wk": "week", "d": "day", "h": "hour"}
_COUNTED = {"a": "years", "mo": "months", "wk": "weeks", "d": "days", "h": "hours", "Cel": "°C", "1": ""}


def readable_unit(unit: str) -> str:
    """Spell out units of time and annotations; all else stays.

    Args:
        unit: a unit of UCUM, or any text.

    Example:
        >>> readable_unit("mm/a"), readable_unit("d"), readable_unit("{score}"), readable_unit("1"), readable_unit("mL")
        ('mm/year', 'days', 'score', '', 'mL')

    Source: https://ucum.org/ucum
    """
    if unit in _COUNTED:
        return _COUNTED[unit]
    unit = re.sub(r"/(a|mo|wk|d|h)(?![\w\[])", lambda per: f"/{_PER[per[1]]}", unit)
    return re.sub(r"\{([^{}]*)\}", lambda note: note[1], unit)

"""Private elements in whatever block their creator reserved -> the same elements in block 10 (PS3.5 7.8.1).

A private block is announced by its creator at (gggg,0010) to (gggg,00FF); which of these numbers it takes is free, and
changes when software adds its own block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The one creator in each group whose elements are read.
_CREATORS = {
    0x0019: "siemens mr header",
    0x0029: "siemens csa header",
    0x0043: "gems_parm_01",
    0x0065: "image private header",
    0x2001: "philips imaging dd 001",
    0x2005: "philips mr imaging dd 001",
    0x7053: "philips pet private group",
}
_BLOCKS = range(0x10, 0x100)
_ANNOUNCED = {group << 16 | block for group in _CREATORS for block in _BLOCKS}


def in_any_block(wanted: Mapping[int, bool]) -> dict[int, bool]:
    """Ask for private elements in all blocks, and for all creators of their groups.

    Args:
        wanted: tags in block 10, and whether each is a sequence.

    Example:
        >>> wider = in_any_block({0x00291010: False, 0x00080060: False})
        >>> 0x00291110 in wider, 0x00290011 in wider, 0x00080160 in wider
        (True, True, False)
    """
    wider = dict(wanted)
    for tag, sequence in wanted.items():
        group, element = tag >> 16, tag & 0xFFFF
        if group in _CREATORS:
            wider |= {group << 16 | block: False for block in _BLOCKS}
            if element >= 0x1000:
                wider |= {group << 16 | block << 8 | element & 0xFF: sequence for block in _BLOCKS}
    return wider


def in_block_10(values: dict[int, Any]) -> None:
    """Move the private elements that are read to block 10, and drop those of other creators from there.

    Args:
        values: the elements of a data set by tag; changed in place. A group without any creator stays as it is.
    """
    if _ANNOUNCED.isdisjoint(values):
        return
    groups: dict[int, dict[int, Any]] = {}
    for tag in [tag for tag in values if tag in _ANNOUNCED]:
        groups.setdefault(tag >> 16, {})[tag & 0xFF] = values[tag]
    for group, announced in groups.items():
        own = sorted(block for block, name in announced.items() if _is(name, _CREATORS[group]))
        if own == [0x10] == list(announced):
            continue
        found = {tag: values.pop(tag) for tag in list(values) if tag >> 16 == group}
        for block in own[::-1]:  # the first of several counts
            values[group << 16 | 0x10] = announced[block]
            values |= {
                group << 16 | 0x1000 | tag & 0xFF: value for tag, value in found.items() if tag >> 8 & 0xFF == block
            }


def _is(name: Any, creator: str) -> bool:
    return isinstance(name, bytes) and name.decode("latin-1").strip("\0 ").casefold().startswith(creator)

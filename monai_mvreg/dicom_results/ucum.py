"""The unit of a number -> its code for DICOM, which knows units by UCUM alone; anything else is refused."""

from __future__ import annotations

import re
from functools import cache

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

# What medicine measures in, of the some 300 units of UCUM. The first take prefixes, as m in mm; the others do not.
_METRIC = (
    "m",
    "s",
    "g",
    "rad",
    "K",
    "C",
    "cd",
    "mol",
    "sr",
    "Hz",
    "N",
    "Pa",
    "J",
    "W",
    "A",
    "V",
    "F",
    "Ohm",
    "S",
    "Wb",
    "Cel",
    "T",
    "H",
    "lm",
    "lx",
    "Bq",
    "Gy",
    "Sv",
    "l",
    "L",
    "t",
    "u",
    "eV",
    "cal",
    "m[H2O]",
    "m[Hg]",
    "eq",
    "osm",
    "kat",
    "U",
    "[IU]",
    "[iU]",
    "B",
    "bar",
    "dyn",
    "P",
    "Ci",
    "R",
    "bit",
    "g%",
)
_PLAIN = (
    "%",
    "[ppth]",
    "[ppm]",
    "[ppb]",
    "deg",
    "'",
    "''",
    "min",
    "h",
    "d",
    "wk",
    "mo",
    "mo_j",
    "a",
    "a_j",
    "a_t",
    "10*",
    "10^",
    "[pi]",
    "[pH]",
    "[degF]",
    "[lb_av]",
    "[in_i]",
    "[ft_i]",
    "[HP]",
    "[diop]",
    "[PRU]",
    "[wood'U]",
    "[Ch]",
    "[hnsf'U]",
    "[MET]",
    "[arb'U]",
    "[CFU]",
    "[HPF]",
    "[S]",
)
_PREFIXES = ("Y", "Z", "E", "P", "T", "G", "M", "k", "h", "da", "d", "c", "m", "u", "n", "p", "f", "a", "z", "y")
_NOTE = re.compile(r"\{[!-z|~]*\}")  # ASCII without braces; what stands in an annotation is no grammar
_BRACKETS = re.compile(r"(?<![^./(])\(([^()]+)\)(?![^./){])")


def unit_concept(unit: str, *, of: str) -> CodedConcept:
    """Code a unit.

    Args:
        unit: by UCUM, as it stands in the table of the training: ``mm3``, ``mL``, ``a`` for years, ``d`` for days,
            ``%``, ``1`` for none, ``{score}`` for points of a scale.
        of: the number that has it, for the message.

    Raises:
        ValueError: if it is no unit of UCUM, or none that medicine measures in.

    Source: The Unified Code for Units of Measure. https://ucum.org/ucum
    """
    if not _is_unit(unit):
        raise ValueError(
            f"{of}: expected a unit by UCUM, as mm3, mL, mm, a (years), d (days), %, 1 (none) or {{score}} (points of "
            f"a scale), got {unit!r}: it is that of the training table, and stands as 'unit' in settings.json"
        )
    return CodedConcept(unit, "UCUM", _meanings().get(unit, unit)[:64])


def _is_unit(unit: str) -> bool:
    """Whether a text is a term of UCUM: factors joined by . and /, which may stand in round brackets."""
    bare = _NOTE.sub("{}", unit)
    while (
        opened := _BRACKETS.sub(lambda found: "1" if _term().fullmatch(found[1]) else "?", bare)
    ) != bare:  # from the inside outwards
        bare = opened
    return bool(_term().fullmatch(bare.removeprefix("/")))


@cache
def _term() -> re.Pattern[str]:
    """Factors without brackets: an atom with its exponent and an annotation, a number, or an annotation alone."""

    def any_of(names: tuple[str, ...]) -> str:
        return "|".join(map(re.escape, names))

    atom = rf"(?:(?:{any_of(_PREFIXES)})?(?:{any_of(_METRIC)})|(?:{any_of(_PLAIN)}))(?:[+-]?[0-9]+)?"
    factor = rf"(?:(?:{atom}|[1-9][0-9]*)(?:\{{\}})?|\{{\}})"
    return re.compile(rf"{factor}(?:[./]{factor})*")


@cache
def _meanings() -> dict[str, str]:
    """What the standard calls the units that it lists itself."""
    listed = [getattr(codes.UCUM, name) for name in codes.UCUM.dir()]
    return {code.value: code.meaning for code in listed}

"""JSON or YAML <-> frozen dataclasses: every entry is there, of its type, and no other; what is wrong is one sentence.

Pydantic checks and makes the JSON schema. A dataclass that is read here is marked by :data:`strict`; the mark holds for
the dataclasses of its fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from monai_mvreg.cache.atomic import atomic_write_text

Record = TypeVar("Record")

# Pydantic is imported where a record is read: what trains needs no more of this module than to write.
_STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
_STRICT |= {"json_schema_serialization_defaults_required": True}


def strict(kind: type[Record]) -> type[Record]:
    """Mark a dataclass: no entry is guessed from one of another type, and none is passed over."""
    kind.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return kind


class Limits:
    """What a value of a field keeps to, in ``Annotated[float, Limits(ge=0)]``; pydantic checks it.

    Args:
        limits: ``ge``, ``gt``, ``le``, ``lt`` of numbers, ``min_length`` of texts and lists, ``pattern`` of texts.
    """

    def __init__(self, **limits: float | str) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Add the limits to the schema of the type."""
        return {**handler(source), **self.limits}


_EXPECTED = {
    "missing": "a value",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "tuple_type": "a list",
    "dataclass_type": "entries, name: value",
    "dict_type": "entries, name: value",
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "less_than": "less than {lt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


class RecordError(ValueError):
    """Content that is not what was expected; ``where`` names the entry, without its value."""

    def __init__(self, where: str, sentence: str) -> None:
        super().__init__(f"{where}: {sentence}" if where else sentence)
        self.where = where


def checked(kind: type[Record], content: Any) -> Record:
    """Make a record from what JSON or YAML gave.

    Args:
        kind: a dataclass marked by :data:`strict`, or a dictionary of them.
        content: dictionaries, lists, text and numbers.

    Raises:
        RecordError: if an entry is missing, unknown or of another type.

    Example:
        >>> from dataclasses import dataclass
        >>> @strict
        ... @dataclass(frozen=True)
        ... class Limits:
        ...     low: float
        ...     high: float
        >>> checked(Limits, {"low": 1, "high": "2"})
        Traceback (most recent call last):
        monai_mvreg.cache.typed_json.RecordError: high: expected a number, got '2'
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        # What is unknown comes first: a mistyped name is also a missing one.
        first = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")
    raise _in_words(kind, first) from None


def read_json(kind: type[Record], path: str | Path) -> Record:
    """Read what :func:`write_json` wrote.

    Args:
        kind: as in :func:`checked`.
        path: the JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    path = Path(path)
    try:
        return checked(kind, json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: expected JSON: {error}") from None
    except RecordError as error:
        raise ValueError(f"{path.name}: {error}") from None


def write_json(record: Any, path: str | Path) -> None:
    """Write a dataclass, or a dictionary of them, as JSON: whole or not at all.

    Raises:
        ValueError: if a number is not finite.
    """
    atomic_write_text(Path(path), json.dumps(_plain(record), allow_nan=False))


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """Give the JSON schema (draft 2020-12) of what :func:`write_json` writes of a dataclass."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(kind).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _in_words(kind: type[Any], error: Any) -> RecordError:
    where = _told(error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        return RecordError(where, f"no such entry, expected one of {', '.join(_names(kind, error['loc'][:-1]))}")
    if error["type"] == "value_error":
        return RecordError(where, str(error["ctx"]["error"]))
    expected = _EXPECTED.get(error["type"])
    if expected is None:
        return RecordError(where, error["msg"])
    came = "nothing" if error["type"] == "missing" else _shown(error["input"])
    return RecordError(where, f"expected {expected.format(**error.get('ctx', {}))}, got {came}")


def _shown(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, (list, dict)) else repr(value)


def _told(loc: Sequence[int | str]) -> str:
    """Name an entry: ``peers 1.address`` for the first of a list."""
    return "".join(f" {part + 1}" if isinstance(part, int) else f".{part}" for part in loc).lstrip(". ")


def _names(kind: Any, loc: Sequence[int | str]) -> list[str]:
    """Names of the entries of the dataclass at a place."""
    for part in loc:
        if isinstance(part, str) and is_dataclass(kind):
            kind = get_type_hints(kind)[part]
        kind = next((inner for inner in get_args(kind) if inner is not type(None)), kind)
    return [field.name for field in fields(kind)]


def _plain(record: Any) -> Any:
    if isinstance(record, dict):
        return {name: _plain(part) for name, part in record.items()}
    return asdict(record) if is_dataclass(record) else record  # type: ignore[arg-type]

"""What kind of value a setting takes, by what the bundle's own configs give it: a number, a component, a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def expect_kinds(config: Mapping[str, Any], declared: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a text for a number, and anything but a component or an expression for a component.

    Args:
        config: the settings of a run.
        declared: the bundle's configs. Where one of them gives an expression, any kind of value is taken.

    Raises:
        ValueError: naming the setting, what was expected and its value.

    Example:
        >>> expect_kinds({"learning_rate": "1e-3"}, [{"learning_rate": 0.001}])
        Traceback (most recent call last):
        ValueError: learning_rate: expected a number such as 0.001, got the text '1e-3' (YAML reads 1.0e-3 as a number)
    """
    for name, value in config.items():
        defaults = [entries[name] for entries in declared if isinstance(entries, Mapping) and name in entries]
        if not defaults or value is None or (isinstance(value, str) and value[:1] in ("$", "@", "%")):
            continue
        if all(isinstance(default, (int, float)) and not isinstance(default, bool) for default in defaults):
            if isinstance(value, str):
                hint = " (YAML reads 1.0e-3 as a number)" if _is_number(value) else ""
                raise ValueError(f"{name}: expected a number such as {defaults[0]}, got the text {value!r}{hint}")
        elif all(isinstance(default, Mapping) and "_target_" in default for default in defaults):
            if not (isinstance(value, Mapping) and "_target_" in value):
                raise ValueError(
                    f"{name}: expected a component with its _target_, such as {defaults[0]['_target_']}, got {value!r}"
                )
        elif name == "spatial_size" and not isinstance(value, (list, tuple)):
            raise ValueError(f"{name}: expected a size for each axis, such as {defaults[-1]}, got {value!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

"""The result of gpu.py as text: one line for a row, and tables for docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

GROUPS = {
    "ceilings": "Ceilings",
    "steps": "Training steps",
    "peers": "MONAI's MILModel",
    "chunks": "Scans encoded in chunks",
    "epochs": "Epochs of 3D training",
}
VERDICTS = {True: "met", False: "**not met**", None: "not judged"}
HIDDEN = {"name", "group", "seconds", "rounds", "steps_per_round", "aim", "met"}


def figure(value: Any) -> str:
    """A number with three or four digits, a text as it is, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def verdict(row: dict[str, Any]) -> str:
    """The aim of a row, and whether it was met."""
    if not row.get("aim"):
        return ""
    return f"{row['aim']}: {VERDICTS[row['met']]}"


def line(row: dict[str, Any]) -> str:
    """A row in one line."""
    figures = [f"{key} {figure(value)}" for key, value in row.items() if key not in HIDDEN and value is not None]
    return f"[{row['seconds']:.1f} s] {row['name']}: {', '.join(figures + [verdict(row)] * bool(verdict(row)))}"


def table(result: dict[str, Any]) -> str:
    """All rows as Markdown, with the device and the versions."""
    hardware, versions = result["hardware"], result["versions"]
    lines = [
        ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in hardware.items() if value is not None) + ".",
        ", ".join(f"{key} {value}" for key, value in versions.items() if value is not None) + ".",
        f"`{result['command']}`, started {result['started']}, {result['seconds']:.0f} s, "
        + ("finished." if result["finished"] else "not finished."),
        *result["conditions"],
    ]
    for group, title in GROUPS.items():
        rows = [row for row in result["rows"] if row["group"] == group]
        measured = [row for row in rows if "skipped" not in row and "error" not in row]
        columns = list(dict.fromkeys(key for row in measured for key in row if key not in HIDDEN))
        judged = any(row.get("aim") for row in measured)
        lines += ["", "| " + " | ".join([title, *(key.replace("_", " ") for key in columns)] + ["aim"] * judged) + " |"]
        lines += ["|" + "---|" * (1 + len(columns) + judged)]
        for row in measured:
            cells = [row["name"], *(figure(row.get(key)) for key in columns)] + [verdict(row)] * judged
            lines.append("| " + " | ".join(cells) + " |")
        others = [row for row in rows if row not in measured]
        if others:
            lines += ["", "Not measured: " + "; ".join(f"{row['name']} ({reason(row)})" for row in others) + "."]
    return "\n".join(lines)


def reason(row: dict[str, Any]) -> str:
    return row["skipped"] if "skipped" in row else f"error: {row['error']}"

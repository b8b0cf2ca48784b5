"""Text, tables and figures -> one HTML file that needs nothing else; a report never shows who the patients are."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from monai_mvreg.cache.atomic import atomic_write_text
from monai_mvreg.metrics.bootstrap import Estimate
from monai_mvreg.results.predictions_table import PredictionsTable
from monai_mvreg.results.units import readable_unit

INK, QUIET = "#1f4e79", "#4a4a4a"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SENTENCE = 36  # letters
RESEARCH = "For research use only. This is not a medical device: nothing here may guide the care of a patient."
FEW = 20  # patients: below, percentile intervals of the bootstrap miss the truth far more often than they say


@dataclass(frozen=True)
class Headline:
    """A fact in large type, with its name above and a note below."""

    name: str
    fact: str
    note: str = ""


@dataclass(frozen=True)
class Tile:
    """A small picture among others: a JPEG, what it shows for who cannot see it, and a caption.

    Without a picture ``jpeg`` is empty, and ``alternative`` stands in its place and says why.
    """

    jpeg: bytes
    alternative: str
    caption: str


@dataclass(frozen=True)
class Link:
    """A cell of a table that leads to another file; ``address`` is relative to the page."""

    text: str
    address: str


@dataclass(frozen=True)
class Section:
    """One part of a report: heading, headlines, text, notices, table, figure with caption, then tiles.

    Args:
        title: heading.
        text: plain text; a blank line starts a new paragraph, and one of lines that begin with ``- `` is a list.
        figure: picture, or None for none.
        caption: what the figure shows, also for readers who cannot see it; needed with a figure.
        table: names in the first column and values to the right, or None for none.
        headlines: facts in large type.
        notices: what must not be overlooked, in a frame, one point each.
        tiles: small pictures side by side.
    """

    title: str
    text: str
    figure: Figure | None = None
    caption: str = ""
    table: pd.DataFrame | None = None
    headlines: Sequence[Headline] = ()
    notices: Sequence[str] = ()
    tiles: Sequence[Tile] = ()


def write_report(path: Path, *, title: str, sections: Sequence[Section], note: str = "") -> Path:
    """Write one HTML file that holds its own style and pictures, runs no script and prints on A4.

    Args:
        path: the file to write; its folder exists.
        title: heading of the page.
        sections: in order; numbers with decimals in tables are rounded to 3 digits.
        note: a line below the title.

    Raises:
        ValueError: if a figure has no caption, which is all that a reader who cannot see it gets.
    """
    for section in sections:
        if section.figure is not None and not section.caption:
            raise ValueError(f"section {section.title}: expected a caption with the figure, got none")
    # Escape always: names come from files and tables.
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_with_minus_signs
    )
    pages.filters |= {"data_uri": _data_uri, "jpeg_uri": _jpeg_uri, "long": _long}
    pages.filters |= {"cell": as_cell, "wordy": _wordy}
    html = pages.get_template("page.html.j2").render(title=title, sections=sections, note=note)
    atomic_write_text(path, html)
    return path


def as_markdown(sections: Sequence[Section], *, title: str, pictures: str) -> str:
    """The same sections as Markdown; a picture becomes its caption, and where to see it.

    Args:
        sections: in order.
        title: heading of the page.
        pictures: the file that shows the pictures.
    """
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [section.text] if section.text else []
        if section.table is not None:
            rows = [[as_cell(entry) for entry in row] for row in section.table.itertuples(index=False, name=None)]
            lines = [list(map(str, section.table.columns)), ["---"] * section.table.shape[1], *rows]
            parts.append("\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines))
        if section.figure is not None:
            parts.append(f"*Picture in {pictures}: {section.caption}*")
    return "\n\n".join(parts) + "\n"


def _with_minus_signs(entry: Any) -> Any:
    """Text from elsewhere, such as a warning, writes a hyphen before a number below zero."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "\N{MINUS SIGN}", entry) if type(entry) is str else entry


def _escaped(cell: str) -> str:
    return cell if cell == "---" else cell.replace("|", "\\|").replace("\n", " ")


def as_cell(entry: object) -> str:
    """The text of an entry of a table."""
    return rounded(entry) if isinstance(entry, float) else str(entry)


def _wordy(table: pd.DataFrame) -> bool:
    """Whether a table holds sentences: then all of it stands to the left and may wrap."""
    return any(
        len(str(entry)) > _SENTENCE and " " in str(entry) for row in table.itertuples(index=False) for entry in row[1:]
    )


def rounded(value: float, decimals: int | None = None) -> str:
    """A number with a true minus sign; powers of ten only for the very large and very small.

    Args:
        value: the number.
        decimals: digits after the point, below zero for tens, hundreds and so on; None for three significant digits.
    """
    if not math.isfinite(value):
        return "not defined"
    if decimals is None:
        value = float(f"{value:.3g}")
        decimals = 2 - _power(value) if value else 0
    value = round(value, decimals) + 0.0  # no minus before zero
    if value and (decimals > 6 or abs(value) >= 1e9):
        digits, _, power = f"{value:.{max(decimals + _power(value), 0)}e}".partition("e")
        text = f"{digits} \N{MULTIPLICATION SIGN} {power_of_ten(int(power))}"
    else:
        text = f"{value:,.{max(decimals, 0) if value or decimals <= 6 else 0}f}"
        text = text.replace(",", "\N{NARROW NO-BREAK SPACE}" if abs(value) >= 1e4 else "")
    return text.replace("-", "\N{MINUS SIGN}")


def power_of_ten(exponent: int) -> str:
    """As text, for example 10⁻⁷."""
    return f"10{str(exponent).translate(_RAISED)}"


def _power(value: float) -> int:
    return math.floor(math.log10(abs(value)))


def value(value: float, unit: str = "1", decimals: int | None = None) -> str:
    """A number with its unit; ``1`` is none. ``decimals`` as in :func:`rounded`."""
    words = readable_unit(unit)
    return rounded(value, decimals) + (f"\N{NO-BREAK SPACE}{words}" if words and math.isfinite(value) else "")


def with_unit(name: str, unit: str) -> str:
    """A name with the unit in brackets, where there is one; as in ``volume [mL]``."""
    words = readable_unit(unit)
    return f"{name} [{words}]" if words else name


def span(estimate: Estimate, unit: str = "1") -> str:
    """The interval of an estimate in words."""
    return f"{rounded(estimate.low)} to {value(estimate.high, unit)}" if math.isfinite(estimate.low) else "not defined"


def caution(patients: int) -> str:
    """A warning for few patients, from whom resamples cannot show how much others would differ; else nothing."""
    if patients >= FEW:
        return ""
    return f" These are {patients} patients only: intervals from so few are too narrow, and nothing is shown by them."


def calm(axes: Any, x: str, y: str, unit: str = "1") -> None:
    """Label the axes of a figure and leave out what says nothing."""
    axes.set_xlabel(with_unit(x, unit), color=QUIET)
    axes.set_ylabel(with_unit(y, unit), color=QUIET)
    axes.tick_params(colors=QUIET, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9a9a9a")


def caveat(notice: str) -> Section:
    """The first section of a report whose numbers do not say what a reader would take them for."""
    return Section("Not new patients", "", notices=[notice])


def _data_uri(figure: Figure) -> str:
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode("ascii")


def _jpeg_uri(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")


def _long(table: pd.DataFrame) -> list[bool]:
    """Which columns hold sentences: those begin at the left and are broken into lines."""
    return [any(isinstance(cell, str) and len(cell) > 30 for cell in table[name]) for name in table]


def must_not(table: PredictionsTable, target: str, *, unit: str, time: bool) -> Section:
    """Name the uses that the evaluation does not support.

    Args:
        table: predictions of patients with a measured value.
        target: its name.
        unit: its unit, ``"1"`` for none.
        time: true for a time to an event.
    """
    measured = table.measured(target)
    low, high = (value(float(end), unit) for end in (measured.min(), measured.max()))
    seen = f"followed for {low} to {high}" if time else f"with values from {low} to {high}"
    few, many = int(table.scans.min()), int(table.scans.max())
    seen += f", {few} scan{'s' * (few > 1)} each" if few == many else f", {few} to {many} scans each"
    span = max(max(days) for days in table.days)
    seen += f", {rounded(span)} days at most from the first scan to the last" if span else ", all of one day"
    alone = "A patient's number taken as certain: many lie further off than the mean error says."
    if time:
        alone = "Chances beyond the last horizon, or the median day of a patient: neither was judged."
    uses = [
        "Diagnosis, treatment, triage or follow-up of a patient, or any step that leads to these without a person.",
        f"Patients unlike the {len(table)} seen here ({seen}), and other hospitals, scanners or protocols.",
        "Groups that are marked as few or not shown at all under “Groups of patients”.",
        alone,
        "What a treatment would change, or why: the model says what goes together, not what causes what.",
        "A decision above or below a threshold: none was examined.",
    ]
    text = f"{RESEARCH} Above all it must not be used for:\n\n" + "\n".join(f"- {use}" for use in uses)
    return Section("What the model must not be used for", text)

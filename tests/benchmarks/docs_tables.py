"""Put the tables that benchmarks print into docs/benchmarks.md."""

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs/benchmarks.md"


def into_docs(name: str, text: str) -> None:
    """Replace what is between the markers of this name in docs/benchmarks.md.

    Raises:
        ValueError: if the page has no such markers.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, opened, rest = DOCS.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"{DOCS.name}: expected the markers {begin.strip()} and {end}, found none")
    DOCS.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")

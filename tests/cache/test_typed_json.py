"""Records read from JSON: every entry is there and of its type, or one sentence names the one that is not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import pytest
from pydantic import Field

from monai_mvreg.cache.typed_json import RecordError, checked, json_schema, read_json, strict, write_json


@dataclass(frozen=True)
class Scanner:
    name: str
    tesla: Annotated[float, Field(gt=0, le=10)]


@strict
@dataclass(frozen=True)
class Site:
    format: Literal["site 1"]
    scanners: tuple[Scanner, ...]
    folder: Path | None = None
    patients: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if not self.scanners:
            raise ValueError("expected at least one scanner")


SITE = Site("site 1", (Scanner("a", 1.5), Scanner("b", 3.0)), patients=7)


@pytest.mark.parametrize("text", ["x", "NA", "", "ÄÖ"])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, text: str) -> None:
    site = Site("site 1", (Scanner(text, 1 / 3),), patients=2**53 + 1)
    write_json(site, tmp_path / "new/site.json")
    assert read_json(Site, tmp_path / "new/site.json") == site


def test_a_dictionary_of_records_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json({"here": SITE, "there": None}, tmp_path / "sites.json")
    assert read_json(dict[str, Site | None], tmp_path / "sites.json") == {"here": SITE, "there": None}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "site 2"}, "format: expected 'site 1', got 'site 2'"),
        ({"patients": 2.5}, "patients: expected a whole number, got 2.5"),
        ({"patients": True}, "patients: expected a whole number, got True"),
        ({"patients": "7"}, "patients: expected a whole number, got '7'"),
        ({"patients": 0}, "patients: expected at least 1, got 0"),
        ({"folder": 5}, "folder: expected text, got 5"),
        ({"scanners": None}, "scanners: expected a list, got None"),
        ({"scanners": {"name": "a"}}, "scanners: expected a list, got 1 entries"),
        ({"scanners": []}, "expected at least one scanner"),
        ({"scanners": [{"name": "a", "tesla": 3}, {"name": "b"}]}, "scanners 2.tesla: expected a value, got nothing"),
        ({"scanners": [{"name": None, "tesla": 3}]}, "scanners 1.name: expected text, got None"),
        ({"scanners": [{"name": "a", "tesla": 0}]}, "scanners 1.tesla: expected more than 0, got 0"),
        ({"scanners": [{"name": "a", "tesla": 11}]}, "scanners 1.tesla: expected at most 10, got 11"),
        ({"scanners": [{"name": "a", "tesla": float("inf")}]}, "scanners 1.tesla: expected a finite number, got inf"),
        ({"scanners": ["a"]}, "scanners 1: expected entries, name: value, got 'a'"),
        ({"patient": 3}, "patient: no such entry, expected one of format, scanners, folder, patients"),
        ({"scanners": [{"name": "a", "tessla": 3}]}, "scanners 1.tessla: no such entry, expected one of name, tesla"),
    ],
)
def test_what_is_wrong_is_one_sentence(changes: dict[str, object], sentence: str) -> None:
    content = {"format": "site 1", "scanners": [{"name": "a", "tesla": 3}], **changes}
    with pytest.raises(RecordError) as error:
        checked(Site, content)
    assert str(error.value) == sentence


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", '{"format": "site 1"}'])
def test_another_file_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.json").write_text(text)
    with pytest.raises(ValueError, match=r"^site\.json: "):
        read_json(Site, tmp_path / "site.json")


def test_a_number_that_is_not_finite_is_not_written_and_the_file_stays(tmp_path: Path) -> None:
    write_json(SITE, tmp_path / "site.json")
    with pytest.raises(ValueError, match="JSON"):
        write_json(Site("site 1", (Scanner("a", float("nan")),)), tmp_path / "site.json")
    assert read_json(Site, tmp_path / "site.json") == SITE


def test_what_is_written_follows_the_schema_and_nothing_else_does(tmp_path: Path) -> None:
    schema = json_schema(Site)
    jsonschema.Draft202012Validator.check_schema(schema)
    write_json(SITE, tmp_path / "site.json")
    written = json.loads((tmp_path / "site.json").read_text())
    jsonschema.validate(written, schema)
    for wrong in ({**written, "more": 1}, {**written, "patients": 0}, {"format": "site 1", "scanners": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)

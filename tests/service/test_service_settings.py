"""The settings of the listener: what is wrong is named, and nobody is let in by default."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import yaml

from monai_mvreg.service.service_settings import ListenSettings, Peer, WebArchive, read_listen_settings

LEAST = {"folder": "queue", "bundle": "/bundle", "web": {"url": "http://127.0.0.1:8042/dicom-web"}}


def read(home: Path, **changes: object) -> ListenSettings:
    (home / "listen.yaml").write_text(yaml.safe_dump({**LEAST, **changes}))
    return read_listen_settings(home / "listen.yaml")


def test_three_settings_are_enough(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.folder == tmp_path / "queue" and found.bundle == Path("/bundle")
    assert found.web == WebArchive("http://127.0.0.1:8042/dicom-web") and found.peers == ()


def test_nested_settings_are_read(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        peers=[{"ae_title": "CT1", "address": "10.1.0.0/16"}],
        tls={"certificate": "a.pem", "key": "/b.pem"},
        quiet=5,
    )
    assert found.peers == (Peer("CT1", "10.1.0.0/16"),) and found.quiet == 5.0
    assert found.tls is not None and (found.tls.certificate, found.tls.key) == (tmp_path / "a.pem", Path("/b.pem"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prot": 1}, "prot: no such entry, expected one of folder, bundle"),
        ({"port": "104"}, "port: expected a whole number, got '104'"),
        ({"port": 70_000}, "port: expected at most 65535, got 70000"),
        ({"quiet": "soon"}, "quiet: expected a number"),
        ({"quiet": -1}, "quiet: expected at least 0, got -1"),
        ({"quiet": float("nan")}, "quiet: expected a finite number, got nan"),
        ({"quiet": True}, "quiet: expected a number"),
        ({"web": None}, "expected one archive"),
        ({"dimse": {"ae_title": "A", "host": "b", "port": 1}}, "expected one archive"),
        ({"web": {"url": "ftp://x"}}, "web: expected a url"),
        ({"web": {}}, "web.url: expected a value, got nothing"),
        ({"web": {"url": "http://x", "user": "me"}}, "expected both user and password_file"),
        ({"peers": {"ae_title": "A"}}, "peers: expected a list"),
        ({"peers": [{"ae_title": "A"}]}, "peers 1.address: expected a value, got nothing"),
        ({"peers": [{"ae_title": "A", "address": "nowhere"}]}, "peers 1.address: 'nowhere'"),
        ({"peers": [{"ae_title": "A" * 17, "address": "10.0.0.1"}]}, "1 to 16 printable"),
        ({"ae_title": " "}, "1 to 16 printable"),
        (
            {"peers": [{"ae_title": "A", "address": "10.0.0.1", "port": 4}]},
            "peers 1.port: no such entry",
        ),
        ({"folder": dt.date(2026, 1, 1), "bundle": 5}, "bundle: expected text, got 5"),
        ({"max_associations": 0}, "max_associations: expected at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        read(tmp_path, **changes)
    assert str(error.value).startswith("listen.yaml: ")


@pytest.mark.parametrize("text", ["[1, 2]", "a: b: c", ""])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"x.yaml: "):
        read_listen_settings(tmp_path / "x.yaml")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("bundle: b")
    with pytest.raises(ValueError, match="folder: expected a value, got nothing"):
        read_listen_settings(tmp_path / "x.yaml")


def test_the_example_of_the_docs_is_read_and_names_every_default(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "pacs.md").read_text()
    example = page.split("```yaml\n", 1)[1].split("```", 1)[0]
    given = yaml.safe_load(example)
    (tmp_path / "listen.yaml").write_text(example)
    found = read_listen_settings(tmp_path / "listen.yaml")
    table = page.split("| setting |", 1)[1].split("\n\n", 1)[0]
    for name, field in ListenSettings.__dataclass_fields__.items():
        assert name in given or f"`{name}`" in table, name
        if isinstance(field.default, (int, float, str)) and f"| `{name}` |" in table:
            shown = table.split(f"| `{name}` |", 1)[1].split("|", 1)[0].strip(" `")
            assert type(field.default)(shown) == field.default, name
    assert found.peers

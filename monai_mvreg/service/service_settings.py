"""The settings of the listener: a YAML file -> checked values; what is not named has a default that lets nobody in."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field

from monai_mvreg.cache.typed_json import checked, strict


def _title(title: str) -> str:
    if not 1 <= len(title.strip()) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError(f"expected 1 to 16 printable characters, got {title!r}")
    return title


def _network(address: str) -> str:
    ipaddress.ip_network(address)  # its ValueError says what is wrong
    return address


Title = Annotated[str, AfterValidator(_title)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Peer:
    """Who may send: an AE title, from an address or network (``10.1.2.3``, ``10.1.2.0/24``, ``fd00::/8``)."""

    ae_title: Title
    address: Annotated[str, AfterValidator(_network)]


@dataclass(frozen=True)
class ServerTls:
    """Certificate and key of the listener; ``clients`` are the authorities whose certificates senders must have."""

    certificate: Path
    key: Path
    clients: Path | None = None


@dataclass(frozen=True)
class WebArchive:
    """An archive by DICOMweb; the password stands alone in a file, ``authorities`` are trusted for https."""

    url: str
    user: str | None = None
    password_file: Path | None = None
    authorities: Path | None = None
    timeout: Amount = 60.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("expected a url that begins with http:// or https://")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("expected both user and password_file, or neither")


@dataclass(frozen=True)
class DimseArchive:
    """An archive by C-FIND, C-MOVE and C-STORE; it must know the listener's AE title and port to move studies to it.

    With ``authorities`` the connection is TLS; ``certificate`` and ``key`` are shown to the archive.
    """

    ae_title: Title
    host: str
    port: Port
    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout: Amount = 60.0

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected both certificate and key, or neither")


@strict
@dataclass(frozen=True)
class ListenSettings:
    """All settings of ``mvreg listen``; docs/pacs.md says what each is for.

    Sizes are in megabytes (10^6 bytes), times in seconds unless the name says otherwise.
    """

    folder: Path
    bundle: Path
    web: WebArchive | None = None
    dimse: DimseArchive | None = None
    models: Path | None = None
    device: str = "cpu"
    ae_title: Title = "MVREG"
    host: str = "127.0.0.1"
    port: Port = 11112
    peers: tuple[Peer, ...] = ()
    tls: ServerTls | None = None
    quiet: Amount = 30.0
    max_object_mb: Amount = 1000.0
    min_free_mb: Amount = 1000.0
    max_associations: Count = 10
    network_timeout: Amount = 60.0
    max_earlier_studies: Annotated[int, Field(ge=0)] = 20
    max_crashes: Count = 3
    max_refusals: Count = 10
    max_wait: Amount = 300.0
    keep_hours: Amount = 24.0
    remember_days: Amount = 90.0
    stop_within: Amount = 60.0
    health_host: str = "127.0.0.1"
    health_port: Port = 11180

    def __post_init__(self) -> None:
        if (self.web is None) == (self.dimse is None):
            raise ValueError("expected one archive, web or dimse")


def read_listen_settings(path: Path) -> ListenSettings:
    """Read the file of settings; paths in it that are not absolute start at its folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a name that is no setting, one that is missing, or a value that cannot be; each is named.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: expected YAML, got something else: {str(error).splitlines()[0]}") from None
    try:
        found: ListenSettings = _below(path.absolute().parent, checked(ListenSettings, given))
        return found
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _below(home: Path, part: Any) -> Any:
    """Let the paths of settings start at a folder; absolute ones stay."""
    if isinstance(part, Path):
        return home / part
    if isinstance(part, tuple):
        return tuple(_below(home, inner) for inner in part)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: _below(home, getattr(part, field.name)) for field in fields(part)})
    return part

"""The settings of the listener: a YAML file -> checked values; what is not named has a default that lets nobody in."""

from __future__ import annotations

import ipaddress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "Path": "a path"}


@dataclass(frozen=True)
class Peer:
    """Who may send: an AE title, from an address or network (``10.1.2.3``, ``10.1.2.0/24``, ``fd00::/8``)."""

    ae_title: str
    address: str

    def __post_init__(self) -> None:
        _check_title(self.ae_title)
        ipaddress.ip_network(self.address)  # its ValueError says what is wrong


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
    timeout: float = 60.0

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

    ae_title: str
    host: str
    port: int
    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout: float = 60.0

    def __post_init__(self) -> None:
        _check_title(self.ae_title)
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected both certificate and key, or neither")


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
    ae_title: str = "MVREG"
    host: str = "127.0.0.1"
    port: int = 11112
    peers: tuple[Peer, ...] = ()
    tls: ServerTls | None = None
    quiet: float = 30.0
    max_object_mb: float = 1000.0
    min_free_mb: float = 1000.0
    max_associations: int = 10
    max_pdu: int = 65_536
    association_timeout: float = 10.0
    message_timeout: float = 30.0
    network_timeout: float = 60.0
    max_earlier_studies: int = 20
    max_crashes: int = 3
    max_refusals: int = 10
    max_wait: float = 300.0
    keep_hours: float = 24.0
    remember_days: float = 90.0
    stop_within: float = 60.0
    health_host: str = "127.0.0.1"
    health_port: int = 11180

    def __post_init__(self) -> None:
        _check_title(self.ae_title)
        if (self.web is None) == (self.dimse is None):
            raise ValueError("expected one archive, web or dimse")
        for name in ("max_associations", "max_earlier_studies", "max_crashes", "max_refusals"):
            if getattr(self, name) < (0 if name == "max_earlier_studies" else 1):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("port", "health_port"):
            if not 0 <= getattr(self, name) < 65_536:
                raise ValueError(f"{name}: expected a port, got {getattr(self, name)}")
        if not 4096 <= self.max_pdu <= 2**20:
            raise ValueError(f"max_pdu: expected 4096 to 1048576 bytes, got {self.max_pdu}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and (value < 0 or value != value):
                raise ValueError(f"{field.name}: expected no negative number, got {value}")


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
        return _made(ListenSettings, given, "", path.absolute().parent)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _check_title(title: str) -> None:
    if not 1 <= len(title.strip()) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError(f"ae_title: expected 1 to 16 printable characters, got {title!r}")


Made = TypeVar("Made")


def _made(kind: type[Made], given: Any, where: str, home: Path) -> Made:
    """Make a dataclass from what YAML gave, and check the kind of each value."""
    if not isinstance(given, dict):
        raise ValueError(f"{where or 'the file'}: expected settings, name: value, got {type(given).__name__}")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if strange := sorted(str(name) for name in set(given) - set(known)):
        raise ValueError(f"{where}{strange[0]}: no such setting, expected one of {', '.join(known)}")
    if missing := [name for name, field in known.items() if field.default is MISSING and name not in given]:
        raise ValueError(f"{where}{missing[0]}: expected this setting, it is missing")
    hints = get_type_hints(kind)
    values = {name: _value(hints[name], value, where + name, home) for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where.rstrip('.')}: {error}" if where else str(error)) from None


def _value(hint: Any, value: Any, where: str, home: Path) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {type(value).__name__}")
        return tuple(_value(get_args(hint)[0], one, f"{where} {at}", home) for at, one in enumerate(value, start=1))
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    if value is None and len(get_args(hint)) > 1:
        return None
    kind = kinds[0]
    if is_dataclass(kind):
        return _made(kind, value, f"{where}.", home)  # type: ignore[arg-type]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return home / value
    if type(value) is not kind:
        raise ValueError(f"{where}: expected {_KINDS[kind.__name__]}, got {value!r}")
    return value

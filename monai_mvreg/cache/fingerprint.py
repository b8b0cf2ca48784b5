"""Transforms, networks -> one hash of all that they compute with: settings, tensors, and the code itself.

Two that could give another result have another fingerprint. The other way round it is cautious: a change of a comment
in your own code, or an update of a library that it imports, changes the fingerprint too.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
# What a network holds and does not compute with: its mode, what watches the loading of its weights, a compiled copy.
_ASIDE = {"training", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_frozen_constants"}


def fingerprint(*things: Any) -> str:
    """Hash objects with everything they hold, and the code they run.

    Settings are read as pickle reads them, so any object that can be copied has a fingerprint. The source of every
    module outside the installed packages counts, with all that it imports in turn; of an installed package, its
    version. The mode of a network (``train`` or ``eval``) does not count.

    Args:
        things: transforms, networks, numbers, texts, tensors, functions, and lists of these.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: for an object whose settings cannot be read, such as an open file.

    Example:
        >>> fingerprint(nn.ReLU(), 1.0) == fingerprint(nn.ReLU(), 1.0) != fingerprint(nn.ReLU(), 2.0)
        True
    """
    walk = _Walk()
    digests = [walk.digest(thing) for thing in things]
    return _joined(*digests, *_code_of(walk.modules)).hex()


def _joined(*parts: bytes) -> bytes:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.digest()


class _Walk:
    """A walk through objects that hold each other; ``modules`` are the names of those whose code was met."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.known: dict[int, tuple[Any, bytes]] = {}  # the object stays alive, so that its id is not given away

    def digest(self, thing: Any) -> bytes:
        if type(thing) in _PLAIN:
            return _joined(type(thing).__name__.encode(), repr(thing).encode("utf-8", "surrogatepass"))
        if id(thing) not in self.known:
            self.known[id(thing)] = thing, b"held by itself"
            self.known[id(thing)] = thing, _joined(*self.parts(thing))
        return self.known[id(thing)][1]

    def parts(self, thing: Any) -> Iterator[bytes]:
        kind = type(thing)
        yield kind.__qualname__.encode()
        if isinstance(thing, torch.Tensor):
            dense = thing.detach().cpu().contiguous()
            yield f"{dense.dtype} {tuple(dense.shape)}".encode()
            yield dense.reshape(-1).view(torch.uint8).numpy().tobytes()
        elif isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
            yield f"{thing.dtype.descr} {thing.shape}".encode()
            yield thing.tobytes()
        elif kind in (list, tuple):
            yield from map(self.digest, thing)
        elif kind in (set, frozenset):
            yield from sorted(map(self.digest, thing))
        elif kind in (dict, types.MappingProxyType):
            yield from (self.digest(part) for item in thing.items() for part in item)
        elif kind is types.ModuleType:
            yield self.name_of(thing, thing.__name__)
        elif kind is types.FunctionType:
            yield from self.function(thing)
        elif kind is types.MethodType:
            yield self.digest(thing.__func__)
            yield self.digest(thing.__self__)
        elif kind is types.CodeType:
            yield thing.co_code
            yield self.digest([thing.co_consts, thing.co_names, thing.co_varnames, thing.co_freevars])
        elif isinstance(thing, type):
            yield self.name_of(thing, thing.__module__)
            if not _has_source(thing.__module__):  # written in a notebook
                yield self.digest({k: v for k, v in vars(thing).items() if not inspect.isgetsetdescriptor(v)})
        elif isinstance(thing, nn.Module):
            yield self.digest(kind)
            yield self.digest({name: value for name, value in vars(thing).items() if name not in _ASIDE})
        else:
            yield from self.reduced(thing)

    def name_of(self, thing: Any, module: str) -> bytes:
        self.modules.add(module)
        return f"{module} {getattr(thing, '__qualname__', '')}".encode()

    def function(self, thing: types.FunctionType) -> Iterator[bytes]:
        module = str(thing.__module__)
        yield self.name_of(thing, module)
        yield self.digest([thing.__code__, thing.__defaults__, thing.__kwdefaults__])
        yield self.digest([cell.cell_contents for cell in thing.__closure__ or ()])
        if not _has_source(module):  # written in a config: what it names stands nowhere else
            for name, value in _named(thing.__code__, thing.__globals__):
                yield name.encode()
                yield self.digest(value)

    def reduced(self, thing: Any) -> Iterator[bytes]:
        """Take an object apart as pickle does."""
        try:
            reduced = thing.__reduce_ex__(4)
        except Exception as error:  # whatever an object of somebody else raises
            name = f"{type(thing).__module__}.{type(thing).__qualname__}"
            raise ValueError(f"expected settings that can be pickled, got {name} ({error})") from None
        if isinstance(reduced, str):
            yield self.name_of(thing, str(getattr(thing, "__module__", None) or type(thing).__module__))
            yield reduced.encode()
            return
        for part in reduced:
            yield self.digest(list(part) if isinstance(part, Iterator) else part)


def _named(code: types.CodeType, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The global names that a function uses, and their values; ``@name`` of a config stands in one dictionary."""
    inside = [code, *(part for part in code.co_consts if isinstance(part, types.CodeType))]
    names = sorted({name for part in inside for name in part.co_names})
    consts = {const for part in inside for const in part.co_consts if isinstance(const, str)}
    for name in names:
        if name == "__local_refs":
            yield from ((const, known[name][const]) for const in sorted(consts) if const in known.get(name, {}))
        elif name in known:
            yield name, known[name]


@cache
def _has_source(module: str) -> bool:
    return isinstance(getattr(sys.modules.get(module), "__file__", None), str) or module in sys.builtin_module_names


def _code_of(modules: set[str]) -> Iterator[bytes]:
    """The sources of own modules with all own modules they import, and the versions of installed packages."""
    yield f"python {sys.version_info[:3]}".encode()
    waiting, seen, packages = sorted(modules), set(modules), set()
    own: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names and top != "__main__":
            continue
        if _is_installed(top):
            packages.add(top)
            continue
        source = _source(name)
        if source is not None:
            own[name] = source
            found = set(_imports(name, source)) - seen
            seen |= found
            waiting += sorted(found)
    for name in sorted(own):
        yield name.encode()
        yield own[name]
    for package in sorted(packages):
        yield f"{package} {_version(package)}".encode()


@cache
def _is_installed(top: str) -> bool:
    """Whether a package lies among the installed ones; ours is read as source, which changes between releases."""
    if top in ("monai_mvreg", "__main__"):
        return False
    return any(_is_of_packages(place) for place in _places(top))


def _is_of_packages(place: str) -> bool:
    """Whether a file is where pip or the system puts packages, of this environment, its base or the user."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(place).parts)


def _places(name: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):  # an import that is optional, or a name in a module
        return []
    if spec is None:
        return []
    return [spec.origin] if spec.origin and spec.has_location else list(spec.submodule_search_locations or [])


def _source(name: str) -> bytes | None:
    if name == "__main__":
        place = getattr(sys.modules[name], "__file__", None)
        if place is None or _is_of_packages(place):  # python -m monai.bundle
            return None
        return Path(place).read_bytes()
    files = [place for place in _places(name) if Path(place).is_file()]
    return Path(files[0]).read_bytes() if files else None


def _imports(name: str, source: bytes) -> Iterator[str]:
    """The modules that a source names in its imports, in functions too; a name may turn out to be no module."""
    package = name if _places(name)[:1] and Path(_places(name)[0]).stem == "__init__" else name.rpartition(".")[0]
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a compiled module
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(start, package) if node.level else start
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def _distributions() -> dict[str, list[str]]:
    return {top: list(names) for top, names in metadata.packages_distributions().items()}


def _version(top: str) -> str:
    names = sorted(set(_distributions().get(top, [])))
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)

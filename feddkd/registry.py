"""Find classes and functions by the name that a configuration gives them.

A module registers what it adds, and nothing lists it a second time: one new file in
`feddkd/algorithms` is a new algorithm. Modules are imported when a name is looked up, because most
of them import torch, and `feddkd --help` should not wait for that.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from feddkd.errors import ConfigError
from feddkd.imports import one_line

Item = TypeVar("Item")

CODEC_METHODS = ("of", "size_bytes", "encode", "decode", "check")


def _check_codec(name: str, item: Any) -> None:
    """Check that a class has the methods of `RegisteredCodec`. Raises ConfigError."""
    missing = [method for method in CODEC_METHODS if not callable(getattr(item, method, None))]
    if missing:
        raise ConfigError(f"codec {name!r}: {_place(item)} has no method {' and no '.join(missing)}")


def _check_table(name: str, item: Any) -> None:
    """Check that a class has a table of settings whose `name` is this one, not that of the class above it. Raises ConfigError."""
    table = getattr(item, "table", None)
    fields = getattr(table, "model_fields", {})
    if table is None or "name" not in fields:
        raise ConfigError(f"{name!r}: {_place(item)} needs `table`, a subclass of NamedTable with the name {name!r}")
    if (other := fields["name"].default) != name:
        raise ConfigError(f"{name!r}: {_place(item)} needs a `table` of its own: {table.__qualname__} has the name {other!r}")


class RegisteredTwiceError(ConfigError):
    """Two objects are registered under one name."""


class Registry(Mapping[str, Any]):
    """Maps names to what the modules of one package register, in alphabetical order.

    Looking up a name imports the module of that name, and the others if there is none or it has not
    registered the name. So no module takes a name that is another one's. Iterating imports all of them.

    Args:
        package: its full name; it is not imported before the first look-up.
        check: called with each name and what is to be registered under it; raises ConfigError for
            what lacks something.
    """

    def __init__(self, package: str, check: Callable[[str, Any], None] | None = None) -> None:
        self._package = package
        self._check = check
        self._items: dict[str, Any] = {}
        self._looked_up: set[str] = set()  # since it was registered last: nothing else can have the name

    def register(self, *names: str) -> Callable[[Item], Item]:
        """Return a decorator that registers a class or function under one name or several.

        What is defined again, as by a notebook's cell that is run again, takes its own place.

        Raises:
            ConfigError: another one has a name, or it lacks something; the decorator raises it.
        """

        def add(item: Item) -> Item:
            for name in names:
                if self._check is not None:
                    self._check(name, item)
                known = self._items.get(name, item)
                if _place(known) != _place(item):
                    places = f"by {_place(known)} and by {_place(item)}"
                    raise RegisteredTwiceError(f"{name!r} is registered twice: {places}")
                self._items[name] = item
                self._looked_up.discard(name)
            return item

        return add

    def __getitem__(self, name: str) -> Any:
        """Find what is registered under `name`.

        Raises:
            KeyError: nothing is.
            ConfigError: nothing is, and a module of the package cannot be imported; or modules
                register one name twice.
        """
        if name in self._looked_up and name in self._items:
            return self._items[name]  # a loss looks its divergence up for every batch
        modules = self._modules()
        broken = self._import_those(name, modules)
        if name not in self._items and broken:
            raise broken[0]
        found = self._items[name]
        self._looked_up.add(name)
        return found

    def _import_those(self, name: str, modules: list[str]) -> list[ConfigError]:
        """Import what may register a name, and return why modules could not be imported. Raises RegisteredTwiceError."""
        broken: list[ConfigError] = []
        for module in sorted(modules, key=lambda module: module != name):
            try:
                _import(f"{self._package}.{module}")
            except RegisteredTwiceError:
                raise
            except ConfigError as error:
                broken.append(error)
            if module == name and name in self._items:
                break
        return broken

    def __iter__(self) -> Iterator[str]:
        for module in self._modules():
            _import(f"{self._package}.{module}")
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _modules(self) -> list[str]:
        """List the modules of the package, which is imported for it."""
        return [found.name for found in pkgutil.iter_modules(_import(self._package).__path__)]


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except RegisteredTwiceError as error:
        raise RegisteredTwiceError(f"importing {module} failed with {error}") from error
    except Exception as error:  # a module under development may raise anything
        raise ConfigError(f"importing {module} failed with {one_line(error)}") from error


def _place(item: Any) -> str:
    return f"{item.__module__}.{getattr(item, '__qualname__', repr(item))}"


ALGORITHMS = Registry("feddkd.algorithms", _check_table)
"""Subclasses of `Algorithm`, `algorithm.name`; each has a `table` of its own, the class of its settings."""

OBJECTIVES = Registry("feddkd.algorithms", _check_table)
"""Subclasses of `LocalObjective`, `algorithm.local_objective.name`; each has a `table` of its own."""

CODECS = Registry("feddkd.compression", _check_codec)
"""Classes of codecs, `communication.up` and `down`, with the class method `of` (`RegisteredCodec`).
`topk:SHARE` stands for `topk:0.01` and its like."""

DIVERGENCES = Registry("feddkd.dkd")
"""Functions that measure how far a student is from its teacher (`Divergence`), `dkd.divergence`."""

OPTIMIZERS = Registry("feddkd.aggregator")
"""Classes or functions that build the server's `torch.optim.Optimizer`, `dkd.optimizer`; called with
the parameters, `lr` and, where they take it, `betas`."""

RULES = Registry("feddkd.aggregator", _check_table)
"""Classes of rules that reduce contributions, `aggregation.rule`; each has a `table` of its own, the class of its
settings, and the class method `of` (`RegisteredRule`)."""

TRACKERS = Registry("feddkd.observability.trackers")
"""Subclasses of `Tracker`, `--track` of `feddkd run` and `feddkd server`."""

TASKS = Registry("feddkd.tasks", _check_table)
"""Subclasses of `LearningTask`, `task.name`; each has a `table` of its own, the class of its settings."""

MODELS = Registry("feddkd.models")
"""Functions that build a network, `model.name`; called with the shape of one input and the number of
classes."""


LARGEST_SHARE = 0.25
"""Of the elements that a codec such as `topk:SHARE` keeps."""


def codec_key(name: str) -> str:
    """Return what the class of a codec is registered under: for `topk:0.01` that is `topk:SHARE`."""
    kind, colon, _ = name.partition(":")
    return f"{kind}:SHARE" if colon else name

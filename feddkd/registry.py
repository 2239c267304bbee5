"""Find classes and functions by the name that a configuration gives them.

A module registers what it adds, and nothing lists it a second time: one new file in `feddkd/algorithms` is a
new algorithm. Modules are imported when a name is asked for, because most of them import torch, and a
command that computes nothing should not wait for that.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from feddkd.errors import ConfigError
from feddkd.imports import one_line

Item = TypeVar("Item")


class Registry(Mapping[str, Any]):
    """Maps names to what the modules of one package register, in alphabetical order.

    To look up a name imports the module that is called so, then, until one has registered the name, the
    others. To iterate imports all of them.

    Args:
        package: its full name; not imported before the first look-up.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._items: dict[str, Any] = {}

    def register(self, *names: str) -> Callable[[Item], Item]:
        """Return a decorator that registers a class or function under one name or several.

        Raises:
            ConfigError: another one has a name; the decorator raises it.
        """

        def add(item: Item) -> Item:
            for name in names:
                known = self._items.setdefault(name, item)
                if known is not item:
                    raise ConfigError(f"{name!r} is registered twice: by {_place(known)} and by {_place(item)}")
            return item

        return add

    def __getitem__(self, name: str) -> Any:
        """Find what is registered under `name`.

        Raises:
            KeyError: nothing is.
            ConfigError: a module of the package cannot be imported.
        """
        # A module that is called like what it registers comes first.
        for module in sorted(self._modules() if name not in self._items else (), key=lambda module: module != name):
            _import(f"{self._package}.{module}")
            if name in self._items:
                break
        return self._items[name]

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
    except Exception as error:  # a module under development may raise anything
        raise ConfigError(f"importing {module} failed with {one_line(error)}") from error


def _place(item: Any) -> str:
    return f"{item.__module__}.{getattr(item, '__qualname__', item)}"


ALGORITHMS = Registry("feddkd.algorithms")
"""Subclasses of `Algorithm` by their name in the configuration, `algorithm.name`; each has a `table` of settings."""

OBJECTIVES = Registry("feddkd.algorithms")
"""Subclasses of `LocalObjective`, `algorithm.local_objective.name`; each has a `table` of settings."""

CODECS = Registry("feddkd.compression")
"""Classes of codecs, `communication.up` and `down`; `topk:SHARE` stands for `topk:0.01` and its like. Each has a class
method `of` that makes the codec (`RegisteredCodec`)."""

DIVERGENCES = Registry("feddkd.dkd")
"""Functions that measure how far a student is from its teacher, `dkd.divergence` (`Divergence`)."""

OPTIMIZERS = Registry("feddkd.aggregator")
"""Classes or functions that build the server's `torch.optim.Optimizer`, `dkd.optimizer`: called with the parameters,
`lr` and, where they take it, `betas`."""

MODELS = Registry("feddkd.models")
"""Functions that build a network, `model.name`: called with the shape of one input and the number of classes."""


def codec_key(name: str) -> str:
    """Return what the class of a codec is registered under: for `topk:0.01` that is `topk:SHARE`."""
    kind, colon, _ = name.partition(":")
    return f"{kind}:SHARE" if colon else name

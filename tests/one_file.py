"""Put one more file into a package of feddkd for the time of a test, as a developer would who adds an algorithm."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from feddkd import registry

REGISTRIES = [found for found in vars(registry).values() if isinstance(found, registry.Registry)]


@contextlib.contextmanager
def file_in(package: str, folder: Path, module: str, text: str) -> Iterator[Path]:
    """Make `text` the module `package.module`, and yield the folder that it is in; afterwards the module is unknown again."""
    folder = folder / package
    folder.mkdir()
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    searched = importlib.import_module(package).__path__
    searched.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield folder
    finally:
        searched.remove(str(folder))
        _forget(package, module)


def _forget(package: str, module: str) -> None:
    name = f"{package}.{module}"
    for found in REGISTRIES:
        for key in [key for key, item in found._items.items() if item.__module__ == name]:
            del found._items[key]
    if sys.modules.pop(name, None) is not None:
        delattr(sys.modules[package], module)

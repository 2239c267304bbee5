"""What is registered under a name is found, and no more is imported for it than is needed."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feddkd.algorithms.fedavg import FedAvg
from feddkd.errors import ConfigError
from feddkd.registry import ALGORITHMS, CODECS, OBJECTIVES, Registry

FRUITS = Registry("fruits_of_the_test")

MODULE = """
from test_registry import FRUITS

@FRUITS.register("{}")
class Fruit:
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose modules register in FRUITS: `apple` what it is called, `trees` two others."""
    folder = tmp_path / "fruits_of_the_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "apple.py").write_text(MODULE.format("apple"))
    (folder / "trees.py").write_text(MODULE.format("pear") + '\nFRUITS.register("fig")(lambda: 3)\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(FRUITS, "_items", {})
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


def imported() -> set[str]:
    return {name.partition(".")[2] for name in sys.modules if name.startswith("fruits_of_the_test.")}


@pytest.mark.usefixtures("package")
def test_a_module_that_is_called_like_the_name_is_the_only_one_that_is_imported() -> None:
    assert imported() == set()
    assert FRUITS["apple"].__qualname__ == "Fruit"
    assert imported() == {"apple"}


@pytest.mark.usefixtures("package")
def test_other_modules_are_searched_until_one_has_the_name() -> None:
    assert FRUITS["fig"]() == 3
    assert imported() == {"apple", "trees"}


@pytest.mark.usefixtures("package")
def test_all_names_are_known_in_alphabetical_order() -> None:
    assert list(FRUITS) == ["apple", "fig", "pear"]
    assert len(FRUITS) == 3


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["plum", "trees", "", "apple.seed", "../apple", "os"])
def test_a_name_that_nothing_is_registered_under_is_not_there(name: str) -> None:
    assert name not in FRUITS
    with pytest.raises(KeyError):
        FRUITS[name]


@pytest.mark.usefixtures("package")
def test_a_second_look_up_reads_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    first = FRUITS["fig"]
    monkeypatch.setattr(pkgutil, "iter_modules", None)
    assert FRUITS["fig"] is first
    FRUITS.register("fig")(first)  # what is registered again is looked up again
    with pytest.raises(TypeError):
        FRUITS["fig"]


def test_a_file_that_is_added_is_found(package: Path) -> None:
    assert "plum" not in FRUITS
    (package / "plum.py").write_text(MODULE.format("plum"))
    importlib.invalidate_caches()
    assert list(FRUITS) == ["apple", "fig", "pear", "plum"]


def test_a_name_is_given_once(package: Path) -> None:
    (package / "second.py").write_text(MODULE.format("pear"))
    twice = "'pear' is registered twice: by fruits_of_the_test.second.Fruit and by fruits_of_the_test.trees.Fruit"
    with pytest.raises(ConfigError, match=rf"importing fruits_of_the_test.trees failed with {twice}$"):
        list(FRUITS)


CELL = """
@FRUITS.register("kiwi")
class Fruit:
    seeds = {}
"""


@pytest.mark.usefixtures("package")
def test_a_cell_that_is_run_again_replaces_what_it_registered() -> None:
    cells: dict[str, Any] = {"__name__": "__main__", "FRUITS": FRUITS}
    for seeds in (1, 2):
        exec(CELL.format(seeds), cells)
    assert FRUITS["kiwi"].seeds == 2


def test_a_codec_without_a_method_is_refused_by_its_name() -> None:
    class Half:
        def encode(self) -> None: ...

    with pytest.raises(ConfigError, match=r"^codec 'half': .*Half has no method of and no size_bytes and no decode and no check$"):
        CODECS.register("half")(Half)
    assert "half" not in CODECS


def test_an_algorithm_needs_a_table_of_its_own_name() -> None:
    class Mine(FedAvg):
        pass

    with pytest.raises(ConfigError, match=r"^'mine': .*Mine needs a `table` of its own: FedAvgConfig has the name 'fedavg'$"):
        ALGORITHMS.register("mine")(Mine)
    assert "mine" not in ALGORITHMS


def test_an_objective_without_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^'mine': .*object needs `table`, a subclass of NamedTable with the name 'mine'$"):
        OBJECTIVES.register("mine")(object)


@pytest.mark.parametrize("name", ["apple", "pear"])
@pytest.mark.parametrize("first", ["a_thief", "z_thief", None])
def test_a_module_cannot_take_the_name_of_another_whichever_is_imported_first(name: str, first: str | None, package: Path) -> None:
    (package / f"{first or 'm_thief'}.py").write_text(MODULE.format(name))
    importlib.invalidate_caches()
    if first is not None:
        importlib.import_module(f"fruits_of_the_test.{first}")
    if name == "apple" and first is None:
        assert FRUITS[name].__module__ == "fruits_of_the_test.apple"
        return
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{name!r} is registered twice"):
            FRUITS[name]


def test_a_module_that_cannot_be_imported_is_named_and_spares_the_others(package: Path) -> None:
    (package / "broken.py").write_text("1 / 0\n")
    assert FRUITS["apple"]
    assert FRUITS["pear"]
    with pytest.raises(ConfigError, match=r"^importing fruits_of_the_test.broken failed with ZeroDivisionError: division by zero$"):
        FRUITS["plum"]

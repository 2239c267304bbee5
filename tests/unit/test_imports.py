from pathlib import Path

import pytest

from feddkd.errors import ConfigError, PausedError
from feddkd.imports import given_objects, load_object, one_line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory that is not on the import path before load_object puts it there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/nonexistent")  # restores sys.path afterwards
    return tmp_path


def test_finds_a_function_of_an_installed_module() -> None:
    assert load_object("pathlib:Path", "model.name") is Path


def test_finds_a_module_in_the_current_directory(here: Path) -> None:
    (here / "imports_probe_local.py").write_text("def build():\n    return 42\n")
    assert load_object("imports_probe_local:build", "model.name")() == 42


def test_finds_a_module_in_a_package_of_the_current_directory(here: Path) -> None:
    (here / "imports_probe_package").mkdir()
    (here / "imports_probe_package" / "nets.py").write_text("WIDTH = 3\n")
    assert load_object("imports_probe_package.nets:WIDTH", "model.name") == 3


@pytest.mark.parametrize("path", ["no_such_module_at_all:f", "pathlib.no_such_part:f"])
def test_a_missing_module_is_named_with_key_and_value(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_object(path, "data.name")
    assert f"data.name = {path!r}: there is no module {path.split(':')[0]!r}" in str(caught.value)


def test_a_missing_attribute_is_named_with_the_module_file() -> None:
    with pytest.raises(ConfigError, match=r"^model.name = 'json:nothing': module json \(.*json/__init__.py\) has no 'nothing'$"):
        load_object("json:nothing", "model.name")


def test_a_module_that_misses_another_one_is_not_called_missing_itself(here: Path) -> None:
    (here / "imports_probe_dependent.py").write_text("import no_such_dependency\n")
    with pytest.raises(ConfigError, match=r"importing imports_probe_dependent failed with ModuleNotFoundError: .*'no_such_dependency'"):
        load_object("imports_probe_dependent:f", "model.name")


def test_a_module_that_fails_is_reported_on_one_line(here: Path) -> None:
    (here / "imports_probe_broken.py").write_text("raise RuntimeError('first\\nsecond')\n")
    with pytest.raises(ConfigError) as caught:
        load_object("imports_probe_broken:f", "algorithm.name")
    assert str(caught.value).endswith("importing imports_probe_broken failed with RuntimeError: first")


@pytest.mark.parametrize("path", ["json", "json:", ":loads"])
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"not of the form package\.module:name"):
        load_object(path, "data.name")


def test_one_line_of_an_error_without_message() -> None:
    assert one_line(EOFError()) == "EOFError"


@pytest.mark.parametrize("error", [PausedError("round 16 needs 2 clients\nand more"), ConfigError("round 16 needs 2 clients")])
def test_one_line_of_an_error_of_ours_names_no_class(error: Exception) -> None:
    assert one_line(error) == "round 16 needs 2 clients"


def test_a_given_object_stands_in_place_of_an_import_for_its_key_alone() -> None:
    with given_objects({("data.name", "no_such_module_at_all:f"): 42}):
        assert load_object("no_such_module_at_all:f", "data.name") == 42
        with pytest.raises(ConfigError, match="there is no module"):
            load_object("no_such_module_at_all:f", "model.name")
    with pytest.raises(ConfigError, match="there is no module"):
        load_object("no_such_module_at_all:f", "data.name")


def test_an_object_without_an_import_path_is_not_searched_for() -> None:
    with pytest.raises(ConfigError, match=r"^data.name = '__given__:f': it was an object without an import path; to find it again, put it"):
        load_object("__given__:f", "data.name")


def test_a_function_of_another_script_is_told_from_a_typing_error() -> None:
    with pytest.raises(ConfigError, match="it was defined in a script or a notebook, and not in the one that runs now; put it"):
        load_object("__main__:no_such_function_here", "data.name")


@pytest.mark.parametrize("path", ["evil-mod:fn", "evil:fn x", "evil:fn\n", "évil:fn", "evil:", ":fn", "evil", "1evil:fn", "evil:fn:other"])
def test_what_has_not_the_form_of_an_import_path_is_not_imported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(ConfigError, match=r"not of the form package\.module:name"):
        load_object(path, "task.metrics")

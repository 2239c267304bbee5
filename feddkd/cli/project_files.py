"""Writes the files of a new project from the templates beside this module."""

from __future__ import annotations

import fnmatch
import importlib.util
import keyword
import re
import string
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from feddkd import __version__
from feddkd.client_ids import check_client_id
from feddkd.errors import ConfigError

TEMPLATES = Path(__file__).parent / "templates"
"""`project` has the files of every project, `sites` those that a federation of sites adds to them.
In their paths, PACKAGE and SITE are placeholders. `each_site` has pieces of files, which are
repeated for each site and put in by their names."""

SUFFIX = ".tmpl"

OTHER_FOLDERS = frozenset({"server", "sites", "tests"})
"""Folders of a project that are written with it and hold no package."""

GIT_IGNORE = TEMPLATES / "project" / f".gitignore{SUFFIX}"

OF_PYTEST = frozenset({"conftest", "pytest"})
"""Modules that the tests of a project may use."""

SERVER = "server"
"""What the server is called where sites are called by their names."""

POINTER = """
## The sites

A server and sites on machines of their own, and how to try them on this one: [SITES.md](SITES.md).
"""


class Template(string.Template):
    """Text with placeholders such as `@@{package}`; `$` and `@` stand in scripts and in Python."""

    delimiter = "@@"


def check_name(name: str) -> None:
    """Check that a project can have this name.

    Raises:
        ConfigError: it is no name of a Python package, or another package has it; the message says
            which name would do.
    """
    if reason := _reason_against(name):
        raise ConfigError(f"{name!r} cannot be the name of a project: {reason}; {_proposal(name)!r} would do")


def check_sites(sites: Sequence[str]) -> None:
    """Check the names of sites, none of which is a project for one machine. Raises ConfigError."""
    if not sites:
        return
    for site in sites:
        check_client_id(site, "--sites:")
    if ignored := [site for site in sites if _is_ignored(site)]:
        raise ConfigError(f"--sites: git would ignore a folder of the name {ignored[0]!r} (.gitignore)")
    if SERVER in sites:
        raise ConfigError(f"--sites: {SERVER!r} is the name of the server")
    repeated = [site for site in sites if sites.count(site) > 1]
    if repeated:
        raise ConfigError(f"--sites: {repeated[0]!r} is given twice")
    if len(sites) == 1:
        raise ConfigError(f"--sites: a federation has at least two sites, not {sites[0]!r} alone")


def render_project(package: str, sites: Sequence[str]) -> dict[PurePosixPath, str]:
    """Return the text of each file of a project, by its path in the project's folder, sorted."""
    values = {"package": package, "version": __version__, "pointer": POINTER if sites else ""}
    files = dict(_render_folder("project", values, sites))
    if sites:
        files |= _render_folder("sites", {**values, **_values_of(sites, values)}, sites)
    return dict(sorted(files.items()))


def write_project(folder: Path, files: Mapping[PurePosixPath, str]) -> None:
    """Write the files into a folder that is empty or does not exist.

    Raises:
        ConfigError: there is something already, or a file cannot be written.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; nothing was written")
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("x", encoding="utf-8") as stream:
                stream.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or folder}: {error.strerror}") from error


def _values_of(sites: Sequence[str], values: Mapping[str, str]) -> dict[str, str]:
    """Return the values that depend on the sites."""
    pieces = {
        file.name.removesuffix(SUFFIX): "".join(_render(file, {**values, "site": site}) for site in sites)
        for file in (TEMPLATES / "each_site").glob(f"*{SUFFIX}")
    }
    clients = ", ".join(f'"{site}"' for site in sites)
    return {**pieces, "clients": clients, "count": str(len(sites)), "first": sites[0]}


def _render_folder(name: str, values: Mapping[str, str], sites: Sequence[str]) -> Iterator[tuple[PurePosixPath, str]]:
    """Fill in all templates below a folder; those of SITE once for each site."""
    for file in (TEMPLATES / name).rglob(f"*{SUFFIX}"):
        path = file.relative_to(TEMPLATES / name).as_posix().removesuffix(SUFFIX)
        path = path.replace("PACKAGE", values["package"])
        if "SITE/" not in path:
            yield PurePosixPath(path), _render(file, values)
            continue
        for site in sites:
            yield PurePosixPath(path.replace("SITE/", f"{site}/")), _render(file, {**values, "site": site})


def _render(file: Path, values: Mapping[str, str]) -> str:
    """Fill in a template. The text ends with one newline, also where a placeholder at its end is empty."""
    return Template(file.read_text(encoding="utf-8")).substitute(values).rstrip("\n") + "\n"


def _reason_against(name: str) -> str | None:
    """Say why a project cannot have this name, if it cannot."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return "a Python package has a name of a-z 0-9 _ that begins with a letter"
    if keyword.iskeyword(name):
        return "it is a keyword of Python"
    if name in OTHER_FOLDERS:
        return "the project has another folder of this name"
    if _is_ignored(name):
        return "git and the archives for sites leave out folders of this name (.gitignore)"
    if name in OF_PYTEST or name in _other_modules():
        return "the project has another module of this name, or its tests do"
    if name in sys.stdlib_module_names or _is_installed(name):
        return "it would hide the module of this name"
    return None


def _is_ignored(name: str) -> bool:
    """Say whether a file or folder of this name does not belong to a project, by its .gitignore."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _ignored_patterns())


def _ignored_patterns() -> list[str]:
    """Return the patterns of a project's .gitignore; each is for names at any depth."""
    lines = GIT_IGNORE.read_text(encoding="utf-8").splitlines()
    return [line.rstrip("/") for line in lines if line and not line.startswith("#")]


def _other_modules() -> set[str]:
    """Return the names of a project's modules outside its package."""
    found = (file for file in TEMPLATES.rglob(f"*.py{SUFFIX}") if "PACKAGE" not in file.parts)
    return {file.name.removesuffix(f".py{SUFFIX}") for file in found}


def _is_installed(name: str) -> bool:
    """Say whether a module of this name can be imported; a folder without code is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _proposal(name: str) -> str:
    """Return the name most like this one that a project can have."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    cleaned = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_").lstrip("0123456789_")
    for proposal in (cleaned, f"{cleaned}_project", "my_project"):
        if _reason_against(proposal) is None:
            return proposal
    return "my_federation"

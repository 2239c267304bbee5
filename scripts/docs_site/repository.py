"""Which files of the repository the site shows, and as which pages."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = "source/"
LARGEST_PAGE_BYTES = 100_000
RAW = (".jsonl", ".png", ".svg")
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".proto": "proto", ".yml": "yaml", ".sh": "bash"}
HIDDEN = "---\nsearch:\n  exclude: true\nhide:\n  - navigation\n---\n\n"


class Repository:
    """The repository as a set of pages: those in docs/, those that live elsewhere, and files that these link to.

    Attributes:
        root: its folder.
        shown: path of each file or folder that has a page, relative to `root`, to the page.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.docs = root / "docs"
        self.shown: dict[str, str] = {}

    def begin(self, elsewhere: Mapping[str, str]) -> None:
        """Find what has a page. `elsewhere` maps pages of the site to files outside of docs/."""
        self.shown = {path: page for page, path in elsewhere.items()}
        waiting = [*(str(page.relative_to(self.root)) for page in self.docs.rglob("*.md")), *self.shown]
        while waiting:
            path = waiting.pop()
            targets = self._files_of(path) if (self.root / path).is_dir() else self._links(path)
            new = [target for target in dict.fromkeys(targets) if target not in self.shown]
            self.shown |= {target: self._new_page(target) for target in new}
            waiting += new

    def pages(self) -> dict[str, str | bytes]:
        """Return the content of each page that is not in docs/, by its path in the site."""
        return {page: self._content(path, page) for path, page in self.shown.items()}

    def folder_of(self, page: str) -> str:
        """Name the folder that links of a page are relative to, itself relative to `root`."""
        path = next((path for path, shown in self.shown.items() if shown == page), f"docs/{page}")
        return path if (self.root / path).is_dir() else posixpath.dirname(path)

    def page_of(self, path: str) -> str | None:
        """Name the page or file of the site that shows a path of the repository, or None."""
        return path.removeprefix("docs/") if path.startswith("docs/") else self.shown.get(path)

    def _links(self, path: str) -> list[str]:
        """List the existing files and folders outside of docs/ that a page links to."""
        if not path.endswith(".md"):
            return []
        links = [link.partition("#")[0] for link in LINK.findall((self.root / path).read_text(encoding="utf-8"))]
        paths = [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in links if link and ":" not in link]
        return [found for found in paths if not found.startswith(("docs", ".")) and (self.root / found).exists()]

    def _new_page(self, path: str) -> str:
        """Choose the page of a file or folder; a file that is no text to read keeps its name."""
        file = self.root / path
        if file.is_dir():
            return f"{SOURCE}{path}/index.md"
        if file.suffix in RAW or file.stat().st_size > LARGEST_PAGE_BYTES or not _is_text(file):
            return SOURCE + path
        # A README.md would be the index of its folder.
        return SOURCE + path.replace("README.md", "README.page.md") if file.suffix == ".md" else f"{SOURCE}{path}.md"

    def _files_of(self, folder: str) -> list[str]:
        children = sorted((self.root / folder).iterdir())
        return [f"{folder}/{child.name}" for child in children if child.is_file() and not child.name.startswith((".", "_"))]

    def _content(self, path: str, page: str) -> str | bytes:
        file = self.root / path
        if file.is_dir():
            return self._listing(path)
        if not page.endswith(".md"):
            return file.read_bytes()
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".md":
            return HIDDEN + text if page.startswith(SOURCE) else text
        return f"{HIDDEN}# {path}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n````\n"

    def _listing(self, folder: str) -> str:
        rows = [f"| [{Path(path).name}]({Path(path).name}) | {self._summary(path)} |" for path in self._files_of(folder)]
        return "\n".join([HIDDEN, f"# {folder}/", "", "| file | what it is |", "|---|---|", *rows, ""])

    def _summary(self, path: str) -> str:
        if not path.endswith(".py"):
            return ""
        docstring = ast.get_docstring(ast.parse((self.root / path).read_text(encoding="utf-8"))) or ""
        return docstring.partition("\n")[0].replace("|", "\\|")


def _is_text(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True

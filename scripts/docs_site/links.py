"""Lead links to files of the repository to the pages of the site that show them."""

from __future__ import annotations

import posixpath
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from repository import Repository

BEFORE_MKDOCS = 10
"""MkDocs resolves links at priority 0, and inline Markdown becomes elements at 20."""


class RepositoryLinks(Extension):  # type: ignore[misc]  # Markdown has no types
    """A Markdown extension that knows which page is being rendered.

    Attributes:
        page: its path in the site; set before each page.
    """

    def __init__(self, repository: Repository) -> None:
        super().__init__()
        self.repository = repository
        self.page = ""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # the name that Markdown calls
        md.treeprocessors.register(_Rewrite(self, md), "repository_links", BEFORE_MKDOCS)

    def resolved(self, link: str) -> str:
        """Return a link relative to the page, or `link` where it leads to no file of the repository."""
        path, hash_, anchor = link.partition("#")
        if not path or ":" in path or path.startswith("/"):
            return link
        here = self.repository.folder_of(self.page)
        target = self.repository.page_of(posixpath.normpath(posixpath.join(here, path)))
        if target is None:
            return link
        return posixpath.relpath(target, posixpath.dirname(self.page) or ".") + hash_ + anchor


class _Rewrite(Treeprocessor):  # type: ignore[misc]  # Markdown has no types
    def __init__(self, links: RepositoryLinks, md: Markdown) -> None:
        super().__init__(md)
        self.links = links

    def run(self, root: Element) -> None:
        for element in root.iter():
            for name in ("href", "src"):
                if link := element.get(name):
                    element.set(name, self.links.resolved(link))

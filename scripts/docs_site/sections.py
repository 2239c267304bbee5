"""Show a section of one page in another, so that what it says is written once."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

MARKER = re.compile(r"^<!-- section -->\[[^]]+\]\((?P<page>[^)\s]+\.md)#(?P<anchor>[^)\s]+)\)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
RELATIVE_LINK = re.compile(r"(\]\()(?![a-z]+:)([^)\s]+)(\))")


def with_sections(markdown: str, page: str, docs: Path) -> str:
    """Replace each line `<!-- section -->[TEXT](PAGE.md#ANCHOR)` by what stands below that heading.

    Where the file itself is read, the line is a link to the section.

    Args:
        page: path in `docs` of the page that `markdown` is of.

    Raises:
        ValueError: no page has such a section.
    """

    def text(marker: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(posixpath.dirname(page), marker["page"]))
        body = section((docs / source).read_text(encoding="utf-8"), marker["anchor"])
        if body is None:
            raise ValueError(f"{page}: {source} has no section #{marker['anchor']}")
        return RELATIVE_LINK.sub(lambda link: link[1] + _moved(link[2], source, page) + link[3], body)

    return MARKER.sub(text, markdown)


def section(markdown: str, anchor: str) -> str | None:
    """Return what stands between the heading with this anchor and the next of its level, or None."""
    without_code = FENCE.sub(lambda block: re.sub("[^\n]", " ", block[0]), markdown)
    headings = list(HEADING.finditer(without_code))
    for number, heading in enumerate(headings):
        if anchor_of(heading[2]) == anchor:
            later = (other for other in headings[number + 1 :] if len(other[1]) <= len(heading[1]))
            end = next((other.start() for other in later), len(markdown))
            return markdown[heading.end() : end].strip()
    return None


def anchor_of(heading: str) -> str:
    """Name a heading as GitHub and this site do."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _moved(link: str, source: str, page: str) -> str:
    path, hash_, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
    return posixpath.relpath(target, posixpath.dirname(page) or ".") + hash_ + anchor

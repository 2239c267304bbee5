"""Change the HTML of a page where Markdown has no word for it."""

from __future__ import annotations

import re

CELL = re.compile(r"<td([^>]*)>((?:(?!</td>).)*±(?:(?!</td>).)*)</td>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
PICTURE = re.compile(r'<p>(<img [^>]*?src="([^"]+\.(?:png|svg))"[^>]*>)</p>')

LONGEST_NUMBER = 40
"""Letters of a cell with a mean and its deviation; a longer one is a sentence."""


def with_whole_numbers(html: str) -> str:
    """Return the page with a class on the cells that hold a mean and its deviation: these stay on one line."""
    return CELL.sub(_marked, html)


def _marked(cell: re.Match[str]) -> str:
    attributes, content = cell.groups()
    if len(TAG.sub("", content)) > LONGEST_NUMBER:
        return cell[0]
    return f'<td{attributes} class="whole">{content}</td>'


def with_linked_pictures(html: str) -> str:
    """Return the page with each picture a link to itself: wide ones are hard to read in a column of text."""
    return PICTURE.sub(r'<p><a class="picture" href="\2" title="full size">\1</a></p>', html)

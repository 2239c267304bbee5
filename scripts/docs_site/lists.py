"""Indent lists as Python-Markdown wants them.

GitHub takes what stands below the first letter of an item as part of it. Python-Markdown wants four
spaces, and an empty line before the list.
"""

from __future__ import annotations

import re

ITEM = re.compile(r"(?:[-*+]|\d{1,2}\.) {1,3}(?=\S)")
BEGINS_A_LIST = re.compile(r"[-*+]|1\.")
FENCE = re.compile(r"(`{3,}|~{3,})")
WIDTH = 4


def with_wide_lists(markdown: str) -> str:
    """Return the same Markdown with the content of each list item four spaces in, at every level."""
    return "\n".join(_widened(markdown.split("\n")))


def _widened(lines: list[str], nested: bool = False) -> list[str]:
    widened: list[str] = []
    fence = ""
    position = 0
    in_list = False
    while position < len(lines):
        line = lines[position]
        mark = FENCE.match(line)
        if mark and (not fence or line.startswith(fence)):
            fence = "" if fence else mark[1]
        item = None if fence or mark else ITEM.match(line)
        if item is None:
            widened.append(line)
            in_list = in_list and not line.strip()
            position += 1
            continue
        if widened and widened[-1].strip() and not (in_list or nested) and BEGINS_A_LIST.match(line):
            widened.append("")
        content, position = _content(lines, position, len(item[0]))
        first, *others = _widened(content, nested=True)
        widened.append(item[0].strip().ljust(WIDTH) + first)
        widened += [" " * WIDTH + other if other.strip() else "" for other in others]
        if "" in others:
            widened.append("")  # or the next item would belong to this one's last paragraph
        in_list = True
    return widened


def _content(lines: list[str], start: int, width: int) -> tuple[list[str], int]:
    """Return the lines of the item that begins at `start`, without its indentation, and where it ends."""
    content = [lines[start][width:]]
    end = start + 1
    while end < len(lines):
        line = lines[end]
        belongs = line.startswith(" " * width) or not line.strip()
        goes_on = bool(lines[end - 1].strip()) and not ITEM.match(line) and not FENCE.match(line)  # a wrapped paragraph
        if not (belongs or goes_on):
            break
        content.append(line[width:] if belongs else line)
        end += 1
    while not content[-1].strip():
        content.pop()
        end -= 1
    return content, end

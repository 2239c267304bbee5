"""Pages whose tables are written from results: only what stands between two marks changes, so prose around them stays."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def fill(page: str, sections: Mapping[str, str]) -> str:
    """The page with each section written anew between `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the page has no place for a section.
    """
    for name, text in sections.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, opening, rest = page.partition(start)
        _, closing, after = rest.partition(end)
        if not (opening and closing):
            raise ValueError(f"there is no place {start} ... {end}")
        page = f"{before}{start}\n{text}\n{end}{after}"
    return page


def write(path: Path, sections: Mapping[str, str], *, check: bool, script: str) -> bool:
    """Fill a page; with `check`, only say whether it is filled already, on standard error if not.

    Returns:
        Whether the page is now what the results say.
    """
    page = path.read_text(encoding="utf-8")
    filled = fill(page, sections)
    if not check:
        path.write_text(filled, encoding="utf-8")
    elif filled != page:
        print(f"{path} is not what the results say: run {script}", file=sys.stderr)
    return filled == page or not check

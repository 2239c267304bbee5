"""Reads the pages of documentation: their blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALL_PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]

FENCE = re.compile(
    r"(?P<shown>^<!-- code: .* -->\n)?^(?P<mark>`{3,})(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?[^\n]*\n(?P<text>.*?)^(?P=mark)$",
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"(?:^(?: {4,}\S.*)?\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:\$ )?(?:[\w./-]*/)?feddkd (?=[-a-z]+(?: |$))(?P<arguments>.*)$")
EXPLANATION = re.compile(r"\s{3,}\S.*$")
SEPARATOR = re.compile(r"\s(?:&&|\||>|2>|&)(?:\s|$)")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code: ```language title="..."."""

    language: str
    title: str
    text: str
    shown: bool = False
    """Whether it is a copy of code that is elsewhere, which test_docs.py compares."""

    @property
    def file(self) -> str:
        """The file that the block is the content of, or nothing."""
        return self.title if re.fullmatch(r"[\w./-]+\.\w+", self.title) else ""

    @property
    def shell(self) -> bool:
        """Whether the block runs in a shell of its own, beside the others."""
        return self.title.startswith("Shell ")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks_of(page: Path) -> list[Block]:
    return [
        Block(found["language"], found["title"] or "", found["text"], found["shown"] is not None) for found in FENCE.finditer(text_of(page))
    ]


def commands_of(page: Path) -> list[list[str]]:
    """List the arguments of each `feddkd ...` in a page's blocks of code, fenced or indented."""
    text = text_of(page)
    blocks = [block["text"] for block in FENCE.finditer(text)] + INDENTED.findall(FENCE.sub("", text))
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return list(_commands(lines))


def mentions_of(page: Path) -> list[list[str]]:
    """List the same of commands in backticks, which may be cut short: `feddkd run --resume`."""
    return list(_commands(INLINE.findall(FENCE.sub("", text_of(page)))))


def _commands(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the words of each command, with "1" in place of what a reader has to choose: DIR, SECONDS."""
    for line in lines:
        for command in SEPARATOR.split(EXPLANATION.sub("", line)):
            if (found := COMMAND.match(command.strip())) and "..." not in command:
                words = shlex.split(found["arguments"], comments=True)
                yield ["1" if PLACEHOLDER.fullmatch(word) else word for word in words]

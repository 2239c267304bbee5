"""What the tutorial and the guides tell a reader to type and to write works, page by page.

Each page is one session: all its blocks in order, in an empty folder (see doc_session.py).
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from doc_pages import ROOT, Block, blocks_of, name_of, text_of
from doc_session import run_session, script_of

PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "index.md",
    *sorted((ROOT / "docs" / "tutorial").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
]
NOT_RUN = {
    "make .venv/installed": "sets up .venv of the repository itself; .ci/run runs it in a fresh clone",
    ". .venv/bin/activate": "the tests run in an environment that has feddkd already",
    "make run": ".ci/run runs it",
    "make check": ".ci/run runs it",
    "make test": "this test is part of it",
    "make docs": ".ci/run runs it",
}
"""Commands that no session runs, and why."""

DIES_ONCE = {"docs/how-to/resume.md": "scheduler.exchange.after_append=kill@2"}
"""Where a page supposes that a run is killed: the failpoint that kills its first run."""

TIMEOUT_S = 500
LANGUAGES = {"bash", "console", "promql", "python", "toml", "yaml", "text"}


def to_run(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if not block.shown]


SESSIONS = [page for page in PAGES if any(block.language in ("bash", "console", "python") for block in to_run(page))]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("page", SESSIONS, ids=name_of)
def test_a_page_works_as_it_is_written(page: Path, tmp_path: Path) -> None:
    code, output = run_session(script_of(to_run(page), NOT_RUN), tmp_path, DIES_ONCE.get(name_of(page), ""), TIMEOUT_S)
    assert code == 0, output
    if name_of(page) in DIES_ONCE:
        assert (tmp_path / "died").exists()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, block.text
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("command", NOT_RUN)
def test_what_is_not_run_is_on_a_page(command: str) -> None:
    lines = {line for page in PAGES for block in blocks_of(page) for line in block.text.splitlines()}
    assert command in lines


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_lines_have_at_most_100_columns(page: Path) -> None:
    wide = [line for line in text_of(page).splitlines() if len(line) > 100 and not line.startswith("|")]
    assert wide == []


def test_a_command_that_fails_fails_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('```bash title="Shell 1: a run"\nfalse\n```\n\n```bash\ntrue\n```\n')
    (tmp_path / "session").mkdir()
    code, output = run_session(script_of(blocks_of(page), ()), tmp_path / "session", "", 60)
    assert code != 0
    assert "failed: " in output

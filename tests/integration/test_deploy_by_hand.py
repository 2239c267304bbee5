"""The section of docs/deploy.md for a machine without containers works as it is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from doc_pages import ROOT, Block, blocks_of
from doc_session import run_session, script_of

PAGE = ROOT / "docs" / "deploy.md"
TIMEOUT_S = 400
ENDLESS = "prometheus --config.file"
"""What runs until somebody ends it; test_compose.py runs it with the same files."""


def section() -> list[Block]:
    """The blocks between the section's heading and the next."""
    text = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (own,) = [part for part in text if part.startswith("Without containers")]
    return [block for block in blocks_of(PAGE) if block.text in own]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 60)
def test_a_server_and_three_sites_by_hand(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("ca", "certs", "state"))
    blocks = [block for block in section() if ENDLESS not in block.text]
    assert len(blocks) == len(section()) - 1
    code, output = run_session(script_of(blocks, ()), tmp_path, "", TIMEOUT_S)
    assert code == 0, output
    assert "site-a/model.safetensors" in output


def test_the_section_starts_every_service_of_ours() -> None:
    commands = [block.text for block in section() if block.shell]
    for site in ("site-a", "site-b", "site-c"):
        assert any(f"--id {site} " in command for command in commands)
    assert any(command.startswith("feddkd server federation/server.toml") for command in commands)

"""Whatever starts a server that asks for certificates also has the list of those that were revoked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_pages import ALL_PAGES, ROOT, commands_of, name_of

TEMPLATES = ROOT / "feddkd" / "cli" / "templates"
FILES = sorted(file for folder in (ROOT / "deploy", TEMPLATES) for file in folder.rglob("*") if file.is_file())
CLIENT_CA = re.compile(r"--tls-client-ca\b")


def starts_of_servers(file: Path) -> list[str]:
    """Cut a file into what starts a server with a CA of clients: each from there to the end of its command."""
    text = file.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    lists = re.sub(r"\n\s+- (?=-)", " ", text)  # the arguments in YAML are one command
    return [line for line in lists.splitlines() if CLIENT_CA.search(line)]


SERVERS = [file for file in FILES if starts_of_servers(file)]


@pytest.mark.parametrize("file", SERVERS, ids=name_of)
def test_a_server_file_with_a_client_ca_has_a_list_of_revoked_certificates(file: Path) -> None:
    for command in starts_of_servers(file):
        assert "--tls-crl" in command, command


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_a_server_command_of_a_page_with_a_client_ca_has_one_too(page: Path) -> None:
    for arguments in commands_of(page):
        if "--tls-client-ca" in arguments:
            assert "--tls-crl" in arguments, arguments


def test_all_kinds_of_deployment_are_among_the_files() -> None:
    found = {file.name for file in SERVERS}
    assert {"compose.yaml", "job.yaml", "feddkd-server.service", "compose.yaml.tmpl", "SITES.md.tmpl"} <= found


def test_a_command_without_the_list_is_found(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("args:\n  - server\n  - --tls-client-ca=ca.pem\n  - --json\nports: --tls-crl\n")
    (command,) = starts_of_servers(file)
    assert "--tls-crl" not in command

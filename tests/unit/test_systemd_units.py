"""deploy/systemd is what systemd accepts, hardened, and says which ends are not worth another start."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from doc_pages import ROOT
from test_docs_commands import context_of

FOLDER = ROOT / "deploy" / "systemd"
ENVIRONMENTS = {"feddkd-server.service": "server.env", "feddkd-client@.service": "client.env"}
UNITS = [FOLDER / name for name in ENVIRONMENTS]
MAX_EXPOSURE_TENTHS = 20
"""Of 100, by `systemd-analyze security`, which calls up to 20 OK, and a service without any hardening 96."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings(unit: Path) -> dict[str, list[str]]:
    """The values of each key, with continued lines joined."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", " ", unit.read_text(encoding="utf-8")).splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value.strip())
    return found


def environment(unit: Path) -> dict[str, str]:
    lines = (FOLDER / ENVIRONMENTS[unit.name]).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def installed(unit: Path, folder: Path) -> Path:
    """Copy a unit as it would be called when installed, with a program that exists on this machine."""
    copy = folder / unit.name.replace("@.", "@site-a.")
    copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/feddkd/bin/feddkd", "/bin/true"), encoding="utf-8")
    return copy


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_a_unit(unit: Path, tmp_path: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", installed(unit, tmp_path)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "feddkd" in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
def test_a_key_that_does_not_exist_is_found(tmp_path: Path) -> None:
    copy = installed(UNITS[0], tmp_path)
    copy.write_text(copy.read_text(encoding="utf-8").replace("ProtectHome=", "ProtectHouse="), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert "ProtectHouse" in done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_hardened(unit: Path, tmp_path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE_TENTHS}"]
    done = subprocess.run([*command, installed(unit, tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_command_is_one_that_the_program_knows(unit: Path) -> None:
    found = settings(unit)
    (command,) = found["ExecStart"]
    directories = {"STATE_DIRECTORY": "/var/lib/x", "CREDENTIALS_DIRECTORY": "/run/credentials/x"}
    given = environment(unit) | directories
    for name, value in given.items():
        command = re.sub(rf"\$\{{{name}\}}|\${name}\b", value, command)
    command = command.replace("%i", "site-a")
    assert "$" not in command
    context_of(shlex.split(command)[1:])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_keys_come_as_credentials_and_state_is_systemds(unit: Path) -> None:
    found = settings(unit)
    (command,) = found["ExecStart"]
    loaded = {value.split(":")[0] for value in found["LoadCredential"]}
    used = set(re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/(\S+)", command))
    assert used == loaded
    assert found["DynamicUser"] == ["yes"]
    assert found["WorkingDirectory"] == [f"/var/lib/{found['StateDirectory'][0]}"]


def test_the_list_of_revoked_certificates_is_the_file_that_an_operator_changes() -> None:
    (command,) = settings(UNITS[0])["ExecStart"]
    assert "--tls-crl=/etc/feddkd/ca.crl" in command  # a credential would be a copy made at the start
    assert "install -m 644 server.pem ca.pem ca.crl /etc/feddkd/" in (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("unit", "final"), [(UNITS[0], {2, 75}), (UNITS[1], {2, 130})], ids=["server", "client"])
def test_an_end_that_another_start_does_not_mend_is_final(unit: Path, final: set[int]) -> None:
    found = settings(unit)
    assert found["Restart"] == ["on-failure"]
    assert {int(code) for code in found["RestartPreventExitStatus"][0].split()} == final
    listed = set(re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {str(code) for code in final} <= listed
    assert {int(code) for code in found["SuccessExitStatus"]} == final - {2}

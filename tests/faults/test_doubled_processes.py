"""A second process where there may be one, and a client without its state: refused in words, and the run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import CONFIGS, SERVER, Federation, check, free_port
from processes import Process
from run_history import RunHistory, violations

Undisturbed = Callable[[str], RunHistory]


def refused(federation: Federation, arguments: list[str], name: str) -> tuple[int, str]:
    """Exit code and last line of a process that should not be there, while the run waits for client-2."""
    with federation:
        for first in (SERVER, "client-0", "client-1"):
            federation.restart(first)
        for client in ("client-0", "client-1"):
            federation.wait_for_log(SERVER, f"{client} joined")
        second = Process(name, arguments, federation.folder)
        code = second.wait()
        federation.restart("client-2")
        federation.finish()
    return code, second.log.read_text().splitlines()[-1]


def test_a_second_server_on_the_same_port_is_refused(tmp_path: Path, undisturbed: Undisturbed) -> None:
    federation = Federation(tmp_path, CONFIGS["feddkd"])
    arguments = ["server", "config.toml", "--listen", federation.address, "--state", "other-state"]
    code, line = refused(federation, arguments, "second-server")
    assert code == 2
    assert f"cannot listen on {federation.address}" in line
    check(federation, undisturbed("feddkd"))


def test_a_second_server_on_the_same_state_is_refused(tmp_path: Path, undisturbed: Undisturbed) -> None:
    federation = Federation(tmp_path, CONFIGS["feddkd"])
    arguments = ["server", "config.toml", "--listen", f"127.0.0.1:{free_port()}", "--state", str(federation.state)]
    code, line = refused(federation, arguments, "second-server")
    assert code == 1
    assert f"another server holds the state directory {federation.state}" in line
    check(federation, undisturbed("feddkd"))


def test_a_second_client_with_the_same_id_is_refused(tmp_path: Path, undisturbed: Undisturbed) -> None:
    federation = Federation(tmp_path, CONFIGS["feddkd"])
    command = ["client", "--server", federation.address, "--id", "client-0", "--state", "other-state", "--partition-index", "0"]
    code, line = refused(federation, [*command, "--retry-for", "1"], "second-client")
    assert code == 1
    assert "client-0" in line
    assert "gave up after 1 s" in line
    check(federation, undisturbed("feddkd"))


def test_a_second_client_on_the_same_state_is_refused(tmp_path: Path, undisturbed: Undisturbed) -> None:
    federation = Federation(tmp_path, CONFIGS["feddkd"])
    code, line = refused(federation, federation.command("client-0"), "second-client")
    assert code == 1
    assert "another process holds the state directory" in line
    check(federation, undisturbed("feddkd"))


@pytest.mark.slow
def test_a_client_that_lost_its_state_takes_part_again(tmp_path: Path) -> None:
    """It gets its id back once the server has given the old connection up, and with the next round another teacher."""
    overrides = [*CONFIGS["feddkd"], "rounds=3", "scheduler.min_clients=2", "scheduler.reconnect_grace_s=60"]
    with Federation(tmp_path, overrides) as federation:
        federation.start()
        federation.wait_for_exchanges(2)
        federation.processes["client-1"].kill()
        shutil.rmtree(federation.client_state("client-1"))
        federation.finish()
        history = federation.history()
    assert violations(history) == []
    assert {line["round"] for line in history.exchanges if line["clients_missing"]} <= {1}
    assert (federation.client_state("client-1") / "model.safetensors").exists()

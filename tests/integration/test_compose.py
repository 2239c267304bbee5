"""The services of deploy/compose.yaml work together: a run that completes, under mutual TLS, watched by a real Prometheus.

No container engine is needed: compose_file.py starts the processes of the file on loopback addresses.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from compose_file import OUR_IMAGE, Host, image_of
from doc_pages import ROOT

from feddkd.cli.replay import replayed
from feddkd.cli.run_place import RunPlace

DEPLOY = ROOT / "deploy"
PATIENCE_S = 240.0
PAUSE_S = 0.2
ROUNDS = 3

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


def certificates(folder: Path, host: Host) -> None:
    """Make what docs/deploy.md makes with `feddkd certs`, with the server's loopback address in its certificate."""

    def certs(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "feddkd", "certs", *arguments, "--ca", "ca"], cwd=folder, check=True, capture_output=True)

    certs("init")
    for name, service in host.services.items():
        if image_of(service) == OUR_IMAGE:
            (folder / "certs" / name).mkdir(parents=True)
            kind = ["--server", f"server,{host.addresses['server']}"] if name == "server" else ["--client", name]
            certs("issue", name, *kind, "--out", f"certs/{name}/tls.pem")
            for file in ("ca.pem", "ca.crl"):
                shutil.copy(folder / "ca" / file, folder / "certs" / name)


def change(file: Path, old: str, new: str) -> None:
    """Put `new` in the place of what matches `old`, at least once: a test has no time for more rounds and longer intervals."""
    text, count = re.subn(old, new, file.read_text(encoding="utf-8"))
    assert count > 0, f"{old} is not in {file}"
    file.write_text(text, encoding="utf-8")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    project = tmp_path / "deploy"
    shutil.copytree(DEPLOY, project, ignore=shutil.ignore_patterns("ca", "certs"))
    change(project / "federation" / "server.toml", "rounds = 20", f"rounds = {ROUNDS}")
    change(project / "prometheus" / "prometheus.yml", r"_interval: \d+s", "_interval: 1s")
    change(project / "prometheus" / "prometheus.yml", r"_timeout: \d+s", "_timeout: 1s")
    host = Host(tmp_path, project, f"127.{time.time_ns() % 200 + 20}.{time.time_ns() // 1000 % 200 + 20}")
    certificates(project, host)
    try:
        yield host
    finally:
        host.kill()


def eventually(host: Host, what: str, holds: Callable[[], bool]) -> None:
    """Wait until it holds. Raises AssertionError after a while, or if a service has ended by itself."""
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while not holds():
        ended = [name for name in host.services if name != "grafana" and host.process(name).poll() is not None]
        assert not ended, f"{ended} ended: {host.log(ended[0])[-2000:]}"
        assert time.monotonic() < deadline, f"{what} did not come about: {host.log('server')[-2000:]}"
        pause.wait(PAUSE_S)


def asked(host: Host, expression: str) -> list[dict[str, Any]]:
    """Ask Prometheus; nothing before it answers."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"http://{host.addresses['prometheus']}:9090/api/v1/query?{query}") as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
    except urllib.error.URLError:
        return []


def test_the_federation_of_the_file_completes_and_prometheus_sees_all_of_it(host: Host) -> None:
    ours = [name for name, service in host.services.items() if image_of(service) == OUR_IMAGE]
    for name in [*ours, "prometheus"]:
        host.start(name)
    up = {f"{host.addresses[name]}:9464" for name in ours}
    eventually(host, "the scrape of each", lambda: {each["metric"]["instance"] for each in asked(host, 'up{job=~"feddkd.*"} == 1')} == up)
    assert all(host.healthy(name) for name in ours)

    eventually(host, "the completed run", lambda: bool(asked(host, 'feddkd_run_state{state="completed"} == 1')))
    (rounds,) = asked(host, 'feddkd_rounds_total{outcome="completed"}')
    assert float(rounds["value"][1]) == ROUNDS
    eventually(host, "a recorded rule", lambda: bool(asked(host, 'run:feddkd_wire_bytes:per_round{job="feddkd-server"} > 0')))
    connected = asked(host, "feddkd_site_accuracy_ratio >= 0")
    assert {each["metric"]["client"] for each in connected} == set(ours) - {"server"}

    folder = RunPlace.find(host.state("server") / "run-1").folder
    assert replayed(folder, folder).problems == []
    assert host.state("site-a").joinpath("model.safetensors").exists()
    eventually(host, "the report", (folder / "report.html").exists)
    for name in ours:  # one JSON object a line, from first to last
        lines = host.log(name).splitlines()
        assert lines
        for line in lines:
            json.loads(line)

    host.process("server").send_signal(signal.SIGTERM)
    assert host.process("server").wait(PATIENCE_S) == 0
    for name in set(ours) - {"server"}:
        assert host.process(name).poll() is None, "a site stays for the next run"
        host.process(name).send_signal(signal.SIGTERM)
        host.process(name).wait(PATIENCE_S)

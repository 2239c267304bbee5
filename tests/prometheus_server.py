"""A real Prometheus that runs the project's own configuration, only faster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from promql import PROMETHEUS, RULES

INTERVAL = "250ms"
FASTER = 600
"""How many times as fast as in production an alert follows its condition."""

PATIENCE_S = 60.0
UNITS_S = {"s": 1, "m": 60, "h": 3600}

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus: apt-get install prometheus")

_Answer = TypeVar("_Answer")
Sample = tuple[dict[str, str], float]


def hurried(rules: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """Return rules whose `for` is `factor` times shorter, everything else as it is."""

    def shorter(rule: Mapping[str, Any]) -> dict[str, Any]:
        if "for" not in rule:
            return {**rule}
        number, unit = re.fullmatch(r"(\d+)([smh])", rule["for"]).groups()  # type: ignore[union-attr]
        return {**rule, "for": f"{int(number) * UNITS_S[unit] * 1000 // factor}ms"}

    return {"groups": [{**group, "rules": [shorter(rule) for rule in group["rules"]]} for group in rules["groups"]]}


def write_configuration(folder: Path, targets: Mapping[str, Sequence[str]]) -> Path:
    """Write the project's configuration with other targets and intervals to `folder`."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL}
    config["scrape_configs"] = [job for job in config["scrape_configs"] if "file_sd_configs" in job]
    for job in config["scrape_configs"]:
        job.pop("scrape_interval", None)
        (name,) = (file for sd in job["file_sd_configs"] for file in sd["files"])
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump([{"targets": [*targets.get(job["job_name"], ())]}]))
    (folder / "rules").mkdir()
    (folder / "rules" / RULES.name).write_text(yaml.safe_dump(hurried(yaml.safe_load(RULES.read_text()), FASTER)))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def firing(alert: str) -> str:
    return f'ALERTS{{alertname="{alert}", alertstate="firing"}}'


class PrometheusServer:
    """Scrapes targets until it is closed. Its files and its log are in a folder of its own."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]]) -> None:
        """Start it; `targets` are addresses by job."""
        folder.mkdir()
        self._log = folder / "log"
        command = [
            "prometheus",
            f"--config.file={write_configuration(folder, targets)}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self._url = self._found_url("up" if any(targets.values()) else "vector(1)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def query(self, expression: str) -> list[Sample]:
        """Ask for the newest values of an expression. Raises AssertionError with what is wrong with it."""
        try:
            answer = self._get("query", query=expression)
        except HTTPError as error:
            raise AssertionError(f"{expression}: {json.load(error).get('error')}") from error
        assert not answer.get("warnings"), f"{expression}: {answer['warnings']}"
        return [(found["metric"], float(found["value"][1])) for found in answer["data"]["result"]]

    def value(self, expression: str) -> float:
        """Return the one value of an expression."""
        ((_, value),) = self.query(expression)
        return value

    def wait_for(self, expression: str) -> list[Sample]:
        """Ask again and again, until there is an answer."""
        return _patiently(lambda: self.query(expression), f"no answer to {expression}")

    def fired(self, alert: str) -> list[dict[str, str]]:
        """Return the labels of what an alert has fired for until now."""
        return [labels for labels, _ in self.query(f"last_over_time({firing(alert)}[1h])")]

    def fires(self, alert: str) -> list[dict[str, str]]:
        """Return the labels of what an alert fires for now."""
        return [labels for labels, _ in self.query(firing(alert))]

    def wait_for_alert(self, alert: str) -> list[dict[str, str]]:
        """Wait until an alert has fired."""
        return _patiently(lambda: self.fired(alert), f"{alert} did not fire")

    def _get(self, what: str, **arguments: str) -> Any:
        with urlopen(f"{self._url}/api/v1/{what}?{urlencode(arguments)}", timeout=10) as response:
            return json.load(response)

    def _found_url(self, answered: str) -> str:
        """Return where it listens, once it answers an expression."""

        def address() -> list[str]:
            assert self._process.poll() is None, self._log.read_text()
            return re.findall(r'msg="Listening on" address=(\S+)', self._log.read_text())

        def answer() -> list[Any]:
            try:
                return self._get("query", query=answered)["data"]["result"] or []
            except URLError:  # it reads its storage first
                return []

        (found,) = _patiently(address, "prometheus does not listen")
        self._url = f"http://{found}"
        _patiently(answer, f"prometheus has no answer to {answered}")  # it looks for targets every five seconds only
        return self._url


def _patiently(ask: Callable[[], list[_Answer]], otherwise: str) -> list[_Answer]:
    """Ask until the answer is not empty."""
    until, pause = time.monotonic() + PATIENCE_S, threading.Event()
    while time.monotonic() < until:
        if answer := ask():
            return answer
        pause.wait(0.1)
    raise AssertionError(f"{otherwise} within {PATIENCE_S:g} s")

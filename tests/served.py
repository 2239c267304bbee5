"""A federation of processes that runs for as long as a test wants, and is started and ended part by part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from federation import free_port
from processes import Process

from feddkd.config import Config

ENDLESS = 100_000
"""Rounds of a run that does not end by itself."""

SMALL = (
    "data.subset=200",
    "partition.name=iid",
    "training.epochs=1",
    "dkd.steps=1",
    "runtime.threads=1",
    "scheduler.reconnect_grace_s=0",
    "scheduler.pause_timeout_s=4",
    "scheduler.keep_checkpoints=0",
)


class Served:
    """A server, its sites, and where they are.

    Attributes:
        folder: holds the configuration, the state directories and the logs.
        sites: the ids of its clients.
        processes: those that were started last: `server`, `site-a` and so on.
    """

    def __init__(self, folder: Path, sites: int, *overrides: str) -> None:
        """Write the configuration; nothing is started."""
        self.folder = folder
        self.folder.mkdir()
        config = Config.load(overrides=[*SMALL, f"partition.clients={sites}", f"scheduler.clients={sites}", *overrides])
        (self.folder / "config.toml").write_text(config.to_toml())
        self._address = f"127.0.0.1:{free_port()}"
        self.sites = [f"site-{letter}" for letter in "abc"[:sites]]
        self.processes: dict[str, Process] = {}

    def start(self, *options: str) -> None:
        """Start the server, with these options, and the sites."""
        self.start_server(*options)
        for site in self.sites:
            self.start_site(site)

    def start_server(self, *options: str) -> None:
        self._start("server", "server", "config.toml", "--listen", self._address, "--state", "state", "--no-report", *options)

    def start_site(self, site: str, *options: str) -> None:
        index = str(self.sites.index(site))
        self._start(
            site, "client", "config.toml", "--server", self._address, "--id", site, "--state", site, "--partition-index", index, *options
        )

    def kill(self, name: str) -> None:
        self.processes[name].kill()

    def record(self, name: str) -> list[dict[str, Any]]:
        """Read the lines of a file of the newest run's record; none before there is one."""
        files = sorted(self.folder.glob(f"state/*/{name}"), key=lambda file: file.stat().st_ctime_ns)
        return [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()

    def _start(self, name: str, *arguments: str) -> None:
        self.processes[name] = Process(name, arguments, self.folder)

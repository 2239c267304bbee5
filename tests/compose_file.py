"""Starts the services of deploy/compose.yaml as processes of this machine: what an engine would do, without one.

Nothing of a service is repeated here. Its arguments, environment, mounts and restart policy come from the file, the
environment and entry point of the image from the Dockerfile. Two things differ from an engine. A path of the
container becomes the path of what is mounted there, in arguments and in the files of a mounted folder. A host name,
and 0.0.0.0, becomes a loopback address that the service has for itself, with the ports of the file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dockerfile
import yaml
from doc_pages import ROOT

FILE = ROOT / "deploy" / "compose.yaml"
OUR_IMAGE = "feddkd"
PROGRAMS = {OUR_IMAGE: [sys.executable, "-m", "feddkd"], "prom/prometheus": ["prometheus"]}
"""What an image starts, by its name without a tag."""

_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def read(path: Path = FILE) -> dict[str, Any]:
    """Read a Compose file, with the defaults of its variables."""
    text = _VARIABLE.sub(lambda found: found[2], path.read_text(encoding="utf-8"))
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def image_of(service: Mapping[str, Any]) -> str:
    """Name the image of a service, without its tag."""
    return str(service["image"]).rpartition(":")[0]


class Host:
    """This machine as the engine: volumes in a folder, and a loopback address for each service.

    Attributes:
        services: as in the file, by name.
        addresses: of the services, by name.
    """

    def __init__(self, folder: Path, project: Path, network: str) -> None:
        """Place volumes and logs in `folder`; relative paths of the file are those of `project`.

        Args:
            network: the first three numbers of the addresses, as in "127.7.7".
        """
        self.services: dict[str, dict[str, Any]] = read()["services"]
        self.addresses = {name: f"{network}.{number}" for number, name in enumerate(self.services, 10)}
        self._folder = folder
        self._project = project
        self._mounted: dict[str, dict[str, Path]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a service, with its log in NAME.log."""
        service = self.services[name]
        mounts = self._mounted[name] = self._mounts(name)
        command = [self.local(str(word), mounts, name) for word in service["command"]]
        program = PROGRAMS[image_of(service)]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*program, *command], cwd=mounts.get("/state", self._folder), env=self._environment(name, mounts), stdout=log, stderr=log
            )

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._processes[name]

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def state(self, name: str) -> Path:
        """The volume that the service has at /state."""
        return self._mounted[name]["/state"]

    def healthy(self, name: str) -> bool:
        """Run the health check of the service, or else of its image, where the service runs."""
        own = self.services[name].get("healthcheck", {"test": []})["test"][1:]
        check = own or dockerfile.stages()[-1].only("HEALTHCHECK").exec_form
        command = [word.replace("127.0.0.1", self.addresses[name]) for word in check]
        return subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False).returncode == 0

    def kill(self) -> None:
        """End what still runs."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def local(self, text: str, mounts: Mapping[str, Path], name: str) -> str:
        """Put paths and addresses of this machine in the place of the container's."""
        paths = "|".join(re.escape(inside) for inside in sorted(mounts, key=len, reverse=True))
        text = re.sub(rf"(?<![\w/.-])({paths})(?![\w.-])", lambda found: str(mounts[found[1]]), text)
        text = text.replace("0.0.0.0", self.addresses[name])
        for other, address in self.addresses.items():
            text = re.sub(rf"(?<![\w/.-]){re.escape(other)}(?=:\d)", address, text)
        return text

    def _mounts(self, name: str) -> dict[str, Path]:
        """Make what the service sees at its mount points; a folder is copied, so that its files can be changed."""
        found: dict[str, Path] = {}
        for volume in self.services[name].get("volumes", ()):
            source, inside, *options = volume.split(":")
            place = self._folder / "volumes" / (source if not source.startswith(".") else f"{name}{inside}")
            if not source.startswith("."):
                place.mkdir(parents=True, exist_ok=True)
            else:
                assert options == ["ro"], f"{name}: {volume} can be written to"
                self._copy(self._project / source, place)
            found[inside] = place
        for inside in self.services[name].get("tmpfs", ()):
            found[inside] = self._folder / "volumes" / name / inside.strip("/")
            found[inside].mkdir(parents=True, exist_ok=True)
        for place in [found[inside] for inside in found if inside.startswith("/etc")]:
            self._rewrite(place, found, name)
        return found

    def _copy(self, source: Path, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
        else:
            shutil.copy(source, place)

    def _rewrite(self, place: Path, mounts: Mapping[str, Path], name: str) -> None:
        files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
        for file in files:
            if file.suffix in (".yml", ".toml"):
                file.write_text(self.local(file.read_text(encoding="utf-8"), mounts, name), encoding="utf-8")

    def _environment(self, name: str, mounts: Mapping[str, Path]) -> dict[str, str]:
        given: dict[str, str] = dict(self.services[name].get("environment", {}))
        if image_of(self.services[name]) == OUR_IMAGE:
            given = {**dockerfile.stages()[-1].environment, **given}
            del given["PATH"]  # the environment of the tests has feddkd already
            given["PYTHONPATH"] = f"{given['PYTHONPATH']}:{ROOT}"
        local = {key: ":".join(self.local(part, mounts, name) for part in value.split(":")) for key, value in given.items()}
        return {**os.environ, "OMP_NUM_THREADS": "1", **local}

"""Reads a Dockerfile: its stages, their instructions, and what its last stage gives a container."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from doc_pages import ROOT

DOCKERFILE = ROOT / "Dockerfile"
_INSTRUCTION = re.compile(r"(?P<name>[A-Z]+)\s+(?P<rest>.*)", re.DOTALL)
_MOUNT = re.compile(r"--mount=\S+\s+")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction with its continued lines joined, such as RUN and a command."""

    name: str
    rest: str

    @property
    def command(self) -> str:
        """What a RUN gives to the shell: without the options of the builder."""
        return _MOUNT.sub("", self.rest)

    @property
    def exec_form(self) -> list[str]:
        """The words of an ENTRYPOINT, CMD or HEALTHCHECK in JSON."""
        found: list[str] = json.loads(self.rest[self.rest.index("[") :])
        return found


@dataclass(slots=True)
class Stage:
    """What follows one FROM."""

    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]

    def only(self, name: str) -> Instruction:
        (found,) = self.all(name)
        return found

    @property
    def arguments(self) -> dict[str, str]:
        """The names of ARG with their defaults."""
        pairs = (each.rest.partition("=") for each in self.all("ARG"))
        return {name: value for name, _, value in pairs}

    @property
    def environment(self) -> dict[str, str]:
        pairs = (word.partition("=") for each in self.all("ENV") for word in shlex.split(each.rest))
        return {name: value for name, _, value in pairs}


def stages(path: Path = DOCKERFILE) -> list[Stage]:
    """Read the stages. Raises ValueError for a line that is no instruction."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        parsed = _INSTRUCTION.fullmatch(line.strip())
        if parsed is None:
            raise ValueError(f"{path}: {line!r} is no instruction")
        instruction = Instruction(parsed["name"], re.sub(r"\s+", " ", parsed["rest"]))
        if instruction.name == "FROM":
            found.append(Stage(instruction.rest.split()[0]))
        elif found:
            found[-1].instructions.append(instruction)
    return found


def carry_out(stage: Stage, folder: Path, environment: Mapping[str, str]) -> Iterator[Instruction]:
    """Do what COPY and RUN of a stage do, in a folder in place of the root, and yield each RUN that is done.

    Its working directory is `folder`/src, and /opt/feddkd is `folder`/feddkd.

    Raises:
        AssertionError: a command failed.
    """
    source = folder / "src"
    source.mkdir()
    for step in stage.instructions:
        if step.name == "COPY":
            *copied, target = step.rest.split()
            _copy(copied, source / target)
        elif step.name == "RUN":
            command = step.command.replace("/opt/feddkd", str(folder / "feddkd"))
            done = subprocess.run(["sh", "-ec", command], cwd=source, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
            yield step


def _copy(sources: list[str], target: Path) -> None:
    """Do what COPY does: of a folder, its content is copied."""
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, target)

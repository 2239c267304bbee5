"""Reads a Dockerfile: its stages, their instructions, and what its last stage gives a container."""

from __future__ import annotations

import json
import re
import shlex
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

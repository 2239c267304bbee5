"""The simulators of the FedAvg work, and how each is started and read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from peers.running import ENVIRONMENT
from peers.systems import DRIVERS
from peers.work import Shape

Weights = Mapping[str, npt.NDArray[np.float32]]

PROCESSES = 2
"""That compute in the systems that use several."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """One run of a simulator.

    Attributes:
        work: the file of the work.
        folder: for all files of the run.
        shape: of the work; of its rounds, those that this run makes.
        environments: folder of the peers' virtual environments.
    """

    work: Path
    folder: Path
    shape: Shape
    environments: Path
    timeout_s: float

    @property
    def out(self) -> Path:
        return self.folder / "out.npz"


@dataclass(frozen=True, slots=True)
class Simulator:
    """A system that simulates.

    Attributes:
        name: in the results.
        environment: name of the virtual environment; None for feddkd's own Python.
        processes: that compute.
        arguments: after the Python.
    """

    name: str
    environment: str | None
    package: str
    processes: int
    arguments: Callable[[Simulation], list[str | Path]]

    def python(self, environments: Path) -> Path:
        return Path(sys.executable) if self.environment is None else environments / self.environment / "bin" / "python"

    def command(self, simulation: Simulation) -> list[str | Path]:
        return [self.python(simulation.environments), *self.arguments(simulation)]

    def environment_of(self, simulation: Simulation) -> dict[str, str]:
        """The environment variables of its processes."""
        own = os.environ.get("PYTHONPATH") if self.environment is None else None
        return os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, [str(DRIVERS), own]))}


def feddkd(engine: str, processes: int) -> Callable[[Simulation], list[str | Path]]:
    """Make the command of one of feddkd's engines."""

    def arguments(simulation: Simulation) -> list[str | Path]:
        settings = [*simulation.shape.settings(), f"runtime.client_processes={processes}"]
        return [DRIVERS / "feddkd_simulation.py", simulation.work, simulation.out, engine, *settings]

    return arguments


def driver(name: str, *more: str) -> Callable[[Simulation], list[str | Path]]:
    """Make the command of a peer's driver."""

    def arguments(simulation: Simulation) -> list[str | Path]:
        return [DRIVERS / name, simulation.work, str(simulation.shape.rounds), simulation.out, *more]

    return arguments


def result_of(simulation: Simulation) -> tuple[list[float], Weights]:
    """Return when each round ended, in seconds, and the final weights by name."""
    with np.load(simulation.out) as file:
        weights = {name.removeprefix("weight."): file[name] for name in file.files if name.startswith("weight.")}
        return file["ends_s"].tolist(), weights


CHECKED = "feddkd in process"
"""Whose weights all others must have."""

SIMULATORS = {
    simulator.name: simulator
    for simulator in (
        Simulator(CHECKED, None, "feddkd", 1, feddkd("in-process", 1)),
        Simulator("pfl", "pfl", "pfl", 1, driver("pfl_simulation.py")),
        Simulator("feddkd, processes over gRPC", None, "feddkd", PROCESSES, feddkd("grpc", PROCESSES)),
        Simulator("feddkd on Ray", None, "feddkd", PROCESSES, feddkd("ray", PROCESSES)),
        Simulator("flower on Ray", "flower-simulation", "flwr", PROCESSES, driver("flower_simulation.py", str(PROCESSES))),
    )
}

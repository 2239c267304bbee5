"""The systems that exchange models, and how the processes of each are started."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from feddkd.bench.peers import free_port
from feddkd.bench.workload import Workload

DRIVERS = Path(__file__).resolve().parent / "drivers"


@dataclass(frozen=True, slots=True)
class Command:
    """A process of a run.

    Attributes:
        opens_port: the next process is started once this one listens.
    """

    arguments: Sequence[str | Path]
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    opens_port: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a system.

    Attributes:
        scripts: folder of the Python's programs.
        folder: for all files of the run.
        port: of the server.
    """

    workload: Workload
    scripts: Path
    folder: Path
    port: int

    @property
    def python(self) -> Path:
        return self.scripts / "python"

    def options(self, *names: str) -> list[str]:
        """The workload as options of a driver."""
        values = {
            "port": self.port,
            "clients": self.workload.clients,
            "rounds": self.workload.rounds,
            "elements": self.workload.elements_per_tensor,
            "tensors": self.workload.tensors,
        }
        return [text for name in names or values for text in (f"--{name}", str(values[name]))]

    @property
    def ranks(self) -> range:
        return range(self.workload.clients)


@dataclass(frozen=True, slots=True)
class System:
    """A system under measurement.

    Attributes:
        name: in the results.
        environment: name of the requirements file and of the virtual environment; None for feddkd's own Python.
        package: whose version a result names.
        commands: starts the processes of a run.
        server: regular expression that finds the server's processes by their command lines; `{port}` is the run's.
        client: likewise the clients'.
        exchanges: counted in a run.
        repeats: most runs of each cell; a system that takes long to start has fewer.
    """

    name: str
    environment: str | None
    package: str
    commands: Callable[[Run], list[Command]]
    server: str
    client: str
    exchanges: int
    repeats: int

    def scripts(self, environments: Path) -> Path:
        """The folder of programs of the system's Python."""
        return Path(sys.executable).parent if self.environment is None else environments / self.environment / "bin"


def feddkd(run: Run) -> list[Command]:
    options = [*run.options("port", "clients", "rounds", "tensors"), "--megabytes", str(run.workload.megabytes)]
    return [Command([run.python, DRIVERS / "feddkd_exchange.py", "server", *options])]


def flower_grpc(run: Run) -> list[Command]:
    program: list[str | Path] = [run.python, DRIVERS / "flower_grpc.py"]
    address = ["--address", f"127.0.0.1:{run.port}"]
    server = Command([*program, "server", *address, *run.options("clients", "rounds", "elements", "tensors")], opens_port=True)
    return [server, *(Command([*program, "client", *address, "--rank", str(rank)]) for rank in run.ranks)]


def flower_deployment(run: Run) -> list[Command]:
    home = run.folder / "flwr"
    home.mkdir()
    address = f"127.0.0.1:{run.port}"
    connection = f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection, encoding="utf-8")
    # Flower packs the app's folder and sends it: what Python leaves beside it must not go along.
    app = run.folder / "app"
    shutil.copytree(DRIVERS / "flower_app", app, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"FLWR_HOME": str(home)}
    host = ["--insecure", "--host", "127.0.0.1", "--port"]
    link: list[str | Path] = [run.scripts / "flower-superlink", *host, str(run.port), "--disable-runtime-dependency-installation"]
    commands = [Command(link, environment, opens_port=True)]
    for rank in run.ranks:
        node: list[str | Path] = [run.scripts / "flower-supernode", *host, str(free_port()), "--superlink", address]
        commands.append(Command([*node, "--node-config", f"partition-id={rank}"], environment))
    names = ("clients", "rounds", "elements", "tensors")
    values = run.options(*names)[1::2]
    settings = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    return [*commands, Command([run.scripts / "flwr", "run", app, "here", "--stream", "-c", settings], environment)]


def nvflare(run: Run, *, tuned: bool = False) -> list[Command]:
    folder = run.folder / "job"
    folder.mkdir()
    for name in ("nvflare_job.py", "nvflare_controller.py", "nvflare_client.py"):
        shutil.copy(DRIVERS / name, folder)
    flag = ["--tuned"] if tuned else []
    return [Command([run.python, "nvflare_job.py", "--workspace", run.folder, *run.options(), *flag], folder=folder)]


def nvflare_tuned(run: Run) -> list[Command]:
    return nvflare(run, tuned=True)


def openfl(run: Run, *, poll_s: float | None = None) -> list[Command]:
    program: list[str | Path] = [run.python, DRIVERS / "openfl_exchange.py"]
    flag = [] if poll_s is None else ["--poll-s", str(poll_s)]
    server = Command([*program, "server", *run.options()], folder=run.folder, opens_port=True)
    client = [*program, "client", *run.options("port", "tensors"), *flag]
    return [server, *(Command([*client, "--rank", str(rank)], folder=run.folder) for rank in run.ranks)]


def openfl_patched(run: Run) -> list[Command]:
    return openfl(run, poll_s=0.02)


SYSTEMS = {
    system.name: system
    for system in (
        System("feddkd", None, "feddkd", feddkd, r"feddkd_exchange\.py server", r"feddkd\.bench\.transport client", 7, 2),
        System("flower grpc", "flower", "flwr", flower_grpc, r"flower_grpc\.py server", r"flower_grpc\.py client", 7, 2),
        System(
            "flower deployment",
            "flower",
            "flwr",
            flower_deployment,
            r"flower-superlink|superexec.*:{port}\b|serverapp",
            r"flower-supernode|superexec|clientapp",
            2,
            1,
        ),
        System("nvflare", "nvflare", "nvflare", nvflare, r"/prod_00/server\b", r"/prod_00/site-\d+\b", 2, 1),
        System("nvflare tuned", "nvflare", "nvflare", nvflare_tuned, r"/prod_00/server\b", r"/prod_00/site-\d+\b", 4, 1),
        System("openfl", "openfl", "openfl", openfl, r"openfl_exchange\.py server", r"openfl_exchange\.py client", 2, 1),
        System("openfl patched", "openfl", "openfl", openfl_patched, r"openfl_exchange\.py server", r"openfl_exchange\.py client", 4, 1),
    )
}

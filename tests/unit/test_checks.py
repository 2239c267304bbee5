"""The checks before a run: what each finds, in one line, and that nothing is left behind."""

from __future__ import annotations

import datetime
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from feddkd.certs.certificate import Certificate
from feddkd.cli import machine
from feddkd.cli.check import SiteToCheck, check_client, check_run, check_server
from feddkd.cli.endpoints import Endpoints, Port
from feddkd.client.preflight import check_schema, check_simulation, check_writable
from feddkd.config import Config
from feddkd.data.datasets import describe
from feddkd.data.examples import MemoryExamples, Reading, StreamedExamples
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.simulation import EngineName
from feddkd.errors import ConfigError, StateError
from feddkd.models.check import check_model
from feddkd.models.registry import build_model
from feddkd.tasks.metrics import OF_CLASSIFICATION
from feddkd.tensors import Schema, TensorSpec


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was checked and is right, in order."""
    lines = capsys.readouterr().out.splitlines()
    assert all(" ok: " in line for line in lines)
    return [line.split()[0] for line in lines]


def test_a_simulation_lists_what_it_needs_and_makes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_run(Config(), Path("runs"))
    assert listed(capsys) == ["configuration", "engine", "proxy", "data", "model", "step", "memory", "disk"]
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("grpc", r"^check of engine: partition\.clients: 40000 clients are waited for, but this process may hold \d+ connections"),
        ("ray", r"^check of engine: runtime\.device = 'cpu' and runtime\.ray_gpus = 0\.5"),
    ],
)
def test_a_simulation_tries_its_engine(engine: EngineName, message: str) -> None:
    config = Config.load(overrides=["partition.clients=40000", "runtime.ray_gpus=0.5", "partition.name=iid"])
    with pytest.raises(ConfigError, match=message):
        check_run(config, Path("runs"), engine)


def test_a_simulation_tries_the_metrics_on_its_examples() -> None:
    config = Config.parse({"task": {"metrics": ["tests.unit.test_task_metrics:broken"]}})
    with pytest.raises(ConfigError, match=r"check of step: .*broken cannot be computed: UndefinedError: above one"):
        check_run(config, Path("runs"))


def test_a_simulation_with_unlike_networks_tries_each_of_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_run(Config.load(overrides=["dkd.start=previous", 'teacher.model=["mlp", "student", "own_models:adapters"]']), Path("runs"))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "teachers")
    assert "a training step works with mlp (35.9 kB), own_models:adapters (" in line
    with pytest.raises(ConfigError, match=r"^check of configuration: teacher\.model = 'mlp': .*needs dkd\.start = \"previous\""):
        check_run(Config.load(overrides=["teacher.model=mlp"]), Path("runs"))


REGRESSION = ["task.name=regression", "data.name=own_tasks:table", "model.name=own_tasks:numbers", "partition.name=iid"]


@pytest.mark.parametrize(
    "task",
    [
        REGRESSION,
        ["task.name=multilabel", "data.name=own_tasks:labels", "model.name=own_tasks:numbers", "partition.name=iid"],
        [
            *("data.name=own_tasks:images", "data.input_key=image", "data.label_key=mask", "data.target_shape=[8, 8]"),
            *("data.num_classes=2", "task.ignore_index=255", "model.name=own_tasks:pixels", "partition.name=iid"),
        ],
    ],
    ids=["regression", "multilabel", "segmentation"],
)
def test_networks_of_sites_are_tried_on_the_task_of_the_run(task: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(key for key in task if key.startswith("model.name")).partition("=")[2]
    check_run(Config.load(overrides=[*task, "dkd.start=previous", f"teacher.model={name}"]), Path("runs"))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "teachers")
    assert f"a training step works with {name}" in line


def test_weights_that_are_not_finite_are_refused_where_they_are_read(here: Path) -> None:
    weights = dict(build_model(Config().model, describe(Config().data), 0).state_dict())
    name = next(iter(weights))
    weights[name][0] = torch.nan
    save_file(weights, here / "nan.safetensors")
    with pytest.raises(ConfigError, match=rf"model\.init = 'nan\.safetensors': the parameter '{name}' holds a value that is not finite"):
        check_run(Config.load(overrides=["model.init=nan.safetensors"]), Path("runs"))


class Broken(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The first examples cannot be read."""

    def __init__(self, good: int) -> None:
        self.targets, self.good = [position % 10 for position in range(20)], good

    def __len__(self) -> int:
        return 20

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        if position < 20 - self.good:
            raise OSError("cut off")
        return torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(position)), self.targets[position]


def tried(good: int) -> None:
    dataset = Broken(good)
    examples = StreamedExamples(dataset, torch.tensor(dataset.targets), Reading("scans", max_bad_share=1.0))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    check_simulation(Config(), network, examples, describe(Config().data), OF_CLASSIFICATION)


@pytest.mark.parametrize("good", [1, 3, 19])
def test_a_step_is_tried_on_examples_that_can_be_read(good: int) -> None:
    tried(good)


def test_a_site_none_of_whose_examples_can_be_read_says_so() -> None:
    with pytest.raises(ConfigError, match="none of the 20 labelled examples can be used"):
        tried(0)


def test_a_server_lists_what_it_needs_and_makes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_server(Config(), "127.0.0.1", 0, Path("state"), [None])
    assert listed(capsys) == ["configuration", "address", "connections", "certificates", "clock", "data", "model", "memory", "disk"]
    assert list(here.iterdir()) == []


def a_site(address: str, own: dict[str, object] | None = None) -> SiteToCheck:
    return SiteToCheck("127.0.0.1", address, "site", Path("state"), own or {}, None, None, [])


@pytest.mark.parametrize("own", [{}, {"teacher": {"model": "own_models:batch_norm"}}], ids=["student", "own network"])
def test_a_site_asks_the_server_and_neither_joins_nor_makes_anything(
    own: dict[str, object], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.load(overrides=["dkd.start=previous"])
    data = config.data.model_copy(update={"input_shape": (1, 8, 8), "num_classes": 10})
    engine = GrpcEngine(config.model_copy(update={"data": data}), "run", Schema([TensorSpec("w", torch.float32, (3,))]))
    try:
        check_client(a_site(f"127.0.0.1:{engine.start('127.0.0.1', 0)}", own))
        assert engine.clients() == {}
    finally:
        engine.finish(completed=True, reason="enough")
    assert listed(capsys) == ["proxy", "certificates", "clock", "address", "data", "model", "memory", "disk"]
    assert list(here.iterdir()) == []


def config_with(**tables: dict[str, object]) -> Config:
    return Config.parse(tables)


WRONG: dict[str, tuple[Callable[[], None], str]] = {
    "address": (
        lambda: check_server(Config(), "192.0.2.1", 0, Path("state"), []),
        "check of address: cannot listen on 192.0.2.1:0: ",
    ),
    "server": (lambda: check_client(a_site("127.0.0.1:1")), "check of address: server 127.0.0.1:1: Failed to connect"),
    "certificates": (
        lambda: check_server(Config(), "127.0.0.1", 0, Path("state"), [Path("no.pem")]),
        "check of certificates: cannot read no.pem: No such file or directory",
    ),
    "data": (lambda: check_run(config_with(partition={"labels": 11}), Path("runs")), "check of data: partition.labels = 11"),
    "algorithm": (
        lambda: check_run(config_with(aggregation={"max_norm": {"train": 1.0}}), Path("runs")),
        "check of configuration: aggregation.max_norm.train",
    ),
    "model": (lambda: check_run(config_with(model={"name": "niid_cnn"}), Path("runs")), "check of model: model.name = 'niid_cnn'"),
    "disk": (lambda: check_run(Config(), Path("file/runs")), "check of disk: cannot write to file/runs: "),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_first_thing_that_is_wrong_is_one_line(what: str, here: Path) -> None:
    (here / "file").touch()
    check, message = WRONG[what]
    with pytest.raises(ConfigError) as raised:
        check()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert [each.name for each in here.iterdir()] == ["file"]


def test_a_taken_port_is_found(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:"):
        check_server(Config(), "127.0.0.1", taken.getsockname()[1], Path("state"), [])


CHECKS_OF_PORTS = {
    "run": lambda ports: check_run(Config(), Path("runs"), ports=ports),
    "server": lambda ports: check_server(Config(), "127.0.0.1", 0, Path("state"), [], ports),
}


@pytest.mark.parametrize("name", ["metrics", "live page"])
@pytest.mark.parametrize("command", CHECKS_OF_PORTS)
def test_a_taken_port_for_other_programs_is_found(name: str, command: str, here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = Port(taken.getsockname()[1])
        endpoints = Endpoints(metrics=port) if name == "metrics" else Endpoints(live=port)
        with pytest.raises(ConfigError, match=rf"^check of {name}: cannot listen on 127\.0\.0\.1:{port.number}: "):
            CHECKS_OF_PORTS[command](endpoints.ports)


def test_a_state_directory_of_another_client_is_found(here: Path) -> None:
    from feddkd.cli.check import _state_of

    (here / "state").mkdir()
    (here / "state" / "client").write_text("other\n")
    with pytest.raises(ConfigError, match="state directory state belongs to client 'other', not to 'site'"):
        _state_of("site", Path("state"), 0)


def test_too_little_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 10**9)
    assert machine.check_memory(10**9) == "about 1.00 GB needed, without activations; 1.00 GB available"
    with pytest.raises(ConfigError, match=r"about 2\.00 GB are needed, without activations, and 1\.00 GB are available"):
        machine.check_memory(2 * 10**9)


def test_a_system_that_does_not_tell_its_memory_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: None)
    assert machine.check_memory(10**9) == "about 1.00 GB needed, without activations"


def test_a_disk_that_is_too_small_is_found(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"runs needs about .* are free"):
        machine.check_disk(tmp_path / "runs", 10**18)


def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StateError, match=r"cannot write to .*nowhere"):
        check_writable(tmp_path / "nowhere")


CERTIFICATE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("days", "problem"),
    [
        (-1, "is not valid before 2026-01-01 00:00 UTC, and this machine's clock says 2025-12-31"),
        (0, ""),
        (9, ""),
        (11, "has expired on 2026-01-11"),
    ],
)
def test_a_certificate_is_compared_with_the_clock(days: int, problem: str) -> None:
    certificate = Certificate(CERTIFICATE, CERTIFICATE + datetime.timedelta(days=10))
    now = CERTIFICATE + datetime.timedelta(days=days)
    assert re.match(problem, certificate.problem(now)) if problem else not certificate.problem(now)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_file_says_for_whom_it_is_and_until_when(tmp_path: Path) -> None:
    names = "subjectAltName=DNS:server.example,IP:10.0.0.1"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj", "/CN=a", "-addext", names]
    subprocess.run([*request, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    certificate = Certificate.read(tmp_path / "cert.pem")
    assert certificate.names == ("server.example", "10.0.0.1")
    assert certificate.ends - certificate.begins == datetime.timedelta(days=9)
    assert not certificate.problem(datetime.datetime.now(datetime.UTC))


class Tuple(nn.Linear):
    """A tuple in train mode, logits in eval mode."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        return (logits, logits) if self.training else logits  # type: ignore[return-value]


class Detached(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).detach()


def frozen() -> nn.Module:
    return nn.Linear(4, 3).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("model", [lambda: Tuple(4, 3), lambda: Detached(4, 3), frozen, lambda: nn.Linear(5, 3), lambda: nn.Flatten(0)])
def test_a_model_that_cannot_take_a_training_step_is_refused(model: Callable[[], nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.name = 'mine:net'"):
        check_model(model(), torch.rand(4, 4), torch.arange(4) % 3, "model.name = 'mine:net'")


def test_a_model_that_is_tried_stays_as_it_is() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    check_model(module, torch.rand(4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3, "model")
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.training
    assert all(parameter.grad is None for parameter in module.parameters())


class Unreadable(MemoryExamples):
    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        raise ConfigError("image 3 cannot be read")


def test_the_examples_themselves_are_tried() -> None:
    with pytest.raises(ConfigError, match="image 3 cannot be read"):
        check_simulation(
            Config(),
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            Unreadable(torch.zeros(20, 1, 8, 8), torch.arange(20) % 10),
            describe(Config().data),
            OF_CLASSIFICATION,
        )


def test_a_schema_that_cannot_travel_is_refused() -> None:
    check_schema(Schema([TensorSpec("w", torch.float32, (3,))]), "model")
    with pytest.raises(ConfigError, match=r"^model cannot travel: tensor name"):
        check_schema(Schema([TensorSpec("w" * 1000, torch.float32, (3,))]), "model")

"""Frozen parameters and constant buffers travel once, if at all, and everything else as before: on both engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from own_models import adapters, masked
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

import feddkd
from feddkd.cli.replay import replayed
from feddkd.config import Config
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import EngineName, run_federation
from feddkd.errors import ConfigError, RunError, StateError
from feddkd.failpoints import FailpointError, planned
from feddkd.models.initial import build_initial
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.records import ExchangeRecord, Observer, RunRecord
from feddkd.tensors import Tensors

ENGINES: tuple[EngineName, ...] = ("in-process", "grpc")
SHAPE = (1, 8, 8)

SMALL = (
    "rounds=3",
    "data.subset=200",
    "partition.clients=3",
    "partition.labels=4",
    "training.epochs=1",
    "dkd.steps=2",
    "runtime.client_processes=2",
    "transport.chunk_bytes=4096",
)


class Exchanges(Observer):
    """Keeps the records of all exchanges."""

    def __init__(self) -> None:
        self.all: list[ExchangeRecord] = []

    def exchange_done(self, record: ExchangeRecord) -> None:
        self.all.append(record)


def settings(*overrides: str) -> Config:
    return resolve(Config.load(overrides=[*SMALL, *overrides]))


def run(folder: Path, engine: EngineName, *overrides: str, resumed: bool = False) -> tuple[RunRecord, list[ExchangeRecord]]:
    """Carry out a run with a record in `folder`; returns what it came to, and its exchanges."""
    config, exchanges = settings(*overrides), Exchanges()
    ledger = Ledger(folder, config, again=resumed)
    try:
        return run_federation(config, engine, folder, [ledger, exchanges], resumed=resumed), exchanges.all
    finally:
        ledger.close()


def trainable_bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters() if parameter.requires_grad)


def backbone(file: Path) -> Path:
    """Write the weights of a network with adapters that no seed gives."""
    network = adapters(SHAPE, 10)
    save_file(
        {
            name: torch.full_like(value, 0.01) * torch.arange(value.numel()).reshape(value.shape).cos()
            for name, value in network.state_dict().items()
        },
        file,
    )
    return file


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def per_client(exchange: ExchangeRecord) -> tuple[float, float]:
    """Bytes of payload for each client, down and up."""
    traffic, clients = exchange.traffic, exchange.clients_reported
    return traffic.payload_bytes_down / clients, traffic.payload_bytes_up / clients


CASES: Mapping[str, Sequence[str]] = {
    "fedavg": ("algorithm.name=fedavg",),
    "feddkd": (),
    "previous": ("dkd.start=previous",),
    "frugal": ("communication.preset=frugal", "dkd.batch_size=32"),
    "zstd": ("communication.zstd=true", "algorithm.name=fedavg"),
}


@pytest.mark.parametrize("case", CASES)
def test_constants_that_a_client_has_not_built_travel_once_on_both_engines(case: str, tmp_path: Path) -> None:
    file = backbone(tmp_path / "backbone.safetensors")
    overrides = ("model.name=own_models:adapters", f"model.init={file}", *CASES[case])
    found = {engine: run(tmp_path / engine, engine, *overrides) for engine in ENGINES}
    (here, exchanges), (there, others) = found["in-process"], found["grpc"]
    assert here.model.sha256() == there.model.sha256()
    constants = build_initial(settings(*overrides)).whole.constants.schema.size_bytes
    assert constants == 4 * (64 * 128 + 128)
    for exchange, other in zip(exchanges, others, strict=True):
        assert exchange.traffic.payload_bytes_down == other.traffic.payload_bytes_down, exchange.id
        assert exchange.traffic.wire_bytes_down == other.traffic.wire_bytes_down, exchange.id
        assert exchange.lost.wire_bytes == other.lost.wire_bytes == 0
        is_first = exchange is exchanges[0]
        assert (per_client(exchange)[0] > constants) == is_first, exchange.id
    for engine in ENGINES:
        files = [tmp_path / engine / "model.safetensors", *(tmp_path / engine / "clients").glob("*/model.safetensors")]
        assert len(files) == 4
        models = [load_file(each) for each in files]
        assert all(same(models[0], each) for each in models)
        network = adapters(SHAPE, 10)
        network.load_state_dict(models[0])
        assert network.get_parameter("1.base.weight").equal(load_file(file)["1.base.weight"])
        assert not network.get_parameter("3.weight").equal(load_file(file)["3.weight"])


@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_cost_their_own_bytes_alone_where_all_build_the_same_backbone(engine: EngineName, tmp_path: Path) -> None:
    _, exchanges = run(tmp_path, engine, "model.name=own_models:adapters", "algorithm.name=fedavg")
    own = trainable_bytes(adapters(SHAPE, 10))
    rounds = [exchange for exchange in exchanges if exchange.id.name == "local_train"]
    assert len(rounds) == 3
    assert all(per_client(exchange) == (own, own) for exchange in rounds)
    delivery = exchanges[-1]
    assert delivery.traffic.payload_bytes_down == 3 * own


def test_each_client_of_unlike_backbones_gets_the_servers(tmp_path: Path) -> None:
    _, exchanges = run(tmp_path, "in-process", "model.name=own_models:other_backbones", "algorithm.name=fedavg")
    own, constants = trainable_bytes(adapters(SHAPE, 10)), 4 * (64 * 128 + 128)
    assert [per_client(exchange)[0] for exchange in exchanges] == [own + constants, own, own, own]
    models = [load_file(each) for each in [tmp_path / "model.safetensors", *(tmp_path / "clients").glob("*/model.safetensors")]]
    assert all(same(models[0], each) for each in models)


def test_constants_that_were_received_outlive_the_clients_process(tmp_path: Path) -> None:
    file = backbone(tmp_path / "backbone.safetensors")
    overrides = ("model.name=own_models:adapters", f"model.init={file}", "algorithm.name=fedavg", "rounds=1")
    run(tmp_path / "run", "in-process", *overrides)
    _, exchanges = run(tmp_path / "run", "in-process", *overrides, "rounds=2", resumed=True)
    (second,) = (exchange for exchange in exchanges if exchange.id.round == 2 and exchange.id.name == "local_train")
    assert per_client(second)[0] == trainable_bytes(adapters(SHAPE, 10))


@pytest.mark.parametrize(
    "point", ["engine.exchange.before_outcome", "scheduler.exchange.after_append", "scheduler.round.before_checkpoint"]
)
@pytest.mark.parametrize("case", ["feddkd", "frugal"])
def test_a_run_that_ends_anywhere_goes_on_to_the_same_model(case: str, point: str, tmp_path: Path) -> None:
    file = backbone(tmp_path / "backbone.safetensors")
    overrides = ("model.name=own_models:adapters", f"model.init={file}", *CASES[case])
    whole, _ = run(tmp_path / "whole", "in-process", *overrides)
    try:
        with planned(f"{point}=raise@2"):
            run(tmp_path / "cut", "in-process", *overrides)
    except FailpointError:
        record, _ = run(tmp_path / "cut", "in-process", *overrides, resumed=True)
        assert record.model.sha256() == whole.model.sha256()
        assert same(load_file(tmp_path / "cut" / "model.safetensors"), load_file(tmp_path / "whole" / "model.safetensors"))
        assert replayed(tmp_path / "cut", tmp_path / "cut").problems == []
    else:
        pytest.fail("the run did not come to the failpoint")


def test_a_run_does_not_go_on_with_another_backbone(tmp_path: Path) -> None:
    file = backbone(tmp_path / "backbone.safetensors")
    overrides = ("model.name=own_models:adapters", f"model.init={file}", "algorithm.name=fedavg")
    with pytest.raises(FailpointError), planned("scheduler.round.after_checkpoint=raise@1"):
        run(tmp_path / "run", "in-process", *overrides)
    network = adapters(SHAPE, 10)
    save_file(network.state_dict(), file)
    with pytest.raises(StateError, match="frozen parameters and constant buffers are not those that this run began with"):
        run(tmp_path / "run", "in-process", *overrides, resumed=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_file_has_every_tied_name_and_says_what_it_is(engine: EngineName, tmp_path: Path) -> None:
    record, _ = run(tmp_path, engine, "model.name=own_models:masked", "rounds=1")
    assert "second.weight" not in record.model
    assert "mask" not in record.model
    for file in (tmp_path / "model.safetensors", tmp_path / "clients" / "client-0" / "model.safetensors"):
        network = masked(SHAPE, 10)
        network.load_state_dict(load_file(file))
        assert network.state_dict()["second.weight"].equal(record.model["first.weight"])
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        assert metadata["run_id"] == record.run_id
        assert metadata["model.name"] == "own_models:masked"
        assert metadata["num_classes"] == "10"
        assert metadata["input_shape"] == "[1, 8, 8]"
        assert metadata["input_scaling"] == "0 to 16 divided by 16"


def test_model_files_of_equal_runs_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        run(tmp_path / folder, "in-process", "model.name=own_models:masked", "rounds=1")
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert same(first, second)
    sizes = {(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("one", "two")}
    assert len(sizes) == 1


@pytest.mark.parametrize("name", ["masked", "adapters", "batch_norm"])
def test_the_python_api_gives_the_whole_network(name: str, tmp_path: Path) -> None:
    done = feddkd.run(
        {
            "model.name": f"own_models:{name}",
            "rounds": 1,
            "dkd.steps": 1,
            "data.subset": 200,
            "partition.clients": 2,
            "partition.labels": 5,
        },
        out=tmp_path / "out",
        progress=False,
    )
    state = done.model.state_dict()
    assert same(state, load_file(tmp_path / "out" / "model.safetensors"))


@cache
def weights() -> dict[str, Tensor]:
    return dict(masked(SHAPE, 10).state_dict())


def initial(file: Path) -> Tensors:
    return build_initial(settings("model.name=own_models:masked", f"model.init={file}")).model


def test_a_run_starts_from_saved_weights_tied_or_not(tmp_path: Path) -> None:
    network = masked(SHAPE, 10)
    save_model(network, str(tmp_path / "tied.safetensors"))
    save_file({name: value.clone() for name, value in network.state_dict().items()}, tmp_path / "all.safetensors")
    for file in ("tied.safetensors", "all.safetensors"):
        assert initial(tmp_path / file)["first.weight"].equal(network.state_dict()["first.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out.bias": None}, "'out.bias' is missing"),
        ({"more": torch.zeros(1)}, "'more' is not in the network"),
        ({"out.bias": torch.zeros(9)}, r"'out.bias' is float32\[9\] where the network has float32\[10\]"),
        ({"out.bias": torch.zeros(10, dtype=torch.float64)}, r"'out.bias' is float64\[10\] where"),
        ({"mask": None, "out.bias": None, "out.weight": None, "first.bias": None}, "and 1 more"),
    ],
)
def test_saved_weights_that_do_not_fit_are_refused_by_name(change: Mapping[str, Tensor | None], message: str, tmp_path: Path) -> None:
    changed = {name: value.clone() for name, value in weights().items()} | dict(change)
    file = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in changed.items() if value is not None}, file)
    with pytest.raises(ConfigError, match=message) as caught:
        initial(file)
    assert str(caught.value).startswith(f"model.init = '{file}' does not fit the network: ")


@pytest.mark.parametrize(("content", "message"), [(None, "there is no such file"), (b"none", "cannot be read as safetensors")])
def test_a_file_without_weights_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        initial(file)


def test_the_servers_file_of_weights_is_no_business_of_clients() -> None:
    assert "init" not in settings("model.init=weights.safetensors").shared_toml()


def test_a_buffer_that_wakes_up_later_ends_the_run_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="tensor 'temperature' changed in training, but not when the model was tried at the start"):
        run(tmp_path, "in-process", "model.name=own_models:waking", "scheduler.retries=0")

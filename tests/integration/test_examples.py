"""The examples run as their pages say, with fewer rounds."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PYTHON = (sys.executable, "-W", "error")
FEDDKD = (*PYTHON, "-c", "from feddkd.cli import main; main()")
TIMEOUT_S = 100
FAST = ("rounds=1", "dkd.steps=1", "training.epochs=1")

Start = Callable[..., subprocess.Popen[str]]


def overrides(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("-o", setting)]


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts processes in a copy of an example; they are killed at the end of the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_process(*command: str, cwd: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start_process
    for process in processes:
        process.kill()
        process.communicate()


def address_of(server: subprocess.Popen[str]) -> str:
    """Where a server with port 0 listens, from its first words; a watchdog ends the wait."""
    assert server.stderr is not None
    watchdog = threading.Timer(TIMEOUT_S, server.kill)
    watchdog.start()
    try:
        for line in server.stderr:
            if found := re.match(r"listening on (\S+:\d+), waiting", line):
                return found[1]
    finally:
        watchdog.cancel()
    raise AssertionError("the server ended without listening")


def summary_of(server: subprocess.Popen[str], clients: list[subprocess.Popen[str]]) -> dict[str, Any]:
    for client in clients:
        _, errors = client.communicate(timeout=TIMEOUT_S)
        assert client.returncode == 0, errors
    output, errors = server.communicate(timeout=TIMEOUT_S)
    assert server.returncode == 0, errors
    summary: dict[str, Any] = json.loads(output)
    return summary


def test_quickstart_prints_its_rounds_and_what_its_model_predicts(tmp_path: Path) -> None:
    *rounds, last = run(*PYTHON, str(EXAMPLES / "quickstart.py"), cwd=tmp_path).stdout.splitlines()
    assert len(rounds) == 3
    assert all(re.fullmatch(rf"round {number}: accuracy [\d.]+% after [\d.]+ MB", line) for number, line in enumerate(rounds, start=1))
    share = re.fullmatch(r"([\d.]+%) of 355 test images are right", last)
    assert share is not None
    assert f"accuracy {share[1]} " in rounds[-1]


def test_adapters_cost_their_own_bytes_after_the_first_exchange(tmp_path: Path) -> None:
    *exchanges, sizes = run(*PYTHON, str(EXAMPLES / "adapters.py"), cwd=tmp_path).stdout.splitlines()
    found = re.fullmatch(r"the model has ([\d,]+) bytes, of which ([\d,]+) are trained", sizes)
    assert found is not None
    whole, trained = found.groups()
    assert exchanges == [
        f"round 1 local_train: {whole} bytes to each site, {trained} back",
        f"round 2 local_train: {trained} bytes to each site, {trained} back",
        f"round 3 local_train: {trained} bytes to each site, {trained} back",
        f"round 3 deliver: {trained} bytes to each site, 0 back",
    ]


def test_three_ways_to_normalise_are_compared(tmp_path: Path) -> None:
    lines = run(*PYTHON, str(EXAMPLES / "batch_norm.py"), cwd=tmp_path).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["BatchNorm, averaged", "BatchNorm, each client's own", "GroupNorm"]
    assert all(re.search(r": [\d.]+% of what the clients hold out, [\d.]+% of the server's test set$", line) for line in lines)


@pytest.mark.parametrize(
    "file",
    [
        "adapters.py",
        "batch_norm.py",
        "unlike_networks/networks.py",
        "text/characters.py",
        "segmentation/shapes.py",
        "tabular/readings.py",
        "scanners/scanners.py",
    ],
)
def test_an_example_is_short(file: str) -> None:
    assert len((EXAMPLES / file).read_text().splitlines()) < 60


@pytest.mark.parametrize(
    ("name", "rounds", "least"),
    [
        ("text", 2, 0.25),  # of all characters; a space, the most frequent one, is 15 % of them
        ("segmentation", 4, 0.6),  # IoU; 29 % where everything is background
    ],
)
def test_an_example_of_another_task_learns(name: str, rounds: int, least: float, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES / name, tmp_path / name))
    settings = overrides(f"rounds={rounds}")
    done = run(*FEDDKD, "run", f"{name}.toml", *settings, "--engine", "in-process", "--json", "--no-report", "--out", "run", cwd=folder)
    assert json.loads(done.stdout)["final_score"] > least


def test_own_algorithm_runs_where_it_is_named(tmp_path: Path) -> None:
    settings = overrides(
        *FAST, "algorithm.name=my_algorithm:FedAvgM", "algorithm.server_lr=0.7", "partition.name=iid", "partition.clients=2"
    )
    done = run(*FEDDKD, "run", *settings, "--engine", "in-process", "--json", "--no-report", "--out", str(tmp_path / "run"), cwd=EXAMPLES)
    assert json.loads(done.stdout)["algorithm"] == "my_algorithm:FedAvgM"
    assert "server_lr = 0.7" in (tmp_path / "run" / "config.toml").read_text()
    first = json.loads((tmp_path / "run" / "exchanges.jsonl").read_text().splitlines()[0])
    assert first["metrics"]["local_steps"] > 0


def test_custom_data_and_network_run_simulated_and_at_a_site(tmp_path: Path, start: Start) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "custom", tmp_path / "custom"))
    simulated = run(
        *FEDDKD, "run", "federation.toml", *overrides(*FAST), "--engine", "in-process", "--json", "--no-report", "--out", "run", cwd=folder
    )
    assert json.loads(simulated.stdout)["rounds"] == 1

    server = start(
        *FEDDKD, "server", "federation.toml", "--listen", "127.0.0.1:0", "--state", "server", "--json", *overrides(*FAST), cwd=folder
    )
    common = ("client", "--server", address_of(server), "--retry-for", "30", "--id", "site-0")
    refused = subprocess.run((*FEDDKD, *common, "--state", "x"), cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert refused.returncode == 1
    assert "the server asks for data.name = 'my_site:load'" in refused.stderr

    client = start(*FEDDKD, *common, "--state", "site-0", "site.toml", "--partition-index", "0", cwd=folder)
    assert summary_of(server, [client])["final_accuracy"] is not None


@pytest.mark.slow  # the example with three sites is of the same kind
def test_two_sites_with_data_of_their_own(tmp_path: Path, start: Start) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "three_machines", tmp_path / "three", ignore=shutil.ignore_patterns("a", "b", "*state*")))
    run(*PYTHON, "make_site_data.py", cwd=folder)
    server = start(
        *FEDDKD, "server", "server.toml", "--listen", "127.0.0.1:0", "--state", "server", "--json", *overrides(*FAST), cwd=folder
    )
    address = address_of(server)
    clients = [
        start(*FEDDKD, "client", "--server", address, "--id", f"site-{site}", "--state", f"state-{site}", f"site_{site}.toml", cwd=folder)
        for site in "ab"
    ]
    summary = summary_of(server, clients)
    (record,) = (folder / "server").glob("*/exchanges.jsonl")
    exchanges = [json.loads(line) for line in record.read_text().splitlines()]
    assert [exchange["clients_reported"] for exchange in exchanges] == [2, 2, 2]
    assert summary["final_accuracy"] is not None
    assert (folder / "state-a" / "model.safetensors").read_bytes() == (folder / "state-b" / "model.safetensors").read_bytes()


def summary_of_sites(folder: Path, start: Start, *settings: str) -> dict[str, Any]:
    """The summary of a server and three sites that share one file of settings and have a folder each."""
    server = start(
        *FEDDKD, "server", "server.toml", "--listen", "127.0.0.1:0", "--state", "server-state", "--json", *overrides(*settings), cwd=folder
    )
    address = address_of(server)
    clients = [
        start(
            *FEDDKD, "client", "--server", address, "--id", f"site-{site}", "--state", f"state-{site}", "site.toml",
            *overrides(f"data.root={site}"), cwd=folder,
        )
        for site in "abc"
    ]  # fmt: skip
    return summary_of(server, clients)


def test_three_sites_with_tables_of_their_own(tmp_path: Path, start: Start) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "tabular", tmp_path / "tabular", ignore=shutil.ignore_patterns(*"abc", "server", "*state*")))
    assert run(*PYTHON, "readings.py", cwd=folder).stdout.splitlines()[0] == "a/train.csv: 300 rows"
    # The median of all sites' rows is 7.7 off in the mean, a linear fit to all of them 3.7.
    assert summary_of_sites(folder, start, "rounds=5")["final_score"] < 3


def test_three_sites_with_images_of_different_scanners(tmp_path: Path, start: Start) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "scanners", tmp_path / "scanners", ignore=shutil.ignore_patterns(*"abc", "*state*")))
    assert run(*PYTHON, "scanners.py", cwd=folder).stdout.splitlines()[0] == "a/train: 599 images"
    assert summary_of_sites(folder, start, "rounds=2")["final_accuracy"] > 0.9


def test_sites_with_unlike_networks_reach_the_model_of_the_simulation(tmp_path: Path, start: Start) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "unlike_networks", tmp_path / "unlike", ignore=shutil.ignore_patterns("runs", "*state*")))
    two = overrides(*FAST, "partition.clients=2", "partition.labels=5", "scheduler.clients=2")
    networks = overrides('teacher.model=["networks:residual", "networks:recurrent"]')
    options = ("--engine", "in-process", "--json", "--no-report", "--out", "run")
    simulated = json.loads(run(*FEDDKD, "run", "simulation.toml", *two, *networks, *options, cwd=folder).stdout)

    server = start(*FEDDKD, "server", "server.toml", "--listen", "127.0.0.1:0", "--state", "server", "--json", *two, cwd=folder)
    common = ("client", "--server", address_of(server), "--retry-for", "30")
    clients = [
        start(
            *FEDDKD,
            *common,
            "--id",
            f"client-{at}",
            "--partition-index",
            f"{at}",
            "--state",
            f"state-{at}",
            f"site_{site}.toml",
            cwd=folder,
        )
        for at, site in enumerate("cd")
    ]
    assert summary_of(server, clients)["model_sha256"] == simulated["model_sha256"]
    for at in range(2):
        at_site, in_simulation = (folder / f"{place}-{at}" / "own_teacher.safetensors" for place in ("state", "run/clients/client"))
        assert all(map(torch.equal, load_file(at_site).values(), load_file(in_simulation).values()))


def test_the_five_networks_of_the_example_all_learn(tmp_path: Path) -> None:
    settings = overrides("rounds=3", "dkd.steps=10")
    folder = EXAMPLES / "unlike_networks"
    run(*FEDDKD, "run", "simulation.toml", *settings, "--engine", "in-process", "--no-report", "--out", str(tmp_path / "run"), cwd=folder)
    exchanges = [json.loads(line) for line in (tmp_path / "run" / "exchanges.jsonl").read_text().splitlines()]
    taught = [exchange for exchange in exchanges if exchange["exchange"] == "local_train"]
    assert all(accuracy > 0.6 for accuracy in taught[-1]["by_client"]["teacher_accuracy"].values())


def test_three_sites_with_few_labelled_images(tmp_path: Path, start: Start) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "few_labels", tmp_path / "few", ignore=shutil.ignore_patterns(*"abc", "server", "*state*")))
    made = run(*PYTHON, "make_images.py", cwd=folder)
    assert made.stdout.splitlines()[0] == "a/train: 20 labelled images, 485 without a label"
    server = start(
        *FEDDKD, "server", "server.toml", "--listen", "127.0.0.1:0", "--state", "server-state", "--json", *overrides("rounds=2"), cwd=folder
    )
    address = address_of(server)
    clients = [
        start(*FEDDKD, "client", "--server", address, "--id", f"site-{site}", "--state", f"state-{site}", f"site_{site}.toml", cwd=folder)
        for site in "abc"
    ]
    summary = summary_of(server, clients)
    (record,) = (folder / "server-state").glob("*/exchanges.jsonl")
    exchanges = [json.loads(line) for line in record.read_text().splitlines()]
    assert all(exchange["clients_reported"] == 3 for exchange in exchanges)
    # 16 labelled images a site do not get there alone: with the labels only, it is 74 %.
    assert summary["final_accuracy"] > 0.8

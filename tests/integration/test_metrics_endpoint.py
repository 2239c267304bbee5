"""A federation over gRPC, scraped over HTTP while it runs."""

import json
import math
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from feddkd.config import Config
from feddkd.engines.simulation import run_federation
from feddkd.observability.ledger import Ledger
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.web import WebServer
from feddkd.scheduler.records import ExchangeRecord, Observer, RunRecord

CONFIG = Config.parse(
    {
        "rounds": 2,
        "partition": {"name": "iid", "clients": 3},
        "training": {"epochs": 1},
        "dkd": {"steps": 2},
        "runtime": {"client_processes": 1},
    }
)
EXCHANGES = {"local_train": 2, "dkd_step": 4, "deliver": 1}


class Scrape:
    """What one GET of /metrics returned."""

    def __init__(self, port: int) -> None:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
            families = text_string_to_metric_families(response.read().decode())
        self._samples = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def value(self, name: str, **labels: str) -> float:
        return self._samples[f"feddkd_{name}", frozenset(labels.items())]

    def state(self) -> str:
        (state,) = (dict(labels)["state"] for (name, labels), value in self._samples.items() if name == "feddkd_run_state" and value == 1)
        return state


class Scraper(Observer):
    """Scrapes from inside the run; observers are told in order, so the metrics have heard of the event before."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.before_round_1: Scrape | None = None
        self.amid_round_2: Scrape | None = None
        self.records: list[ExchangeRecord] = []

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        if round_number == 1:
            self.before_round_1 = Scrape(self._port)

    def exchange_done(self, record: ExchangeRecord) -> None:
        if self.amid_round_2 is None:
            self.records.append(record)
        if (record.id.round, record.id.name, record.id.step) == (2, "dkd_step", 0):
            self.amid_round_2 = Scrape(self._port)


@dataclass
class Run:
    record: RunRecord
    scraper: Scraper
    afterwards: Scrape
    exchanges: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run")
    metrics = PrometheusMetrics(CONFIG)
    with closing(WebServer({"/metrics": metrics.page}, 0)) as server, closing(Ledger(out, CONFIG)) as ledger:
        assert Scrape(server.port).state() == "waiting"
        scraper = Scraper(server.port)
        record = run_federation(CONFIG, "grpc", out, [metrics, ledger, scraper])
        afterwards = Scrape(server.port)
    exchanges, rounds = (
        [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()] for name in ("exchanges", "rounds")
    )
    return Run(record, scraper, afterwards, exchanges, rounds, json.loads((out / "summary.json").read_text()))


def test_a_scrape_before_the_first_exchange_finds_a_run_without_numbers(run: Run) -> None:
    scrape = run.scraper.before_round_1
    assert scrape is not None
    assert scrape.state() == "running"
    assert scrape.value("run_info", run_id=run.record.run_id, algorithm="feddkd", model="mlp", dataset="digits") == 1
    assert (scrape.value("current_round"), scrape.value("target_rounds")) == (1, 2)
    assert scrape.value("wire_bytes_total", direction="down", exchange="local_train") == 0
    assert math.isnan(scrape.value("accuracy_ratio", evaluated_by="server"))


def test_a_scrape_amid_the_run_shows_what_has_happened_so_far(run: Run) -> None:
    scrape, records = run.scraper.amid_round_2, run.scraper.records
    assert scrape is not None
    assert [(record.id.round, record.id.name, record.id.step) for record in records] == [
        *((1, "local_train", 0), (1, "dkd_step", 0), (1, "dkd_step", 1)),
        *((2, "local_train", 0), (2, "dkd_step", 0)),
    ]
    assert scrape.state() == "running"
    assert scrape.value("current_round") == 2
    assert scrape.value("rounds_total", outcome="completed") == 1
    assert scrape.value("exchange_duration_seconds_count", exchange="local_train") == 2
    assert scrape.value("exchange_duration_seconds_count", exchange="dkd_step") == 3
    assert scrape.value("exchange_duration_seconds_count", exchange="deliver") == 0
    for kind in ("local_train", "dkd_step"):
        up = sum(record.traffic.payload_bytes_up for record in records if record.id.name == kind)
        assert scrape.value("payload_bytes_total", direction="up", exchange=kind) == up > 0
    assert scrape.value("dkd_loss") == scrape.value("dkd_loss_initial") == records[-1].loss
    assert scrape.value("training_loss") == records[-2].loss
    evaluation = records[-2].client_evaluation
    assert evaluation is not None
    assert scrape.value("accuracy_ratio", evaluated_by="clients") == evaluation.accuracy
    assert scrape.value("accuracy_ratio", evaluated_by="server") == run.rounds[0]["accuracy"]


def test_the_byte_counters_equal_the_ledger(run: Run) -> None:
    for measure in ("payload", "wire"):
        for direction in ("down", "up"):
            ledger: Counter[str] = Counter()
            for line in run.exchanges:
                ledger[line["exchange"]] += line[f"{measure}_bytes_{direction}"]
            assert set(ledger) == set(EXCHANGES)
            for kind, total in ledger.items():
                assert run.afterwards.value(f"{measure}_bytes_total", direction=direction, exchange=kind) == total
    for direction in ("down", "up"):
        other = run.afterwards.value("wire_bytes_total", direction=direction, exchange="other")
        assert other == run.summary[f"other_wire_bytes_{direction}"] > 0
        exchanged = sum(run.afterwards.value("wire_bytes_total", direction=direction, exchange=kind) for kind in EXCHANGES)
        assert exchanged + other == run.summary[f"total_wire_bytes_{direction}"]


def test_a_scrape_after_the_run_shows_how_it_ended(run: Run) -> None:
    scrape = run.afterwards
    assert scrape.state() == "completed"
    assert scrape.value("rounds_total", outcome="completed") == 2
    assert scrape.value("rounds_total", outcome="failed") == 0
    for kind, count in EXCHANGES.items():
        assert scrape.value("exchange_duration_seconds_count", exchange=kind) == count
        assert scrape.value("contributions_total", exchange=kind, result="accepted") == 3 * count
        assert scrape.value("contributions_total", exchange=kind, result="missing") == 0
    assert scrape.value("round_duration_seconds_sum") == pytest.approx(sum(line["seconds"] for line in run.rounds), abs=1e-4)
    assert scrape.value("accuracy_ratio", evaluated_by="server") == run.summary["final_accuracy"]
    assert scrape.value("best_accuracy_ratio") == run.summary["best_accuracy"]
    assert scrape.value("loss", evaluated_by="clients") == run.rounds[-1]["client_loss"]
    assert scrape.value("clients", state="lost") == 0

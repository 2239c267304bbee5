"""The metric of a task decides, in its own direction, wherever somebody sees how good a model is."""

from __future__ import annotations

import io
import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness import SCHEMA, FakeWorker, filled
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from report_records import write_record
from rich.console import Console
from typer.testing import CliRunner

from feddkd.bench.verdict import outcome, verdicts
from feddkd.cli import app
from feddkd.cli.progress import ConsoleProgress
from feddkd.cli.site_progress import SiteProgress
from feddkd.cli.summary import print_summary
from feddkd.client.server_config import ServerConfig
from feddkd.config import ACCURACY, Config, MainMetric
from feddkd.config.main_metric import metric_difference
from feddkd.engines.simulation import run_federation
from feddkd.errors import ConfigError
from feddkd.evaluation import judged
from feddkd.exchange import DELIVER, Evaluation, ExchangeId, Outcome, Reply, Task
from feddkd.observability.budgets import Curve, round_of_target
from feddkd.observability.ledger import Ledger
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.record_lines import RoundLine
from feddkd.observability.run_folder import RunFolder
from feddkd.report.frontier import Frontier, Track, Walk, front, levels_of
from feddkd.report.frontier_table import frontier_table
from feddkd.report.groups import Name, group_runs
from feddkd.report.page import write_report
from feddkd.report.sections import sections_of
from feddkd.report.sites import site_table
from feddkd.report.style import style
from feddkd.scheduler.records import ExchangeRecord, RoundRecord
from feddkd.scheduler.sites import numbers_by_client
from feddkd.tasks.chosen import task_of
from feddkd.tasks.metrics import TaskMetrics
from feddkd.traffic import Traffic

MAE = MainMetric("mae", minimised=True, task="regression")
TASK = {"name": "regression", "metrics": ["r2"]}
REGRESSION = Config.parse({"task": TASK})


def evaluation(mae: float, r2: float = 0.5) -> Evaluation:
    return Evaluation(10, None, 20.0, scores={"mae": mae, "r2": r2}, merit=-mae)


# What is better.


@given(st.floats(-100, 100), st.floats(-100, 100), st.booleans())
def test_one_of_two_values_is_better_by_its_lead_or_they_are_equal(one: float, other: float, minimised: bool) -> None:
    metric = MainMetric("x", minimised=minimised)
    assert metric.is_better(one, other) + metric.is_better(other, one) + (one == other) == 1
    assert metric.best([one, other]) == (one if metric.reaches(one, other) else other)
    assert metric.lead(one, other) == -metric.lead(other, one)
    assert not (metric.is_better(one, other) and metric.lead(one, other) < 0)


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=20), st.floats(0, 100))
def test_a_minimised_target_is_reached_where_its_negative_is(scores: list[float | None], target: float) -> None:
    negated = [None if score is None else -score for score in scores]
    assert round_of_target(scores, target, MAE) == round_of_target(negated, -target)
    nothing = [0] * len(scores)
    best = Curve(negated, nothing, nothing, nothing).best_score
    assert Curve(scores, nothing, nothing, nothing, MAE).best_score == (None if best is None else -best)


ranges = st.tuples(st.floats(0, 9), st.floats(0, 9)).map(lambda pair: (min(pair), max(pair)))


@given(ranges, ranges)
def test_ahead_is_below_where_a_smaller_value_is_better(ours: tuple[float, float], theirs: tuple[float, float]) -> None:
    def negated(found: tuple[float, float]) -> tuple[float, float]:
        return -found[1], -found[0]

    assert outcome(ours, theirs, 3, MAE) == outcome(negated(ours), negated(theirs), 3)


def test_a_lead_is_in_the_unit_of_the_metric_and_positive_where_it_is_better() -> None:
    rows = {name: {"mae": {"mean": mean, "min": mean, "max": mean}, "share_spent": 1.0} for name, mean in (("a", 0.5), ("b", 2.0))}
    assert verdicts({"rows": rows}, "a", 2, MAE) == {"b": {"outcome": "ahead", "lead": 1.5}}
    assert verdicts({"rows": rows}, "b", 2, MAE) == {"a": {"outcome": "behind", "lead": -1.5}}


walks = st.lists(st.tuples(st.integers(1, 1000), st.floats(0.001, 50)), min_size=1, max_size=8).map(sorted)


@given(st.lists(walks, min_size=1, max_size=4))
def test_the_frontier_of_a_minimised_metric_is_that_of_its_negative(found: list[list[tuple[int, float]]]) -> None:
    def tracks(sign: float, metric: MainMetric) -> list[Track]:
        return [
            Track.of(Name("x", "x"), ("x", "", ""), [Walk([cost for cost, _ in own], [sign * score for _, score in own])], metric)
            for own in found
        ]

    lowest = tracks(1.0, MAE)
    assert [(step.wire_bytes, -step.score, step.track) for step in front(lowest)] == [
        (step.wire_bytes, step.score, step.track) for step in front(tracks(-1.0, ACCURACY))
    ]
    levels = levels_of(lowest)
    best = min(score for own in found for _, score in own)
    assert levels == sorted(levels, reverse=True)
    assert all(level >= best for level in levels)
    assert len(levels) == 3


def test_the_table_of_the_frontier_marks_the_lowest() -> None:
    tracks = [
        Track.of(Name(name, name), (name, "", ""), [Walk([10, 20], scores)], MAE) for name, scores in (("a", [2.0, 0.4]), ("b", [1.0, 0.9]))
    ]
    table = frontier_table(Frontier.of(tracks, unit_bytes=None))
    assert table.header[:4] == ["configuration", "to 1", "to 0.7", "to 0.5"]
    assert table.title == "MAE for its bytes"
    assert table.data is not None
    assert table.data.fields[-1].startswith("mae_in_")
    assert table.strong == {(1, 1), (0, 2), (0, 3), (1, 6)}


# How it is written.


@pytest.mark.parametrize(
    ("name", "title", "text", "cell"),
    [
        ("accuracy", "accuracy", "50.00%", "50.00"),
        ("f1", "F1", "50.00%", "50.00"),
        ("mae", "MAE", "0.5", "0.5"),
        ("r2", "R²", "0.5", "0.5"),
        ("mine.metrics:gini", "gini", "0.5", "0.5"),
    ],
)
def test_shares_are_in_percent_and_other_numbers_are_not(name: str, title: str, text: str, cell: str) -> None:
    metric = MainMetric(name)
    assert (metric.title, metric.text(0.5), metric.cell(0.5)) == (title, text, cell)


# What cannot be compared.


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ({}, {"metrics": ["f1"]}, None),
        ({}, {"metric": "f1"}, "task.metric"),
        ({}, {"name": "multilabel", "metric": "accuracy"}, "task.name"),
        ({"metric": "f1"}, {"metric": "f1", "lower_is_better": True}, "task.lower_is_better"),
        ({"name": "regression"}, {"name": "regression", "loss": "huber"}, None),
        ({"name": "regression", "metric": "loss"}, {"name": "regression", "metric": "loss", "loss": "huber"}, "task.loss"),
    ],
)
def test_different_metrics_are_not_compared(one: dict[str, Any], other: dict[str, Any], key: str | None) -> None:
    found = metric_difference(Config.parse({"task": one}), Config.parse({"task": other}))
    assert (found is None) if key is None else (found is not None and found.startswith(f"{key} = "))


def test_compare_and_report_refuse_different_metrics_in_one_line(tmp_path: Path) -> None:
    for name, metric in (("one", "accuracy"), ("two", "f1")):
        (tmp_path / f"{name}.toml").write_text(f'[task]\nmetric = "{metric}"\n')
    compared = CliRunner().invoke(app, ["compare", str(tmp_path / "one.toml"), str(tmp_path / "two.toml"), "--out", str(tmp_path / "out")])
    assert isinstance(compared.exception, ConfigError | SystemExit)
    assert not (tmp_path / "out").exists()
    runs = [RunFolder.load(write_record(tmp_path / metric, settings={"task": {"metric": metric}})) for metric in ("accuracy", "f1")]
    with pytest.raises(ConfigError, match=r"f1 and .*accuracy cannot be compared: task.metric = 'f1' in one, 'accuracy' in the other"):
        write_report(runs, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


# Records.


def test_a_line_has_every_metric_and_an_older_one_has_accuracy_and_loss() -> None:
    line = {"round": 1, "seconds": 1.0, "cumulative_wire_bytes": 1, "loss": 2.0, "client_loss": 3.0}
    new = RoundLine.model_validate(line | {"scores": {"mae": 0.5, "f1": 1.5, "r2": -3.0, "big": 1e200}, "client_scores": {"mae": 0.75}})
    assert [new.score(name) for name in ("mae", "f1", "r2", "big", "loss", "accuracy")] == [0.5, None, -3.0, None, 2.0, None]
    assert [new.client_score(name) for name in ("mae", "r2", "loss")] == [0.75, None, 3.0]
    old = RoundLine.model_validate(line | {"accuracy": 0.5, "client_accuracy": 0.25})
    assert [old.score("accuracy"), old.client_score("accuracy"), old.score("mae")] == [0.5, 0.25, None]


def test_the_metrics_of_one_site_follow_from_the_states_that_it_sent() -> None:
    metrics = TaskMetrics(task_of(REGRESSION), 1)
    sent: dict[str, tuple[float, ...]] = {"site-a": (2.0, 4.0), "site-b": (math.nan, 4.0), "site-c": (8.0, 4.0)}
    replies = {client: Reply(evaluation=Evaluation(4, None, 2.0, sums={"mae": sums})) for client, sums in sent.items()}
    exchange = FakeExchange(tuple(sent))
    numbers = numbers_by_client(exchange, Outcome(None, replies, {}, Traffic(), 1.0), metrics)  # type: ignore[arg-type]
    assert numbers["client_mae"] == {"site-a": 0.5, "site-c": 2.0}
    assert "client_r2" not in numbers
    whole = judged(Evaluation(8, None, 4.0, sums={"mae": (10.0, 8.0)}), metrics)
    assert (whole.score("mae"), whole.worth) == (1.25, -1.25)


class FakeExchange:
    """As much of an exchange as `numbers_by_client` reads."""

    def __init__(self, clients: tuple[str, ...]) -> None:
        self.clients = clients
        self.id = ExchangeId("run", 1, 0, "local_train", 0)


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole regression in this process: the classes of digits as numbers."""
    out = tmp_path_factory.mktemp("regression")
    (out / "mine.py").write_text(
        "import torch\n"
        "def data(root, train):\n"
        "    inputs = torch.randn(120 if train else 40, 3, generator=torch.Generator().manual_seed(int(train)))\n"
        "    return inputs, inputs @ torch.arange(3.0)\n"
        "def net(shape, numbers):\n"
        "    return torch.nn.Linear(3, numbers)\n"
    )
    tables = {
        "rounds": 3,
        "task": TASK,
        "data": {"name": "mine:data"},
        "model": {"name": "mine:net"},
        "partition": {"name": "iid", "clients": 2},
        "dkd": {"steps": 1},
    }
    config = Config.parse(tables)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(out))
        with closing(Ledger(out / "run", config)) as ledger:
            run_federation(config, "in-process", out / "run", [ledger])
    return RunFolder.load(out / "run")


def test_a_regression_leaves_its_metrics_in_the_record(regression: RunFolder) -> None:
    summary = regression.summary
    assert summary is not None
    assert (summary.metric, summary.final_accuracy, summary.best_accuracy) == ("mae", None, None)
    assert (summary.final_score, summary.best_score) == (regression.scores[-1], min(regression.scores))
    assert summary.best_round == regression.scores.index(min(regression.scores)) + 1
    assert summary.scores.keys() == {"loss", "mae", "r2"}
    assert all(line.scores.keys() == line.client_scores.keys() == {"loss", "mae", "r2"} for line in regression.rounds)
    first = regression.exchanges[0]
    counts = first.by_client["client_examples"]
    mean = sum(counts[client] * value for client, value in first.by_client["client_mae"].items()) / sum(counts.values())
    assert first.client_score("mae") == pytest.approx(mean, abs=1e-12)


def test_a_regression_has_a_report_of_its_own_metrics(regression: RunFolder, tmp_path: Path) -> None:
    write_report([regression], tmp_path / "page.html", formats=["svg"])
    page = (tmp_path / "page.html").read_text()
    assert "accuracy" not in page.lower().partition("config.toml")[0].replace("accuracy =", "")
    assert {"mae_by_round.svg", "mae_by_bytes.svg", "r2_by_round.svg", "sites_mae.svg"} <= {
        file.name for file in (tmp_path / "page").iterdir()
    }
    assert all(part in page for part in ("final MAE", "final R²", "MAE by round", "R² by round"))
    assert "MAE (lower is better)" in (tmp_path / "page" / "mae_by_round.svg").read_text()
    assert "final_mae" in (tmp_path / "page" / "tables" / "runs.csv").read_text()
    groups = group_runs([regression])
    table = site_table(groups)
    assert table is not None
    assert table.header == ["site", "labelled", "unlabelled", "MAE", "rounds", "last reply, UTC"]
    with style():
        titles = [section.title for section in sections_of(groups)]
    assert titles == ["MAE", "Cost", "Distillation and drift", "Sites"]


# Screens.


def round_record(mae: float) -> RoundRecord:
    return RoundRecord(1, evaluation(mae), evaluation(2 * mae), Traffic(), 0, 1.0, 2, {}, 1, {})


def test_the_table_of_a_run_has_a_column_for_each_metric_that_fits() -> None:
    wide, narrow = io.StringIO(), io.StringIO()
    for shown, width in ((wide, 120), (narrow, 60)):
        progress = ConsoleProgress(REGRESSION, Console(file=shown, width=width))
        progress.run_started("run", 10)
        progress.round_done(round_record(0.25))
    assert wide.getvalue().splitlines()[-2].split()[:5] == ["round", "MAE", "MAE", "R²", "loss"]
    assert wide.getvalue().splitlines()[-1].split()[:5] == ["1/10", "0.25", "0.5", "0.5", "2.000"]
    assert "R²" not in narrow.getvalue()
    assert "MAE" in narrow.getvalue()


def test_the_summary_has_the_metric_and_then_the_others(capsys: pytest.CaptureFixture[str], regression: RunFolder) -> None:
    summary = json.loads((regression.path / "summary.json").read_text())
    print_summary(summary | {"final_score": 0.25, "best_score": 0.125, "scores": {"loss": 1.0, "mae": 0.25, "r2": 0.5}}, Path("out"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["final", "MAE", "0.25", "(best", "0.125)"]
    assert lines[1] == ["other", "metrics", "R²", "0.5"]


def test_a_site_reads_its_own_metric_before_and_after_a_round() -> None:
    said: list[str] = []
    left = [2.0, 0.5, 0.25]

    def respond(task: Task) -> Reply:
        return Reply(evaluation=evaluation(left.pop(0)) if task.id.name in ("local_train", DELIVER) else None)

    progress = SiteProgress(FakeWorker(respond), ServerConfig(REGRESSION.to_toml()), said.append)
    for number, name in ((1, "local_train"), (1, "dkd_step"), (2, "local_train"), (2, DELIVER)):
        progress.carry_out(Task(ExchangeId("run", number, 0, name, 0), filled(SCHEMA, 1)))
    assert [line.partition(" s; ")[2] for line in said] == ["MAE 2 → 0.5, R² 0.5 (10 held out)", "MAE 0.5 → 0.25, R² 0.5 (10 held out)"]


def test_prometheus_has_a_series_for_each_metric() -> None:
    metrics = PrometheusMetrics(REGRESSION)
    for number, mae in enumerate((0.5, 0.25, 0.75), start=1):
        metrics.round_evaluated(number, evaluation(mae))
    said = {"client_mae": {"site-a": 0.125}, "client_r2": {"site-a": -2.0}}
    metrics.exchange_done(ExchangeRecord(ExchangeId("run", 1, 0, "local_train", 0), 3, 2, {}, Traffic(), 1.0, 1.0, 1, None, None, {}, said))
    text = generate_latest(metrics.registry).decode()
    for line in (
        'feddkd_score{evaluated_by="server",metric="mae"} 0.75',
        'feddkd_score{evaluated_by="server",metric="r2"} 0.5',
        'feddkd_best_score{metric="mae"} 0.25',
        'feddkd_site_score{client="site-a",metric="mae"} 0.125',
        'feddkd_site_score{client="site-a",metric="r2"} -2.0',
    ):
        assert line in text

"""What a site is told while it takes part."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from harness import SCHEMA, FakeWorker, filled

from feddkd.cli.site_progress import SiteProgress
from feddkd.client.server_config import ServerConfig
from feddkd.config import Config
from feddkd.exchange import DELIVER, Evaluation, ExchangeId, Reply, Task


def carried_out(progress: SiteProgress, exchanges: Sequence[tuple[int, str]]) -> None:
    for number, name in exchanges:
        progress.carry_out(Task(ExchangeId("run", number, 0, name, 0), filled(SCHEMA, 1)))


def served(*overrides: str) -> ServerConfig:
    return ServerConfig(Config.load(None, overrides).to_toml())


def site(said: list[str], accuracies: Sequence[int] = (), *overrides: str) -> SiteProgress:
    """A site whose evaluations find so many of 100 examples correct, one after the other."""
    left = list(accuracies)

    def respond(task: Task) -> Reply:
        evaluates = task.id.name in ("local_train", DELIVER) and left
        return Reply(evaluation=Evaluation(100, left.pop(0), 1.0) if evaluates else None)

    return SiteProgress(FakeWorker(respond), served("rounds=2", *overrides), said.append)


def without_times(lines: Sequence[str]) -> list[str]:
    return [" ".join("N" if word.replace(".", "").isdigit() and "." in word else word for word in line.split()) for line in lines]


def test_a_site_reads_one_line_a_round_with_the_accuracy_of_that_rounds_model() -> None:
    said: list[str] = []
    progress = site(said, [10, 70, 80])
    rounds = [(number, name) for number in (1, 2) for name in ("local_train", "dkd_step")]
    carried_out(progress, [*rounds, (2, DELIVER)])
    assert without_times(said) == [
        "round 1 of 2: 2 exchanges, N s; accuracy 70.00% (100 held out)",
        "round 2 of 2: 2 exchanges, N s; accuracy 80.00% (100 held out)",
    ]
    assert progress.final is not None
    assert progress.final.accuracy == 0.8


@pytest.mark.parametrize(
    ("teaches", "told"), [(False, "own training 10.00% \N{RIGHTWARDS ARROW} 90.00%"), (True, "own network 90.00%")], ids=["student", "own"]
)
def test_a_site_reads_what_its_own_training_made_of_the_model(*, teaches: bool, told: str) -> None:
    said: list[str] = []
    before = iter([0.10, 0.70])

    def respond(task: Task) -> Reply:
        if task.id.name != "local_train":
            return Reply()
        return Reply(evaluation=Evaluation(100, round(100 * next(before)), 1.0), metrics={"teacher_accuracy": 0.9})

    progress = SiteProgress(FakeWorker(respond), served("rounds=2"), said.append, teaches=teaches)
    carried_out(progress, [(1, "local_train"), (1, "dkd_step"), (2, "local_train")])
    assert without_times(said) == [f"round 1 of 2: 2 exchanges, N s; accuracy 70.00% (100 held out); {told}"]


REGRESSION = ["rounds=2", "task.name=regression"]


@pytest.mark.parametrize(
    ("teaches", "told"),
    [(False, "own training MAE 0.5 \N{RIGHTWARDS ARROW} 0.125"), (True, "own network MAE 0.125")],
    ids=["student", "own"],
)
def test_a_site_reads_its_own_network_by_the_metric_of_the_task(*, teaches: bool, told: str) -> None:
    said: list[str] = []
    before = iter([0.5, 0.25])

    def respond(task: Task) -> Reply:
        if task.id.name != "local_train":
            return Reply()
        return Reply(evaluation=Evaluation(100, None, 1.0, scores={"mae": next(before)}), metrics={"teacher_score": 0.125})

    progress = SiteProgress(FakeWorker(respond), served(*REGRESSION), said.append, teaches=teaches)
    carried_out(progress, [(1, "local_train"), (1, "dkd_step"), (2, "local_train")])
    (line,) = said
    assert line.endswith(f"; MAE 0.5 \N{RIGHTWARDS ARROW} 0.25 (100 held out); {told}")


def test_a_site_that_holds_nothing_out_reads_no_accuracy() -> None:
    said: list[str] = []
    progress = site(said)
    carried_out(progress, [(1, "local_train"), (2, "local_train")])
    assert without_times(said) == ["round 1 of 2: 1 exchange, N s"]
    assert progress.final is None


@pytest.mark.parametrize(("clients", "whom"), [('["north", "south"]', "2 clients: north, south"), ("3", "3 clients"), ("1", "1 client")])
def test_a_site_reads_which_clients_a_run_begins_with(clients: str, whom: str) -> None:
    said: list[str] = []
    progress = site(said, (), f"scheduler.clients={clients}")
    progress.joined("run")
    progress.joined("run")
    assert said == [f"joined run run (2 rounds, {whom}); waiting for the server", "connected to run run again"]


def test_a_site_reads_that_a_run_has_more_rounds_now() -> None:
    said: list[str] = []
    run = served("rounds=2")
    progress = SiteProgress(FakeWorker(lambda _: Reply()), run, said.append)
    progress.joined("run")
    carried_out(progress, [(1, "local_train")])
    assert run.difference(Config.load(None, ["rounds=5"]).to_toml()) is None
    progress.joined("run")
    carried_out(progress, [(2, "local_train")])
    assert without_times(said)[1:] == ["connected to run run again, which has 5 rounds now", "round 1 of 5: 1 exchange, N s"]


def test_a_site_that_comes_for_the_final_model_alone_reads_no_round() -> None:
    said: list[str] = []
    progress = site(said, [90])
    carried_out(progress, [(2, DELIVER)])
    assert said == []
    assert progress.model_sha256 == filled(SCHEMA, 1).sha256()
    assert progress.final is not None


def test_a_display_that_fails_costs_no_reply_and_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    def fail(line: str) -> None:
        raise BrokenPipeError(line)

    progress = SiteProgress(FakeWorker(lambda task: Reply(loss=float(task.id.round))), served("rounds=3"), fail)
    tasks = [Task(ExchangeId("run", number, 0, "local_train", 0), filled(SCHEMA, 1)) for number in (1, 2, 3)]
    assert [progress.carry_out(task).loss for task in tasks] == [1.0, 2.0, 3.0]
    assert [record.getMessage() for record in caplog.records] == ["the progress of this site is not shown any more"]

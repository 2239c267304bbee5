"""What a live page is told of a run: the whole state at any time, in bounded memory, and never at the cost of the run."""

from __future__ import annotations

import itertools
import json
import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
from harness import until

from feddkd.config import Config
from feddkd.engines.in_process import InProcessEngine
from feddkd.exchange import Evaluation, ExampleCounts, ExchangeId
from feddkd.observability.live import page as live_page
from feddkd.observability.live.history import MOST_KINDS, MOST_ROUNDS
from feddkd.observability.live.page import MOST_BROWSERS, LivePage
from feddkd.observability.live.sites import MOST_SHOWN, ClientTable, Seen
from feddkd.observability.live.state import MOST_LINES, SECTIONS, LiveState
from feddkd.observability.web import WebServer
from feddkd.scheduler.records import ExchangeRecord, RoundRecord
from feddkd.traffic import Traffic

RUN_ID = "0123456789ab"


def exchange(
    round_number: int = 1, name: str = "local_train", *, step: int = 0, loss: float | None = None, missing: Mapping[str, str] | None = None
) -> ExchangeRecord:
    return ExchangeRecord(
        ExchangeId(RUN_ID, round_number, 0, name, step), 2, 2, missing or {}, Traffic(0, 0, 100, 40), 0.1, 0.2, 10, loss, None, metrics={}
    )


def round_record(number: int, correct: int = 50, evaluated: bool = True) -> RoundRecord:
    evaluation = Evaluation(100, correct, 100.0) if evaluated else None
    return RoundRecord(number, evaluation, None, Traffic(), 140 * number, 2.0, 2, {}, 20, {}, done_s=1e9 + number)


def state_of(**tables: Any) -> LiveState:
    return LiveState(Config.parse(tables))


def texts(state: LiveState) -> list[str]:
    return [line["text"] for line in state.section("log")["lines"]]


@contextmanager
def served(page: LivePage) -> Iterator[int]:
    """A page that looks at no engine by itself, and its port."""
    with page, closing(WebServer(page.routes("127.0.0.1"), 0)) as server:
        yield server.port


@contextmanager
def get(port: int, path: str = "/", host: str | None = None) -> Iterator[HTTPResponse]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        with closing(connection.getresponse()) as response:
            yield response


def messages(stream: HTTPResponse) -> Iterator[tuple[str, Any]]:
    """The events of a stream, by name."""
    name = ""
    for line in stream:
        key, _, text = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            name = text
        elif key == "data":
            yield name, json.loads(text)


def whole_state(port: int) -> dict[str, Any]:
    """What a browser that opens the page now gets."""
    found: dict[str, Any] = {}
    with get(port, "/events") as stream:
        for name, content in messages(stream):
            found[name] = content
            if found.keys() >= {*SECTIONS}:
                break
    return found


def test_a_browser_that_comes_late_gets_the_whole_state() -> None:
    page = LivePage(Config())
    page.run_started(RUN_ID, 3)
    for number in (1, 2):
        page.round_started(number, 0, 2)
        page.exchange_done(exchange(number, loss=0.5))
        page.round_evaluated(number, Evaluation(100, 50 + number, 100.0))
        page.round_done(round_record(number, 50 + number))
    with served(page) as port:
        state = whole_state(port)
        assert whole_state(port)["history"] == state["history"]
    assert [row["score"] for row in state["history"]["rounds"]] == [0.51, 0.52]
    assert state["run"]["bytes"]["local_train"] == [200, 80]
    assert (state["run"]["round"], state["run"]["rounds_done"], state["run"]["best"]) == (2, 2, [2, 0.52])
    assert [line["text"] for line in state["log"]["lines"]][-1] == "round 2 is done, accuracy 52.00%"


def test_a_browser_is_sent_what_changed_and_the_end_before_the_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_page, "LEAST_S", 0.0)
    page = LivePage(Config())
    with served(page) as port, get(port, "/events") as stream:
        told = messages(stream)
        assert {next(told)[0] for _ in range(5)} == {"clock", *SECTIONS}
        page.paused("round 1 needs 2 clients")
        assert [next(told)[0] for _ in range(3)] == ["clock", "run", "log"]
        page.run_failed("too few clients")
        closing_thread = threading.Thread(target=page.__exit__, args=(None, None, None))
        closing_thread.start()
        ends = dict(told)
        closing_thread.join()
    assert (ends["run"]["phase"], ends["run"]["reason"]) == ("failed", "too few clients")


def test_only_so_many_browsers_are_served_and_one_that_leaves_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_page, "MOST_BROWSERS", 2)
    monkeypatch.setattr(live_page, "QUIET_S", 0.01)
    monkeypatch.setattr(live_page, "LEAST_S", 0.0)
    page = LivePage(Config())

    def status() -> int:
        with get(port, "/events") as response:
            return response.status

    with served(page) as port:
        with get(port, "/events") as first, get(port, "/events") as second:
            assert (first.status, second.status, status()) == (200, 200, 503)
        until(lambda: status() == 200)
    assert MOST_BROWSERS < 32  # of the connections that the server takes, some stay for the page itself


def test_a_browser_that_reads_nothing_does_not_hold_the_run() -> None:
    page = LivePage(Config())
    with served(page) as port, get(port, "/events"):
        for number in range(1, 2000):
            page.exchange_done(exchange(number))


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:8000", "LOCALHOST", "[::1]:80", "10.1.2.3"])
def test_the_page_is_opened_by_an_address(host: str) -> None:
    with served(LivePage(Config())) as port:
        for path in ("/", "/live.js", "/live.css"):
            with get(port, path, host) as response:
                assert response.status == 200
                assert response.read()


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "", "[::1"])
@pytest.mark.parametrize("path", ["/", "/events", "/live.js"])
def test_a_page_of_somebody_elses_cannot_read_the_run_through_a_name_of_its_own(host: str, path: str) -> None:
    with served(LivePage(Config())) as port, get(port, path, host) as response:
        assert (response.status == 421) == (host != "[::1")
        # A bracket that is not closed still names the loopback address.


def test_the_browser_is_told_to_load_and_run_nothing_else() -> None:
    with served(LivePage(Config())) as port, get(port) as response:
        policy = response.getheader("Content-Security-Policy", "")
        text = response.read().decode()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_a_long_run_is_thinned_and_keeps_its_first_and_last_rounds() -> None:
    state = state_of()
    rounds = 5 * MOST_ROUNDS
    for number in range(1, rounds + 1):
        state.exchange_done(exchange(number))
        state.round_done(round_record(number, number % 100))
    kept = [row["round"] for row in state.section("history")["rounds"]]
    assert len(kept) <= MOST_ROUNDS
    assert kept[0] == 1
    assert kept[-1] == rounds
    assert max(later - earlier for earlier, later in itertools.pairwise(kept)) <= 8
    assert state.section("run")["bytes"]["local_train"] == [100 * rounds, 40 * rounds]
    assert state.section("run")["rounds_done"] == rounds


def test_what_clients_can_make_up_is_bounded() -> None:
    state = state_of()
    for number in range(3000):
        state.exchange_done(exchange(1, f"kind_{number}", missing={f"client-{number}": "<b>gone</b>"}))
    assert len(state.section("run")["bytes"]) <= MOST_KINDS + 2
    assert len(texts(state)) == MOST_LINES
    assert sum(down for down, _ in state.section("run")["bytes"].values()) == 300_000


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_shown_as_it_is_and_warned_of(value: float) -> None:
    state = state_of()
    state.exchange_done(exchange(loss=value))
    (row,) = state.section("history")["rounds"]
    assert row["training_loss"] == {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    assert texts(state) == [f"round 1 local_train: the loss is {value}"]
    json.dumps([state.section(name) for name in SECTIONS], allow_nan=False)


def test_a_run_without_a_test_set_says_so_and_has_no_score() -> None:
    state = state_of(data={"test_set": False, "holdout": 0.0})
    state.round_done(round_record(1, evaluated=False))
    run = state.section("run")
    assert (run["has_test_set"], run["best"]) == (False, None)
    assert texts(state) == ["round 1 is done"]


def test_the_best_round_is_that_of_the_tasks_metric() -> None:
    state = state_of(task={"metric": "loss"})
    for number, loss in ((1, 0.5), (2, 0.2), (3, 0.9)):
        state.evaluated(number, Evaluation(100, 50, 100 * loss))
    assert state.section("run")["best"] == (2, 0.2)
    assert state.section("run")["metric"]["minimised"]


def test_a_resumed_run_starts_with_its_history() -> None:
    state = LiveState(Config(), resumed=True)
    state.started(RUN_ID, 5)
    state.round_started(1, 0)
    state.exchange_done(exchange(1, missing={"c": "gone"}))
    state.round_done(round_record(1))
    state.resumed(RUN_ID, 5, 1, 2)
    assert [row["round"] for row in state.section("history")["rounds"]] == [1]
    assert texts(state) == ["round 1 is done, accuracy 50.00%", f"run {RUN_ID} goes on after round 1 of 5 (process 2)"]
    assert state.section("log")["lines"][0]["at_s"] == 1e9 + 1
    before = state.section("run")["bytes"]["local_train"]
    state.exchange_done(exchange(2), recalled=True)
    assert state.section("run")["bytes"]["local_train"] == before
    assert state.section("run")["exchanges_done"] == 2


def seen(here: int, lost: int = 0, awaited: int = 0, replies: Mapping[str, tuple[str, float]] | None = None) -> Seen:
    names = [f"client-{number:04d}" for number in range(here + lost)]
    return Seen(frozenset(names[:here]), frozenset(names[:awaited]), dict.fromkeys(names, 3.0), replies or {})


def test_of_very_many_clients_those_are_listed_that_matter() -> None:
    replies = {f"client-{number:04d}": ("dkd_step", 9.0 if number == 700 else 1.0) for number in range(900)}
    shown = ClientTable().shown(seen(900, lost=2, awaited=5, replies=replies))
    assert (shown["connected"], shown["working"], shown["lost"], len(shown["rows"])) == (895, 5, 2, MOST_SHOWN)
    assert shown["more"] == 902 - MOST_SHOWN
    states = [row["state"] for row in shown["rows"]]
    assert states[:8] == ["lost"] * 2 + ["working"] * 5 + ["connected"]
    assert [row["id"] for row in shown["rows"] if row["slow"]] == [shown["rows"][7]["id"]] == ["client-0700"]


def test_the_log_names_who_comes_goes_and_returns() -> None:
    state = state_of()
    for each in (seen(2), seen(1, lost=1), seen(2), seen(2)):
        state.see(each, Traffic())
    assert texts(state) == [
        "client-0000, client-0001 are there",
        "client-0001 is not connected any more",
        "client-0001 is back",
    ]


def test_the_engine_is_asked_until_the_run_ends_and_may_refuse() -> None:
    class Engine(InProcessEngine):
        closed = False

        def here(self) -> list[str]:
            if self.closed:
                raise RuntimeError("closed")
            return ["a"]

    engine = Engine({}, chunk_bytes=1024)
    page = LivePage(Config(), every_s=0.001)
    page.engine_ready(engine)
    with served(page) as port:
        page.clients_available({"a": ExampleCounts(1)})
        until(lambda: whole_state(port)["clients"]["connected"] == 1)
        engine.closed = True
        page.run_failed("stopped")
        assert whole_state(port)["clients"]["connected"] == 1


@pytest.mark.parametrize(("stopped", "phase"), [(True, "stopped"), (False, "failed")])
def test_a_run_that_somebody_stopped_has_not_failed(stopped: bool, phase: str) -> None:
    page = LivePage(Config())
    (page.run_stopped if stopped else page.run_failed)("why")
    page.run_failed("told again")
    assert (page._state.section("run")["phase"], page._state.section("run")["reason"]) == (phase, "why")


def test_warnings_of_the_log_are_on_the_page_as_text_that_is_safe_to_show() -> None:
    page = LivePage(Config())
    with served(page):
        logging.getLogger("feddkd.transport").warning("%s was refused: %s", "east", "<script>\x1b[31m")
    logging.getLogger("feddkd.transport").warning("after the page")
    assert texts(page._state) == ["east was refused: <script>\\x1b[31m"]

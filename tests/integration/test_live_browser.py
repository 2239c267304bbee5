"""The live page in a real browser: it follows a run to its end, comes late, outlives the server, and runs nothing that it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from harness import until

import feddkd
from feddkd.config import Config
from feddkd.exchange import Evaluation, ExchangeId
from feddkd.observability.live.page import LivePage
from feddkd.observability.web import WebServer
from feddkd.scheduler.records import ExchangeRecord, RoundRecord
from feddkd.traffic import Traffic

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")

SETTINGS: dict[str, Any] = {"rounds": 3, "dkd.steps": 2, "partition.clients": 3, "partition.labels": 4, "data.subset": 300}
RUN_ID = "0123456789ab"
MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@contextmanager
def served(page: LivePage) -> Iterator[tuple[str, ExitStack]]:
    """The page's address, and what ends it."""
    with ExitStack() as stack:
        server = stack.enter_context(closing(WebServer(page.routes("127.0.0.1"), 0)))
        stack.enter_context(page)
        yield f"http://127.0.0.1:{server.port}/", stack


def text(browser: Browser, element: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{element}').textContent"))


def wait_for(browser: Browser, element: str, part: str) -> None:
    until(lambda: part in text(browser, element))


def round_of(page: LivePage, number: int, loss: float = 0.5) -> None:
    page.round_started(number, 0, 2)
    identity = ExchangeId(RUN_ID, number, 0, "local_train", 0)
    page.exchange_begun(identity, ["a", "b"])
    traffic = Traffic(0, 0, 1000, 500)
    page.exchange_done(ExchangeRecord(identity, 2, 1, {"b": MARKUP}, traffic, 0.1, 0.2, 10, loss, None, metrics={}))
    evaluation = Evaluation(100, 50 + number, 100 * loss)
    page.round_evaluated(number, evaluation)
    page.round_done(RoundRecord(number, evaluation, None, Traffic(), 1500 * number, 2.0, 2, {}, 20, {}))


def test_the_page_follows_a_real_run_to_its_end(browser: Browser, tmp_path: Path) -> None:
    go_on = threading.Event()

    class Gate(feddkd.Observer):
        def round_done(self, record: RoundRecord) -> None:
            if record.round == 1:
                go_on.wait()

    page = LivePage(feddkd.Config.parse({"rounds": 3, "dkd": {"steps": 2}}))
    with served(page) as (address, stack):
        browser.open(address, 1280)
        wait_for(browser, "phase", "waiting")
        run = threading.Thread(
            target=lambda: feddkd.run(SETTINGS, callbacks=[page, Gate()], out=tmp_path / "run", progress=False), name="run"
        )
        run.start()
        wait_for(browser, "log", "round 1 is done")
        assert text(browser, "phase") == "running"
        go_on.set()
        wait_for(browser, "phase", "completed")
        run.join()
        assert text(browser, "round") == "3 of 3"
        reached = feddkd.load_run(tmp_path / "run").rounds[-1]["accuracy"]
        assert text(browser, "score") == f"{reached:.2%}"
        assert browser.evaluate("document.querySelectorAll('#score-chart polyline').length") >= 1
        assert browser.evaluate("document.querySelectorAll('#bytes-chart rect').length") >= 6
        stack.close()
        wait_for(browser, "connection", "The server has ended; this is the state of")


def test_a_browser_that_reloads_sees_what_it_saw(browser: Browser) -> None:
    page = LivePage(Config())
    with served(page) as (address, _):
        page.run_started(RUN_ID, 5)
        for number in (1, 2):
            round_of(page, number)
        views = []
        for _ in range(2):
            browser.open(address, 1280)
            wait_for(browser, "log", "round 2 is done")
            until(lambda: browser.evaluate("document.querySelectorAll('#score-chart circle').length") == 2)
            views.append([text(browser, name) for name in ("round", "score", "bytes", "kinds", "log")])
    assert views[0] == views[1]
    assert views[0][0] == "2 of 5"


def test_a_server_that_goes_away_leaves_its_last_state_and_says_so(browser: Browser) -> None:
    page = LivePage(Config())
    with served(page) as (address, stack):
        page.run_started(RUN_ID, 5)
        round_of(page, 1)
        browser.open(address, 1280)
        wait_for(browser, "log", "round 1 is done")
        assert browser.evaluate("document.getElementById('connection').hidden")
        stack.close()
        wait_for(browser, "connection", "Connection lost: this is the state of")
        assert text(browser, "score") == "51.00%"


def test_a_server_that_comes_back_is_followed_again(browser: Browser) -> None:
    page = LivePage(Config())
    with served(page) as (address, stack):
        browser.open(address, 1280)
        wait_for(browser, "phase", "waiting")
        stack.close()
        wait_for(browser, "connection", "Connection lost")
        again = LivePage(Config())
        port = int(address.rstrip("/").rpartition(":")[2])
        with closing(WebServer(again.routes("127.0.0.1"), port)), again:
            again.run_started(RUN_ID, 5)
            wait_for(browser, "phase", "running")
            assert browser.evaluate("document.getElementById('connection').hidden")


def test_text_of_a_client_stays_text_and_the_page_asks_nobody_else(browser: Browser) -> None:
    page = LivePage(Config())
    with served(page) as (address, _):
        page.run_started(RUN_ID, 5)
        round_of(page, 1)
        page.paused(MARKUP)
        browser.open(address, 1280)
        wait_for(browser, "log", MARKUP)
        wait_for(browser, "reason", MARKUP)
        assert browser.evaluate("document.querySelectorAll('main img, main b:not(.legend b)').length") == 0
        requested = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
        assert {url.removeprefix(address) for url in requested if not url.startswith("data:")} == {"", "live.css", "live.js", "events"}
        # What the page's Content-Security-Policy refuses, and errors of its script, would be logged.
        assert not [event for event in browser.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits(width: int, browser: Browser) -> None:
    page = LivePage(Config())
    with served(page) as (address, _):
        page.run_started(RUN_ID, 5)
        for number in range(1, 5):
            round_of(page, number, loss=float("nan") if number == 3 else 0.5)
        page.round_failed(5, 0, "w" * 400)
        browser.open(address, width)
        wait_for(browser, "log", "www")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        # A loss that is not a number breaks its line in two.
        assert browser.evaluate("document.querySelectorAll('#loss-chart polyline').length") == 4


def test_accuracy_is_shown_by_bytes_too_and_the_switch_works_from_the_keyboard(browser: Browser) -> None:
    page = LivePage(Config())
    with served(page) as (address, _):
        page.run_started(RUN_ID, 5)
        for number in (1, 2, 3):
            round_of(page, number)
        browser.open(address, 1280)
        wait_for(browser, "log", "round 3 is done")
        browser.evaluate("document.getElementById('by-bytes').focus()")
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
        until(lambda: "kB" in text(browser, "score-chart"))
        assert browser.evaluate("document.getElementById('by-bytes').getAttribute('aria-pressed')") == "true"

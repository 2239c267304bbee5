"""A report in a real browser: it fits a desktop and a phone, its pictures show, and it asks nobody for anything."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from report_records import write_record

from feddkd.observability.run_folder import RunFolder
from feddkd.report.page import write_report

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
]
PATIENCE_S = 60.0

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


class Browser:
    """Chromium without a window, driven over its debugging pipe: JSON messages that end in a zero byte, on descriptors 3 and 4."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        commands_out, self._commands = os.pipe()
        self._answers, answers_in = os.pipe()
        # A shell puts the pipes where Chromium looks for them; they may have those very numbers already.
        script = f'exec 8<&{commands_out} 9>&{answers_in}; exec "$@" 3<&8 4>&9 8<&- 9>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands_out, answers_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_out)
        os.close(answers_in)
        self._numbers = itertools.count(1)
        self._unread = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._commands)  # Chromium ends with its pipe
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events that come in between are kept."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0")
        while True:
            message = self._next_message()
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """Show a page in a window, or on a phone, of this width in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 600)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next_message())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it gives."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _next_message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self._answers, 1 << 16)
            assert piece, "Chromium has ended"
            self._unread += piece
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of one run and of several, with names as long as they get."""
    folder = tmp_path_factory.mktemp("reports")
    one = RunFolder.load(write_record(folder / "one", rounds=3))
    long_name = "a_package_of_ours.with_long_module_names:AnAlgorithmWithALongName"
    several = [
        RunFolder.load(write_record(folder / f"{name[:8]}-{lr}-{seed}", algorithm=name, seed=seed, settings={"training": {"lr": lr}}))
        for name in ("feddkd", long_name)
        for lr in (0.05, 0.001)
        for seed in (0, 1)
    ]
    write_report([one], folder / "one.html")
    write_report(several, folder / "several.html")
    return {"one": folder / "one.html", "several": folder / "several.html"}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["one", "several"])
def test_the_page_fits_and_every_picture_shows(name: str, width: int, pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages[name], width)
    browser.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert browser.evaluate("window.innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    decoded = browser.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert len(decoded) > 5
    assert min(decoded) > 0
    shown = browser.evaluate("[...document.images].map(image => image.getBoundingClientRect().width)")
    assert min(shown) > 0.75 * min(width, 480)
    assert max(shown) < width


BOXES = "[...document.querySelectorAll('.box')].map(box => [box.scrollWidth, box.clientWidth])"


def test_the_results_are_whole_on_a_desktop(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["several"], 1280)
    table_width, box_width = browser.evaluate(BOXES)[0]
    assert table_width <= box_width


def test_a_table_that_goes_on_casts_a_shadow_on_a_phone(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["several"], 390)
    table_width, box_width = browser.evaluate(BOXES)[0]
    assert table_width > box_width
    backgrounds = browser.evaluate("getComputedStyle(document.querySelector('.box')).backgroundAttachment")
    assert backgrounds.split(", ")[:4] == ["local", "local", "scroll", "scroll"]


def test_pictures_are_written_in_the_font_of_the_page(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["one"], 1280)
    of_page = browser.evaluate("getComputedStyle(document.body).fontFamily")
    of_picture = browser.evaluate(
        "(() => { const holder = document.createElement('div'); holder.innerHTML = atob(document.images[0].src.split(',')[1]);"
        " document.body.append(holder); return getComputedStyle(holder.querySelector('text')).fontFamily; })()"
    )
    assert of_picture.replace('"', "") == of_page.replace('"', "")


def test_the_page_loads_nothing_and_breaks_no_rule_of_its_own(pages: dict[str, Path], browser: Browser) -> None:
    browser.open(pages["several"], 1280)
    requested = [event["params"]["request"]["url"] for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in requested} <= {"file", "data"}
    assert [url for url in requested if url.startswith("file")] == [pages["several"].as_uri()]
    # What the page's Content-Security-Policy refuses would be logged.
    assert not [event for event in browser.events if event.get("method") == "Log.entryAdded"]

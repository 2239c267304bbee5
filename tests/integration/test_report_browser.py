"""A report in a real browser: it fits a desktop and a phone, its pictures show, and it asks nobody for anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from report_records import write_record

from feddkd.observability.run_folder import RunFolder
from feddkd.report.page import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


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

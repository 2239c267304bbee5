import base64
import csv
import itertools
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import CLASSES, write_record

from feddkd import cli
from feddkd.errors import StateError
from feddkd.extras import install_command
from feddkd.observability.record_lines import Examples
from feddkd.observability.run_folder import RunFolder
from feddkd.observability.wall_time import Link
from feddkd.report import sections, series, units
from feddkd.report.codecs import codec_table
from feddkd.report.frontier import are_comparable
from feddkd.report.groups import group_runs
from feddkd.report.looks import BLUE
from feddkd.report.page import FORMATS, PAGE_FONT, write_report
from feddkd.report.series import Split
from feddkd.report.sites import site_table, sites_of
from feddkd.report.time_table import time_table

PNG = b"\x89PNG\r\n\x1a\n"
STARTS = {".png": PNG, ".svg": b"<?xml", ".pdf": b"%PDF-"}
CUSTOM = "my_algorithms.mine:_Mine"


class Elements(HTMLParser):
    """Every element's name and attributes, and the text between them."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == "img"]


def load(out: Path, **options: object) -> RunFolder:
    return RunFolder.load(write_record(out, **options))  # type: ignore[arg-type]


def change(file: Path, of_line: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite every line of a record's file."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(of_line(line)) + "\n" for line in lines), encoding="utf-8")


def report_of(tmp_path: Path, *runs: RunFolder, link: Link | None = None, formats: Sequence[str] = ("png",)) -> Elements:
    """A report's page; every picture in it is there as a file of each format as well."""
    shutil.rmtree(tmp_path / "report", ignore_errors=True)
    folder = write_report(runs, tmp_path / "report.html", link=link, formats=formats)
    elements = Elements(tmp_path / "report.html")
    files = [file for file in folder.iterdir() if file.is_file()]
    assert all(file.read_bytes().startswith(STARTS[file.suffix]) for file in files)
    assert len(files) == len(formats) * len(elements.images)
    return elements


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Elements]:
    """The report of one complete run, and the folder that it lies in."""
    folder = tmp_path_factory.mktemp("one")
    return folder, report_of(folder, load(folder / "run"), formats=FORMATS)


def test_one_run_has_every_picture_and_its_headline_numbers(one_run: tuple[Path, Elements]) -> None:
    folder, page = one_run
    names = pictures(folder)
    assert names == {
        *("accuracy_by_round", "accuracy_by_bytes", "bytes_by_exchange", "time_by_phase", "step_loss"),
        *("drift_diversity", "class_accuracy", "partition"),
    }
    for text in ("FedDKD: mlp on digits", "0123456789ab", "gradient evaluations", "Not recorded: Teacher entropy.", "[training]", "3.11"):
        assert text in page.text
    assert all(image["alt"] for image in page.images)


def test_pictures_are_sharp_and_the_page_small(one_run: tuple[Path, Elements]) -> None:
    folder, page = one_run
    for image in page.images:
        kind, data = (image["src"] or "").split(";base64,")
        assert kind == "data:image/svg+xml"
        assert b"<svg" in base64.b64decode(data)
    assert (folder / "report.html").stat().st_size < 1_000_000


def test_text_of_pictures_stays_text_and_their_fonts_are_embedded(one_run: tuple[Path, Elements]) -> None:
    folder, _ = one_run
    svg = (folder / "report" / "accuracy_by_round.svg").read_text()
    assert ">round</text>" in svg
    assert PAGE_FONT in svg
    pdf = (folder / "report" / "accuracy_by_round.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # a TrueType font
    assert b"/Type3" not in pdf


def test_the_tables_of_a_report_are_files_too(one_run: tuple[Path, Elements]) -> None:
    folder, _ = one_run
    names = {file.name for file in (folder / "report" / "tables").iterdir()}
    assert names == {f"{name}{kind}" for name in ("results", "runs", "versions") for kind in (".csv", ".md", ".tex")}
    rows = list(csv.DictReader((folder / "report" / "tables" / "results.csv").read_text().splitlines()))
    assert [(row["configuration"], row["name"], row["n"]) for row in rows] == [("FedDKD", "feddkd", "1")]
    assert float(rows[0]["final_accuracy_mean"]) == RunFolder.load(folder / "run").scores[-1]
    assert rows[0]["final_accuracy_sample_deviation"] == ""


def test_the_page_needs_nothing_but_itself(one_run: tuple[Path, Elements]) -> None:
    folder, page = one_run
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    references = [value for _, own in page.found for name, value in own.items() if name in ("src", "srcset", "href") and value]
    assert all(reference.startswith("data:") for reference in references)
    assert not re.search(r"url\(|@import", (folder / "report.html").read_text())
    (policy,) = [own["content"] for tag, own in page.found if own.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_what_a_record_says_is_text_and_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&$x$"
    settings = {"data": {"root": evil}}
    first = load(tmp_path / "<b>one", settings=settings, step="<i>step</i>")
    second = load(tmp_path / "two", settings={"data": {"root": "elsewhere"}})
    assert first.summary
    summary = first.summary.model_copy(update={"model_sha256": "<img src=x>", "versions": {"<u>py": "<s>3"}})
    summary = summary.model_copy(update={"examples": {"<a>site": Examples(labelled=1, unlabelled=9)}})
    (tmp_path / "<b>one" / "summary.json").write_text(summary.model_dump_json())
    lines = [line.model_copy(update={"metrics": {"<em>$m": 1.0}}) for line in first.rounds]
    (tmp_path / "<b>one" / "rounds.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    write_report([RunFolder.load(tmp_path / "<b>one"), second], tmp_path / "report.html", title="<h1>T & T</h1>")
    page = Elements(tmp_path / "report.html")
    assert not {tag for tag, _ in page.found} & {"script", "b", "u", "s", "em", "i", "a"}
    assert all((image["src"] or "").startswith("data:") for image in page.images)
    assert f"root={evil}" in page.text
    for text in ("<h1>T & T</h1>", "<b>one", "<u>py", "<s>3", "<em>$m", "<a>site"):
        assert text in page.text
    write_report([RunFolder.load(tmp_path / "<b>one")], tmp_path / "one.html")
    assert "<img src=x" in Elements(tmp_path / "one.html").text


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"finished": False}, "0123456789ab"),
        ({"finished": False, "rounds": 0}, "NaN"),
        ({"tested": False}, "Not recorded: Accuracy by round"),
        ({"old": True}, "computing"),
        ({"rounds": 1}, "Not recorded: Accuracy"),
        ({"step": None}, "dkd_step"),
        ({"algorithm": CUSTOM, "step": "a_name_of_our_own_that_is_longer_than_any_other"}, "None"),
        ({"rounds": 120}, "None"),
    ],
    ids=["unfinished", "empty", "no test set", "old", "one round", "no steps", "custom", "long"],
)
def test_a_record_that_lacks_something_still_makes_a_page(options: dict[str, object], absent: str, tmp_path: Path) -> None:
    run = load(tmp_path / "run", **options)
    page = report_of(tmp_path, run)
    assert absent not in page.text
    assert run.config.algorithm.name in page.text
    assert run.summary is not None or "not finished" in page.text


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    page = report_of(tmp_path, load(tmp_path / "run", old=True, step=None, tested=False))
    assert "gradient evaluationsnot recorded" in page.text.replace("\n", "")
    for title in (
        "Loss at the first and at the last step",
        "Drift diversity",
        "Accuracy by class and round",
        "Examples by client and class",
    ):
        assert re.search(rf"Not recorded: [^.]*{title}", page.text)
    assert "what the clients hold out, for the server had no test set" in page.text


def test_a_run_before_its_first_exchange_has_no_pictures_but_a_page(tmp_path: Path) -> None:
    write_record(tmp_path / "run", rounds=0, finished=False, old=True)
    (tmp_path / "run" / "exchanges.jsonl").write_text("")
    page = report_of(tmp_path, RunFolder.load(tmp_path / "run"))
    assert page.images == []
    assert "not finished: 0 of 1 rounds recorded" in page.text


def test_thirty_runs_at_once_and_one_that_has_only_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.report.bars.MAX_BARS", 5)  # so one bar a group
    begun = load(tmp_path / "begun", settings={"dkd": {"steps": 99}}, rounds=0, finished=False)
    runs = [
        load(tmp_path / f"{steps}-{seed}", seed=seed, settings={"dkd": {"steps": steps}}, rounds=1, old=steps > 1)
        for steps in range(10)
        for seed in range(3)
    ]
    page = report_of(tmp_path, *runs, begun)
    assert "31 runs of 11 configurations" in page.text
    assert "FedDKD, steps=7" in page.text
    assert sum(own.get("class") == "swatch" for _, own in page.found) == 11 + 31 + 10


def pictures(tmp_path: Path) -> set[str]:
    return {file.stem for file in (tmp_path / "report").iterdir() if file.is_file()}


def test_several_configurations_of_one_problem_have_a_frontier(tmp_path: Path) -> None:
    one, other = load(tmp_path / "one"), load(tmp_path / "other", algorithm="fedavg", codec=True)
    page = report_of(tmp_path, one, other)
    assert "frontier" in pictures(tmp_path)
    assert "Accuracy for its bytes" in page.text
    assert "to 50%" in page.text
    elsewhere = load(tmp_path / "elsewhere", settings={"partition": {"name": "iid"}})
    assert not are_comparable(run.config for run in (one, elsewhere))


def test_codecs_are_in_a_table_of_their_own_and_nowhere_else(tmp_path: Path) -> None:
    plain, coded = load(tmp_path / "plain", algorithm="fedavg"), load(tmp_path / "coded", codec=True, rounds=2)
    assert codec_table(group_runs([plain])) is None
    table = codec_table(group_runs([plain, coded]))
    assert table is not None
    assert table.header == ["configuration", "exchange", "", "without", "encoded", "ratio", "whole models", "time", "error"]
    assert table.colors == [BLUE] * 5
    assert table.rows == [
        ["FedDKD", "local_train", "down", "8.00 kB", "2.00 kB", "4.0", "500 B", "2.0%", "0.25"],
        ["FedDKD", "local_train", "up", "18.00 kB", "1.80 kB", "10.0", "", "4.0%", "0.375"],
        ["FedDKD", "dkd_step", "down", "16.00 kB", "4.00 kB", "4.0", "1.00 kB", "2.0%", "0.25"],
        ["FedDKD", "dkd_step", "up", "36.00 kB", "3.60 kB", "10.0", "", "4.0%", "0.375"],
        # The delivery counts, and its bytes are as they are; 0.18 s of the 4 s that the rounds took.
        ["FedDKD", "whole run", "both", "79.90 kB", "13.30 kB", "6.0", "1.50 kB", "4.5%", ""],
    ]
    assert "What the codecs did" in report_of(tmp_path, coded).text
    assert not any("codec" in name for name in pictures(tmp_path))


def test_codec_bytes_are_those_of_the_mean_run(tmp_path: Path) -> None:
    runs = [load(tmp_path / str(seed), seed=seed, codec=True) for seed in range(3)]
    together, alone = codec_table(group_runs(runs)), codec_table(group_runs(runs[:1]))
    assert together is not None
    assert alone is not None
    assert together.rows == alone.rows


def test_the_time_over_a_network_is_a_picture_and_a_table(tmp_path: Path) -> None:
    run, old = load(tmp_path / "run", rounds=1), load(tmp_path / "old", algorithm="fedavg", old=True)
    link = Link(8000.0, 16_000.0, 0.1)
    # Four exchanges of 275 bytes down, 250 up, and a quarter of a second of computing a client; 0.75 s between them.
    assert time_table(group_runs([run, old]), link).rows == [
        ["FedDKD", "3.70 s", "0.40 s", "0.55 s", "1.00 s", "1.00 s", "0.75 s", "2.25 s"],
        ["FedAvg, 2 \N{MULTIPLICATION SIGN} the rounds", "not recorded", "", "", "", "", "", "4.00 s"],
    ]
    page = report_of(tmp_path, run, old, link=link)
    assert "accuracy_by_time" in pictures(tmp_path)
    assert "8 kbit/s up, 16 kbit/s down, round trip 100 ms" in page.text
    assert "Accuracy by time over the network" in report_of(tmp_path, old, link=link).text  # among what is not recorded
    assert "accuracy_by_time" not in pictures(tmp_path)


ATTENDED = ("rounds", "last reply, UTC")


def test_a_site_has_its_teacher_beside_the_global_model_and_doubtful_labels_come_first(tmp_path: Path) -> None:
    run = load(tmp_path / "run", sites=True)
    table = site_table(group_runs([run]))
    assert table is not None
    assert table.header == [
        "site",
        "labelled",
        "unlabelled",
        "teacher",
        "global model",
        "teacher ahead by",
        "disagreement",
        *ATTENDED,
        "in doubt",
    ]
    assert table.rows == [
        ["client-1", "11", "2,000", "50.0%", "50.0%", "level", "37.5%", "", "", "labels since round 2, contributions since round 1"],
        *(["client-" + k, "1" + k, "2,000", "87.5%", "50.0%", "+37.5 points", "0.0%", "", "", ""] for k in "023"),
    ]
    assert table.strong == {(0, 9)}
    page = report_of(tmp_path, run)
    assert "sites" in pictures(tmp_path)
    assert "contributions since round 1" in page.text


def test_a_sites_row_has_the_rounds_it_took_part_in_and_its_last_reply(tmp_path: Path) -> None:
    folder = load(tmp_path / "run", sites=True).path
    presence = {"client-0": {"rounds": 3, "first": "2026-05-02T08:00:00.000Z", "last": "2026-05-02T09:30:59.999Z"}}
    summary = json.loads((folder / "summary.json").read_text()) | {"presence": presence}
    (folder / "summary.json").write_text(json.dumps(summary))
    table = site_table(group_runs([RunFolder.load(folder)]))
    assert table is not None
    columns = [table.header.index(name) for name in ("site", "rounds", "last reply, UTC")]
    cells = {tuple(row[column] for column in columns) for row in table.rows}
    assert cells == {("client-0", "3", "2026-05-02 09:30"), *(("client-" + k, "", "") for k in "123")}


def test_sites_that_say_nothing_of_models_or_labels_have_no_section(tmp_path: Path) -> None:
    folder = write_record(tmp_path / "run", algorithm="fedavg")
    change(folder / "exchanges.jsonl", lambda line: line | {"by_client": {"loss": {"a": 1.0}}})
    summary = json.loads((folder / "summary.json").read_text()) | {"examples": {"a": {"labelled": 5, "unlabelled": 0}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    run = RunFolder.load(folder)
    assert run.exchanges[0].by_client
    assert site_table(group_runs([run])) is None
    assert sections._sites(group_runs([run])) is None


def test_several_configurations_have_a_picture_of_their_sites_each(tmp_path: Path) -> None:
    runs = [load(tmp_path / f"{seed}", seed=seed, sites=True) for seed in range(2)]
    other = load(tmp_path / "other", algorithm="self_training", sites=True)
    plain = load(tmp_path / "plain", algorithm="fedavg")
    groups = group_runs([*runs, plain, other])
    table, alone = site_table(groups), site_table(groups[:1])
    assert table is not None
    assert alone is not None
    first, _, last = (group.look.color for group in groups)
    assert table.colors == [first] * 4 + [last] * 4
    assert table.rows[:4] == [["FedDKD", *row] for row in alone.rows]  # both seeds say the same, and so does their mean
    assert table.strong == {(0, 10), (4, 10)}
    section = sections._sites(groups)
    assert section is not None
    assert [drawing.name for drawing in section.drawings] == ["sites-feddkd", "sites-self_training"]


def test_the_last_attempt_at_a_round_is_what_a_site_is_shown_by(tmp_path: Path) -> None:
    run = load(tmp_path / "run", rounds=1, sites=True)
    again = run.exchanges[0].model_copy(update={"attempt": 1, "by_client": {"teacher_accuracy": {"client-0": 0.125}}})
    (group,) = group_runs([replace(run, exchanges=[*run.exchanges, again])])
    assert sites_of(group)["client-0"].numbers["teacher_accuracy"] == {1: 0.125}


def test_only_so_many_sites_are_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.report.sites.MOST_ROWS", 3)
    table = site_table(group_runs([load(tmp_path / "run", sites=True)]))
    assert table is not None
    assert [row[0] for row in table.rows] == ["client-1", "client-0", "client-2"]
    assert table.caption.endswith("1 more sites are left out.")


EXTREME = [1e100, -1e100, 1e-300, 5e-324, 0.0, -0.0, 1.0]


@pytest.mark.parametrize("values", [EXTREME, [1e100], [-1e100], [1e-300, 1e100]], ids=["mixed", "huge", "negative", "wide"])
def test_numbers_of_any_size_that_a_record_may_hold_make_a_page(values: list[float], tmp_path: Path) -> None:
    folder = write_record(tmp_path / "run", rounds=6)
    own, numbers = itertools.cycle(values), iter([1, 2, 3, 10**6, 2**31 - 1, 2**31 - 1])
    names = "a" * 200, "\U0001f600\0\u202e$x^{", ""

    def exchange(line: dict[str, Any]) -> dict[str, Any]:
        numbers = {key: next(own) for key in ("loss", "client_seconds")} | {"seconds": 1e15, "wire_bytes_up": 10**30}
        by_client = {name: {site: next(own) for site in names} for name in ("teacher_accuracy", "client_accuracy", "loss")}
        return (
            line
            | numbers
            | {"by_client": by_client, "clients_reported": line["step"] * 10**30, "metrics": {name: next(own) for name in names}}
        )

    def finished_round(line: dict[str, Any]) -> dict[str, Any]:
        numbers_of_round = {"round": next(numbers), "loss": next(own), "accuracy": 1e-300, "cumulative_wire_bytes": 0, "seconds": 1e15}
        return line | numbers_of_round | {"class_accuracy": [0.5] * 10_000, "metrics": {"drift_diversity": next(own)}}

    change(folder / "exchanges.jsonl", exchange)
    change(folder / "rounds.jsonl", finished_round)
    (folder / "partition.json").write_text('{"a": [9007199254740992, 0], "b": [], "c": [1, 1, 1]}')
    other = load(tmp_path / "other", algorithm="fedavg", codec=True)
    if values is EXTREME:  # two pages of each would take long
        report_of(tmp_path, RunFolder.load(folder), other, link=Link(1e-300, 1e300, 1e-300))
    else:
        report_of(tmp_path, RunFolder.load(folder))


def test_a_heat_map_of_too_many_cells_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load(tmp_path / "run")
    monkeypatch.setattr(series, "MAX_CELLS", 2 * CLASSES)
    assert series.class_accuracy([run]) is not None
    monkeypatch.setattr(series, "MAX_CELLS", 2 * CLASSES - 1)
    assert series.class_accuracy([run]) is None


def test_only_so_many_metrics_are_drawn_and_the_page_says_how_many_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MOST_METRICS", 5)
    folder = write_record(tmp_path / "run")
    change(folder / "exchanges.jsonl", lambda line: line | {"metrics": {f"m{line['step']}_{number}": 1.0 for number in range(100)}})
    page = report_of(tmp_path, RunFolder.load(folder))
    assert len(page.images) == 11
    # drift_diversity is in the rounds, and teacher_entropy is one of the five that the page has room for.
    assert "Not drawn: 197 more metrics, which are in exchanges.jsonl." in page.text


def test_a_setting_of_any_length_makes_a_label_of_bounded_length(tmp_path: Path) -> None:
    runs = [load(tmp_path / name, settings={"data": {"root": name * 10_000}}) for name in ("a", "b")]
    assert [len(group.label) for group in group_runs(runs)] == [300, 300]


def test_the_same_run_gives_the_same_page(one_run: tuple[Path, Elements], tmp_path: Path) -> None:
    folder, _ = one_run
    write_report([RunFolder.load(folder / "run")], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (folder / "report.html").read_bytes()


def test_labels_name_what_differs_and_nothing_else(tmp_path: Path) -> None:
    def run(name: str, **tables: dict[str, object]) -> RunFolder:
        return load(tmp_path / name, algorithm="fedavg" if name == "avg" else "feddkd", seed=len(name), settings=tables)

    runs = [run("avg"), run("a", dkd={"lr": 0.1}), run("bb", dkd={"lr": 0.1}), run("c", training={"lr": 0.1, "epochs": 2})]
    groups = group_runs(runs)
    default = runs[0].config
    assert [group.label for group in groups] == [
        "FedAvg",
        f"FedDKD, epochs={default.training.epochs}, training.lr={default.training.lr}, dkd.lr=0.1",
        f"FedDKD, epochs=2, training.lr=0.1, dkd.lr={runs[3].config.dkd.lr}",
    ]
    assert [group.code for group in groups] == [
        "fedavg",
        f"feddkd epochs={default.training.epochs} training.lr={default.training.lr} dkd.lr=0.1",
        f"feddkd epochs=2 training.lr=0.1 dkd.lr={runs[3].config.dkd.lr}",
    ]
    assert [group.seeds for group in groups] == ["3", "1, 2", "1"]


def test_labels_say_that_a_run_had_codecs_and_for_which_exchange(tmp_path: Path) -> None:
    def run(name: str, **communication: object) -> RunFolder:
        return load(tmp_path / name, algorithm=name, settings={"communication": communication})

    runs = [run("feddkd"), run("fedavg", preset="frugal"), run("scaffold", up="eden2"), run("fedprox", local_train={"up": "int8"})]
    other = load(tmp_path / "other", algorithm="fedprox")
    assert [group.code for group in group_runs([*runs, other])] == [
        "feddkd",
        "fedavg preset=frugal",
        "scaffold up=eden2",
        "fedprox local_train.up=int8",
        "fedprox",
    ]


def test_a_preset_stands_for_the_settings_that_it_makes(tmp_path: Path) -> None:
    def run(name: str, **tables: dict[str, object]) -> RunFolder:
        return load(tmp_path / name, settings=tables)

    frugal: dict[str, object] = {"preset": "frugal"}
    runs = [run("a"), run("b", communication=frugal), run("c", communication={**frugal, "up": "eden2"}, dkd={"steps": 5})]
    assert [group.code for group in group_runs(runs)] == [
        "feddkd preset=none",
        "feddkd preset=frugal",
        "feddkd steps=5 preset=frugal up=eden2",
    ]


def test_a_label_says_when_a_run_has_more_rounds_than_others(tmp_path: Path) -> None:
    runs = [load(tmp_path / "b", algorithm="fedavg", rounds=4), load(tmp_path / "a", rounds=2)]
    assert [group.code for group in group_runs(runs)] == ["fedavg rounds=4", "feddkd"]
    assert [group.label for group in group_runs(runs)] == ["FedAvg, 2 \N{MULTIPLICATION SIGN} the rounds", "FedDKD"]


def test_curves_take_each_round_from_the_runs_that_have_it(tmp_path: Path) -> None:
    runs = [load(tmp_path / "a", rounds=2), load(tmp_path / "b", rounds=1)]
    values = {runs[0].path: {1: 0.2, 2: 0.6}, runs[1].path: {1: 0.4}}
    curve = series.over_runs(runs, lambda run: values[run.path])
    assert curve.rounds == [1, 2]
    assert curve.mean == pytest.approx([0.3, 0.6])
    assert (curve.low, curve.high) == ([0.2, 0.6], [0.4, 0.6])


def test_step_losses_are_those_of_the_last_attempt(tmp_path: Path) -> None:
    run = load(tmp_path / "run", rounds=1)
    failed = run.exchanges[1].model_copy(update={"attempt": 0, "loss": 9.0})
    retried = [failed, *(line.model_copy(update={"attempt": 1}) for line in run.exchanges)]
    run = replace(run, exchanges=retried)
    first, last = series.step_losses(run)
    assert first == {1: 2.0}
    assert last == pytest.approx({1: 1.9})


def test_costs_by_exchange_add_up(tmp_path: Path) -> None:
    run = load(tmp_path / "run")
    sizes = series.bytes_by_exchange(run)
    assert run.summary
    assert sum(split.total for split in sizes.values()) == run.summary.total_wire_bytes_down + run.summary.total_wire_bytes_up
    assert sizes["dkd_step"] == Split(4 * 2100, 4 * 1100)
    times = series.seconds_by_phase(run)
    assert sum(split.total for split in times.values()) == pytest.approx(sum(line.seconds for line in run.rounds))
    assert times["local_train"] == Split(2 * 0.5, 2 * 1.0 / 4)
    assert times[series.REST].first is None


def test_a_mean_split_is_unknown_where_a_run_does_not_know(tmp_path: Path) -> None:
    mean = series.mean_splits([{"a": Split(2.0, 1.0), "b": Split(4.0, 1.0)}, {"a": Split(4.0, None)}])
    assert mean == {"a": Split(3.0, None), "b": Split(2.0, 0.5)}


def test_class_accuracy_leaves_out_what_is_null(tmp_path: Path) -> None:
    runs = [load(tmp_path / "a"), load(tmp_path / "b", tested=False)]
    found = series.class_accuracy(runs)
    assert found is not None
    rounds, cells = found
    assert rounds == [1, 2]
    assert cells.shape == (CLASSES, 2)
    assert np.ma.getmaskarray(cells).tolist() == [[False] * 2, [False] * 2, [True] * 2]
    assert cells[1].tolist() == [0.25, 0.25]
    assert series.class_accuracy(runs[1:]) is None


def test_a_loss_that_diverged_is_a_gap(tmp_path: Path) -> None:
    folder = write_record(tmp_path / "run", rounds=3)
    change(folder / "exchanges.jsonl", lambda line: line | {"loss": math.nan} if line["round"] == 2 else line)
    change(folder / "rounds.jsonl", lambda line: line | {"metrics": {"drift_diversity": math.inf}} if line["round"] == 1 else line)
    run = RunFolder.load(folder)
    first, last = series.step_losses(run)
    assert list(first) == list(last) == [1, 3]
    assert set(series.metric_values("drift_diversity")(run)) == {1, 2, 3}  # round 1 from its exchange


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (121_700_000, "121.7 MB"), (2.5e9, "2.50 GB"), (3e15, "3,000 TB")],
)
def test_sizes(size_bytes: float, text: str) -> None:
    assert units.size(size_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0.00 s"), (90, "90.00 s"), (200, "3.33 min"), (20_000, "5.56 h")])
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["feddkd", "report", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


def test_the_command_writes_page_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "a", rounds=1)
    code, out, err = command(monkeypatch, capsys, tmp_path, "a", "--out", "new/page.html", "--title", "A & B")
    assert (code, out, err) == (0, "report: new/page.html (pictures and tables in new/page/)\n", "")
    assert (tmp_path / "new" / "page" / "accuracy_by_round.png").exists()
    assert "<h1>A &amp; B</h1>" in (tmp_path / "new" / "page.html").read_text()


def test_a_servers_state_directory_stands_for_its_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "state" / "run-b", rounds=1)
    (tmp_path / "state" / "run.json").write_text('{"run_id": "run-b", "status": "completed"}\n')
    assert command(monkeypatch, capsys, tmp_path, "state")[:2] == (
        0,
        "report: state/run-b/report.html (pictures and tables in state/run-b/report/)\n",
    )


def test_a_state_directory_whose_record_is_elsewhere_says_which_run_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text('{"run_id": "run-b", "status": "completed"}\n')
    code, _, err = command(monkeypatch, capsys, tmp_path, ".")
    assert code != 0
    assert "name what --out of run run-b named" in " ".join(err.split())


NETWORK = ["--uplink", "10Mbit", "--downlink", "50Mbit", "--rtt", "40ms"]


def test_the_command_estimates_the_time_over_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", rounds=1)
    code, out, err = command(monkeypatch, capsys, tmp_path, "a", *NETWORK)
    assert (code, err) == (0, "")
    assert "10 Mbit/s up, 50 Mbit/s down, round trip 40 ms" in out
    assert max(map(len, out.splitlines())) <= 80
    assert (tmp_path / "a" / "report" / "accuracy_by_time.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (NETWORK[:2], "--uplink, --downlink and --rtt go together"),
        (NETWORK[2:], "--uplink, --downlink and --rtt go together"),
        ([*NETWORK[:4], "--rtt", "fast"], "--rtt 'fast' is not a time such as 40ms or 0.2s"),
        (["--uplink", "10MB", *NETWORK[2:]], "--uplink '10MB' is not a rate such as 10Mbit, 500kbit or 1.5Gbit"),
    ],
)
def test_half_a_network_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a")
    assert command(monkeypatch, capsys, tmp_path, "a", *arguments) == (2, "", f"feddkd: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "page"),
    [
        (["a"], "a/report.html"),
        (["a", "a/"], "a/report.html"),
        (["a", "b"], "report.html"),
        (["a", "--out", "b"], "b/report.html"),
        (["a", "b", "--out", "new/folder"], "new/folder/report.html"),
        (["a", "--out", "page.HTML"], "page.HTML"),
    ],
)
def test_where_the_page_goes(
    arguments: list[str], page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_record(tmp_path / name)
    written: list[Path] = []

    def write(runs: list[RunFolder], page: Path, title: str | None, link: Link | None, left_out: list[str]) -> Path:
        written.append(page)
        return page.with_suffix("")

    monkeypatch.setattr("feddkd.report.page.write_report", write)
    assert command(monkeypatch, capsys, tmp_path, *arguments)[0] == 0
    assert written == [Path(page)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 1, "nothing does not hold the record of a run: cannot read config.toml: No such file or directory"),
        (["nothing", "empty"], 1, "; empty does not hold the record of a run"),
        (["a", "--out", "a/config.toml"], 2, "--out a/config.toml is neither a folder nor a file ending in .html"),
        (["a", "--out", "a/config.toml/page.html"], 2, "cannot write the report to a/config.toml"),
    ],
)
def test_errors_are_one_line_that_names_the_folder(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    found, _, err = command(monkeypatch, capsys, tmp_path, *arguments)
    assert found == code
    assert message in err
    assert err.count("\n") == 1


def test_a_bad_folder_is_named_and_does_not_stop_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a", rounds=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.toml").write_text("[tool.other]\n")
    code, out, err = command(monkeypatch, capsys, tmp_path, "empty", "a", "file", "foreign", "--out", "page.html")
    assert code == 0
    assert out == "report: page.html (pictures and tables in page/)\n"
    lines = err.splitlines()
    assert [line.partition("feddkd: left out: ")[2].split("/")[0].split()[0] for line in lines] == ["empty", "file", "foreign"]
    page = Elements(tmp_path / "page.html").text
    assert all(line.removeprefix("feddkd: left out: ") in page for line in lines)


def test_a_run_without_a_finished_round_is_named_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "begun", rounds=0, finished=False)
    for name in ("rounds.jsonl", "exchanges.jsonl"):
        (tmp_path / "begun" / name).unlink()
    assert command(monkeypatch, capsys, tmp_path, "begun") == (1, "", "feddkd: begun has no round yet (0 of 1)\n")
    write_record(tmp_path / "a", rounds=1)
    code, _, err = command(monkeypatch, capsys, tmp_path, "begun", "a")
    assert (code, err) == (0, "feddkd: left out: begun has no round yet (0 of 1)\n")


def test_a_copy_of_a_run_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "a", rounds=1)
    write_record(tmp_path / "b", rounds=1, seed=1)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    code, _, err = command(monkeypatch, capsys, tmp_path, "a", "copy", "b")
    said = "copy has seed 0 and the model of a, and is counted once"
    assert (code, err) == (0, f"feddkd: left out: {said}\n")
    (row,) = csv.DictReader((tmp_path / "report" / "tables" / "results.csv").read_text().splitlines())
    assert (row["n"], row["seeds"]) == ("2", "0, 1")
    assert said in Elements(tmp_path / "report.html").text


def test_runs_of_one_seed_with_different_models_are_both_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        write_record(tmp_path / name, rounds=1)
        file = tmp_path / name / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_sha256": digest}))
    code, _, err = command(monkeypatch, capsys, tmp_path, "a", "b")
    said = "eed 0 is counted twice, its models differ: 111111111111 in a and 222222222222 in b"
    assert (code, err) == (0, f"feddkd: s{said}\n")
    assert f"S{said}." in Elements(tmp_path / "report.html").text


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_without_the_extra_the_error_says_how_to_install_it(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a")
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = command(monkeypatch, capsys, tmp_path, "a")
    assert (code, err) == (2, f"feddkd: {module} is not installed; get it with: {install_command('plot')}\n")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("rounds.jsonl", "[]\n", "rounds.jsonl line 1 is not a JSON object"),
        ("rounds.jsonl", '{"round": 1}\n', "rounds.jsonl line 1 has no 'seconds'"),
        ("exchanges.jsonl", "{\n", "exchanges.jsonl line 1 is not JSON"),
        ("partition.json", "[]", "partition.json is not a JSON object"),
    ],
)
def test_a_damaged_record_is_named(file: str, text: str, message: str, tmp_path: Path) -> None:
    write_record(tmp_path / "a")
    (tmp_path / "a" / file).write_text(text)
    with pytest.raises(StateError, match=re.escape(message)):
        RunFolder.load(tmp_path / "a")


def test_without_a_test_set_no_picture_speaks_of_one(tmp_path: Path) -> None:
    folder = write_record(tmp_path / "run", settings={"data": {"test_set": False}})
    change(folder / "rounds.jsonl", lambda line: line | {"client_accuracy": 0.5})
    groups = group_runs([RunFolder.load(folder)])
    captions = [drawing.caption for section in sections.sections_of(groups) for drawing in section.drawings]
    assert captions
    assert not [caption for caption in captions if "on the test set" in caption]

import io
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_records import CLIENTS, write_record

from feddkd.config import Config
from feddkd.observability.run_folder import RunFolder
from feddkd.report.frontier import (
    Frontier,
    Step,
    Track,
    Walk,
    are_comparable,
    budgets_of,
    fedavg_round_bytes,
    front,
    levels_of,
    method_names,
    method_of,
    tracks_of,
)
from feddkd.report.frontier_picture import draw
from feddkd.report.frontier_table import frontier_table
from feddkd.report.groups import Name, group_runs
from feddkd.report.looks import BLUE
from feddkd.report.series import score_values
from feddkd.report.style import style

FEDAVG, FEDDKD = ("fedavg", "better", "none"), ("feddkd", "better", "none")


def track(label: str, *points: tuple[int, float], method: tuple[str, ...] | None = None) -> Track:
    return Track.of(
        Name(label, label), method or (label, "", ""), [Walk([cost for cost, _ in points], [accuracy for _, accuracy in points])]
    )


CHEAP = track("cheap", (10, 0.5), (20, 0.8), (30, 0.7))
DEAR = track("dear", (100, 0.85), (200, 0.95))


def test_the_frontier_is_what_nothing_cheaper_reaches() -> None:
    assert front([CHEAP, DEAR]) == [Step(10, 0.5, 0), Step(20, 0.8, 0), Step(100, 0.85, 1), Step(200, 0.95, 1)]
    assert front([DEAR, track("best", (5, 0.99))]) == [Step(5, 0.99, 1)]


points = st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1)), min_size=1, max_size=8).map(
    lambda found: sorted(found, key=lambda p: p[0])
)


@given(st.lists(points, min_size=1, max_size=4))
def test_no_point_lies_above_the_frontier_and_every_corner_is_a_point(found: list[list[tuple[int, float]]]) -> None:
    tracks = [track(str(number), *own) for number, own in enumerate(found)]
    corners = front(tracks)
    assert all(one.wire_bytes < other.wire_bytes and one.score < other.score for one, other in itertools.pairwise(corners))
    for cost, accuracy in (point for own in found for point in own):
        assert max(corner.score for corner in corners if corner.wire_bytes <= cost) >= accuracy
    for corner in corners:
        assert (corner.wire_bytes, corner.score) in found[corner.track]


def test_costs_and_readings_are_means_over_seeds_and_missing_where_a_seed_has_none() -> None:
    both = Track.of(Name("both", "both"), FEDAVG, [Walk([10, 20, 30], [0.5, 0.9, 0.8]), Walk([20, 40], [0.7, 0.9])])
    assert (both.wire_bytes, both.scores) == ([15, 30], [pytest.approx(0.6), 0.9])
    assert both.bytes_to(0.9) == 30
    assert both.bytes_to(0.95) is None
    assert both.score_at(40) == pytest.approx(0.85)
    assert both.score_at(15) is None
    assert not both.ended_before(40)
    assert both.ended_before(50)


def test_levels_are_the_highest_round_ones_that_somebody_reaches() -> None:
    assert levels_of([CHEAP, track("good", (1, 0.975))]) == [0.9, 0.95, 0.97]
    assert levels_of([CHEAP]) == [0.6, 0.7, 0.8]
    assert levels_of([track("chance", (1, 0.15))]) == [0.1]
    assert levels_of([track("nothing", (1, 0.0))]) == []


def test_budgets_are_round_and_within_what_is_spent() -> None:
    assert budgets_of([CHEAP, DEAR], 1.0) == [25.0, 50.0, 100.0]
    assert budgets_of([CHEAP, DEAR], 100.0) == [0.25, 0.5, 1.0]
    assert budgets_of([DEAR], 100.0) == [0.25, 0.5, 1.0]  # from a tenth on where all spend the same
    assert budgets_of([track("free", (0, 0.5))], 1.0) == []


@given(st.integers(1, 10**15), st.integers(1, 10**15), st.floats(0.5, 1e9))
def test_there_are_some_budgets_of_any_size(one: int, other: int, unit: float) -> None:
    found = budgets_of([track("a", (one, 0.5)), track("b", (other, 0.5))], unit)
    assert 1 <= len(found) <= 3
    assert found == sorted(set(found))
    assert all(0 < budget * unit <= max(one, other) * (1 + 1e-6) for budget in found)


def test_a_method_is_an_algorithm_and_where_its_steps_start() -> None:
    base = Config.parse({"algorithm": {"name": "feddkd"}})
    assert method_of(base) == method_of(base.model_copy(update={"rounds": 99, "seed": 3}))
    assert method_of(base) != method_of(Config.parse({"algorithm": {"name": "fedavg"}}))
    assert method_of(base) != method_of(Config.parse({"algorithm": {"name": "feddkd"}, "dkd": {"start": "average"}}))


def test_methods_are_named_by_what_tells_them_apart() -> None:
    methods = [FEDAVG, FEDDKD, ("feddkd", "average", "none"), FEDAVG]
    names = method_names([track(str(number), (1, 0.5), method=method) for number, method in enumerate(methods)])
    assert list(names.values()) == ["FedAvg", "FedDKD, start=better", "FedDKD, start=average"]
    tracks = [track(str(number), (1, 0.5), method=method) for number, method in enumerate(methods)]
    assert list(method_names(tracks, spoken=False).values()) == ["fedavg", "feddkd start=better", "feddkd start=average"]


def test_what_solves_another_problem_is_not_compared() -> None:
    one, other = Config.parse({}), Config.parse({"partition": {"name": "iid"}})
    assert are_comparable([one, one.model_copy(update={"rounds": 2, "seed": 1})])
    assert not are_comparable([one, other])
    elsewhere = Config.parse({"data": {"root": "elsewhere"}})
    assert are_comparable([one, elsewhere])


def with_model(folder: Path, size_bytes: int) -> RunFolder:
    header = b'{"w":{}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size_bytes))
    return RunFolder.load(folder)


def test_a_round_of_fedavg_is_the_model_down_and_up_for_each_client_of_a_cohort(tmp_path: Path) -> None:
    one, other, without = (write_record(tmp_path / name) for name in "abc")
    assert fedavg_round_bytes([with_model(one, 1000), with_model(other, 1000)]) == 2 * 1000 * CLIENTS
    assert fedavg_round_bytes([with_model(one, 1000), with_model(other, 999)]) is None
    assert fedavg_round_bytes([with_model(one, 1000), RunFolder.load(without)]) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (7).to_bytes(8, "little") + b"{}"])
def test_a_damaged_model_has_no_size(content: bytes, tmp_path: Path) -> None:
    folder = write_record(tmp_path / "run")
    (folder / "model.safetensors").write_bytes(content)
    assert RunFolder.load(folder).model_bytes is None


def test_tracks_are_read_from_records_and_skip_what_was_not_evaluated(tmp_path: Path) -> None:
    runs = [RunFolder.load(write_record(tmp_path / str(seed), seed=seed, rounds=3)) for seed in (0, 1)]
    begun = RunFolder.load(write_record(tmp_path / "begun", algorithm="fedavg", rounds=0, finished=False))
    found, nothing = tracks_of(group_runs([*runs, begun]), score_values("accuracy"))
    assert nothing is None
    assert found is not None
    assert (found.label, found.code) == ("FedDKD, 3 \N{MULTIPLICATION SIGN} the rounds", "feddkd rounds=3")
    assert found.wire_bytes == [line.cumulative_wire_bytes for line in runs[0].rounds]
    assert found.scores[0] == pytest.approx((runs[0].scores[0] + runs[1].scores[0]) / 2)


def test_the_table_marks_the_best_of_each_column_and_who_could_have_gone_on() -> None:
    frontier = Frontier.of([CHEAP, DEAR], unit_bytes=100.0)
    table = frontier_table(frontier)
    assert table.header == ["configuration", "to 80%", "to 90%", "to 95%", "in 0.25 rounds", "in 0.5 rounds", "in 1 round"]
    assert table.rows == [
        ["cheap", "20 B (0.2)", "-", "-", "80.00%", "70.00%*", "70.00%*"],
        ["dear", "100 B (1)", "200 B (2)", "200 B (2)", "-", "-", "85.00%"],
    ]
    assert table.strong == {(0, 1), (1, 2), (1, 3), (0, 4), (0, 5), (1, 6)}
    assert table.data is not None
    assert table.data.fields[:3] == ["configuration", "name", "wire_bytes_to_0.8"]
    assert table.data.rows[0] == ["cheap", "cheap", 20, None, None, 0.8, 0.7, 0.7]
    assert "*: ended before" in table.caption
    assert "-: not reached" in table.caption
    assert "100 B" in table.caption


def test_without_a_unit_budgets_are_bytes() -> None:
    table = frontier_table(Frontier.of([CHEAP, DEAR], unit_bytes=None))
    assert table.header[-1] == "in 100 B"
    assert table.rows[1][1] == "100 B"


def test_settings_of_one_method_share_its_colour() -> None:
    table = frontier_table(Frontier.of([track("a", (1, 0.5), method=FEDDKD), DEAR, track("b", (9, 0.6), method=FEDDKD)], None))
    assert table.colors[0] == table.colors[2] == BLUE
    assert table.colors[1] != BLUE


@pytest.mark.parametrize("accuracies", [(0.0, 0.0), (0.1, 0.8), (0.1, 0.99), (0.97, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("unit_bytes", [None, 20.0])
@pytest.mark.parametrize("methods", [1, 10])
def test_any_accuracies_of_any_number_of_methods_make_a_picture(
    accuracies: tuple[float, float], unit_bytes: float | None, methods: int
) -> None:
    first, last = accuracies
    tracks = [track(f"m{number}", (10 + number, first), (100, last * (1 - number / 99))) for number in range(methods)]
    with style():
        figure = draw(Frontier.of(tracks, unit_bytes))
        figure.savefig(io.BytesIO(), format="svg")
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low < min(max(found.scores) for found in tracks)
    assert high >= min(max(max(found.scores) for found in tracks), 0.9995)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == min(methods, 8) + 2


def test_a_run_in_which_nothing_crossed_the_wire_makes_a_picture() -> None:
    with style():
        draw(Frontier.of([track("a", (0, 0.5), (0, 0.9)), track("b", (0, 0.7))], 10.0)).savefig(io.BytesIO(), format="svg")


def test_the_document_says_what_the_table_says() -> None:
    document = json.loads(json.dumps(Frontier.of([CHEAP, DEAR], unit_bytes=100.0).as_json()))
    assert document["fedavg_round_bytes"] == 100
    assert document["corners"][0] == {"wire_bytes": 10, "accuracy": 0.5, "label": "cheap"}
    assert document["levels"] == [0.8, 0.9, 0.95]
    assert document["budgets_bytes"] == [25, 50, 100]
    assert document["rows"]["cheap"] == {
        "method": "cheap",
        "bytes_to_level": [20, None, None],
        "accuracy_at_budget": [0.8, 0.7, 0.7],
        "ended_before_budget": [False, True, True],
    }

"""What a person sees of a run: how far the bar goes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from feddkd.algorithms import ALGORITHMS
from feddkd.cli.progress import ConsoleProgress
from feddkd.config import Config


def bar_of(name: str) -> float | None:
    """The bar's total in a round of the algorithm, with 7 DKD steps."""
    progress = ConsoleProgress(
        Config.parse({"algorithm": {"name": name}, "dkd": {"steps": 7}}), Console(file=io.StringIO(), force_terminal=True)
    )
    progress.round_started(1, 0, 4)
    assert progress._bar is not None
    (task,) = progress._bar.tasks
    return task.total


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_bar_goes_as_far_as_a_round_has_exchanges(name: str) -> None:
    with_steps = dict.fromkeys(("feddkd", "fedavg_sgd", "self_training"), 8)
    assert bar_of(name) == {**with_steps, "semifl": 2}.get(name, 1)


def test_nobody_knows_how_many_exchanges_an_algorithm_of_ones_own_has() -> None:
    assert bar_of("my_module:MyAlgorithm") is None

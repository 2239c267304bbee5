"""The axis of accuracy: everything that was measured is on it."""

import itertools

import pytest

from feddkd.report.axes import accuracy_axis
from feddkd.report.style import new_figure


@pytest.mark.parametrize("best", [0.5, 0.86, 0.97, 0.9999])
@pytest.mark.parametrize("lowest", [0.0, 0.1, 0.49])
@pytest.mark.parametrize("room_below", [0.0, 0.05])
def test_the_axis_reaches_the_lowest_and_the_best_point(best: float, lowest: float, room_below: float) -> None:
    _, axes = new_figure(2.7)
    accuracy_axis(axes, best, lowest, room_below)
    low, high = axes.get_ylim()
    assert low <= lowest < min(best, 0.9995) <= high


def test_where_accuracies_are_high_halves_of_the_error_are_equally_high() -> None:
    _, axes = new_figure(2.7)
    accuracy_axis(axes, best=0.97, lowest=0.1)
    heights = [float(axes.transData.transform((0, accuracy))[1]) for accuracy in (0.6, 0.8, 0.9, 0.95)]
    steps = [later - before for before, later in itertools.pairwise(heights)]
    assert steps == pytest.approx([steps[0]] * 3)

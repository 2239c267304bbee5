"""Members of a matrix of tests that the default run leaves out."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet


def slow(*members: tuple[object, ...]) -> list[ParameterSet]:
    """Mark arguments of `pytest.mark.parametrize`: they run with `-m slow`.

    What stays unmarked in a matrix must have a member of each kind.
    """
    return [pytest.param(*member, marks=pytest.mark.slow) for member in members]

"""Colours and names of algorithms: fixed for FedDKD, FedAvg and the control, and from the name for others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from feddkd.algorithms import ALGORITHMS
from feddkd.report.looks import BLUE, GREY, ORANGE, OTHERS, looks_of
from feddkd.report.names import rounds_phrase, spoken_name

# Machado, Oliveira and Fernandes 2009, severity 1: how linear RGB looks with a colour vision deficiency.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color: str, vision: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour as somebody with that vision sees it."""
    rgb = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(vision @ linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISIONS)
def test_the_protagonists_colours_differ_for_any_colour_vision(vision: str) -> None:
    for one, other in itertools.combinations((BLUE, GREY, ORANGE), 2):
        difference = np.linalg.norm(lab(one, VISIONS[vision]) - lab(other, VISIONS[vision]))
        assert difference > 25, (one, other)  # a difference of 2 is just seen


@pytest.mark.parametrize("color", [BLUE, GREY, *OTHERS])
def test_lines_are_seen_on_white_paper(color: str) -> None:
    lightness = lab(color, VISIONS["normal"])[0]
    assert lightness < 70


def test_a_look_comes_from_the_name_and_not_from_the_position() -> None:
    names = ["feddkd", "fedavg", "fedavg_sgd", "fedprox", "scaffold"]
    forth = dict(zip(names, looks_of(names), strict=True))
    back = dict(zip(names[::-1], looks_of(names[::-1]), strict=True))
    assert forth == back
    assert [forth[name].color for name in names[:3]] == [BLUE, GREY, ORANGE]
    assert looks_of(["feddkd"]) == [forth["feddkd"]]
    assert forth["fedavg_sgd"].front > forth["feddkd"].front > forth["fedprox"].front > forth["fedavg"].front


def test_as_many_others_as_hues_have_a_hue_each_and_more_differ_in_their_dashes() -> None:
    others = [name for name in ALGORITHMS if name not in ("feddkd", "fedavg", "fedavg_sgd")]
    few = looks_of(others[: len(OTHERS)])
    assert len({look.color for look in few}) == len(OTHERS)
    every = looks_of(others)
    assert len({(look.color, look.dashes) for look in every}) == len(every)


def test_settings_of_one_algorithm_share_its_hue_and_differ_in_shade_or_dashes() -> None:
    looks = looks_of(["feddkd"] * 12)
    assert looks[0].color == looks[3].color == BLUE
    assert len({(look.color, look.dashes) for look in looks}) == 12


def test_every_built_in_algorithm_has_a_name_for_people() -> None:
    assert [spoken_name(code) for code in ("feddkd", "fedavg", "scaffold")] == ["FedDKD", "FedAvg", "SCAFFOLD"]
    assert spoken_name("fedavg_sgd") == "control (SGD on labels)"
    names = [spoken_name(code) for code in ALGORITHMS]
    assert len(set(names)) == len(ALGORITHMS)
    assert not set(names) & set(ALGORITHMS)


def test_an_algorithm_of_the_users_own_is_named_by_its_class_without_importing_it() -> None:
    assert spoken_name("no_such_module:FedAvgM") == "FedAvgM (no_such_module)"
    assert spoken_name("odd:") == "odd:"


def test_rounds_are_said_beside_the_fewest() -> None:
    assert rounds_phrase(210, 10) == "21 \N{MULTIPLICATION SIGN} the rounds"
    assert rounds_phrase(15, 10) == "15 rounds"

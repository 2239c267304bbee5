"""~ is the home directory in configurations, on the command line and in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from feddkd.cli.home import expanded
from feddkd.config import Config


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")


def test_arguments_and_options_are_expanded_and_nothing_else() -> None:
    given = ["run", "~/a.toml", "--out", "~", "--state=~/s", "-o", "data.root=~/x", "a~b", "--x=a~/b", "~no-such-user/x"]
    assert expanded(given) == [
        *("run", "/home/me/a.toml", "--out", "/home/me", "--state=/home/me/s"),
        *("-o", "data.root=~/x", "a~b", "--x=a~/b", "~no-such-user/x"),
    ]


def test_the_folder_of_the_data_is_expanded() -> None:
    assert Config.parse({"data": {"root": "~/images"}}).data.root == Path("/home/me/images")
    assert Config.parse({"data": {"root": "a/~/images"}}).data.root == Path("a/~/images")

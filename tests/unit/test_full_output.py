"""What cannot be written to standard output is said in one line, whichever part of the command line prints it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from feddkd import cli

FULL = Path("/dev/full")
COMPLETE = {"_FEDDKD_COMPLETE": "complete_bash", "COMP_WORDS": "feddkd ", "COMP_CWORD": "1"}


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--version"], {}),
        (["version"], {}),
        (["--help"], {}),
        (["run", "-h"], {}),
        (["config", "--help"], {}),
        (["config", "show"], {}),
        ([], COMPLETE),
    ],
)
def test_a_full_disk_is_one_line(
    arguments: list[str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["feddkd", *arguments])
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == cli.EXIT_FAILED
    assert capsys.readouterr().err == "feddkd: cannot write to standard output: No space left on device\n"

"""What `FEDDKD_FAILPOINTS` asks for happens once, at the visit that it names, and nowhere else."""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import feddkd
from feddkd import failpoints
from feddkd.errors import ConfigError
from feddkd.failpoints import CLIENT_FAILPOINTS, SERVER_FAILPOINTS, VARIABLE, FailpointError, failpoint, planned

POINT, OTHER = SERVER_FAILPOINTS[:2]
PACKAGE = Path(feddkd.__file__).parent


def names_in_the_code() -> list[str]:
    """The name in each call of `failpoint`; a call with anything but a text is an error here."""
    names: list[str] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{file}:{node.lineno}"
                assert isinstance(argument.value, str), f"{file}:{node.lineno}"
                names.append(argument.value)
    return names


def visit_in_another_process(plan: str) -> subprocess.CompletedProcess[str]:
    code = f"from feddkd.failpoints import failpoint\nfor _ in range(3):\n    failpoint({POINT!r})\n    print('passed', flush=True)"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), VARIABLE: plan},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_lists_hold_the_names_in_the_code_and_no_others() -> None:
    assert set(names_in_the_code()) == {*SERVER_FAILPOINTS, *CLIENT_FAILPOINTS}


def test_no_name_is_in_a_list_twice() -> None:
    assert len({*SERVER_FAILPOINTS, *CLIENT_FAILPOINTS}) == len(SERVER_FAILPOINTS) + len(CLIENT_FAILPOINTS)


def test_without_a_plan_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_plan", None)
    failpoint(POINT)


def test_an_action_happens_at_its_visit_only() -> None:
    with planned(f"{POINT}=raise@2"):
        failpoint(POINT)
        failpoint(OTHER)
        with pytest.raises(FailpointError, match=POINT):
            failpoint(POINT)
        failpoint(POINT)


def test_a_point_may_have_several_actions_and_so_may_several_points() -> None:
    with planned(f" {POINT}=raise; {POINT}=enospc@2;;{OTHER}=eio "):
        with pytest.raises(FailpointError):
            failpoint(POINT)
        with pytest.raises(OSError, match=POINT) as full:
            failpoint(POINT)
        with pytest.raises(OSError, match=OTHER) as broken:
            failpoint(OTHER)
    assert [full.value.errno, broken.value.errno] == [errno.ENOSPC, errno.EIO]


def test_what_was_planned_before_holds_again_afterwards() -> None:
    with planned(f"{POINT}=raise"):
        with planned(f"{OTHER}=raise"):
            failpoint(POINT)
        with pytest.raises(FailpointError):
            failpoint(POINT)


def test_sleep_waits_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with planned(f"{POINT}=sleep(2.5)"):
        failpoint(POINT)
    assert waited == [2.5]


def test_hold_gil_waits_in_c_with_the_lock_held(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    class Library:
        def __init__(self, name: None) -> None:
            self.usleep = waited.append

    monkeypatch.setattr(ctypes, "PyDLL", Library)
    with planned(f"{POINT}=hold_gil(0.5)"):
        failpoint(POINT)
    assert waited == [500_000]


def test_kill_ends_the_process_at_that_visit() -> None:
    process = visit_in_another_process(f"{POINT}=kill@2")
    assert process.returncode == -signal.SIGKILL
    assert process.stdout == "passed\n"


def test_a_process_whose_variable_is_wrong_does_not_get_far() -> None:
    process = visit_in_another_process(f"{POINT}=explode")
    assert process.returncode == 1
    assert process.stdout == ""
    assert "names no action: kill, raise, enospc, eio, sleep(SECONDS), hold_gil(SECONDS)" in process.stderr


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (POINT, "not of the form"),
        (f"{POINT}=kill@0", "not of the form"),
        (f"{POINT}=kill@", "not of the form"),
        (f"{POINT}=kill extra", "not of the form"),
        ("journal.append.befor_write=kill", "there is no failpoint 'journal.append.befor_write'"),
        (f"{POINT}=sleep", "names no action"),
        (f"{POINT}=kill(3)", "names no action"),
        (f"{POINT}=sleep(1.2.3)", "not name a number of seconds"),
        (f"{POINT}=kill;{POINT}=raise@1", "has two actions at its visit 1"),
    ],
)
def test_a_typing_error_is_refused(plan: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), planned(plan):
        pass

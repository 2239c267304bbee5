"""Which run a server's state directory last held."""

from pathlib import Path

import pytest

from feddkd.errors import StateError
from feddkd.scheduler.server_state import ServerState


def test_a_run_that_did_not_finish_is_known_until_another_ends(tmp_path: Path) -> None:
    found: list[str | None] = []
    with ServerState(tmp_path) as state:
        found.append(state.unfinished_run)
        state.mark("abc", "running")
        found.append(state.unfinished_run)
        state.mark("abc", "completed")
        found.append(state.unfinished_run)
        state.mark("def", "running")
    with ServerState(tmp_path) as state:
        found.append(state.unfinished_run)
        state.mark("def", "failed")
        found.append(state.unfinished_run)
    assert found == [None, "abc", None, "def", None]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"run_id": "a"}',
        b'{"run_id": 3, "status": "running"}',
        b'{"run_id": "a\\u001b[2J", "status": "running"}',
        b'{"run_id": "a", "status": "asleep"}',
        b'{"run_id": "a", "status": ["running"]}',
        b"[" * 100_000,
        b'{"run_id": ' + b"9" * 5000 + b"}",
        b" " * 100_000 + b'{"run_id": "a", "status": "running"}',
    ],
)
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    with ServerState(tmp_path) as state:
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(StateError, match=r"run\.json is damaged: ") as refused:
            state.unfinished_run  # noqa: B018
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with ServerState(tmp_path) as state:
        (tmp_path / "run.json.partial").mkdir()
        with pytest.raises(StateError, match=r"^cannot write .*run\.json: Is a directory$"):
            state.mark("abc", "running")

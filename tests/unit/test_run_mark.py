"""Which run a server's state directory last held."""

from pathlib import Path

import pytest

from feddkd.errors import StateError
from feddkd.scheduler.server_state import ServerState


def test_the_last_run_is_known_with_how_it_stood(tmp_path: Path) -> None:
    found: list[tuple[str, str] | None] = []

    def look(state: ServerState) -> None:
        last = state.last_run
        found.append((last.run_id, last.status) if last is not None else None)

    with ServerState(tmp_path) as state:
        look(state)
        state.mark("abc", "running")
        look(state)
        state.mark("abc", "completed")
        look(state)
        state.mark("def", "paused")
    with ServerState(tmp_path) as state:
        look(state)
        state.mark("def", "failed")
        look(state)
    assert found == [None, ("abc", "running"), ("abc", "completed"), ("def", "paused"), ("def", "failed")]


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
            state.last_run  # noqa: B018
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with ServerState(tmp_path) as state:
        (tmp_path / "run.json.partial").mkdir()
        with pytest.raises(StateError, match=r"^cannot write .*run\.json: Is a directory$"):
            state.mark("abc", "running")

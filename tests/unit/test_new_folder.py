"""The folder of a new run: no other run has it, and nothing is left of a run that never started."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from golden_journals import FINISHED
from hypothesis import given
from hypothesis import strategies as st

from feddkd.errors import ConfigError, RunError, StateError, StoppedError
from feddkd.observability import new_folder as module
from feddkd.observability.new_folder import new_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_that_begin_at_once_have_a_folder_each(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_name", lambda algorithm: f"{algorithm}-now")

    def made(_: int) -> str:
        with new_folder(None, "fedavg") as folder:
            return folder.name

    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(made, range(20)))
    assert names == {"fedavg-now", *(f"fedavg-now-{number}" for number in range(2, 21))}


@given(algorithm=st.text(max_size=200))
def test_a_default_name_is_one_folder_of_its_own_whatever_the_algorithm_is_called(algorithm: str) -> None:
    name = module._name(algorithm)
    assert re.fullmatch(r"[\w+-][\w.+-]*-\d{8}-\d{6}", name)
    assert len(name) < 200


@pytest.mark.parametrize(
    ("algorithm", "begins"),
    [("fedavg", "fedavg-"), ("mine.rules:Mean", "mine.rules.Mean-"), ("__main__:Mean", "Mean-"), ("../../etc", "etc-")],
)
def test_a_default_name_tells_algorithms_apart(algorithm: str, begins: str) -> None:
    assert module._name(algorithm).lstrip(".").startswith(begins)


class Stop(BaseException):
    """As KeyboardInterrupt, for tests."""


def failed_run(out: Path | None, files: dict[str, bytes], error: BaseException) -> Path:
    """The folder of a run that has written `files` when it fails."""
    try:
        with new_folder(out, "fedavg") as folder:
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            raise error
    except type(error):
        return folder


@pytest.mark.parametrize("error", [ConfigError("a key"), RunError("no clients"), ValueError("the user's"), Stop()])
@pytest.mark.parametrize("out", [None, "out", "deep/out"])
def test_a_run_that_never_started_leaves_nothing(error: BaseException, out: str | None, here: Path) -> None:
    folder = failed_run(Path(out) if out else None, {"config.toml": b"", "clients/client-0/client": b"client-0"}, error)
    assert not folder.exists()
    assert not (here / "runs").exists()


def test_what_others_have_in_the_folder_of_runs_stays(here: Path) -> None:
    with new_folder(None, "fedavg") as other:
        (other / "exchanges.jsonl").touch()
    with pytest.raises(Stop), new_folder(None, "fedavg") as folder:
        raise Stop
    assert [each.name for each in (here / "runs").iterdir()] == [other.name]
    assert folder != other


@pytest.mark.parametrize("file", ["exchanges.jsonl", "journal.jsonl"])
def test_a_run_that_has_started_keeps_what_it_has(file: str, here: Path) -> None:
    content = (FINISHED / file).read_bytes()
    folder = failed_run(None, {file: content}, RunError("lost"))
    assert (folder / file).read_bytes() == content


def test_a_run_that_was_stopped_before_it_started_can_go_on(here: Path) -> None:
    with pytest.raises(StoppedError), new_folder(None, "fedavg") as folder:
        raise StoppedError("stopped by SIGTERM", str(folder), "feddkd run --resume")
    assert folder.is_dir()


def test_a_folder_of_the_user_s_is_never_removed(here: Path) -> None:
    mine = here / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(Stop), new_folder(mine, "fedavg"):
        raise Stop
    assert (mine / "notes.txt").read_text() == "keep"


def test_a_folder_that_cannot_be_made_is_one_line(here: Path) -> None:
    (here / "runs").touch()
    with pytest.raises(StateError, match=r"^cannot write the record of the run to runs: "), new_folder(None, "fedavg"):
        pass


@pytest.mark.parametrize(("out", "before"), [(None, ()), ("runs/first", ()), ("a/b/c", ()), ("runs/first", ("runs",)), ("a/b/c", ("a",))])
def test_a_refused_run_leaves_no_folder_that_was_not_there(
    out: str | None, before: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in before:
        Path(name).mkdir()
    with pytest.raises(ConfigError), new_folder(Path(out) if out else None, "fedavg"):
        raise ConfigError("wrong")
    assert [str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*")] == list(before)

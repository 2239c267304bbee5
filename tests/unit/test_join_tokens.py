"""Join tokens: what the file holds, and how a client reads its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from feddkd.cli import app
from feddkd.cli.join_token import VARIABLE, read_join_token
from feddkd.client.membership import Membership
from feddkd.errors import ConfigError
from feddkd.files import read_regular
from feddkd.transport.join_tokens import JoinTokens
from feddkd.transport.refusals import NotAdmittedError


def test_the_file_holds_the_hash_and_not_the_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    done = CliRunner().invoke(app, ["tokens", "make", "north", "--file", str(file)])
    token = done.stdout.splitlines()[0]
    assert token not in file.read_text()
    assert json.loads(file.read_text())["tokens"]["north"]["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    shown = CliRunner().invoke(app, ["tokens", "show", "--file", str(file)]).output
    assert "not yet" in shown
    assert token not in shown
    JoinTokens(file).use("north", token, "secret")
    assert "secret" not in file.read_text()
    assert CliRunner().invoke(app, ["tokens", "remove", "north", "--file", str(file)]).exit_code == 0
    with pytest.raises(NotAdmittedError, match="is not that of"):
        JoinTokens(file).check("north", token, "secret")


def test_two_that_come_at_once_with_one_token_are_not_both_admitted(tmp_path: Path) -> None:
    token = JoinTokens(tmp_path / "tokens.json").make("north")

    def admitted(instance: str) -> bool:
        try:
            JoinTokens(tmp_path / "tokens.json").use("north", token, instance)  # each like a server of its own
        except NotAdmittedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(admitted, map(str, range(8)))) == 1


def test_a_token_needs_a_client_that_can_be_known_again(tmp_path: Path) -> None:
    token = JoinTokens(tmp_path / "tokens.json").make("north")
    with pytest.raises(NotAdmittedError, match="instance_id"):
        JoinTokens(tmp_path / "tokens.json").check("north", token, "")


@pytest.mark.parametrize("id_", ["North", "", "a b", "x" * 65])
def test_a_token_is_made_for_an_id_only(tmp_path: Path, id_: str) -> None:
    done = CliRunner().invoke(app, ["tokens", "make", id_, "--file", str(tmp_path / "tokens.json")])
    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / "tokens.json").exists()


TOKEN = "fdk_" + "a" * 43


@pytest.mark.parametrize("content", [TOKEN, f"{TOKEN}\n", f"  {TOKEN}\r\n\n"])
def test_a_file_may_end_with_a_newline(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(0o600)
    assert read_join_token(file) == TOKEN


@pytest.mark.parametrize("content", ["", "\n", "secret-but-no-token", f"{TOKEN} {TOKEN}", "\x00", "x" * 5000])
def test_what_is_no_token_is_not_repeated_in_the_message(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(ConfigError) as raised:
        read_join_token(file)
    assert "secret" not in str(raised.value)
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o400, False), (0o644, True), (0o640, True), (0o604, True)])
def test_a_file_that_others_can_read_is_named(tmp_path: Path, mode: int, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    read_join_token(file)
    assert ("chmod 600" in caplog.text) == warns
    assert TOKEN not in caplog.text


def test_the_environment_serves_where_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_join_token(None) == ""
    monkeypatch.setenv(VARIABLE, f"{TOKEN}\n")
    assert read_join_token(None) == TOKEN
    monkeypatch.setenv(VARIABLE, "nonsense")
    with pytest.raises(ConfigError, match=VARIABLE):
        read_join_token(None)


def test_a_membership_does_not_show_its_token() -> None:
    assert TOKEN not in repr(Membership(join_token=TOKEN))


def test_a_link_to_the_file_stays_a_link_and_the_token_is_used_up_behind_it(tmp_path: Path) -> None:
    file, link = tmp_path / "secret" / "tokens.json", tmp_path / "link.json"
    file.parent.mkdir()
    token = JoinTokens(file).make("north")
    link.symlink_to(file)
    JoinTokens(link).use("north", token, "one")
    assert link.is_symlink()
    with pytest.raises(NotAdmittedError, match="was used"):
        JoinTokens(file).use("north", token, "two")


@pytest.mark.parametrize("content", [None, b"{"])
def test_a_file_is_parsed_once_for_each_change_of_it(tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens.json"
    JoinTokens(file).make("north")
    if content is not None:
        file.write_bytes(content)
    reads = list[Path]()

    def read(path: Path, most: int) -> bytes:
        reads.append(path)
        return read_regular(path, most)

    monkeypatch.setattr("feddkd.transport.join_tokens.read_regular", read)
    tokens = JoinTokens(file)
    for _ in range(5):
        with pytest.raises(NotAdmittedError):
            tokens.check("north", "wrong", "secret")
    assert len(reads) == 1


def test_what_the_process_wrote_itself_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = JoinTokens(tmp_path / "tokens.json")
    made = {name: tokens.make(name) for name in ("north", "south", "west")}
    monkeypatch.setattr(JoinTokens, "_tokens", lambda _: pytest.fail("parsed"))
    for name, token in made.items():
        tokens.use(name, token, "secret")
        assert not tokens.check(name, "", "secret")


def test_a_lock_that_another_process_keeps_is_an_error_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.transport.join_tokens.LOCK_TRY_S", 0.0)
    tokens = JoinTokens(tmp_path / "tokens.json")
    token = tokens.make("north")
    with (tmp_path / "tokens.json.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotAdmittedError, match="another process holds the lock") as refused:
            tokens.use("north", token, "secret")
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    tokens.use("north", token, "secret")

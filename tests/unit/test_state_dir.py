import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from harness import SCHEMA, filled
from hypothesis import HealthCheck, given, settings
from strategies import any_tensors

from feddkd.client.state_dir import StateDir
from feddkd.errors import StateError
from feddkd.failpoints import planned
from feddkd.tensors import Schema, Tensors, TensorSpec

TENSORS = filled(SCHEMA, 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_tensors)
def test_what_is_saved_is_loaded_bit_for_bit_by_another_process(tmp_path: Path, tensors: Tensors) -> None:
    StateDir(tmp_path / "state", "a").save("teacher", tensors, "run/1/0")
    loaded = StateDir(tmp_path / "state", "a").load("teacher", tensors.schema, "run/1/0")
    assert loaded is not None
    assert loaded.sha256() == tensors.sha256()


def test_nothing_is_loaded_before_something_was_saved(tmp_path: Path) -> None:
    assert StateDir(tmp_path, "a").load("teacher", SCHEMA, "run/1/0") is None


def test_another_label_is_another_rounds_and_is_not_loaded(tmp_path: Path) -> None:
    state = StateDir(tmp_path, "a")
    state.save("teacher", TENSORS, "run/1/0")
    assert state.load("teacher", SCHEMA, "run/1/1") is None
    assert state.load("model", SCHEMA, "run/1/0") is None


def test_the_last_one_saved_counts_and_leaves_no_other_file(tmp_path: Path) -> None:
    state = StateDir(tmp_path, "a")
    state.save("teacher", TENSORS, "run/1/0")
    state.save("teacher", filled(SCHEMA, 2), "run/2/0")
    loaded = state.load("teacher", SCHEMA, "run/2/0")
    assert loaded is not None
    assert loaded.sha256() == filled(SCHEMA, 2).sha256()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["client", "lock", "teacher.safetensors"]


def test_the_label_says_what_is_there_without_reading_it(tmp_path: Path) -> None:
    state = StateDir(tmp_path, "a")
    assert state.label("teacher") is None
    for label in ("run/1/0", "run/2/0"):
        state.save("teacher", TENSORS, label)
        assert StateDir(tmp_path, "a").label("teacher") == label
    assert state.label("model") is None


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name not in ("client", "lock"))


def flipped(content: bytes) -> bytes:
    """With one bit of the last tensor the other way round."""
    return content[:-1] + bytes([content[-1] ^ 1])


def relabelled(content: bytes) -> bytes:
    return content.replace(b"run/1/0", b"run/2/0")


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def pickled(content: bytes) -> bytes:
    return b"\x80\x04\x95pickle, say" * 100


DAMAGE = [flipped, relabelled, half, pickled, *(partial(lambda kept, content: content[:kept], kept) for kept in (0, 1, 7, 8, 50, -1))]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_set_aside_at_the_start_and_named_in_one_warning(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    state = StateDir(tmp_path, "a")
    for name in ("teacher", "model", "whole"):
        state.save(name, TENSORS, "run/1/0")
    contents = {}
    for name in ("teacher", "model"):
        file = tmp_path / f"{name}.safetensors"
        contents[name] = damage(file.read_bytes())
        file.write_bytes(contents[name])
    state = StateDir(tmp_path, "a")
    (warning,) = caplog.messages
    assert warning.startswith(f"a: {tmp_path}/model.safetensors is damaged (")
    assert warning.endswith(") and is now teacher.safetensors.corrupt-1")
    assert "\n" not in warning
    assert names(tmp_path) == ["model.safetensors.corrupt-1", "teacher.safetensors.corrupt-1", "whole.safetensors"]
    assert (tmp_path / "teacher.safetensors.corrupt-1").read_bytes() == contents["teacher"]
    assert state.load("teacher", SCHEMA, "run/1/0") is None
    assert state.load("whole", SCHEMA, "run/1/0") is not None
    StateDir(tmp_path, "a")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("look", ["label", "load"])
def test_a_file_that_is_damaged_later_is_set_aside_when_it_is_read(tmp_path: Path, look: str, caplog: pytest.LogCaptureFixture) -> None:
    state = StateDir(tmp_path, "a")
    for number in (1, 2):
        state.save("teacher", TENSORS, "run/1/0")
        (tmp_path / "teacher.safetensors").write_bytes(b"not one")
        found = state.label("teacher") if look == "label" else state.load("teacher", SCHEMA, "run/1/0")
        assert found is None
        assert caplog.messages[-1].endswith(f"and is now teacher.safetensors.corrupt-{number}")
    assert names(tmp_path) == ["teacher.safetensors.corrupt-1", "teacher.safetensors.corrupt-2"]


def test_a_bit_that_flips_later_is_noticed_before_the_tensors_are_used(tmp_path: Path) -> None:
    state = StateDir(tmp_path, "a")
    state.save("teacher", TENSORS, "run/1/0")
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(flipped(file.read_bytes()))
    assert state.load("teacher", SCHEMA, "run/1/0") is None
    assert names(tmp_path) == ["teacher.safetensors.corrupt-1"]


@pytest.mark.parametrize("key", ["sha256", "label"])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_file_whose_damage_hides_its_digest_or_its_label_is_set_aside(tmp_path: Path, key: str, restarts: bool) -> None:
    state = StateDir(tmp_path, "a")
    state.save("teacher", TENSORS, "run/1/0")
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(file.read_bytes().replace(key.encode(), key.upper().encode()))
    if restarts:
        state = StateDir(tmp_path, "a")
    assert state.load("teacher", SCHEMA, "run/1/0") is None
    assert names(tmp_path) == ["teacher.safetensors.corrupt-1"]


def test_a_damaged_file_that_cannot_be_set_aside_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StateDir(tmp_path, "a").save("teacher", TENSORS, "run/1/0")
    (tmp_path / "teacher.safetensors").write_bytes(b"not one")

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", read_only)
    with pytest.raises(StateError, match=r"teacher\.safetensors is damaged, and cannot be set aside: Read-only file system$"):
        StateDir(tmp_path, "a")


@pytest.mark.parametrize(("directory", "durable"), [(True, True), (True, False), (False, True)])
def test_what_is_saved_is_on_the_disk_before_it_takes_the_place_of_what_was_there(
    tmp_path: Path, directory: bool, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its new name is on the disk before `save` returns."""
    state, steps = StateDir(tmp_path, "a", durable=directory), list[str]()
    replace = Path.replace

    def fsync(descriptor: int) -> None:
        steps.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.name} to {target.name}")
        return replace(self, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    state.save("teacher", TENSORS, "run/1/0", durable=durable)
    renamed = "rename teacher.partial to teacher.safetensors"
    assert steps == (["fsync teacher.partial", renamed, f"fsync {tmp_path.name}"] if directory and durable else [renamed])


def test_a_disk_that_cannot_be_written_through_to_keeps_what_was_there(tmp_path: Path) -> None:
    state = StateDir(tmp_path, "a")
    state.save("teacher", TENSORS, "run/1/0")
    with planned("client.state.before_rename=eio"), pytest.raises(StateError, match=r"cannot write .*Input/output error"):
        state.save("teacher", filled(SCHEMA, 2), "run/2/0")
    assert names(tmp_path) == ["teacher.safetensors"]
    assert state.label("teacher") == "run/1/0"


@pytest.mark.parametrize(
    "other",
    [
        Schema([*SCHEMA.specs, TensorSpec("more", torch.float32, (1,))]),
        Schema([TensorSpec("layer.weight", torch.float32, (5, 4))]),
        Schema([TensorSpec("layer.weight", torch.float64, (4, 5))]),
    ],
)
def test_the_tensors_of_another_model_are_an_error(tmp_path: Path, other: Schema) -> None:
    state = StateDir(tmp_path, "a")
    state.save("teacher", TENSORS, "run/1/0")
    with pytest.raises(StateError, match="of another model: tensor"):
        state.load("teacher", other, "run/1/0")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match=f"cannot create state directory {tmp_path / 'file' / 'state'}: Not a directory"):
        StateDir(tmp_path / "file" / "state", "a")
    with pytest.raises(StateError, match="File exists"):
        StateDir(tmp_path / "file", "a")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, whom nothing stops
    with pytest.raises(StateError, match=f"state directory {tmp_path} is not writable"):
        StateDir(tmp_path, "a")


def test_a_failed_write_is_an_error_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path, "a")
    state.save("teacher", TENSORS, "run/1/0")

    def disk_full(path: Path, tensors: object, metadata: object) -> None:
        path.write_bytes(b"the beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("feddkd.client.tensor_file.write_model", disk_full)
    with pytest.raises(StateError, match=r"cannot write .*teacher\.safetensors.*No space left"):
        state.save("teacher", filled(SCHEMA, 2), "run/2/0")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["client", "lock", "teacher.safetensors"]
    loaded = state.load("teacher", SCHEMA, "run/1/0")
    assert loaded is not None
    assert loaded.sha256() == TENSORS.sha256()


def test_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state", "a")
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(StateError, match="cannot write"):
        state.save("teacher", TENSORS, "run/1/0")


def test_a_directory_belongs_to_the_client_that_used_it_first(tmp_path: Path) -> None:
    StateDir(tmp_path, "site-a").save("teacher", TENSORS, "run/1/0")
    with pytest.raises(
        StateError, match=rf"^state directory {tmp_path} belongs to client 'site-a', not to 'site-b'; .* its own directory$"
    ):
        StateDir(tmp_path, "site-b")
    assert StateDir(tmp_path, "site-a").load("teacher", SCHEMA, "run/1/0") is not None


def test_a_second_process_is_refused_whatever_its_client_and_the_first_can_go_on(tmp_path: Path) -> None:
    state = StateDir(tmp_path, "site-a")
    program = "import sys; from feddkd.client.state_dir import StateDir; from pathlib import Path; StateDir(Path(sys.argv[1]), sys.argv[2])"
    for client in ("site-a", "site-b"):
        other = subprocess.run([sys.executable, "-c", program, tmp_path, client], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert other.stderr.splitlines()[-1] == (
            f"feddkd.errors.StateHeldError: another process holds the state directory {tmp_path} of client 'site-a'"
        )
    state.save("teacher", TENSORS, "run/1/0")


def test_a_directory_from_before_it_said_whose_it_is_belongs_to_who_comes_next(tmp_path: Path) -> None:
    (tmp_path / "client").write_bytes(b"\x00\xff" * 1000)  # as after a power cut
    StateDir(tmp_path, "site-b")
    assert (tmp_path / "client").read_text() == "site-b\n"


def test_the_secret_survives_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    secret = StateDir(tmp_path, "a").instance_id
    assert len(secret) == 32
    assert StateDir(tmp_path, "a").instance_id == secret
    assert (tmp_path / "instance").stat().st_mode & 0o777 == 0o600
    assert StateDir(tmp_path / "other", "a").instance_id != secret


@pytest.mark.parametrize("content", ["", "short", "x" * 32, "0" * 33])
def test_a_secret_that_is_none_is_made_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "instance").write_text(content)
    (tmp_path / "instance.partial").write_text("left by a crash")
    assert StateDir(tmp_path, "a").instance_id == (tmp_path / "instance").read_text().strip() != content
    assert (tmp_path / "instance.corrupt-1").read_text() == content


def test_a_disk_that_is_full_at_the_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(StateError, match=rf"cannot write {tmp_path / 'client'}: No space left"):
        StateDir(tmp_path, "a")

"""Keeps join tokens: secrets that let a client in once where clients have no certificates.

The file holds the SHA-256 of each token, never the token. A token is 256 random bits, so nobody can guess it from
its hash: a slow hash, as for passwords, would add nothing. With its first join a token belongs to the secret of that
client (its instance id); from then on that secret is what admits the client, and the token is used up.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import grpc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feddkd.config.scheduler import ClientName
from feddkd.durable import write_durably
from feddkd.errors import StateError
from feddkd.files import read_regular
from feddkd.text import utc_time
from feddkd.transport.refusals import NotAdmittedError
from feddkd.transport.reloaded_files import Stamp, stamp_of

TOKEN_BYTES = 32
PREFIX = "fdk_"
"""By it, people and programs that look for leaked secrets know a token."""

MAX_TOKEN_CHARACTERS = 128
MAX_FILE_BYTES = 64 << 20

LOCK_TRIES = 40
LOCK_TRY_S = 0.05
"""Tries to lock the file, and the seconds between two. A change of the file takes some milliseconds."""

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class JoinToken(BaseModel):
    """What the file says of one token.

    Attributes:
        sha256: of the token.
        made: when, in UTC.
        used: when its client joined first; None as long as it did not.
        instance: SHA-256 of the secret of the client that has used it.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    sha256: _Hash
    made: str
    used: str | None = None
    instance: _Hash | None = None


class _File(BaseModel):
    """The content of the file: the tokens by client id."""

    model_config = ConfigDict(strict=True, extra="forbid")

    tokens: dict[ClientName, JoinToken] = Field({})


class JoinTokens:
    """The tokens in a file. Several processes may use and change it: each change is one step under a lock."""

    def __init__(self, file: Path) -> None:
        self._file = file.resolve()  # a change must reach the file itself, and not replace a link to it
        self._read: tuple[Stamp, Mapping[str, JoinToken] | StateError] = (None, {})

    def check_file(self) -> None:
        """Check that the file is there and whole. Raises StateError."""
        if not self._file.exists():
            raise StateError(f"there are no join tokens in {self._file}; `feddkd tokens make ID --file {self._file}` makes one")
        self.all()

    def all(self) -> Mapping[str, JoinToken]:
        """Return the tokens by client id, in order. Raises StateError if the file is damaged or cannot be read."""
        stamp = stamp_of(self._file)
        if stamp is None or stamp != self._read[0]:  # a flood of joins must not read it each time
            try:
                self._read = stamp, self._tokens()
            except StateError as error:
                self._read = stamp, error
        found = self._read[1]
        if isinstance(found, StateError):
            raise StateError(str(found))
        return found

    def _tokens(self) -> Mapping[str, JoinToken]:
        try:
            content = read_regular(self._file, MAX_FILE_BYTES)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StateError(f"cannot read {self._file}: {error.strerror}") from error
        try:
            return dict(sorted(_File.model_validate_json(content).tokens.items()))
        except ValidationError:
            raise StateError(f"{self._file} is damaged: it is no file of join tokens") from None

    def make(self, client_id: str) -> str:
        """Make a token for a client id, in place of the one that it has, and return it. Raises StateError."""
        token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        with self._locked():
            self._write({**self.all(), client_id: JoinToken(sha256=_sha256(token), made=_now())})
        return token

    def remove(self, client_id: str) -> bool:
        """Remove the token of a client id; return whether it had one. Raises StateError."""
        with self._locked():
            tokens = dict(self.all())
            known = tokens.pop(client_id, None)
            if known is not None:
                self._write(tokens)
        return known is not None

    def check(self, client_id: str, token: str, instance_id: str) -> bool:
        """Check that a client may join; return whether it is its first time, so that its token is to be used up.

        Args:
            token: what the client showed; empty for nothing.
            instance_id: the secret by which the server knows it again.

        Raises:
            NotAdmittedError: it may not.
        """
        with _refusing():
            known = self.all().get(client_id)
        if known is not None and known.instance is not None and _equal(known.instance, _sha256(instance_id)):
            return False
        self._check_token(known, client_id, token)
        if not instance_id:
            _refuse("a client that joins with a token needs a secret of its own (instance_id)")
        return True

    def use(self, client_id: str, token: str, instance_id: str) -> None:
        """Use a token up, if nobody has done so since `check`. Blocks: it writes the file. Raises NotAdmittedError."""
        with _refusing(), self._locked():
            if not self.check(client_id, token, instance_id):
                return
            known = self.all()[client_id]
            used = known.model_copy(update={"used": _now(), "instance": _sha256(instance_id)})
            self._write({**self.all(), client_id: used})

    def still_admit(self, client_id: str, instance: bytes | None) -> bool:
        """Return whether a client that has joined may go on. A file that is damaged or away ends nobody's part.

        Args:
            instance: SHA-256 of the client's secret.
        """
        try:
            known = self.all().get(client_id)
        except StateError:
            return True
        if self._read[0] is None:
            return True
        return known is not None and known.instance is not None and instance is not None and _equal(known.instance, instance.hex())

    def _check_token(self, known: JoinToken | None, client_id: str, token: str) -> None:
        """Raises NotAdmittedError. Who does not have the right token learns nothing of it."""
        if not token:
            _refuse("this server asks for a join token at a client's first join: give it with --join-token-file")
        shown = _sha256(token[:MAX_TOKEN_CHARACTERS])
        if not _equal(known.sha256 if known is not None else _sha256(""), shown) or known is None:
            _refuse(f"the join token is not that of client id {client_id!r}")
        if known.used is not None:
            by = f"was used at {known.used} by another process of this id, and is good for one only"
            _refuse(f"the join token of {client_id!r} {by}: have another one made, or join with the state directory of before")

    def _write(self, tokens: Mapping[str, JoinToken]) -> None:
        content = _File(tokens=dict(sorted(tokens.items()))).model_dump_json(indent=1, exclude_none=True)
        try:
            write_durably(self._file, content.encode() + b"\n")
        except OSError as error:
            raise StateError(f"cannot write {self._file}: {error.strerror}") from error
        self._read = stamp_of(self._file), dict(sorted(tokens.items()))  # under the lock: it is what was written

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the file. Raises StateError."""
        file = self._file.with_name(f"{self._file.name}.lock")
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"cannot open {file}: {error.strerror}") from error
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        """Wait a short while for the lock. Raises StateError."""
        for _ in range(LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(LOCK_TRY_S)
        raise StateError(f"another process holds the lock of {self._file} for {LOCK_TRIES * LOCK_TRY_S:g} s; try again")


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn trouble with the file into a refusal that the client need not take for the last word."""
    try:
        yield
    except StateError as error:
        raise NotAdmittedError(grpc.StatusCode.UNAVAILABLE, f"the server's join tokens: {error}", kind="token") from None


def _refuse(reason: str) -> NoReturn:
    raise NotAdmittedError(grpc.StatusCode.PERMISSION_DENIED, reason, kind="token")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _equal(first: str, second: str) -> bool:
    """Compare in a time that says nothing of the content."""
    return hmac.compare_digest(first, second)


def _now() -> str:
    return utc_time(datetime.datetime.now(datetime.UTC).timestamp()) or ""

"""Certificates for tests: a CA in a folder, and what it has signed, valid now or at another time."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from feddkd.certs.authority import Authority

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


class Pki:
    """A CA, and the certificates of a server at 127.0.0.1 and of clients."""

    def __init__(self, folder: Path, name: str = "federation CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority.init(folder, name, 3650, b"", NOW - 100 * DAY)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def crl(self) -> Path:
        return self.folder / "ca.crl"

    def server(self, name: str = "server", hosts: Sequence[str] = ("127.0.0.1",), starts: datetime.datetime = NOW, days: int = 30) -> Path:
        """Issue a server's certificate and return its file; the key is beside it."""
        file = self.folder / f"{name}.pem"
        self.authority.issue(name, hosts=hosts, ids=(), file=file, days=days, passphrase=b"", now=starts)
        return file

    def client(self, name: str, ids: Sequence[str] | None = None, *, starts: datetime.datetime = NOW, days: int = 30) -> Path:
        """Issue a client's certificate and return its file; the key is beside it."""
        file = self.folder / f"{name}.pem"
        self.authority.issue(name, hosts=(), ids=ids or (name,), file=file, days=days, passphrase=b"", now=starts)
        return file

    def renew(self, name: str) -> Path:
        """Renew a certificate in place."""
        file = self.folder / f"{name}.pem"
        self.authority.renew(name, file, 60, b"", NOW)
        return file

    def revoke(self, name: str) -> None:
        """Revoke a certificate; the list is `crl`."""
        self.authority.revoke(name, b"", NOW)

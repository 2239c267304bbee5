"""`feddkd certs`: make a CA, and with it the certificates of a federation's server and clients."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feddkd.cli.options import Json, Verbose
from feddkd.cli.output import present, prints_results, say
from feddkd.client_ids import check_client_id
from feddkd.errors import ConfigError, StateError
from feddkd.text import printable

if TYPE_CHECKING:
    from cryptography import x509
    from rich.table import Table

    from feddkd.certs.authority import Authority, Issued

KEY_VARIABLE = "FEDDKD_CA_PASSPHRASE"
"""The environment variable that holds the passphrase of the CA's key."""

app = typer.Typer(
    help="Make a certificate authority (CA), and with it the certificates of a server and its clients.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Folder = Annotated[Path, typer.Option("--ca", metavar="DIR", help="The folder of the CA.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Names the certificate.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="PEM", help="Write the certificate there, and its key beside it. Default: `DIR/NAME.pem`.", show_default=False
    ),
]
Days = Annotated[int, typer.Option("--days", min=1, max=36500, help="Days for which it is valid.")]

_DAYS = 365
_CA_DAYS = 3650

SERIAL_DIGITS = 8
"""Hexadecimal digits of a serial number in the table; `--json` has all."""

NAME_LETTERS = 20

FOR_LETTERS = 18
"""At least so wide is the column of hosts and ids: an address stays in one piece."""


@app.command()
@prints_results
def init(
    folder: Folder = Path("ca"),
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="The CA's common name.")] = "federation CA",
    days: Days = _CA_DAYS,
    passphrase: Annotated[bool, typer.Option("--passphrase", help=f"Protect the key; asks, unless {KEY_VARIABLE} is set.")] = False,
    _verbose: Verbose = False,
) -> None:
    """Make a CA: a key that signs certificates, and the certificate that everybody trusts.

    Makes `ca.pem`, which every machine gets, `ca.key`, which nobody else may read, and `ca.crl`, the list of revoked
    certificates for the server. Replaces nothing.

    ```console
    feddkd certs init --ca ca
    ```
    """
    from feddkd.certs.authority import Authority

    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise ConfigError(f"--name {name!r} is not 1 to 64 printable characters")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"cannot make {folder}: {error.strerror}") from error
    secret = _asked(confirm=True) if passphrase else b""
    with _locked(folder):
        made = Authority.init(folder, name, days, secret, _now())
    say(f"{folder}/ca.pem: the CA, valid until {made.certificate.not_valid_after_utc:%Y-%m-%d}; for every machine")
    say(f"{folder}/ca.key: its key{', with a passphrase' if secret else ''}; stays here, nobody else may read it")
    say(f"{folder}/ca.crl: the list of revoked certificates; for the server")


@app.command()
@prints_results
def issue(
    name: Name,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="HOST,...", help="A server's: the names and addresses after `--server` of its clients.", show_default=False
        ),
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(
            "--client", metavar="ID", help="A client's: the `--id` that it may take part as. May be repeated.", show_default=False
        ),
    ] = None,
    folder: Folder = Path("ca"),
    out: Out = None,
    days: Days = _DAYS,
    _verbose: Verbose = False,
) -> None:
    """Sign a certificate for a new key. Replaces nothing.

    Without `--server` and `--client` it is a client's, with NAME as its id.

    ```console
    feddkd certs issue server --server fed.example.org,10.0.0.1
    feddkd certs issue north
    ```
    """
    hosts = [host.strip() for host in server.split(",")] if server is not None else []
    if server is not None and not hosts:
        raise ConfigError("--server names no host")
    if hosts and client:
        raise ConfigError("a certificate is a server's or a client's: give --server or --client, not both")
    ids = [] if hosts else client or [name]
    for each in ids:
        check_client_id(each)
    file = _file(out, folder, name)
    with _opened(folder) as (authority, secret):
        made = authority.issue(name, hosts=hosts, ids=ids, file=file, days=days, passphrase=secret, now=_now())
    say(f"{file}: {_kind(made)} {', '.join(hosts or ids)}, valid until {made.not_valid_after_utc:%Y-%m-%d}")
    say(f"{file.with_suffix('.key')}: its key, which nobody else may read")


@app.command()
@prints_results
def renew(name: Name, folder: Folder = Path("ca"), out: Out = None, days: Days = _DAYS, _verbose: Verbose = False) -> None:
    """Sign a certificate once more, with the same names and the same key, and put it in the place of the old one.

    Only the certificate's file has to reach its machine; a running server or client reads it without a restart.
    A key that somebody else may know is not renewed: revoke its certificate, and issue another.

    ```console
    feddkd certs renew north
    ```
    """
    file = _file(out, folder, name)
    with _opened(folder) as (authority, secret):
        made = authority.renew(name, file, days, secret, _now())
    say(f"{file}: {_kind(made)} {', '.join(_names(made))}, valid until {made.not_valid_after_utc:%Y-%m-%d}")


@app.command()
@prints_results
def show(folder: Folder = Path("ca"), as_json: Json = False, _verbose: Verbose = False) -> None:
    """List what a CA has signed: names, dates, serial numbers, what is revoked, and which of several of a name is the newest.

    ```console
    feddkd certs show
    ```
    """
    from feddkd.certs.authority import Authority

    authority = Authority.load(folder)
    found = authority.issued()
    if as_json:
        newest = _newest(found)
        say(json.dumps([_as_object(each) | {"newest": newest[each.name] == each} for each in found]))
        return
    ends = authority.certificate.not_valid_after_utc
    say(f"{printable(authority.certificate.subject.rfc4514_string())}, valid until {ends:%Y-%m-%d}")
    if found:
        present(_table(found))


@app.command()
@prints_results
def revoke(name: Name, folder: Folder = Path("ca"), _verbose: Verbose = False) -> None:
    """Revoke the certificates of a name: a server that reads `ca.crl` cuts their holder off within seconds.

    ```console
    feddkd certs revoke north
    ```
    """
    with _opened(folder) as (authority, secret):
        found = authority.revoke(name, secret, _now())
    for each in found:
        say(f"revoked: {name}, serial number {each.serial_number:x}")
    say(f"{folder}/ca.crl: the new list; copy it to the file after --tls-crl of the server")


@app.command(name="rebuild-crl")
@prints_results
def rebuild_crl(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Names whose certificates are revoked.")] = None,
    folder: Folder = Path("ca"),
    _verbose: Verbose = False,
) -> None:
    """Begin another list of revoked certificates where `ca.crl` is lost or damaged, with all certificates of some names.

    Every certificate that was revoked before and is not named counts again: a copy of the list, for instance the
    server's, is better.

    ```console
    feddkd certs rebuild-crl north
    ```
    """
    with _opened(folder) as (authority, secret):
        authority.rebuild_crl(names or [], secret, _now())
    say(f"{folder}/ca.crl: another list, which revokes {', '.join(names or ['nothing'])}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other commands from changing a CA at the same time. Raises StateError."""
    from feddkd.locking import DirectoryLock

    try:
        lock = DirectoryLock(folder)
    except BlockingIOError:
        raise StateError(f"another command changes the CA in {folder}") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[tuple[Authority, bytes]]:
    """Open a CA to sign with it; asks for the passphrase of its key if it has one. Raises ConfigError or StateError."""
    from feddkd.certs.authority import Authority

    authority = Authority.load(folder)
    secret = _asked(confirm=False) if authority.is_locked else b""
    with _locked(folder):
        yield authority, secret


def _asked(confirm: bool) -> bytes:
    """Return the passphrase of the CA's key. Raises ConfigError for an empty one."""
    secret = os.environ.get(KEY_VARIABLE)
    if secret is None:
        secret = typer.prompt("passphrase of the CA's key", hide_input=True, confirmation_prompt=confirm, err=True)
    if not secret:
        raise ConfigError(f"the passphrase is empty (environment variable {KEY_VARIABLE})")
    return str(secret).encode()


def _file(out: Path | None, folder: Path, name: str) -> Path:
    file = out or folder / f"{name}.pem"
    if file.suffix != ".pem":
        raise ConfigError(f"--out {file} does not end in .pem")
    if not file.parent.is_dir():
        raise ConfigError(f"cannot write {file}: {file.parent} is not a folder")
    return file


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _kind(found: x509.Certificate) -> str:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return "server" if ExtendedKeyUsageOID.SERVER_AUTH in usage else "client"


def _names(found: x509.Certificate) -> tuple[str, ...]:
    from feddkd.certs.certificate import Certificate

    return Certificate.of(found).names


def _state(each: Issued) -> str:
    if each.revoked:
        return "revoked"
    return "expired" if each.certificate.not_valid_after_utc < _now() else "valid"


def _newest(found: Iterable[Issued]) -> dict[str, Issued]:
    """Pick the newest certificate of each name, out of all in order."""
    return {each.name: each for each in found}


def _as_object(each: Issued) -> dict[str, object]:
    found = each.certificate
    return {
        "name": each.name,
        "kind": _kind(found),
        "names": list(_names(found)),
        "not_before": found.not_valid_before_utc.isoformat(),
        "not_after": found.not_valid_after_utc.isoformat(),
        "serial": f"{found.serial_number:x}",
        "state": _state(each),
    }


def _table(found: list[Issued]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for title in ("name", "kind", "for", "until", "state", "serial"):
        table.add_column(title, no_wrap=title != "for", overflow="fold", min_width=FOR_LETTERS if title == "for" else None)
    newest, count = _newest(found), Counter(each.name for each in found)
    for each in found:
        is_newest = count[each.name] > 1 and newest[each.name] == each
        ends = each.certificate.not_valid_after_utc
        names = "\n".join(map(printable, _names(each.certificate)))
        serial = f"{each.certificate.serial_number:x}"[:SERIAL_DIGITS]
        row = f"{ends:%Y-%m-%d}", _state(each) + (", newest" if is_newest else ""), serial
        table.add_row(Text(printable(each.name, NAME_LETTERS)), _kind(each.certificate), Text(names), *row)
    return table

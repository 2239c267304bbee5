"""Prints what `--check` finds: one line for each thing that is right, and the first that is not as an error."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from feddkd.certs.certificate import Certificate
from feddkd.cli.output import say_fields
from feddkd.errors import AddressInUseError, ConfigError, FedDKDError
from feddkd.transport.proxy import is_this_machine, proxy_for

Check = Callable[[], str]
"""Says what was found; raises FedDKDError for what is wrong."""


class Checklist:
    """Checks one thing after the other. Nothing is joined, and nothing that a check needs is left behind."""

    def check(self, name: str, check: Check) -> None:
        """Print what is found.

        Raises:
            ConfigError: it is wrong; the message begins with the name.
        """
        try:
            found = check()
        except FedDKDError as error:
            raise ConfigError(f"check of {name}: {error}") from error
        say_fields([(name, f"ok: {found}")])

    def certificates(self, files: Iterable[Path | None]) -> None:
        """Check what every certificate file holds, and this machine's clock against its dates. Raises ConfigError."""
        now = datetime.datetime.now(datetime.UTC)
        certificates: dict[Path, Certificate] = {}

        def read() -> str:
            certificates.update((file, Certificate.read(file)) for file in files if file is not None)
            return "; ".join(f"{file}{found}" for file, found in certificates.items()) or "none, plaintext"

        def compare() -> str:
            for file, certificate in certificates.items():
                if problem := certificate.problem(now):
                    raise ConfigError(f"{file} {problem}")
            within = ", within the dates of the certificates" if certificates else ""
            return f"{now:%Y-%m-%d %H:%M} UTC{within}"

        self.check("certificates", read)
        self.check("clock", compare)


def free_address(host: str, port: int) -> str:
    """Listen for an instant. Raises AddressInUseError."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return f"{host}:{port} is free" if port else f"{host} with a free port"
    except OSError as error:
        raise AddressInUseError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def way_to(host: str) -> str:
    """Say through which proxy a connection to `host` goes, if any."""
    proxy = proxy_for(host)
    if proxy is not None:
        return f"connects through {proxy}"
    return "none on the way to this machine" if is_this_machine(host) else f"none on the way to {host}"

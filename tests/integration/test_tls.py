"""TLS between a real server and real clients, with certificates made on the spot."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import shutil
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from feddkd.bench.transport import EchoWorker
from feddkd.client.agent import Farewell
from feddkd.client.own_site import fetch_server_config
from feddkd.client.process import take_part
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.errors import ConfigError, RefusedError, UnreachableError
from feddkd.tensors import Schema, TensorSpec
from feddkd.transport.server_security import ServerSecurity
from feddkd.transport.tls import ClientTls, check_plaintext_allowed, client_tls, server_tls
from feddkd.transport.tls_problems import handshake_problem

SCHEMA = Schema([TensorSpec("w", torch.float32, (3,))])


CERTIFICATES = {
    "cert": ("IP:127.0.0.1", -1, 30),
    "expired": ("IP:127.0.0.1", -30, -1),
    "later": ("IP:127.0.0.1", 10, 30),
    "elsewhere": ("DNS:server.example", -1, 30),
}
"""Certificates that the CA signed: for whom, and from which day until which."""

CA_CONFIG = """
[ca]
default_ca = this
[this]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
policy = policy
unique_subject = no
x509_extensions = extensions
[policy]
commonName = supplied
[extensions]
subjectAltName = {names}
"""


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA and certificates that it signed, all of one key; `other.pem` is a CA that signed nothing."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("pem")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=site")
    (folder / "index.txt").touch()
    (folder / "serial").write_text("01\n")
    now = datetime.datetime.now(datetime.UTC)
    for name, (names, *days) in CERTIFICATES.items():
        (folder / "ca.cnf").write_text(CA_CONFIG.format(names=names))
        begin, end = (f"{now + datetime.timedelta(days=day):%Y%m%d%H%M%SZ}" for day in days)
        signed_by = ("-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-startdate", begin, "-enddate", end)
        openssl("ca", "-batch", "-notext", *signed_by, "-in", "request.pem", "-out", f"{name}.pem")
    return folder


def taking_part(address: str, tls: ClientTls | None) -> Farewell:
    return take_part(address, {"site": EchoWorker(SCHEMA, 0)}, tls=tls, retry_for_s=30.0)


def serve(pem: Path) -> tuple[GrpcEngine, str]:
    engine = GrpcEngine(Config(), "run", SCHEMA)
    port = engine.start("127.0.0.1", 0, ServerSecurity(server_tls(pem / "cert.pem", pem / "key.pem", pem / "ca.pem", any_certificate=True)))
    return engine, f"127.0.0.1:{port}"


def test_a_client_with_a_signed_certificate_takes_part(pem: Path) -> None:
    engine, address = serve(pem)
    credentials = client_tls(pem / "ca.pem", pem / "cert.pem", pem / "key.pem")
    with ThreadPoolExecutor(1) as pool:
        client = pool.submit(take_part, address, {"site": EchoWorker(SCHEMA, 0)}, tls=credentials, retry_for_s=30.0)
        try:
            assert engine.wait_for_clients(1, 30.0)
        finally:
            engine.finish(completed=True, reason="enough")
        assert client.result(30.0).completed


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        ("nothing", r"it admits only clients with a certificate: give one with --tls-cert and --tls-key"),
        ("plaintext", r"it speaks TLS: give the file of its CA with --tls-ca"),
        ("expired", r"it does not accept the certificate --tls-cert .*expired\.pem: it has expired on .*"),
        ("another CA's", r"it does not accept the certificate --tls-cert .*other\.pem: the CA in --tls-ca .* has not signed it"),
    ],
)
def test_a_client_that_the_server_does_not_admit_ends_at_once_and_knows_why(pem: Path, shown: str, problem: str) -> None:
    tls = {
        "nothing": client_tls(pem / "ca.pem", None, None),
        "plaintext": None,
        "expired": client_tls(pem / "ca.pem", pem / "expired.pem", pem / "key.pem"),
        "another CA's": client_tls(pem / "ca.pem", pem / "other.pem", pem / "other.key"),
    }[shown]
    engine, address = serve(pem)
    try:
        with pytest.raises(RefusedError, match=f"^server {address}: {problem}$"):
            taking_part(address, tls)
        assert engine.clients() == {}
    finally:
        engine.finish(completed=False, reason="enough")


@pytest.mark.parametrize(
    ("server", "ca", "problem"),
    [
        ("cert", "other", r"its certificate is not trusted by --tls-ca .*other\.pem \(unable to get local issuer certificate\)"),
        ("expired", "ca", r"its certificate has expired"),
        ("later", "ca", r"its certificate is not yet valid; check the clocks of both machines"),
        ("elsewhere", "ca", r"its certificate is for another host name than 127\.0\.0\.1"),
        ("plaintext", "ca", r"it does not speak TLS: leave out --tls-ca, or start it with --tls-cert and --tls-key"),
    ],
)
def test_a_server_that_the_client_does_not_trust_ends_it_at_once_with_the_reason(pem: Path, server: str, ca: str, problem: str) -> None:
    security = ServerSecurity(None if server == "plaintext" else server_tls(pem / f"{server}.pem", pem / "key.pem", None))
    engine = GrpcEngine(Config(), "run", SCHEMA)
    address = f"127.0.0.1:{engine.start('127.0.0.1', 0, security)}"
    tls = client_tls(pem / f"{ca}.pem", None, None)
    try:
        with pytest.raises(RefusedError, match=f"^server {address}: {problem}$"):
            taking_part(address, tls)
        with pytest.raises(RefusedError, match=problem):
            fetch_server_config(address, tls, None)
    finally:
        engine.finish(completed=False, reason="enough")


@pytest.mark.parametrize("tls", [True, False])
def test_a_server_that_hangs_up_without_a_word_may_come_to_itself(pem: Path, tls: bool) -> None:
    """As a proxy does whose server is not there yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            with pytest.raises(UnreachableError, match="gave up after 0 s"):
                take_part(
                    f"127.0.0.1:{listener.getsockname()[1]}",
                    {"site": EchoWorker(SCHEMA, 0)},
                    tls=client_tls(pem / "ca.pem", None, None) if tls else None,
                    retry_for_s=0.0,
                )
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_server_that_says_by_an_alert_that_it_wants_a_certificate_is_understood(pem: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pem / "ca.pem")
    context.load_cert_chain(pem / "cert.pem", pem / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def admit() -> None:
            connection, _ = listener.accept()
            with connection, pytest.raises(ssl.SSLError), context.wrap_socket(connection, server_side=True):
                pass

        admitting = pool.submit(admit)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        problem = asyncio.run(handshake_problem("Socket closed", address, client_tls(pem / "ca.pem", None, None)))
        admitting.result(30.0)
    assert problem == "it admits only clients with a certificate: give one with --tls-cert and --tls-key"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_plaintext_is_fine_on_this_machine(host: str) -> None:
    check_plaintext_allowed(host, insecure=False)  # would raise


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "server.example", "::"])
def test_plaintext_to_other_machines_must_be_insisted_on(host: str) -> None:
    with pytest.raises(ConfigError, match=f"{host} is not a loopback address.*--insecure"):
        check_plaintext_allowed(host, insecure=False)
    check_plaintext_allowed(host, insecure=True)


def test_half_a_key_pair_is_refused(pem: Path) -> None:
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        server_tls(pem / "cert.pem", None, None)
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        server_tls(None, None, pem / "ca.pem")
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        client_tls(pem / "ca.pem", None, pem / "key.pem")
    with pytest.raises(ConfigError, match="--tls-cert needs --tls-ca"):
        client_tls(None, pem / "cert.pem", pem / "key.pem")


def test_files_that_are_not_what_they_should_be_are_named_before_anything_is_sent(pem: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("-----BEGIN NONSENSE-----")
    with pytest.raises(ConfigError, match=r"^--tls-ca .*no\.pem holds no certificate in PEM format$"):
        client_tls(tmp_path / "no.pem", None, None)
    with pytest.raises(ConfigError, match=r"^--tls-key .*other\.key is not the key of --tls-cert .*cert\.pem$"):
        client_tls(pem / "ca.pem", pem / "cert.pem", pem / "other.key")
    for pair in (("no.pem", "key.pem"), ("cert.pem", "no.pem")):
        files = [tmp_path / name if name == "no.pem" else pem / name for name in pair]
        with pytest.raises(ConfigError, match=r"are not a certificate and its key in PEM format, without a password$"):
            client_tls(pem / "ca.pem", *files)
    encrypt = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(pem / "key.pem")]
    subprocess.run([*encrypt, "-out", str(tmp_path / "locked.pem")], check=True, capture_output=True)
    with pytest.raises(ConfigError, match=r"locked\.pem are not .* without a password$"):
        client_tls(pem / "ca.pem", pem / "cert.pem", tmp_path / "locked.pem")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.pem: No such file"):
        client_tls(tmp_path / "nowhere.pem", None, None)

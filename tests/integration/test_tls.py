"""TLS between a real server and real clients, with certificates made on the spot."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from feddkd.bench.transport import EchoWorker
from feddkd.client.process import take_part
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.errors import ConfigError, RefusedError
from feddkd.tensors import Schema, TensorSpec
from feddkd.transport.tls import check_plaintext_allowed, client_tls, server_credentials

SCHEMA = Schema([TensorSpec("w", torch.float32, (3,))])


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, and a certificate of 127.0.0.1 that it signed; `other.pem` is a CA that signed nothing."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("pem")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=site")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    openssl(
        "x509",
        "-req",
        "-in",
        "request.pem",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "names",
        "-out",
        "cert.pem",
    )
    return folder


def serve(pem: Path) -> tuple[GrpcEngine, str]:
    engine = GrpcEngine(Config(), "run", SCHEMA)
    port = engine.start("127.0.0.1", 0, server_credentials(pem / "cert.pem", pem / "key.pem", pem / "ca.pem"))
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
    ("case", "problem"),
    [
        ("no certificate", "it admits only clients with a certificate: give one with --tls-cert"),
        ("plaintext", "it speaks TLS: give the file of its CA with --tls-ca"),
        ("another CA", "its certificate is not trusted by --tls-ca .*other.pem"),
        ("a certificate of another CA", "it does not accept the certificate --tls-cert .*other.pem"),
    ],
)
def test_a_client_that_cannot_show_or_check_a_certificate_stays_outside(pem: Path, case: str, problem: str) -> None:
    credentials = {
        "no certificate": client_tls(pem / "ca.pem", None, None),
        "plaintext": None,
        "another CA": client_tls(pem / "other.pem", pem / "cert.pem", pem / "key.pem"),
        "a certificate of another CA": client_tls(pem / "ca.pem", pem / "other.pem", pem / "other.key"),
    }[case]
    engine, address = serve(pem)
    try:
        # It has patience, but trying again cannot help.
        with pytest.raises(RefusedError, match=f"{address}: {problem}"):
            take_part(address, {"site": EchoWorker(SCHEMA, 0)}, tls=credentials, retry_for_s=None)
        assert engine.clients() == {}
    finally:
        engine.finish(completed=False, reason="enough")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_plaintext_is_fine_on_this_machine(host: str) -> None:
    check_plaintext_allowed(host, insecure=False)  # would raise


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "server.example", "::"])
def test_plaintext_to_other_machines_must_be_insisted_on(host: str) -> None:
    with pytest.raises(ConfigError, match=f"{host} is not this machine.*--insecure"):
        check_plaintext_allowed(host, insecure=False)
    check_plaintext_allowed(host, insecure=True)


def test_half_a_key_pair_is_refused(pem: Path) -> None:
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        server_credentials(pem / "cert.pem", None, None)
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        server_credentials(None, None, pem / "ca.pem")
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key"):
        client_tls(pem / "ca.pem", None, pem / "key.pem")
    with pytest.raises(ConfigError, match="without --tls-ca"):
        client_tls(None, pem / "cert.pem", pem / "key.pem")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.pem: No such file"):
        client_tls(tmp_path / "nowhere.pem", None, None)

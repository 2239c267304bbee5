"""What a server that uses TLS demands of its files and of the owner of an id."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch
from fake_streams import FakeInbox

from feddkd.errors import ConfigError
from feddkd.tensors import Schema, TensorSpec
from feddkd.transport.frames import SERVICE
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import Admission, FederationServer
from feddkd.transport.server_security import ServerSecurity
from feddkd.transport.tls import client_tls, server_tls

SCHEMA = Schema([TensorSpec("w", torch.float32, (3,))])


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, and two certificates of 127.0.0.1 that it signed.

    `other.pem` is a CA that signed nothing.
    """
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("pem")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    request = "req -newkey rsa:2048 -nodes -out request.pem -subj /CN=site -keyout"
    sign = "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out"
    for certificate, key in (("cert.pem", "key.pem"), ("cert-b.pem", "key-b.pem")):
        openssl(*request.split(), key)
        openssl(*sign.split(), certificate)
    return folder


def join_as_site(address: str, pem: Path, suffix: str, instance: str) -> None:
    """Join as "site" with one of the two certificates. Raises grpc.RpcError."""
    tls = client_tls(pem / "ca.pem", pem / f"cert{suffix}.pem", pem / f"key{suffix}.pem")
    assert tls is not None
    request = pb.JoinRequest(
        protocol_version=1,
        client_id="site",
        num_examples=1,
        instance_id=instance,
    )
    with grpc.secure_channel(address, tls.credentials) as channel:
        join: Callable[..., bytes] = channel.unary_unary(f"/{SERVICE}/Join", None, None)
        join(request.SerializeToString(), timeout=60)


def test_an_id_belongs_to_the_certificate_that_joined_with_it(pem: Path) -> None:
    server = FederationServer(pb.Manifest(), FakeInbox(), admission=Admission())
    tls = server_tls(pem / "cert.pem", pem / "key.pem", pem / "ca.pem", any_certificate=True)
    port = server.start("127.0.0.1", 0, ServerSecurity(tls))
    address = f"127.0.0.1:{port}"
    try:
        join_as_site(address, pem, "", "first")
        join_as_site(address, pem, "", "started again without its state directory")
        with pytest.raises(grpc.RpcError) as refused:
            join_as_site(address, pem, "-b", "another site")
        assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
        certificate = ssl.PEM_cert_to_DER_cert((pem / "cert.pem").read_text())
        (session,) = server.sessions()
        assert session.owner.certificate == hashlib.sha256(certificate).digest()
    finally:
        server.stop()


def test_a_key_that_does_not_fit_its_certificate_is_named(pem: Path) -> None:
    with pytest.raises(ConfigError, match=r"key-b\.pem is not the key of"):
        server_tls(pem / "cert.pem", pem / "key-b.pem", None)


@pytest.mark.parametrize("part", ["certificate", "key", "ca"])
def test_a_file_that_is_no_pem_is_named(pem: Path, tmp_path: Path, part: str) -> None:
    (tmp_path / "wrong.pem").write_text("no certificate")
    files = {"certificate": pem / "cert.pem", "key": pem / "key.pem", "ca": pem / "ca.pem"}
    files[part] = tmp_path / "wrong.pem"
    with pytest.raises(ConfigError, match=r"wrong\.pem"):
        server_tls(files["certificate"], files["key"], files["ca"])


def test_an_encrypted_key_is_refused_without_a_question(pem: Path, tmp_path: Path) -> None:
    encrypt = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(pem / "key.pem")]
    encrypted = tmp_path / "encrypted.pem"
    subprocess.run([*encrypt, "-out", str(encrypted)], check=True, capture_output=True)
    with pytest.raises(ConfigError, match=r"encrypted\.pem are not .* without a password"):
        server_tls(pem / "cert.pem", encrypted, None)

"""`feddkd certs`: the CA, what it signs, and what reads it back; and certificates that mean harm."""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from pki import DAMAGES, DAY, NOW, Pki, damaged
from typer.testing import CliRunner

from feddkd.certs.authority import BACKDATED, Authority
from feddkd.certs.certificate import MAX_CERTIFICATE_BYTES, SHOWN_NAMES, Certificate, read_certificates
from feddkd.certs.revocation import Revoked
from feddkd.cli import app
from feddkd.errors import ConfigError, StateError

RUNNER = CliRunner()


def certs(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run `feddkd certs` on a CA. Raises what the command raises."""
    done = RUNNER.invoke(app, ["certs", *arguments, "--ca", str(folder)], env=env, catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_each_command_does_what_it_says(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    certs(ca, "init")
    certs(ca, "issue", "server", "--server", "fed.example.org,10.0.0.1,::1")
    certs(ca, "issue", "north")
    certs(ca, "issue", "pair", "--client", "a", "--client", "b")
    key = (ca / "north.key").read_bytes()
    before = Certificate.read(ca / "north.pem")
    certs(ca, "renew", "north", "--days", "400")
    after = Certificate.read(ca / "north.pem")
    assert (after.names, after.ids) == (before.names, before.ids) == (("north",), frozenset({"north"}))
    assert after.serial != before.serial
    assert after.ends > before.ends
    assert (ca / "north.key").read_bytes() == key
    certs(ca, "revoke", "pair")
    shown = json.loads(certs(ca, "show", "--json"))
    assert [(each["name"], each["kind"], each["names"], each["state"]) for each in shown] == [
        ("north", "client", ["north"], "valid"),
        ("north", "client", ["north"], "valid"),
        ("pair", "client", ["a", "b"], "revoked"),
        ("server", "server", ["fed.example.org", "10.0.0.1", "::1"], "valid"),
    ]
    assert "revoked" in certs(ca, "show")
    assert [each["serial"] for each in shown if each["name"] == "north" and each["newest"]] == [f"{after.serial:x}"]
    assert certs(ca, "show").count("newest") == 1  # where there is one of a name, nothing is said


def test_nothing_is_overwritten_and_no_key_can_be_read_by_others(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    certs(ca, "init")
    certs(ca, "issue", "north")
    before = {file: file.read_bytes() for file in ca.rglob("*") if file.is_file()}
    for arguments in (("init",), ("issue", "north"), ("issue", "other", "--out", str(ca / "north.pem"))):
        with pytest.raises(StateError):
            certs(ca, *arguments)
    (tmp_path / "free.key").touch()
    with pytest.raises(StateError, match=r"free\.key exists, and stays as it is"):
        certs(ca, "issue", "free", "--out", str(tmp_path / "free.pem"))
    assert not (tmp_path / "free.pem").exists()
    assert {file: file.read_bytes() for file in before} == before
    assert {file.stat().st_mode & 0o777 for file in ca.rglob("*.key")} == {0o600}


def test_certificates_have_the_extensions_that_other_programs_ask_for(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    (ca,) = read_certificates(pki.ca)
    for file, usage in ((pki.server(), ExtendedKeyUsageOID.SERVER_AUTH), (pki.client("north"), ExtendedKeyUsageOID.CLIENT_AUTH)):
        (found,) = read_certificates(file)
        extensions = found.extensions
        assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
        assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
        assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == identifier
        assert found.not_valid_before_utc == NOW - BACKDATED
        found.verify_directly_issued_by(ca)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca


def test_openssl_agrees_on_what_is_valid_and_what_is_revoked(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    pki.client("north")
    pki.client("south")
    pki.revoke("south")
    command = ["openssl", "verify", "-crl_check", "-purpose", "sslclient", "-CAfile", "ca.pem", "-CRLfile", "ca.crl"]
    try:
        results = {
            name: subprocess.run([*command, f"{name}.pem"], cwd=tmp_path, capture_output=True, text=True, check=False)
            for name in ("north", "south")
        }
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert results["north"].returncode == 0
    assert "certificate revoked" in results["south"].stderr


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    authority = Authority.init(tmp_path, "short", 10, b"", NOW)
    made = authority.issue("north", hosts=(), ids=["north"], file=tmp_path / "north.pem", days=365, passphrase=b"", now=NOW)
    assert made.not_valid_after_utc == authority.certificate.not_valid_after_utc
    with pytest.raises(ConfigError, match="has expired on"):
        authority.renew("north", tmp_path / "north.pem", 10, b"", NOW + 20 * DAY)


@pytest.mark.parametrize("host", ["*.", "a b", "1.2.3.4.5", "256.1.1.1", "", "a/b", "-a", "ä.example", "x" * 254, "a\n"])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    authority = Authority.init(tmp_path, "ca", 10, b"", NOW)
    with pytest.raises(ConfigError, match="neither a host name nor an address"):
        authority.issue("server", hosts=[host], ids=(), file=tmp_path / "s.pem", days=1, passphrase=b"", now=NOW)
    assert not list(tmp_path.glob("s.*"))


@pytest.mark.parametrize("name", ["../north", "", ".hidden", "a b", "north\n", "x" * 65])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    authority = Authority.init(tmp_path, "ca", 10, b"", NOW)
    with pytest.raises(ConfigError, match="is not 1 to 64 letters"):
        authority.issue(name, hosts=(), ids=["north"], file=tmp_path / "s.pem", days=1, passphrase=b"", now=NOW)


def test_a_key_with_a_passphrase_signs_only_with_it(tmp_path: Path) -> None:
    ca, right = tmp_path / "ca", {"FEDDKD_CA_PASSPHRASE": "right"}
    certs(ca, "init", "--passphrase", env=right)
    assert b"ENCRYPTED" in (ca / "ca.key").read_bytes()
    certs(ca, "issue", "north", env=right)
    for env, problem in (({"FEDDKD_CA_PASSPHRASE": "wrong"}, "passphrase is wrong"), ({"FEDDKD_CA_PASSPHRASE": ""}, "passphrase is empty")):
        with pytest.raises(ConfigError, match=problem):
            certs(ca, "issue", "south", env=env)
    certs(ca, "show", env={})


def test_a_revoked_certificate_is_not_renewed_but_its_name_is_issued_again(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    certs(ca, "init")
    certs(ca, "issue", "north")
    certs(ca, "revoke", "north")
    with pytest.raises(ConfigError, match="is revoked: issue another one"):
        certs(ca, "renew", "north")
    with pytest.raises(ConfigError, match="revoked already"):
        certs(ca, "revoke", "north")
    old = Certificate.read(ca / "north.pem")
    (ca / "north.pem").unlink()
    (ca / "north.key").unlink()
    certs(ca, "issue", "north")
    new = Certificate.read(ca / "north.pem")
    revoked = Revoked.read(ca / "ca.crl", read_certificates(ca / "ca.pem"))
    assert (revoked.has(old.issuer, old.serial), revoked.has(new.issuer, new.serial)) == (True, False)


@pytest.mark.parametrize(
    "arguments",
    [("renew", "nobody"), ("revoke", "nobody"), ("issue", "a", "--server", ","), ("issue", "a", "--server", "b", "--client", "c"),
     ("issue", "a", "--client", "A"), ("issue", "A"), ("issue", "a", "--out", "a.crt"), ("issue", "a", "--out", "nowhere/a.pem")],
)  # fmt: skip
def test_a_wrong_command_makes_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ca = tmp_path / "ca"
    certs(ca, "init")
    before = sorted(ca.rglob("*"))
    with pytest.raises(ConfigError):
        certs(ca, *arguments)
    assert sorted(ca.rglob("*")) == [*before, *([ca / "lock"] if ca / "lock" not in before else [])]


def test_commands_without_a_ca_say_how_to_make_one(tmp_path: Path) -> None:
    for arguments in (("issue", "north"), ("show",), ("renew", "north"), ("revoke", "north")):
        with pytest.raises(ConfigError, match="feddkd certs init --ca"):
            certs(tmp_path, *arguments)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "a\u202eb", "north\x00", "Ä", "north ", "NORTH", "*", "*.north"])
def test_odd_names_match_no_id_and_are_safe_to_print(tmp_path: Path, name: str) -> None:
    found = Certificate.read(Pki(tmp_path).handmade(name, file="odd"))
    assert "north" not in found.ids
    assert found.shown_ids.isprintable()
    assert found.subject.isprintable()


def test_alternative_names_without_an_id_leave_the_common_name_out(tmp_path: Path) -> None:
    found = Certificate.read(Pki(tmp_path).handmade("north", uri="https://north", file="uri"))
    assert found.ids == frozenset()
    assert found.shown_ids == "no client id"


def test_a_certificate_with_ten_thousand_names_is_read_or_refused_and_its_message_is_short(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    many = pki.handmade("many", dns=[f"n{number}" for number in range(4_000)])
    found = Certificate.of_pem(many.read_bytes())
    assert len(found.ids) == 4_000
    assert found.shown_names.endswith(f"and {4_000 - SHOWN_NAMES:,} more")
    too_many = pki.handmade("more", dns=[f"name-{number}" for number in range(10_000)])
    assert len(too_many.read_bytes()) > MAX_CERTIFICATE_BYTES
    with pytest.raises(ValueError, match="at most"):
        Certificate.of_pem(too_many.read_bytes())


@pytest.mark.parametrize("seconds", [-1, 0, 1])
def test_a_certificate_holds_from_its_first_second_to_its_last(seconds: int) -> None:
    found, step = Certificate(NOW, NOW + DAY), datetime.timedelta(seconds=seconds)
    assert bool(found.problem(found.begins + step)) == (seconds < 0)
    assert bool(found.problem(found.ends + step)) == (seconds > 0)


@pytest.mark.parametrize("kind", DAMAGES)
def test_whatever_is_wrong_with_a_file_is_one_kind_of_error(tmp_path: Path, kind: str) -> None:
    pki, file = Pki(tmp_path / "ca"), tmp_path / "file.pem"
    good = pki.client("north").read_bytes()
    pki.revoke("north")
    authorities = read_certificates(pki.ca)
    file.write_bytes(damaged(good, kind))
    assert file.read_bytes() != good
    with contextlib.suppress(ConfigError):
        Certificate.read(file)
    with contextlib.suppress(ValueError):
        Certificate.of_pem(file.read_bytes())
    with contextlib.suppress(ConfigError):
        read_certificates(file)
    with contextlib.suppress(ConfigError):
        Revoked.read(pki.crl, [x509.load_pem_x509_certificate(good), *authorities])
    file.write_bytes(damaged(pki.crl.read_bytes(), kind))
    with contextlib.suppress(ConfigError):
        Revoked.read(file, authorities)


def test_a_ca_with_an_unknown_kind_of_key_beside_the_right_one_changes_nothing(tmp_path: Path) -> None:
    pki, both = Pki(tmp_path / "ca"), tmp_path / "both.pem"
    serial = Certificate.read(pki.client("north")).serial
    pki.revoke("north")
    both.write_bytes(damaged(pki.ca.read_bytes(), "curve") + pki.ca.read_bytes())
    revoked = Revoked.read(pki.crl, read_certificates(both))
    assert revoked.has(pki.authority.certificate.subject.public_bytes(), serial)


@pytest.mark.parametrize("change", ["older", "gone"])
def test_an_older_list_does_not_follow_a_newer_one(tmp_path: Path, change: str) -> None:
    pki, other = Pki(tmp_path / "ca"), Pki(tmp_path / "other", "another CA")
    pki.client("north")
    old = (
        Revoked.read(pki.crl, [pki.authority.certificate]) if change == "older" else Revoked.read(other.crl, [other.authority.certificate])
    )
    pki.revoke("north")
    new = Revoked.read(pki.crl, [pki.authority.certificate])
    new.check_follows(old, [pki.authority.certificate])
    new.check_follows(new, [pki.authority.certificate])
    with pytest.raises(ConfigError, match="of CN=federation CA has number 2, and the one in use 3" if change == "older" else "is gone"):
        old.check_follows(new, [pki.authority.certificate])
    old.check_follows(new, [other.authority.certificate])  # the CA is trusted no more: so may its list go


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_lost_list_of_revoked_certificates_is_an_error_until_it_is_rebuilt(tmp_path: Path, damage: str) -> None:
    ca = tmp_path / "ca"
    certs(ca, "init")
    for name in ("north", "south"):
        certs(ca, "issue", name)
    certs(ca, "revoke", "north")
    before = Revoked.read(ca / "ca.crl", read_certificates(ca / "ca.pem"))
    with pytest.raises(StateError, match="is whole"):
        certs(ca, "rebuild-crl")
    if damage == "lost":
        (ca / "ca.crl").unlink()
    else:
        (ca / "ca.crl").write_bytes(damaged((ca / "ca.crl").read_bytes(), "time"))
    for arguments in (("issue", "west"), ("renew", "north"), ("revoke", "south"), ("show",)):
        with pytest.raises(ConfigError, match="rebuild-crl" if damage == "lost" else "holds no list"):
            certs(ca, *arguments)
    assert not (ca / "west.pem").exists()
    with pytest.raises(ConfigError, match="no certificate for 'nobody'"):
        certs(ca, "rebuild-crl", "nobody")
    certs(ca, "rebuild-crl", "north")
    states = {each["name"]: each["state"] for each in json.loads(certs(ca, "show", "--json"))}
    assert states == {"north": "revoked", "south": "valid"}
    authorities = read_certificates(ca / "ca.pem")
    Revoked.read(ca / "ca.crl", authorities).check_follows(before, authorities)

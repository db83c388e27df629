# SPDX-License-Identifier: Apache-2.0
"""Tokens, certificates, revocation: checked with OpenSSL's own verification and with times that the test sets."""

from __future__ import annotations

import base64
import datetime
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedweave.errors import IdentityError, StoreError, UsageError
from fedweave.net import certificates
from fedweave.net.certificates import SignKey
from fedweave.net.identity import PREFIX, Identity, Ticket, enrol, renew
from fedweave.net.pki import Authority, Peer

HOUR = datetime.timedelta(hours=1)


class Clock:
    def __init__(self) -> None:
        self.now = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.create(tmp_path / "authority", clock=clock)


def requested(client: str) -> bytes:
    return certificates.request(client, certificates.tls_key(), SignKey.generate())


def enrolled(authority: Authority, client: str, **given: float) -> bytes:
    return authority.enrol(requested(client), authority.token(client), **given)


def test_private_files_are_private(tmp_path: Path, authority: Authority, clock: Clock) -> None:
    authority.server_identity(["localhost"])
    enrol(tmp_path / "site" / "ada", authority.token("ada"), authority.enrol, clock())
    modes = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for folder in (tmp_path / "authority", tmp_path / "site" / "ada")
        for path in (folder, *folder.iterdir())
    }
    assert modes.pop("authority/authority.pem") == 0o644
    assert {name for name, mode in modes.items() if mode == 0o700} == {"authority", "site/ada"}
    rest = {name: mode for name, mode in modes.items() if mode != 0o700}
    assert {"authority/authority.key", "authority/server.pem", "authority/registry.sqlite3", "site/ada/identity.pem"} <= set(
        rest
    )
    assert set(rest.values()) == {0o600}


def test_a_private_file_that_others_can_read_is_not_used(tmp_path: Path, authority: Authority, clock: Clock) -> None:
    enrol(tmp_path / "ada", authority.token("ada"), authority.enrol, clock())
    (tmp_path / "ada" / "identity.pem").chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        Identity.load(tmp_path / "ada")
    (tmp_path / "authority" / "authority.key").chmod(0o604)
    with pytest.raises(IdentityError, match="chmod 600"):
        enrolled(authority, "bob")


def test_no_secret_is_in_the_records(tmp_path: Path, authority: Authority) -> None:
    token = authority.token("ada")
    ticket = Ticket.parse(token)
    held = b"".join(path.read_bytes() for path in (tmp_path / "authority").iterdir())
    for secret in (ticket.secret, ticket.secret.hex().encode(), token.encode(), token[len(PREFIX) :].encode()):
        assert secret not in held
    assert repr(ticket.secret) not in repr(ticket)


def test_the_private_keys_stay_where_they_were_made(tmp_path: Path, authority: Authority, clock: Clock) -> None:
    """What leaves a client is a request and a token, and neither has a private key in it."""
    sent = []

    def send(request: bytes, token: str) -> bytes:
        sent.append(request + token.encode())
        return authority.enrol(request, token)

    own = enrol(tmp_path / "ada", authority.token("ada"), send, clock())
    keys = [serialization.load_pem_private_key(own.tls_key, None), own.signing]
    numbers = [keys[0].private_numbers().private_value.to_bytes(32, "big"), keys[1].private_bytes_raw()]
    plain = x509.load_pem_x509_csr(sent[0]).public_bytes(serialization.Encoding.DER)
    for number in numbers:
        assert number not in plain
        assert all(number not in path.read_bytes() for path in (tmp_path / "authority").iterdir())
    assert b"PRIVATE" not in sent[0]
    assert "PRIVATE" not in repr(own)


def test_a_certificate_is_what_an_independent_verifier_accepts(authority: Authority, clock: Clock) -> None:
    """The verifier of `cryptography`, which follows the CA/Browser Forum's rules. (It wants host names even of clients.)"""
    store = verification.Store([authority.certificate])
    builder = verification.PolicyBuilder().store(store).time(clock())
    leaf = certificates.load(enrolled(authority, "ada"))
    leaf.verify_directly_issued_by(authority.certificate)
    _, chain = authority.server_identity(["localhost", "127.0.0.1", "::1"])
    server = certificates.load(chain)
    assert builder.build_server_verifier(x509.DNSName("localhost")).verify(server, [])
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("elsewhere")).verify(server, [])
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("localhost")).verify(leaf, [])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_agrees(tmp_path: Path, authority: Authority) -> None:
    """Each certificate is good for its own use, by OpenSSL, and for no other."""
    (tmp_path / "ada.pem").write_bytes(enrolled(authority, "ada"))
    (tmp_path / "server.pem").write_bytes(authority.server_identity(["localhost"])[1])
    stamp = str(int(authority.clock().timestamp()))
    root = tmp_path / "authority" / "authority.pem"
    for name, purpose, fine in [
        ("ada", "sslclient", True),
        ("ada", "sslserver", False),
        ("server", "sslserver", True),
        ("server", "sslclient", False),
    ]:
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-attime", stamp, "-purpose", purpose, "-CAfile", root, f"{name}.pem"],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert (done.returncode == 0) == fine, (name, purpose, done.stdout + done.stderr)


def test_a_certificate_binds_both_keys_and_nothing_else_of_the_request(authority: Authority) -> None:
    tls, signing = certificates.tls_key(), SignKey.generate()
    leaf = certificates.load(authority.enrol(certificates.request("ada", tls, signing), authority.token("ada")))
    assert leaf.public_key() == tls.public_key()
    assert certificates.signing_key(leaf) == signing.public_key().public_bytes_raw()
    assert certificates.common_name(leaf.subject) == "ada"
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)


# Tokens ------------------------------------------------------------------------------------------------------------------


def test_a_token_is_good_once_and_the_same_request_gets_the_same_answer(authority: Authority) -> None:
    token, request = authority.token("ada"), requested("ada")
    first = authority.enrol(request, token)
    assert authority.enrol(request, token) == first
    with pytest.raises(IdentityError, match="used already"):
        authority.enrol(requested("ada"), token)
    assert len([entry for entry in authority.listing() if entry.state == "enrolled"]) == 1


def test_a_token_is_good_for_its_client_alone_and_a_wrong_try_does_not_use_it_up(authority: Authority) -> None:
    token = authority.token("ada")
    with pytest.raises(IdentityError, match="for ada, not for eve"):
        authority.enrol(requested("eve"), token)
    assert authority.enrol(requested("ada"), token)


def test_a_token_expires(authority: Authority, clock: Clock) -> None:
    token, request = authority.token("ada", ttl_seconds=60), requested("ada")
    clock.now += datetime.timedelta(seconds=59.9)
    other = authority.token("bob", ttl_seconds=60)
    clock.now += datetime.timedelta(seconds=0.1)
    with pytest.raises(IdentityError, match="expired"):
        authority.enrol(request, token)
    assert authority.enrol(requested("bob"), other)


def test_an_answer_that_was_lost_is_given_again_after_the_token_expired(authority: Authority, clock: Clock) -> None:
    token, request = authority.token("ada", ttl_seconds=60), requested("ada")
    first = authority.enrol(request, token)
    clock.now += HOUR
    assert authority.enrol(request, token) == first


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e300])
def test_a_time_that_is_none(authority: Authority, ttl: float) -> None:
    with pytest.raises(UsageError, match="ttl"):
        authority.token("ada", ttl_seconds=ttl)


def test_a_token_of_another_authority(tmp_path: Path, authority: Authority) -> None:
    other = Authority.create(tmp_path / "other")
    with pytest.raises(IdentityError, match="not one of this authority"):
        authority.enrol(requested("ada"), other.token("ada"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_token_is_refused(authority: Authority, data: Any) -> None:
    """Any changed character of the token's secret part, any cut, anything added."""
    token, request = authority.token("ada"), requested("ada")
    place = data.draw(st.integers(0, 1023)) % len(token)
    letter = data.draw(st.characters(codec="utf-8"))
    changed = data.draw(st.sampled_from([token[:place] + letter + token[place + 1 :], token[:place], letter + token]))
    try:
        same = Ticket.parse(changed).secret == Ticket.parse(token).secret
    except IdentityError:
        same = False
    if not same:
        with pytest.raises(IdentityError):
            authority.enrol(request, changed)
        # What is refused used nothing up.
        assert authority.enrol(request, token)


@settings(max_examples=300)
@given(text=st.one_of(st.text(), st.binary().map(lambda raw: PREFIX + raw.hex()), st.text().map(lambda rest: PREFIX + rest)))
def test_what_is_no_token_is_said_to_be_none_without_repeating_it(text: str) -> None:
    with pytest.raises(IdentityError) as caught:
        Ticket.parse(text)
    assert len(text) < 8 or text not in str(caught.value)


# Requests ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_request_is_refused(data: Any) -> None:
    """One byte of the DER changed, wherever it is."""
    request = requested("ada")
    der = bytearray(x509.load_pem_x509_csr(request).public_bytes(serialization.Encoding.DER))
    place = data.draw(st.integers(0, 4095)) % len(der)
    der[place] ^= data.draw(st.integers(1, 255))
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(bytes(der)) + b"-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(IdentityError):
        certificates.read_request(pem)


@settings(max_examples=200)
@given(raw=st.one_of(st.binary(max_size=400), st.just(b"-----BEGIN CERTIFICATE REQUEST-----\n" + b"A" * 10**6)))
def test_bytes_that_are_no_request(raw: bytes) -> None:
    with pytest.raises(IdentityError, match="cannot be read"):
        certificates.read_request(raw)


def test_a_signing_key_of_another_cannot_be_claimed() -> None:
    """A request with the public key of somebody else, whose signature over that other request is taken along."""
    victim, victims_tls, own = SignKey.generate(), certificates.tls_key(), certificates.tls_key()
    held = victim.public_key().public_bytes_raw() + victim.sign(certificates.proof("ada", victims_tls.public_key()))
    forged = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ada")]))
        .add_extension(x509.UnrecognizedExtension(certificates.SIGNING, held), critical=False)
        .sign(own, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    with pytest.raises(IdentityError, match="not signed by the Ed25519 key"):
        certificates.read_request(forged)


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())])
def test_other_kinds_of_keys(key: Any) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ada")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    with pytest.raises(IdentityError, match="P-256"):
        certificates.read_request(request.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize("name", ["../ada", "", "a b", "ada\n", "ä", "a" * 65])
def test_names_that_cannot_be_enrolled(authority: Authority, name: str) -> None:
    with pytest.raises(UsageError, match="is no name"):
        authority.token(name)


# Recognising -------------------------------------------------------------------------------------------------------------


def test_a_peer_is_known_by_its_certificate(authority: Authority) -> None:
    pem = enrolled(authority, "ada")
    peer = authority.peer(pem)
    assert isinstance(peer, Peer)
    assert peer.client == "ada"
    assert peer.key == certificates.signing_key(certificates.load(pem))


def test_revocation_is_seen_by_another_process_that_has_the_authority_open(tmp_path: Path, authority: Authority) -> None:
    pem = enrolled(authority, "ada")
    assert isinstance(authority.peer(pem), Peer)
    code = (
        "import pathlib, sys; from fedweave.net.pki import Authority; Authority.open(pathlib.Path(sys.argv[1])).revoke('ada')"
    )
    subprocess.run([sys.executable, "-c", code, authority.folder], check=True)
    assert authority.peer(pem) == "The certificate of ada was revoked."


def test_a_revoked_client_can_be_invited_again_and_its_old_certificate_stays_revoked(authority: Authority) -> None:
    old, unused = enrolled(authority, "ada"), authority.token("ada")
    assert authority.revoke("ada") == 1
    with pytest.raises(IdentityError, match="revoked"):
        authority.enrol(requested("ada"), unused)
    new = enrolled(authority, "ada")
    assert isinstance(authority.peer(new), Peer)
    assert authority.peer(old) == "The certificate of ada was revoked."
    assert [entry.state for entry in authority.listing() if entry.serial] == ["revoked", "enrolled"]


def test_revoking_ends_all_certificates_of_a_client_and_nobody_elses(authority: Authority) -> None:
    mine, other = [enrolled(authority, "ada") for _ in range(3)], enrolled(authority, "ada2")
    assert authority.revoke("ada") == 3
    assert all(isinstance(authority.peer(pem), str) for pem in mine)
    assert isinstance(authority.peer(other), Peer)
    with pytest.raises(UsageError, match="was revoked before"):
        authority.revoke("ada")
    with pytest.raises(UsageError, match="never had one"):
        authority.revoke("nobody")


def test_a_revoked_request_is_not_answered_again(authority: Authority) -> None:
    token, request = authority.token("ada"), requested("ada")
    authority.enrol(request, token)
    authority.revoke("ada")
    with pytest.raises(IdentityError, match="was revoked"):
        authority.enrol(request, token)


def test_certificates_end_and_begin_by_the_authoritys_clock(authority: Authority, clock: Clock) -> None:
    pem = enrolled(authority, "ada", days=10)
    clock.now += datetime.timedelta(days=10) - datetime.timedelta(seconds=1)
    assert isinstance(authority.peer(pem), Peer)
    clock.now += datetime.timedelta(seconds=1)
    assert "not valid now" in str(authority.peer(pem))
    clock.now -= datetime.timedelta(days=11, seconds=1)
    assert "not valid now" in str(authority.peer(pem))


def test_a_clock_that_is_an_hour_off_refuses_nobody(authority: Authority, clock: Clock) -> None:
    pem = enrolled(authority, "ada")
    for hours in (-1, 2):
        clock.now += hours * HOUR
        assert isinstance(authority.peer(pem), Peer)


def test_a_certificate_of_the_same_key_that_is_in_no_record(tmp_path: Path, authority: Authority, clock: Clock) -> None:
    """Whoever got at the authority's key without its records cannot speak for a client."""
    key = serialization.load_pem_private_key((authority.folder / "authority.key").read_bytes(), None)
    request = certificates.read_request(requested("ada"))
    forged = certificates.client(authority.certificate, key, request, clock(), 10)
    assert authority.peer(certificates.pem(forged)) == "The certificate is not one of this coordinator's authority."


def test_the_coordinators_own_certificate_is_no_clients(authority: Authority) -> None:
    _, chain = authority.server_identity(["localhost"])
    assert isinstance(authority.peer(chain), str)
    assert isinstance(authority.peer(authority.pem), str)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=300))
def test_bytes_that_are_no_certificate(authority: Authority, raw: bytes) -> None:
    assert isinstance(authority.peer(raw), str)


def test_a_certificate_of_a_version_that_is_none(authority: Authority) -> None:
    """Found by fuzzing: the library's error for it is no ValueError."""
    der = bytearray(certificates.load(enrolled(authority, "ada")).public_bytes(serialization.Encoding.DER))
    place = der.index(b"\xa0\x03\x02\x01\x02") + 4
    der[place] = 10
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(der)) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(x509.InvalidVersion):
        x509.load_pem_x509_certificate(pem)
    assert "cannot be read" in str(authority.peer(pem))


# Renewal -----------------------------------------------------------------------------------------------------------------


def test_a_client_renews_and_has_new_keys(tmp_path: Path, authority: Authority, clock: Clock) -> None:
    folder = tmp_path / "ada"
    old = enrol(folder, authority.token("ada"), authority.enrol, clock())
    assert not old.due(clock())
    clock.now += datetime.timedelta(days=61)
    assert old.due(clock())
    peer = authority.peer(old.certificate)
    assert isinstance(peer, Peer)
    new = renew(folder, lambda request: authority.renew(peer, request), clock())
    assert (new.certificate, new.tls_key) == (Identity.load(folder).certificate, Identity.load(folder).tls_key)
    assert not new.due(clock())
    found = authority.peer(new.certificate)
    assert isinstance(found, Peer)
    assert found.client == "ada"
    assert found.key != peer.key
    assert old.tls_key != new.tls_key
    assert authority.revoke("ada") == 2
    with pytest.raises(IdentityError, match="no longer good"):
        authority.renew(found, requested("ada"))


def test_nobody_renews_for_another(authority: Authority) -> None:
    peer = authority.peer(enrolled(authority, "ada"))
    assert isinstance(peer, Peer)
    with pytest.raises(IdentityError, match="cannot renew"):
        authority.renew(peer, requested("bob"))


def test_a_renewal_whose_answer_was_lost_is_answered_again(authority: Authority) -> None:
    peer, request = authority.peer(enrolled(authority, "ada")), requested("ada")
    assert isinstance(peer, Peer)
    assert authority.renew(peer, request) == authority.renew(peer, request)


def test_the_coordinators_certificate_is_kept_until_a_third_of_its_life_is_left(authority: Authority, clock: Clock) -> None:
    first = authority.server_identity(["b.example", "127.0.0.1"])
    assert authority.server_identity(["127.0.0.1", "b.example", "b.example"]) == first
    assert authority.server_identity(["c.example"]) != first
    second = authority.server_identity(["c.example"])
    clock.now += datetime.timedelta(days=59)
    assert authority.server_identity(["c.example"]) == second
    clock.now += datetime.timedelta(days=2)
    assert authority.server_identity(["c.example"]) != second


@pytest.mark.parametrize("host", ["", "*.example", "a:1", "a/b", "ä.example"])
def test_hosts_that_are_none(authority: Authority, host: str) -> None:
    with pytest.raises(UsageError, match="host name"):
        authority.server_identity([host])
    with pytest.raises(UsageError, match="hosts"):
        authority.server_identity([])


# Crashes and damage ------------------------------------------------------------------------------------------------------


def test_an_enrolment_whose_answer_was_lost_goes_on_with_the_same_keys(
    tmp_path: Path, authority: Authority, clock: Clock
) -> None:
    folder, token = tmp_path / "ada", authority.token("ada")

    def lost(request: bytes, token: str) -> bytes:
        authority.enrol(request, token)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        enrol(folder, token, lost, clock())
    with pytest.raises(IdentityError, match="no identity"):
        Identity.load(folder)
    own = enrol(folder, token, authority.enrol, clock())
    assert isinstance(authority.peer(own.certificate), Peer)
    assert sorted(path.name for path in folder.iterdir()) == ["identity.pem"]


def test_an_answer_for_other_keys_or_of_another_authority_is_not_taken(
    tmp_path: Path, authority: Authority, clock: Clock
) -> None:
    other = Authority.create(tmp_path / "other", clock=clock)
    for send in (
        lambda request, token: enrolled(authority, "ada"),
        lambda request, token: other.enrol(request, other.token("ada")),
        lambda request, token: authority.enrol(request, token, days=0.0),
        lambda request, token: authority.pem,
    ):
        with pytest.raises(IdentityError):
            enrol(tmp_path / "ada", authority.token("ada"), send, clock())
    assert not (tmp_path / "ada" / "identity.pem").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_identity(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.pem").write_bytes(content)
    (tmp_path / "identity.pem").chmod(0o600)
    with pytest.raises(IdentityError, match="damaged"):
        Identity.load(tmp_path)


def test_an_authority_without_its_key_enrols_nobody_and_still_knows_everybody(authority: Authority) -> None:
    pem, token = enrolled(authority, "ada"), authority.token("bob")
    chain = authority.server_identity(["localhost"])
    (authority.folder / "authority.key").unlink()
    with pytest.raises(IdentityError, match="is not here"):
        authority.enrol(requested("bob"), token)
    assert isinstance(authority.peer(pem), Peer)
    assert authority.server_identity(["localhost"]) == chain


def test_a_folder_holds_one_authority(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(StoreError, match="already holds"):
        Authority.create(authority.folder)
    with pytest.raises(StoreError, match="pki init"):
        Authority.open(tmp_path / "nothing")
    (authority.folder / "registry.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        Authority.open(authority.folder)


def test_a_creation_that_was_cut_off_is_begun_again(authority: Authority) -> None:
    (authority.folder / "authority.pem").unlink()
    again = Authority.create(authority.folder)
    assert isinstance(again.peer(enrolled(again, "ada")), Peer)

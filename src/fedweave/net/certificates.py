# SPDX-License-Identifier: Apache-2.0
"""X.509 of fedweave's own authority: certificates that are issued, and requests and certificates that are read.

A client has two keys. TLS uses ECDSA on P-256, because gRPC's BoringSSL does not offer Ed25519 for certificates (RFC 8446
allows it). Requests are signed with Ed25519. One certificate binds both: the P-256 key is its subject's, and the Ed25519 key
lies in an extension. A request for a certificate proves that its sender has both.

An authority signs nothing but leaves for two uses, and each names its use: a client's certificate serves no server.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedweave.errors import IdentityError, UsageError
from fedweave.net.identifiers import named, shown

SIGNING = x509.ObjectIdentifier("2.25.205734089115262171843916450301245218573")
"""Extension that holds the Ed25519 key, 32 bytes; in a request, followed by its signature of ``proof``, 64 bytes. Below the
arc of UUIDs (ITU-T X.667), which needs no registration."""

SKEW = datetime.timedelta(days=1)
"""How long before they are made certificates are valid: a clock that is behind by less does not refuse a new one."""

MOST = 16_384
"""Bytes of a certificate or request that is read at all."""

TlsKey = ec.EllipticCurvePrivateKey
SignKey = ed25519.Ed25519PrivateKey


def wall() -> datetime.datetime:
    """Now, by the wall clock."""
    return datetime.datetime.fromtimestamp(time.time(), datetime.UTC)


def tls_key() -> TlsKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: TlsKey | SignKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    """Hex SHA-256 of the certificate as it is on the wire."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def load(text: bytes) -> x509.Certificate:
    """A certificate from PEM.

    Raises:
        IdentityError: it is none.
    """
    try:
        if len(text) > MOST:
            raise ValueError
        return x509.load_pem_x509_certificate(text)
    except Exception:  # the library has many errors for bytes that are no certificate, and no common one
        raise IdentityError("The certificate cannot be read: it is no X.509 certificate in PEM.") from None


def common_name(name: x509.Name) -> str:
    """The one thing that a subject of ours says.

    Raises:
        IdentityError: it says more, or something else.
    """
    parts = list(name)
    if len(parts) != 1 or parts[0].oid != NameOID.COMMON_NAME or not isinstance(parts[0].value, str):
        raise IdentityError("The subject of the certificate or request is not one common name.")
    return parts[0].value


def signing_key(certificate: x509.Certificate) -> bytes:
    """The Ed25519 public key, 32 bytes, that a client's certificate binds.

    Raises:
        IdentityError: it binds none.
    """
    value = _extension(certificate.extensions)
    if value is None or len(value) != 32:
        raise IdentityError("The certificate binds no signing key; enrol again.")
    return value


def hosts(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that a coordinator's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return sorted(str(name.value) for name in names)


def spelled(hosts: Sequence[str]) -> list[str]:
    """Names and addresses as ``hosts`` gives them back, each once.

    Raises:
        UsageError: one is no name or address.
    """
    return sorted({str(_host(host).value) for host in hosts})


def _extension(extensions: x509.Extensions) -> bytes | None:
    try:
        found = extensions.get_extension_for_oid(SIGNING).value
    except x509.ExtensionNotFound:
        return None
    return found.value if isinstance(found, x509.UnrecognizedExtension) else None


# Issuing -----------------------------------------------------------------------------------------------------------------


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def root(key: TlsKey, name: str, now: datetime.datetime, days: float) -> x509.Certificate:
    """An authority's own certificate, which may sign leaves and nothing else."""
    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    return (
        _begun(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def client(issuer: x509.Certificate, key: TlsKey, request: Request, now: datetime.datetime, days: float) -> x509.Certificate:
    """A client's certificate: nothing of the request gets into it but its name and keys."""
    builder = _leaf(issuer, request.client, request.tls, now, days, ExtendedKeyUsageOID.CLIENT_AUTH)
    return builder.add_extension(x509.UnrecognizedExtension(SIGNING, request.signing), critical=False).sign(
        key, hashes.SHA256()
    )


def server(
    issuer: x509.Certificate, key: TlsKey, own: TlsKey, hosts: Sequence[str], now: datetime.datetime, days: float
) -> x509.Certificate:
    """A coordinator's certificate, for the names and addresses by which clients reach it."""
    names = [_host(host) for host in hosts]
    builder = _leaf(issuer, "coordinator", own.public_key(), now, days, ExtendedKeyUsageOID.SERVER_AUTH)
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if "*" in host or not host or ":" in host or "/" in host:
        raise UsageError(f"The host name {shown(host)} cannot be in a certificate; give names or IP addresses, without a port.")
    try:
        return x509.DNSName(host)
    except ValueError:
        raise UsageError(f"The host name {shown(host)} is not ASCII; write it in its xn-- form.") from None


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
    "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _begun(
    subject: str, issuer: str, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _leaf(
    issuer: x509.Certificate,
    subject: str,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: float,
    use: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _begun(subject, common_name(issuer.subject), key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**(dict.fromkeys(_USAGES, False) | {"digital_signature": True})), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )


# Requests ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A request that proved that its sender has both keys; ``signing`` is 32 bytes, ``digest`` is over name and keys."""

    client: str
    tls: ec.EllipticCurvePublicKey
    signing: bytes
    digest: str


def proof(client: str, tls: ec.EllipticCurvePublicKey) -> bytes:
    """What the Ed25519 key signs, so that nobody gets a certificate with a signing key of another's."""
    spki = tls.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return b"fedweave enrolment v1\0" + client.encode() + b"\0" + spki


def request(client: str, tls: TlsKey, signing: SignKey) -> bytes:
    """What a client sends to be enrolled, in PEM: its name and its public keys, signed with both."""
    public = signing.public_key().public_bytes_raw()
    held = x509.UnrecognizedExtension(SIGNING, public + signing.sign(proof(client, tls.public_key())))
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(named("client", client)))
    made = builder.add_extension(held, critical=False).sign(tls, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def read_request(text: bytes) -> Request:
    """What a request of anybody's says, once it has proved it.

    Raises:
        IdentityError: it is none, or it proves nothing.
    """
    try:
        if len(text) > MOST:
            raise ValueError
        csr = x509.load_pem_x509_csr(text)
        tls, value = csr.public_key(), _extension(csr.extensions)
        sound, subject = csr.is_signature_valid, csr.subject
    except Exception:
        raise IdentityError("The request for a certificate cannot be read: it is no PKCS #10 request in PEM.") from None
    name = common_name(subject)
    if not sound or not isinstance(tls, ec.EllipticCurvePublicKey) or not isinstance(tls.curve, ec.SECP256R1):
        raise IdentityError("The request for a certificate is not signed by the P-256 key that it names.")
    if value is None or len(value) != 96:
        raise IdentityError("The request for a certificate names no Ed25519 signing key.")
    try:
        named("client", name)
        ed25519.Ed25519PublicKey.from_public_bytes(value[:32]).verify(value[32:], proof(name, tls))
    except UsageError as error:
        raise IdentityError(str(error)) from None
    except InvalidSignature:
        raise IdentityError("The request for a certificate is not signed by the Ed25519 key that it names.") from None
    # ECDSA draws a number: two requests of the same keys have different bytes, and are the same request all the same.
    return Request(name, tls, value[:32], hashlib.sha256(value[:32] + proof(name, tls)).hexdigest())

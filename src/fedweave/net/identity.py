# SPDX-License-Identifier: Apache-2.0
"""A client's side of its identity: the token it was given, and the folder with its keys, which never leave it.

    identity.pem    both private keys, the certificate that binds them, and the authority's certificate; mode 0600
    pending.pem     keys of an enrolment that has not been answered yet; mode 0600

One file is replaced in one step: whatever the moment of a crash, keys and certificate belong together. An enrolment that was
not answered is repeated with the keys that it began with, and so gets the answer that was lost.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedweave.errors import IdentityError, StoreError
from fedweave.net import certificates
from fedweave.net.certificates import SignKey, TlsKey
from fedweave.net.identifiers import named
from fedweave.store.blobs import write_durably

PREFIX = "fedweave-token_"
PRIVATE = 0o600
_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----\n?", re.DOTALL)


@dataclass(frozen=True)
class Ticket:
    """An enrolment token: who it is for, the secret that is good once, and whom to trust.

    Because the authority's certificate (DER) is in it, a client knows from the first connection whom it talks to.
    """

    client: str
    secret: bytes = field(repr=False)
    authority: bytes = field(repr=False)

    def spell(self) -> str:
        """As one word of base64url, which ``parse`` reads."""
        plain = [self.client, base64.b64encode(self.secret).decode(), base64.b64encode(self.authority).decode()]
        packed = json.dumps(plain, separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """Raises IdentityError, which does not repeat the text, if it is no token."""
        words = text.strip()
        try:
            if not words.startswith(PREFIX) or len(words) > 8192:
                raise ValueError
            packed = words[len(PREFIX) :].encode("ascii")
            client, secret, authority = json.loads(base64.b64decode(packed + b"=" * (-len(packed) % 4), b"-_", validate=True))
            ticket = cls(named("client", client), *(base64.b64decode(part, validate=True) for part in (secret, authority)))
            if len(ticket.secret) != 32:
                raise ValueError
            ticket.root()
        except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error):
            raise IdentityError("The enrolment token is not one: copy it whole, from `fedweave pki token`.") from None
        return ticket

    def root(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.authority)


Send = Callable[[bytes, str], bytes]
"""Carries a request (PEM) and a token to the authority and brings the certificate (PEM) back."""


class _Bundle(NamedTuple):
    """What a client's file holds, read; ``certificates`` are its own and the authority's, once it has them."""

    tls: TlsKey
    signing: SignKey
    certificates: list[x509.Certificate]


@dataclass(frozen=True)
class Identity:
    """A client that was enrolled.

    Args:
        client: its name.
        signing: the key that signs its requests.
        tls_key, certificate, authority: PEM, as gRPC wants them.
        expires: when the certificate does; wall time.
    """

    client: str
    signing: SignKey = field(repr=False)
    tls_key: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    authority: bytes = field(repr=False)
    began: datetime.datetime
    expires: datetime.datetime

    def due(self, now: datetime.datetime) -> bool:
        """Whether it is time to renew: a third of the certificate's life is left."""
        return now >= self.expires - (self.expires - self.began) / 3

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """The identity in a client's folder.

        Raises:
            IdentityError: there is none, it is damaged, or others than its owner can read it.
        """
        path = folder / "identity.pem"
        if not path.exists():
            raise IdentityError(f"There is no identity in {folder}. Enrol with `fedweave pki enrol`.")
        bundle = _read(path)
        if len(bundle.certificates) != 2:
            raise _damaged(path)
        return _whole(bundle)


def enrol(folder: Path, token: str, send: Send, now: datetime.datetime | None = None) -> Identity:
    """Make keys in a folder, have them certified and keep them; in a folder with an identity, replace it.

    Raises:
        IdentityError: the token is none, the authority refused, or it answered with a certificate that is not for these keys.
    """
    ticket = Ticket.parse(token)
    _private_folder(folder)
    tls, signing = _pending(folder)
    answer = send(certificates.request(ticket.client, tls, signing), token.strip())
    return _settle(folder, _Bundle(tls, signing, [certificates.load(answer), ticket.root()]), ticket.client, now)


def renew(folder: Path, send: Callable[[bytes], bytes], now: datetime.datetime | None = None) -> Identity:
    """Replace keys and certificate of an enrolled client; ``send`` carries the request over a connection that it made."""
    old = Identity.load(folder)
    tls, signing = _pending(folder)
    answer = send(certificates.request(old.client, tls, signing))
    root = certificates.load(old.authority)
    return _settle(folder, _Bundle(tls, signing, [certificates.load(answer), root]), old.client, now)


def _private_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder {folder} cannot be made: {error.strerror}. Choose another one.") from None


def _pending(folder: Path) -> tuple[TlsKey, SignKey]:
    """The keys of the enrolment in progress, made and kept if there is none."""
    path = folder / "pending.pem"
    if path.exists():
        bundle = _read(path)
        return bundle.tls, bundle.signing
    tls, signing = certificates.tls_key(), SignKey.generate()
    write_durably(path, certificates.key_pem(tls) + certificates.key_pem(signing), PRIVATE)
    return tls, signing


def _settle(folder: Path, bundle: _Bundle, client: str, now: datetime.datetime | None) -> Identity:
    own, root = bundle.certificates
    now = now or certificates.wall()
    try:
        own.verify_directly_issued_by(root)
        fine = (
            own.public_key() == bundle.tls.public_key()
            and certificates.signing_key(own) == bundle.signing.public_key().public_bytes_raw()
            and certificates.common_name(own.subject) == client
            and own.not_valid_before_utc <= now < own.not_valid_after_utc
        )
    except Exception:  # whatever is wrong with what came back, it is not what was asked for
        fine = False
    if not fine:
        raise IdentityError(
            "The certificate that came back is not for this client, these keys and this time, or not of the token's authority."
        )
    keys = certificates.key_pem(bundle.tls) + certificates.key_pem(bundle.signing)
    write_durably(folder / "identity.pem", keys + certificates.pem(own) + certificates.pem(root), PRIVATE)
    (folder / "pending.pem").unlink(missing_ok=True)
    return _whole(bundle)


def _whole(bundle: _Bundle) -> Identity:
    own, root = bundle.certificates
    name = certificates.common_name(own.subject)
    pems = certificates.key_pem(bundle.tls), certificates.pem(own), certificates.pem(root)
    return Identity(name, bundle.signing, *pems, own.not_valid_before_utc, own.not_valid_after_utc)


def private(path: Path) -> bytes:
    """The content of a file that only its owner may read.

    Raises:
        IdentityError: others may, or it cannot be read.
    """
    try:
        mode = path.stat().st_mode & 0o777
        content = path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror}.") from None
    if mode & 0o077:
        raise IdentityError(f"{path} holds a private key, and its mode {mode:04o} lets others have it: run chmod 600 {path}.")
    return content


def _read(path: Path) -> _Bundle:
    content = private(path)
    keys, found = [], []
    try:
        for block in _BLOCK.finditer(content):
            if block[1] == b"CERTIFICATE":
                found.append(x509.load_pem_x509_certificate(block[0]))
            else:
                keys.append(serialization.load_pem_private_key(block[0], None))
    except (ValueError, TypeError):
        raise _damaged(path) from None
    if len(keys) != 2 or not isinstance(keys[0], ec.EllipticCurvePrivateKey):
        raise _damaged(path)
    if not isinstance(keys[1], ed25519.Ed25519PrivateKey):
        raise _damaged(path)
    return _Bundle(keys[0], keys[1], found)


def _damaged(path: Path) -> IdentityError:
    return IdentityError(f"{path} is damaged. Remove it and enrol again with a new token.")

# SPDX-License-Identifier: Apache-2.0
"""The authority that says who is who: a folder with a key of its own, from which coordinator and clients get certificates.

    authority.pem        its certificate, which everybody may have
    authority.key        its private key; mode 0600. Without it nobody can be enrolled, but those who are stay so
    server.pem           the coordinator's key and certificates; mode 0600
    registry.sqlite3     tokens and certificates, and which are revoked; mode 0600

Certificates and tokens live by the wall clock, because they outlive processes and are read on other machines; nothing else in
``net`` does. They are valid from a day before they are made, so that a client whose clock is behind can use them at once.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedweave.errors import IdentityError, StoreError, UsageError
from fedweave.net import certificates
from fedweave.net.certificates import Request, TlsKey, wall
from fedweave.net.identifiers import named
from fedweave.net.identity import PRIVATE, Ticket, private
from fedweave.net.registry import Issued, Registry, Token
from fedweave.store.blobs import write_durably

DAYS = 90.0
"""How long a client's and a coordinator's certificate is valid, in days."""

Clock = Callable[[], datetime.datetime]


@dataclass(frozen=True)
class Peer:
    """Who sent a request: its name, its Ed25519 public key (32 bytes), and which of its certificates it showed."""

    client: str
    key: bytes
    certificate: str


@dataclass(frozen=True)
class Entry:
    """A line of ``Authority.listing``: ``state`` is invited, enrolled, expired, revoked or void."""

    client: str
    state: str
    serial: str
    made: datetime.datetime
    until: datetime.datetime


@dataclass(frozen=True)
class Authority:
    """The authority in a folder; see ``create`` and ``open``. Safe for many threads and processes at once."""

    folder: Path
    certificate: x509.Certificate
    registry: Registry = field(repr=False)
    clock: Clock = field(default=wall, repr=False)

    @classmethod
    def create(cls, folder: Path, *, days: float = 3650, clock: Clock = wall) -> Authority:
        """A new authority.

        Raises:
            StoreError: the folder holds one already, or cannot be written.
        """
        if (folder / "authority.pem").exists():
            raise StoreError(f"{folder} already holds an authority. Use it, or choose another folder.")
        try:
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The folder {folder} cannot be made: {error.strerror}. Choose another one.") from None
        key = certificates.tls_key()
        made = certificates.root(key, f"fedweave authority {secrets.token_hex(4)}", clock(), days)
        write_durably(folder / "authority.key", certificates.key_pem(key), PRIVATE)
        Registry.create(folder / "registry.sqlite3").close()
        # Last, because this file makes the folder an authority's.
        write_durably(folder / "authority.pem", certificates.pem(made), 0o644)
        return cls.open(folder, clock=clock)

    @classmethod
    def open(cls, folder: Path, *, clock: Clock = wall) -> Authority:
        """The authority that is there.

        Raises:
            StoreError: there is none.
        """
        try:
            content = (folder / "authority.pem").read_bytes()
        except OSError:
            raise StoreError(
                f"{folder} holds no authority: there is no authority.pem. Make one with `fedweave pki init`."
            ) from None
        return cls(folder, certificates.load(content), Registry(folder / "registry.sqlite3"), clock)

    def close(self) -> None:
        self.registry.close()

    @property
    def pem(self) -> bytes:
        """Its certificate, which clients trust."""
        return certificates.pem(self.certificate)

    # Admitting -----------------------------------------------------------------------------------------------------------

    def token(self, client: str, ttl_seconds: float = 3600.0) -> str:
        """A token with which a client of this name can enrol, once, within so many seconds.

        Raises:
            UsageError: the name is none, or the time is not above 0.
        """
        named("client", client)
        if not 0 < ttl_seconds <= 366 * 86_400:
            raise UsageError(f"ttl is {ttl_seconds} s; it must be above 0 and at most a year.")
        ticket = Ticket(client, secrets.token_bytes(32), self.certificate.public_bytes(serialization.Encoding.DER))
        now = self.clock().timestamp()
        with self.registry.change():
            self.registry.add_token(Token(_hashed(ticket.secret), client, now, now + ttl_seconds))
        return ticket.spell()

    def enrol(self, csr_pem: bytes, token: str, days: float = DAYS) -> bytes:
        """The certificate (PEM) for a request, if the token is good for it. The same request gets the same answer again.

        Raises:
            IdentityError: it is not, and why.
        """
        request, ticket = certificates.read_request(csr_pem), Ticket.parse(token)
        key, now = self._key(), self.clock()
        with self.registry.change():
            known = self.registry.token(_hashed(ticket.secret))
            if known is None:
                raise IdentityError("The enrolment token is not one of this authority.")
            if known.void:
                raise IdentityError(f"The enrolment token was revoked. Ask for a new one for {known.client}.")
            if known.client != request.client:
                raise IdentityError(f"The enrolment token is for {known.client}, not for {request.client}.")
            if known.certificate is not None:
                return self._again(known, request)
            if now.timestamp() >= known.expires:
                raise IdentityError(f"The enrolment token has expired. Ask for a new one for {known.client}.")
            issued = self._issue(key, request, now, days)
            self.registry.use_token(known.hash, request.digest, issued.fingerprint)
        return issued.pem.encode()

    def _again(self, known: Token, request: Request) -> bytes:
        issued = self.registry.certificate(known.certificate or "")
        if known.request != request.digest or issued is None:
            raise IdentityError(f"The enrolment token was used already. Ask for a new one for {known.client}.")
        if issued.revoked is not None:
            raise IdentityError(f"{known.client} was revoked.")
        return issued.pem.encode()

    def renew(self, peer: Peer, csr_pem: bytes, days: float = DAYS) -> bytes:
        """A new certificate (PEM) for a client that shows a good one; the old one stays good until it expires.

        Raises:
            IdentityError: the request is for another client, or is none.
        """
        request, key, now = certificates.read_request(csr_pem), self._key(), self.clock()
        if request.client != peer.client:
            raise IdentityError(f"{peer.client} cannot renew the certificate of {request.client}.")
        with self.registry.change():
            shown = self.registry.certificate(peer.certificate)
            if shown is None or shown.revoked is not None or now.timestamp() >= shown.expires:
                raise IdentityError(f"The certificate that {peer.client} showed is no longer good; enrol again.")
            for old in self.registry.certificates(peer.client):
                if old.revoked is None and certificates.load(old.pem.encode()).public_key() == request.tls:
                    return old.pem.encode()
            return self._issue(key, request, now, days).pem.encode()

    def _issue(self, key: TlsKey, request: Request, now: datetime.datetime, days: float) -> Issued:
        made = certificates.client(self.certificate, key, request, now, days)
        stamp, until = now.timestamp(), made.not_valid_after_utc.timestamp()
        name, serial = certificates.fingerprint(made), f"{made.serial_number:x}"
        issued = Issued(name, serial, request.client, stamp, until, None, certificates.pem(made).decode())
        self.registry.add(issued)
        return issued

    def revoke(self, client: str) -> int:
        """End all certificates and unused tokens of a client, at once; returns how many certificates. It can be invited again.

        Raises:
            UsageError: there is nothing to revoke.
        """
        ended, tokens = self.registry.revoke(client, self.clock().timestamp())
        if not ended and not tokens:
            known = "was revoked before" if self.registry.certificates(client) else "never had one"
            raise UsageError(f"{client!a} has no certificate or token to revoke: it {known}. See `fedweave pki list`.")
        return ended

    def listing(self) -> list[Entry]:
        """Everybody who was invited or enrolled, in the order in which they were."""
        now = self.clock().timestamp()
        entries = []
        for token in self.registry.tokens():
            state = "void" if token.void else "expired" if now >= token.expires else "invited"
            entries.append(Entry(token.client, state, "", _moment(token.made), _moment(token.expires)))
        for one in self.registry.certificates():
            state = "revoked" if one.revoked is not None else "expired" if now >= one.expires else "enrolled"
            until = one.expires if one.revoked is None else one.revoked
            entries.append(Entry(one.client, state, one.serial, _moment(one.made), _moment(until)))
        return sorted(entries, key=lambda entry: entry.made)

    # Recognising ---------------------------------------------------------------------------------------------------------

    def peer(self, certificate_pem: bytes) -> Peer | str:
        """Who shows this certificate; or why it is not good now: the authority's records are looked at anew each time.

        That the certificate's holder has its key is TLS's to prove.
        """
        try:
            client, key, fingerprint, begins, ends = _facts(certificate_pem)
        except IdentityError as error:
            return str(error)
        issued = self.registry.certificate(fingerprint)
        if issued is None:
            return "The certificate is not one of this coordinator's authority."
        if issued.revoked is not None:
            return f"The certificate of {client} was revoked."
        if not begins <= self.clock() < ends:
            return f"The certificate of {client} is not valid now: it is from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}."
        return Peer(client, key, fingerprint)

    # The coordinator -----------------------------------------------------------------------------------------------------

    def server_identity(self, hosts: Sequence[str], days: float = DAYS) -> tuple[bytes, bytes]:
        """The coordinator's private key and its certificates, its own first, in PEM; made anew when the hosts changed, or a
        third of the certificate's life is left.

        Raises:
            UsageError: a host is no name or address.
        """
        if not hosts:
            raise UsageError("hosts is empty; give the names or addresses by which clients reach the coordinator.")
        wanted, path = certificates.spelled(hosts), self.folder / "server.pem"
        if path.exists():
            content = private(path)
            key, mark, chain = content.partition(b"-----BEGIN CERTIFICATE-----")
            own = certificates.load(mark + chain)
            left = own.not_valid_after_utc - self.clock()
            if certificates.hosts(own) == wanted and left > (own.not_valid_after_utc - own.not_valid_before_utc) / 3:
                return key, mark + chain
        fresh = certificates.tls_key()
        made = certificates.server(self.certificate, self._key(), fresh, wanted, self.clock(), days)
        key, chain = certificates.key_pem(fresh), certificates.pem(made) + self.pem
        write_durably(path, key + chain, PRIVATE)
        return key, chain

    def _key(self) -> TlsKey:
        path = self.folder / "authority.key"
        if not path.exists():
            raise IdentityError(f"{path} is not here, so no certificate can be issued.")
        try:
            key = serialization.load_pem_private_key(private(path), None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self.certificate.public_key():
            raise IdentityError(f"{path} is damaged, or not the key of authority.pem.")
        return key


def _hashed(secret: bytes) -> str:
    # 256 random bits cannot be guessed, so that a slow hash would protect nothing.
    return hashlib.sha256(b"fedweave token\0" + secret).hexdigest()


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


@lru_cache(maxsize=4096)
def _facts(certificate_pem: bytes) -> tuple[str, bytes, str, datetime.datetime, datetime.datetime]:
    """What never changes about a certificate: name, signing key, fingerprint, from when to when it is valid."""
    found = certificates.load(certificate_pem)
    try:
        name, key = certificates.common_name(found.subject), certificates.signing_key(found)
        times = found.not_valid_before_utc, found.not_valid_after_utc
    except IdentityError:
        raise
    except Exception:  # parts of a certificate are parsed when they are looked at
        raise IdentityError("The certificate is malformed.") from None
    return name, key, certificates.fingerprint(found), *times

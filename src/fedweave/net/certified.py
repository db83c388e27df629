# SPDX-License-Identifier: Apache-2.0
"""The protocol over channels whose ends are known: the coordinator's gate, and the client's line with its seal on it."""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fedweave.errors import IdentityError, StoreError
from fedweave.net import signing, tls
from fedweave.net.certificates import wall
from fedweave.net.client import OPTIONS
from fedweave.net.gate import Refused
from fedweave.net.identity import Identity, Ticket, renew
from fedweave.net.pki import Authority
from fedweave.wire import fedweave_pb2 as pb
from fedweave.wire.methods import METHODS, path

FLOOR = "fedweave-nonce-floor"
"""Trailing metadata of a refusal: a nonce above it would be taken."""
ENROLLING = 30.0
"""Seconds until an enrolment is given up."""
AGAIN = (0.3, 1.0)
"""Seconds before an enrolment that found nobody is tried again: a coordinator may be about to listen."""
LOOK = 3600.0
"""Seconds between two looks at whether a client's certificate is to be renewed."""


def body(request: Any) -> bytes:
    """SHA-256 of a request without its signature."""
    plain = type(request)()
    plain.CopyFrom(request)
    plain.ClearField("signature")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).digest()


@dataclass(frozen=True)
class Certified:
    """The gate of a coordinator whose clients have certificates.

    Args:
        authority: says who they are.
        hosts: names and addresses by which clients reach the coordinator.
        enrolling: host and port for those who have no certificate yet; None: nobody enrols over the network.
    """

    authority: Authority
    hosts: Sequence[str]
    enrolling: str | None = None
    nonces: signing.Nonces = field(init=False, repr=False)

    def __post_init__(self) -> None:
        records = self.authority.registry
        object.__setattr__(self, "nonces", signing.Nonces(records.keep_ceiling, records.ceilings()))

    def name(self, context: Any) -> str:
        found = tls.peer(context, self.authority)
        if isinstance(found, str):
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, found)
        tls.PEER.set(found)
        return found.client

    def signed(self, method: str, request: Any, name: str) -> None:
        peer, seal = tls.PEER.get(), request.signature
        refusal = signing.fault(
            peer.key, self.nonces, peer.certificate, seal.signature, method=method, body_sha256=body(request),
            run=request.run, round=getattr(request, "round", 0), nonce=seal.nonce,
        )  # fmt: skip
        if refusal is None:
            return
        if refusal.floor is None:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"The request is refused: {refusal.reason}.")
        # To be signed again, above the floor.
        raise Refused(grpc.StatusCode.ABORTED, f"The request is refused: {refusal.reason}.", ((FLOOR, str(refusal.floor)),))

    def enrol(self, request: Any) -> Any:
        """With a token, on the port for those without a certificate; without one, on the other: a renewal."""
        peer = tls.PEER.get(None)
        try:
            if request.token or peer is None:
                made = self.authority.enrol(request.csr.encode(), request.token)
            else:
                made = self.authority.renew(peer, request.csr.encode())
        except IdentityError as error:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, str(error)) from None
        return pb.EnrolReply(certificate=made.decode(), authority=self.authority.pem.decode())

    def credentials(self) -> Any:
        return tls.server_credentials(self.authority, self.hosts)

    def interceptors(self) -> Sequence[Any]:
        return (tls.Guard(self.authority),)

    def enrolment(self) -> tuple[str, Any] | None:
        if self.enrolling is None:
            return None
        return self.enrolling, tls.enrolment_credentials(self.authority, self.hosts)


class Seal:
    """Puts a client's signature into its requests."""

    def __init__(self, identity: Identity, clock: Callable[[], int] | None = None) -> None:
        self._signer = signing.Signer(identity.signing, **({} if clock is None else {"clock": clock}))

    def __call__(self, method: str, request: Any) -> None:
        """Sign a request that has a signature, anew each time that it is sent."""
        if "signature" not in request.DESCRIPTOR.fields_by_name:
            return
        nonce = self._signer.nonce()
        signature = self._signer.sign(method, body(request), request.run, getattr(request, "round", 0), nonce)
        request.signature.CopyFrom(pb.Signature(nonce=nonce, signature=signature))

    def refused(self, error: Any) -> None:
        """Go on above the floor that a refusal names."""
        for key, value in error.trailing_metadata() or ():
            if key == FLOOR and value.isdecimal() and len(value) < 20:
                self._signer.catch_up(int(value))


def channel(identity: Identity, server: str) -> grpc.Channel:
    """To the coordinator, as an enrolled client."""
    return grpc.secure_channel(server, tls.channel_credentials(identity), options=OPTIONS)


class Known:
    """An enrolled client's channel and seal. Its certificate is renewed when a third of its life is left, also while it works.

    Args:
        folder: with its identity.
        server: the coordinator's host and port.
        clock: the wall clock.

    It is used as a ``grpc.Channel`` is by a ``Line``.
    """

    def __init__(self, folder: Path, server: str, clock: Callable[[], datetime.datetime] = wall) -> None:
        self.folder, self.server, self.clock = folder, server, clock
        self.own = Identity.load(folder)
        self._before: grpc.Channel | None = None
        self._looked = time.monotonic()
        self._renew()
        self._channel, self._seal = channel(self.own, server), Seal(self.own)

    def unary_unary(self, method: str, *given: Any) -> Any:
        """The call of a name. A client polls while it has nothing else on its way: then keys can change."""
        if method == path("Poll") and time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            if self._renew():
                if self._before is not None:
                    self._before.close()
                self._before = self._channel
                self._channel, self._seal = channel(self.own, self.server), Seal(self.own)
        return self._channel.unary_unary(method, *given)

    def _renew(self) -> bool:
        if not self.own.due(self.clock()):
            return False
        try:
            self.own = renew(self.folder, renewing(self.folder, self.server))
        except (IdentityError, StoreError):
            return False  # what it has is good for a while
        return True

    def sign(self, method: str, request: Any) -> None:
        """Sign a request with the key of the certificate that the channel shows."""
        self._seal(method, request)

    def refused(self, error: Any) -> None:
        """See ``Seal.refused``."""
        self._seal.refused(error)

    def close(self) -> None:
        """Close what is open."""
        for open_channel in (self._before, self._channel):
            if open_channel is not None:
                open_channel.close()

    def __enter__(self) -> Known:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def enrolling(server: str) -> Callable[[bytes, str], bytes]:
    """Carries an enrolment to a coordinator's port for it."""

    def send(csr: bytes, token: str) -> bytes:
        Ticket.parse(token)
        with grpc.secure_channel(server, tls.enrolment_channel_credentials(token), options=OPTIONS) as line:
            return _enrolled(line, pb.EnrolRequest(token=token, csr=csr.decode()), server)

    return send


def renewing(folder: Path, server: str) -> Callable[[bytes], bytes]:
    """Carries a renewal to a coordinator's port for clients."""

    def send(csr: bytes) -> bytes:
        with channel(Identity.load(folder), server) as line:
            return _enrolled(line, pb.EnrolRequest(csr=csr.decode()), server)

    return send


def _enrolled(line: grpc.Channel, request: Any, server: str) -> bytes:
    asked, given = METHODS["Enrol"]
    call = line.unary_unary(path("Enrol"), asked.SerializeToString, given.FromString)
    pauses = list(AGAIN)
    while True:
        try:
            return str(call(request, timeout=ENROLLING).certificate).encode()
        except grpc.RpcError as error:
            if not pauses or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise IdentityError(f"{server} did not enrol this client: {error.details()} ({error.code().name}).") from None
            time.sleep(pauses.pop(0))

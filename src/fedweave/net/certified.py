# SPDX-License-Identifier: Apache-2.0
"""The protocol over channels whose ends are known: the coordinator's gate, and the client's line with its seal on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from fedweave.errors import IdentityError
from fedweave.net import signing, tls
from fedweave.net.client import OPTIONS
from fedweave.net.gate import Refused
from fedweave.net.identity import Identity, Ticket
from fedweave.net.pki import Authority
from fedweave.wire import fedweave_pb2 as pb
from fedweave.wire.methods import METHODS, path

FLOOR = "fedweave-nonce-floor"
"""Trailing metadata of a refusal: a nonce above it would be taken."""
ENROLLING = 30.0
"""Seconds until an enrolment is given up."""


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
    try:
        reply = call(request, timeout=ENROLLING)
    except grpc.RpcError as error:
        raise IdentityError(f"{server} did not enrol this client: {error.details()} ({error.code().name}).") from None
    return str(reply.certificate).encode()

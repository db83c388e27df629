# SPDX-License-Identifier: Apache-2.0
"""Mutual TLS with gRPC: credentials for both sides, and who is at the other end of a request.

gRPC in Python either demands a client's certificate or does not ask for one, per port. So a coordinator has two ports: on one,
only clients with a certificate are heard; the other, for those who do not have one yet, serves the enrolment and nothing else.

TLS checks a certificate once, when a connection is made. ``Guard`` checks it at every request against the authority's records,
and while a request waits, so that a revocation holds for open connections too.
"""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from fedweave.errors import FedweaveError, UsageError
from fedweave.net.identifiers import shown
from fedweave.net.identity import Identity, Ticket
from fedweave.net.pki import Authority, Peer

RENEW = 3600.0
"""Seconds between two looks at whether the coordinator's certificate is due for renewal."""

WATCH = 1.0
"""Seconds between two looks at whether the sender of a waiting request was revoked."""

LIMITS = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)
"""Options of a server that bound what one connection can cost."""

PEER: contextvars.ContextVar[Peer] = contextvars.ContextVar("peer")
"""Who sent the request that a handler is answering."""


# The coordinator ---------------------------------------------------------------------------------------------------------


def server_credentials(authority: Authority, hosts: Sequence[str]) -> grpc.ServerCredentials:
    """For the port on which only clients of the authority are heard; its certificate is renewed while it runs."""
    return _credentials(authority, hosts, mutual=True)


def enrolment_credentials(authority: Authority, hosts: Sequence[str]) -> grpc.ServerCredentials:
    """For the port on which clients without a certificate ask for one: they know the coordinator, and it not yet them."""
    return _credentials(authority, hosts, mutual=False)


def _credentials(authority: Authority, hosts: Sequence[str], mutual: bool) -> grpc.ServerCredentials:
    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([authority.server_identity(hosts)], authority.pem)

    looked = time.monotonic()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal looked
        if time.monotonic() - looked < RENEW:
            return None  # what it has
        looked = time.monotonic()
        try:
            return configuration()
        except FedweaveError:  # without the authority's key the old certificate serves until it expires
            return None

    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, mutual)


def peer(context: Any, authority: Authority) -> Peer | str:
    """Who is at the other end of a request; or why the request is refused."""
    shown = context.auth_context().get("x509_pem_cert")
    if not shown:
        return "The connection shows no client certificate. Enrol with `fedweave pki enrol`."
    try:
        return authority.peer(shown[0])
    except FedweaveError:  # what cannot be checked is not admitted; the reason is the operator's, not the caller's
        return "The certificate cannot be checked now."


Handler = Callable[[Any, Any], Awaitable[Any]]


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Before every handler: who is it, and may they? While it works, and before its answer leaves: do they still?

    Only unary calls pass, because only those are looked after; a method of another kind is refused.

    Args:
        authority: whose clients are heard.
        every: seconds between two looks while a handler waits.
    """

    def __init__(self, authority: Authority, every: float = WATCH) -> None:
        self._authority, self._every = authority, every

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None:
            # Whoever is not known does not learn which methods there are.
            return grpc.unary_unary_rpc_method_handler(self._guarded(_unknown))
        if handler.request_streaming or handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(self._guarded(_streaming))
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _guarded(self, handler: Handler) -> Handler:
        async def answer(request: Any, context: Any) -> Any:
            found = peer(context, self._authority)
            if not isinstance(found, str):
                PEER.set(found)
                work = asyncio.ensure_future(handler(request, context))
                try:
                    while not isinstance(found, str):
                        await asyncio.wait({work}, timeout=self._every)
                        found = peer(context, self._authority)
                        if work.done() and not isinstance(found, str):
                            return work.result()
                finally:
                    work.cancel()
                    # Its own end, good or bad, is no longer of interest.
                    await asyncio.gather(work, return_exceptions=True)
            return await context.abort(grpc.StatusCode.UNAUTHENTICATED, found)

        return answer


async def _unknown(request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "There is no such method.")


async def _streaming(request: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Streaming methods are not served.")


# A client ----------------------------------------------------------------------------------------------------------------


def channel_credentials(client: Identity | Path) -> grpc.ChannelCredentials:
    """For a client that was enrolled: it trusts its authority alone, and shows its certificate.

    Raises:
        IdentityError: the folder holds no identity that can be used.
    """
    own = Identity.load(client) if isinstance(client, Path) else client
    return grpc.ssl_channel_credentials(own.authority, own.tls_key, own.certificate)


def enrolment_channel_credentials(token: str) -> grpc.ChannelCredentials:
    """For a client that has a token and nothing else: it trusts the authority that the token names.

    Raises:
        IdentityError: the token is none.
    """
    from fedweave.net import certificates

    return grpc.ssl_channel_credentials(certificates.pem(Ticket.parse(token).root()))


# Without TLS -------------------------------------------------------------------------------------------------------------


def insecure(address: str) -> str:
    """The address, if it may be used without TLS: what is sent to it does not leave this machine.

    Raises:
        UsageError: it may not.
    """
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = name == "localhost"
    if not address.startswith("unix:") and not (local and port.isdecimal()):
        raise UsageError(
            f"--insecure is for this machine alone, and {shown(address)} is not on it: use localhost:PORT, or enrol clients "
            "with `fedweave pki` and leave --insecure out."
        )
    return address

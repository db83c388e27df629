# SPDX-License-Identifier: Apache-2.0
"""S1: every endpoint with every kind of credential, over real connections on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedweave.errors import IdentityError, UsageError
from fedweave.net import certificates, tls
from fedweave.net.certificates import SignKey
from fedweave.net.identity import Identity, enrol
from fedweave.net.pki import Authority, Peer

ENDPOINTS = ["Enrol", "Join", "Poll", "FetchChunk", "PushChunk", "Commit", "Fail", "Heartbeat", "Status"]
SERVICE = "fedweave.v1.Federation"
NOW = datetime.datetime.now(datetime.UTC)

Site = Any


class Service:
    """A coordinator that answers with who asked; ``waits`` is a long poll."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.cancelled = 0
        self.entered = asyncio.Event()

    def handler(self) -> Any:
        def answering(name: str) -> Any:
            async def answer(request: bytes, context: Any) -> bytes:
                self.asked.append((name, tls.PEER.get().client))
                if request == b"wait":
                    self.entered.set()
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        self.cancelled += 1
                        raise
                if request == b"raise":
                    raise RuntimeError("a fault of the handler's own")
                if request == b"abort":
                    await context.abort(grpc.StatusCode.NOT_FOUND, "no such task")
                return tls.PEER.get().client.encode()

            return grpc.unary_unary_rpc_method_handler(answer)

        async def streaming(request: bytes, context: Any) -> AsyncIterator[bytes]:
            yield b"leaked"

        handlers = {name: answering(name) for name in ENDPOINTS}
        handlers["Stream"] = grpc.unary_stream_rpc_method_handler(streaming)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)


@contextlib.asynccontextmanager
async def serving(authority: Authority, hosts: list[str] | None = None) -> AsyncIterator[tuple[Service, int]]:
    server = grpc.aio.server(interceptors=[tls.Guard(authority, every=0.05)], options=tls.LIMITS)
    service = Service()
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(authority, hosts or ["127.0.0.1"]))
    await server.start()
    try:
        yield service, port
    finally:
        await server.stop(0)


async def ask(
    port: int, credentials: grpc.ChannelCredentials, endpoint: str = "Poll", request: bytes = b"", host: str = "127.0.0.1"
) -> bytes:
    async with grpc.aio.secure_channel(f"{host}:{port}", credentials) as channel:
        found: bytes = await channel.unary_unary(f"/{SERVICE}/{endpoint}")(request, timeout=20)
        return found


async def refused(port: int, credentials: grpc.ChannelCredentials, **given: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(port, credentials, **given)
    assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    return caught.value


# Who is not heard --------------------------------------------------------------------------------------------------------


def forged(site: Site, client: str, *, key: Any = None, issuer: Any = None, from_days: float = -1, days: float = 1) -> Any:
    """Credentials with a certificate that the test makes itself; by the site's own authority unless told otherwise."""
    from cryptography.hazmat.primitives import serialization

    own = certificates.tls_key()
    if issuer is None:
        issuer = site.authority.certificate
        key = serialization.load_pem_private_key((site.authority.folder / "authority.key").read_bytes(), None)
    request = certificates.read_request(certificates.request(client, own, SignKey.generate()))
    moment = NOW + datetime.timedelta(days=from_days) + certificates.SKEW
    made = certificates.client(issuer, key, request, moment, days - from_days - 1)
    return grpc.ssl_channel_credentials(site.authority.pem, certificates.key_pem(own), certificates.pem(made)), made


def recorded(site: Site, made: x509.Certificate) -> None:
    """Let the authority know a certificate, as if it had issued it."""
    from fedweave.net.registry import Issued

    name, pem = certificates.fingerprint(made), certificates.pem(made).decode()
    with site.authority.registry.change():
        site.authority.registry.add(Issued(name, f"{made.serial_number:x}", "ada", 0.0, 0.0, None, pem))


def no_certificate(site: Site) -> Any:
    return grpc.ssl_channel_credentials(site.authority.pem)


def self_signed(site: Site) -> Any:
    key = certificates.tls_key()
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ada")]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ada")]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return grpc.ssl_channel_credentials(site.authority.pem, certificates.key_pem(key), certificates.pem(made))


def foreign(site: Site) -> Any:
    """A client of the same name, properly enrolled with another authority of the same subject."""
    key = certificates.tls_key()
    root = certificates.root(key, certificates.common_name(site.authority.certificate.subject), NOW, 10)
    return forged(site, "ada", key=key, issuer=root)[0]


def expired(site: Site) -> Any:
    credentials, made = forged(site, "ada", from_days=-10, days=-1)
    recorded(site, made)
    assert made.not_valid_after_utc < NOW
    return credentials


def not_yet_valid(site: Site) -> Any:
    credentials, made = forged(site, "ada", from_days=1, days=10)
    recorded(site, made)
    assert made.not_valid_before_utc > NOW
    return credentials


def revoked(site: Site) -> Any:
    credentials = tls.channel_credentials(site.client("ada"))
    site.authority.revoke("ada")
    return credentials


def unrecorded(site: Site) -> Any:
    """Signed with the authority's key, and in none of its records."""
    return forged(site, "ada")[0]


def the_coordinators_own(site: Site) -> Any:
    key, chain = site.authority.server_identity(["127.0.0.1"])
    return grpc.ssl_channel_credentials(site.authority.pem, key, chain)


def anothers_certificate(site: Site) -> Any:
    """The certificate of another client, which is no secret, with a key of one's own: TLS cannot be made of them."""
    return grpc.ssl_channel_credentials(site.authority.pem, site.client("eve").tls_key, site.client("ada").certificate)


STRANGERS = [
    no_certificate, self_signed, foreign, expired, not_yet_valid, revoked, unrecorded, the_coordinators_own,
    anothers_certificate,
]  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda make: make.__name__)
def test_a_stranger_is_refused_at_every_endpoint(site: Site, stranger: Callable[[Site], Any]) -> None:
    async def main() -> None:
        credentials = stranger(site)
        async with serving(site.authority) as (service, port):
            for endpoint in [*ENDPOINTS, "Stream", "Nothing"]:
                await refused(port, credentials, endpoint=endpoint)
            assert not service.asked, "a handler was reached"
            # The port is open and well: a client is heard.
            assert await ask(port, tls.channel_credentials(site.client("bob"))) == b"bob"

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_client_is_heard_under_its_own_name_and_no_other(site: Site, endpoint: str) -> None:
    """Whatever a request says, the name is the certificate's."""

    async def main() -> None:
        async with serving(site.authority) as (service, port):
            for name in ("ada", "eve"):
                assert await ask(port, tls.channel_credentials(site.client(name)), endpoint) == name.encode()
            assert service.asked == [(endpoint, "ada"), (endpoint, "eve")]

    asyncio.run(main())


def test_without_tls_nobody_is_heard(site: Site) -> None:
    async def main() -> None:
        async with serving(site.authority) as (service, port):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(f"/{SERVICE}/Poll")(b"", timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not service.asked

    asyncio.run(main())


def test_methods_that_stream_or_are_not_there_are_refused_to_clients_too(site: Site) -> None:
    async def main() -> None:
        async with serving(site.authority) as (_, port):
            for endpoint in ("Stream", "Nothing"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask(port, tls.channel_credentials(site.client("ada")), endpoint)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


# Revocation --------------------------------------------------------------------------------------------------------------


def test_revocation_holds_on_a_connection_that_is_open(site: Site) -> None:
    async def main() -> None:
        ada, bob = site.client("ada"), site.client("bob")
        async with serving(site.authority) as (service, port):
            channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", tls.channel_credentials(ada))
            async with channel, grpc.aio.secure_channel(f"127.0.0.1:{port}", tls.channel_credentials(bob)) as other:
                call = channel.unary_unary(f"/{SERVICE}/Poll")
                assert await call(b"", timeout=20) == b"ada"
                # By somebody else, who only shares the folder: as `fedweave pki revoke` does.
                Authority.open(site.authority.folder).revoke("ada")
                with pytest.raises(grpc.aio.AioRpcError, match="was revoked") as caught:
                    await call(b"", timeout=20)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert await other.unary_unary(f"/{SERVICE}/Poll")(b"", timeout=20) == b"bob"
            assert service.asked == [("Poll", "ada"), ("Poll", "bob")]

    asyncio.run(main())


def test_revocation_ends_a_request_that_waits(site: Site) -> None:
    async def main() -> None:
        ada = site.client("ada")
        async with serving(site.authority) as (service, port):
            waiting = asyncio.ensure_future(ask(port, tls.channel_credentials(ada), request=b"wait"))
            await service.entered.wait()
            Authority.open(site.authority.folder).revoke("ada")
            with pytest.raises(grpc.aio.AioRpcError, match="was revoked"):
                await waiting
            assert service.cancelled == 1

    asyncio.run(main())


def test_an_answer_that_was_made_before_a_revocation_does_not_leave_after_it(site: Site) -> None:
    async def main() -> None:
        guard = tls.Guard(site.authority, every=60)
        ada, answered = site.client("ada"), []

        class Context:
            def auth_context(self) -> dict[str, list[bytes]]:
                return {"x509_pem_cert": [ada.certificate]}

            async def abort(self, code: Any, details: str) -> None:
                raise PermissionError(details)

        async def handler(request: bytes, context: Any) -> bytes:
            answered.append(tls.PEER.get())
            site.authority.revoke("ada")
            return b"the model"

        async def continuation(details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(handler)

        guarded: Any = await guard.intercept_service(continuation, None)
        with pytest.raises(PermissionError, match="was revoked"):
            await guarded.unary_unary(b"", Context())
        assert [peer.client for peer in answered] == ["ada"]

    asyncio.run(main())


def test_a_client_that_leaves_ends_its_request(site: Site) -> None:
    async def main() -> None:
        async with serving(site.authority) as (service, port):
            waiting = asyncio.ensure_future(ask(port, tls.channel_credentials(site.client("ada")), request=b"wait"))
            await service.entered.wait()
            waiting.cancel()
            while service.cancelled == 0:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_a_handler_raises_or_aborts_with_is_its_own(site: Site) -> None:
    async def main() -> None:
        credentials = tls.channel_credentials(site.client("ada"))
        async with serving(site.authority) as (_, port):
            for request, code in ((b"raise", grpc.StatusCode.UNKNOWN), (b"abort", grpc.StatusCode.NOT_FOUND)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await ask(port, credentials, request=request)
                assert caught.value.code() is code

    asyncio.run(main())


def test_what_cannot_be_checked_is_refused(site: Site) -> None:
    """The records are unreadable: nobody is let in, and nobody learns why."""

    async def main() -> None:
        credentials = tls.channel_credentials(site.client("ada"))
        async with serving(site.authority) as (service, port):
            site.authority.registry.close()
            error = await refused(port, credentials)
            assert error.details() == "The certificate cannot be checked now."
            assert not service.asked

    asyncio.run(main())


# Whom a client trusts ----------------------------------------------------------------------------------------------------


def test_a_client_talks_to_no_host_of_another_name(site: Site) -> None:
    async def main() -> None:
        ada = tls.channel_credentials(site.client("ada"))
        async with serving(site.authority, ["coordinator.example"]) as (service, port):
            error = await refused(port, ada)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert not service.asked
        async with serving(site.authority, ["localhost"]) as (_, port):
            assert await ask(port, ada, host="localhost") == b"ada"

    asyncio.run(main())


def test_a_client_talks_to_no_coordinator_of_another_authority(tmp_path: Path, site: Site) -> None:
    async def main() -> None:
        other = Authority.create(tmp_path / "other")
        async with serving(other) as (service, port):
            await refused(port, tls.channel_credentials(site.client("ada")))
            await refused(port, tls.enrolment_channel_credentials(site.authority.token("ada")))
            assert not service.asked

    asyncio.run(main())


def test_a_client_cannot_pass_for_the_coordinator(site: Site) -> None:
    """Its certificate is of the right authority, and not for serving."""

    async def main() -> None:
        eve = site.client("eve")
        server = grpc.aio.server()
        service = Service()
        server.add_generic_rpc_handlers((service.handler(),))
        credentials = grpc.ssl_server_credentials([(eve.tls_key, eve.certificate)], eve.authority, True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        await refused(port, tls.channel_credentials(site.client("ada")))
        await server.stop(0)
        assert not service.asked

    asyncio.run(main())


# Enrolment ---------------------------------------------------------------------------------------------------------------


def test_a_client_enrols_over_the_port_for_those_without_a_certificate(tmp_path: Path, site: Site) -> None:
    """The token is all it has; it knows the coordinator from the first connection, and is heard later on the other port."""

    async def main() -> None:
        server = grpc.aio.server(options=tls.LIMITS)

        async def answer(request: bytes, context: Any) -> bytes:
            token, _, csr = request.partition(b"\n")
            try:
                return site.authority.enrol(csr, token.decode())
            except IdentityError as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
                raise

        method = {"Enrol": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, method),))
        port = server.add_secure_port("127.0.0.1:0", tls.enrolment_credentials(site.authority, ["127.0.0.1"]))
        await server.start()
        token = site.authority.token("ada")

        def send(csr: bytes, token: str) -> bytes:
            with grpc.secure_channel(f"127.0.0.1:{port}", tls.enrolment_channel_credentials(token)) as channel:
                found: bytes = channel.unary_unary(f"/{SERVICE}/Enrol")(token.encode() + b"\n" + csr, timeout=20)
                return found

        await asyncio.to_thread(enrol, tmp_path / "ada", token, send)
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(enrol, tmp_path / "again", token, send)
        assert "used already" in caught.value.details()
        with pytest.raises(grpc.aio.AioRpcError) as other:
            await ask(port, tls.channel_credentials(tmp_path / "ada"))
        assert other.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await server.stop(0)
        async with serving(site.authority) as (_, mutual):
            assert await ask(mutual, tls.channel_credentials(tmp_path / "ada")) == b"ada"

    asyncio.run(main())


def test_the_coordinators_certificate_is_renewed_while_it_serves(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is made later sees another certificate, of the same authority."""
    import ssl

    def seen(port: int) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=site.authority.pem.decode())
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port))
        with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
            shown = wrapped.getpeercert(True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    async def main() -> None:
        monkeypatch.setattr(tls, "RENEW", 0.0)
        async with serving(site.authority) as (_, port):
            first = await asyncio.to_thread(seen, port)
            assert await asyncio.to_thread(seen, port) == first
            (site.authority.folder / "server.pem").unlink()
            assert await asyncio.to_thread(seen, port) != first
            assert await ask(port, tls.channel_credentials(site.client("ada"))) == b"ada"

    asyncio.run(main())


# What else comes over the wire -------------------------------------------------------------------------------------------


def test_bytes_that_are_no_tls_disturb_nobody(site: Site) -> None:
    async def main() -> None:
        async with serving(site.authority) as (service, port):
            for raw in (
                b"",
                b"GET / HTTP/1.1\r\n\r\n",
                b"\x16\x03\x01\xff\xff" + b"\0" * 65_536,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            ):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(raw)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                writer.close()
            assert await ask(port, tls.channel_credentials(site.client("ada"))) == b"ada"
            assert len(service.asked) == 1

    asyncio.run(main())


def test_a_message_that_is_too_long_is_refused(site: Site) -> None:
    async def main() -> None:
        async with serving(site.authority) as (service, port):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(port, tls.channel_credentials(site.client("ada")), "PushChunk", bytes(9 << 20))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not service.asked

    asyncio.run(main())


def test_a_peer_without_a_certificate_is_told_the_remedy(site: Site) -> None:
    class Context:
        def __init__(self, shown: dict[str, list[bytes]]) -> None:
            self.shown = shown

        def auth_context(self) -> dict[str, list[bytes]]:
            return self.shown

    assert "fedweave pki enrol" in str(tls.peer(Context({}), site.authority))
    found = tls.peer(Context({"x509_pem_cert": [site.client("ada").certificate]}), site.authority)
    assert isinstance(found, Peer)


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:8080", "127.8.9.1:1", "[::1]:1", "unix:/run/x"])
def test_insecure_on_this_machine(address: str) -> None:
    assert tls.insecure(address) == address


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "localhost.example.org:1", "127.0.0.1.example.org:1", "localhost",
     ":1", "", "127.1:1", "2130706433:1", "localhost:", "localhost:x", "127.0.0.1@evil:1", "dns:evil:1", "[::ffff:10.0.0.1]:1"],
)  # fmt: skip
def test_insecure_elsewhere_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="this machine alone"):
        tls.insecure(address)


def test_an_identity_loads_from_its_folder(site: Site) -> None:
    own: Identity = site.client("ada")
    assert own.client == "ada"
    assert isinstance(tls.channel_credentials(site.folder / "ada"), grpc.ChannelCredentials)
    with pytest.raises(IdentityError, match="no identity"):
        tls.channel_credentials(site.folder / "nobody")

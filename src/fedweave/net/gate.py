# SPDX-License-Identifier: Apache-2.0
"""Who calls: what the coordinator asks of a channel before it listens to what is said on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import grpc

NAME = "fedweave-name"
"""The metadata that says who calls, on an insecure channel."""


class Refused(Exception):
    """A call that is refused before it is looked at.

    Args:
        code: gRPC's status code.
        why: what the caller is told.
        beside: metadata of the refusal, for the caller's program.
    """

    def __init__(self, code: grpc.StatusCode, why: str, beside: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(why)
        self.code, self.why, self.beside = code, why, beside


class Gate(Protocol):
    """Says who calls."""

    def name(self, context: Any) -> str:
        """The caller's name; raises Refused."""

    def signed(self, method: str, request: Any, name: str) -> None:
        """See that a request is its sender's own, and comes for the first time; raises Refused."""

    def enrol(self, request: Any) -> Any:
        """A certificate for a token; raises Refused."""

    def credentials(self) -> Any:
        """For the server's port; None for none."""

    def interceptors(self) -> Sequence[Any]:
        """What every call on that port passes through."""

    def enrolment(self) -> tuple[str, Any] | None:
        """Host and port, and its credentials, for ``Enrol`` by those who cannot be known yet; None for none."""


class Insecure:
    """No certificates: everybody is who they say. For one machine, to try things out."""

    def name(self, context: Any) -> str:
        found = dict(context.invocation_metadata() or ()).get(NAME, "")
        if not 0 < len(found) <= 255 or not found.isprintable():
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"the metadata {NAME!r} does not name the caller")
        return str(found)

    def signed(self, method: str, request: Any, name: str) -> None:
        return None

    def enrol(self, request: Any) -> Any:
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "this coordinator gives no certificates: it was started with --insecure")

    def credentials(self) -> Any:
        return None

    def interceptors(self) -> Sequence[Any]:
        return ()

    def enrolment(self) -> tuple[str, Any] | None:
        return None

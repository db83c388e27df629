# SPDX-License-Identifier: Apache-2.0
"""The calls of the protocol, by name: what each takes and gives."""

from __future__ import annotations

from typing import Any

from fedweave.wire import fedweave_pb2 as pb

SERVICE = "fedweave.v1.Federation"

METHODS: dict[str, tuple[Any, Any]] = {
    name: (getattr(pb, f"{name}Request"), getattr(pb, f"{name}Reply"))
    for name in ("Enrol", "Join", "Poll", "FetchChunk", "PushChunk", "Commit", "Fail", "Heartbeat", "Status")
}

MUTATING = ("Join", "PushChunk", "Commit", "Fail")
"""Those that carry a signature over an authenticated channel."""


def path(method: str) -> str:
    """As gRPC spells it."""
    return f"/{SERVICE}/{method}"

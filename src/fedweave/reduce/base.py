# SPDX-License-Identifier: Apache-2.0
"""The contract of a reduction."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from fedweave.values import Update

Partial = Any
"""What a reduction has gathered so far; only the reduction that made it looks inside."""


@runtime_checkable
class Reduction(Protocol):
    """Turns a cohort's updates into one aggregate.

    Updates are added in client order within fixed blocks of clients, and blocks are merged in order, so a sum is
    bit-identical however many workers made the blocks. A reduction that needs all updates at once (a median) gathers
    them in ``add`` and works in ``result``.
    """

    def empty(self) -> Partial:
        """Nothing gathered."""

    def add(self, partial: Partial, update: Update) -> Partial:
        """``partial`` with one more update; ``partial`` may be changed in place and must not be used afterwards."""

    def merge(self, first: Partial, second: Partial) -> Partial:
        """Both together, ``first`` being the earlier clients; neither may be used afterwards."""

    def result(self, partial: Partial) -> Update | None:
        """The aggregate, its ``weight`` the sum of the updates' weights; None if no update has a weight above 0."""

# SPDX-License-Identifier: Apache-2.0
"""What is noted of clients' updates for the diagnosis, from the engine to the run's folder."""

from __future__ import annotations

from collections.abc import Iterable

from fedweave.contract import Local
from fedweave.diagnosis import Observed, Seen, observed, watched


class Seeing:
    """Says which rounds are looked at, and keeps what was seen until the round is published.

    Args:
        seed: of the run.
        local: the local training asked for.
        examples: of a usual client.
    """

    def __init__(self, seed: int, local: Local, examples: int) -> None:
        self.seed, self.local, self.examples, self.on = seed, local, examples, False
        self._seen: list[Seen] = []

    def looks(self, round: int, survey: bool) -> bool:
        """Whether the updates of a conversation are looked at."""
        return self.on and not survey and watched(round, self.local, self.examples)

    def note(self, seen: Iterable[Seen]) -> None:
        self._seen += seen

    def taken(self, round: int) -> Observed | None:
        """What was seen of the round that is over."""
        seen, self._seen = self._seen, []
        return observed(round, sorted(seen, key=lambda one: one.client), self.seed) if seen else None

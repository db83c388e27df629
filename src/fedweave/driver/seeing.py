# SPDX-License-Identifier: Apache-2.0
"""What is noted of clients' updates for the diagnosis, from the engine to the run's folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedweave.contract import Local
from fedweave.diagnosis import Observed, Seen, observed, watched
from fedweave.history import Round


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

    def taken(self, record: Round) -> Observed | None:
        """What was seen of the clients of the round that is over. How stale an update is says the round that it entered."""
        seen, self._seen = self._seen, []
        stale = dict(zip(record.cohort, record.staleness, strict=True)) if record.staleness else dict.fromkeys(record.cohort, 0)
        ordered = sorted((one for one in seen if one.client in stale), key=lambda one: one.client)
        return observed(record.number, [replace(o, staleness=stale[o.client]) for o in ordered], self.seed) if ordered else None

# SPDX-License-Identifier: Apache-2.0
"""A crew of one: this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from fedweave.engines.base import Done, Job, Unit


class Inline:
    """Performs one unit after another in this process.

    Args:
        performer: performs a unit.
    """

    name = "1 process"
    single = False

    def __init__(self, performer: Callable[[Job, Unit], Done]) -> None:
        self.performer = performer

    def perform(self, job: Job, units: Iterable[Unit]) -> Iterator[Done]:
        for unit in units:
            yield self.performer(job, unit)

    def close(self) -> None:
        return None

# SPDX-License-Identifier: Apache-2.0
"""The uneven world: what devices clients have, when they are online, what goes wrong, and how much of their work they do.

``source``         ``Population``, ``Mixture`` and ``Trace``: where devices come from
``distributions``  of one number over clients
``availability``   when clients are online
``traces``         recorded devices and sessions, as files
``devices``        what was drawn: arrays of N clients
``efforts``        how much of the local work that is asked for gets done
"""

from __future__ import annotations

from fedweave.population.availability import Diurnal, Sessions
from fedweave.population.devices import Devices, Fate, Fates, Times
from fedweave.population.efforts import (
    EFFORTS,
    Asked,
    Deadline,
    Effort,
    Full,
    Seconds,
    Stragglers,
    Uniform,
    effort,
    examples_of,
    in_time,
    processed,
)
from fedweave.population.source import SOURCES, Mixture, Population, Source, Trace, population, spell

__all__ = [
    "EFFORTS", "SOURCES", "Asked", "Deadline", "Devices", "Diurnal", "Effort", "Fate", "Fates", "Full", "Mixture", "Population",
    "Seconds", "Sessions", "Source", "Stragglers", "Times", "Trace", "Uniform", "effort",
    "examples_of", "in_time",
    "population", "processed", "spell",
]  # fmt: skip

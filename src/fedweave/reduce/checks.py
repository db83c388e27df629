# SPDX-License-Identifier: Apache-2.0
"""What the fields of reductions must be, said in one sentence each."""

from __future__ import annotations

import math

from fedweave.errors import UsageError


def whole(name: str, value: int, least: int) -> None:
    """Refuse anything but a whole number from ``least`` up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}; it must be a whole number from {least} up.")


def positive(name: str, value: float) -> None:
    """Refuse anything but a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"{name} is {value!r}; it must be a number above 0.")


def enough(rule: str, clients: int, least: int, formula: str) -> None:
    """Refuse a cohort with fewer clients than a rule's guarantee needs."""
    if clients < least:
        raise UsageError(
            f"{rule} needs at least {least} clients a round ({formula}), but {clients} would come: ask more or lower f."
        )

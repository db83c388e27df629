# SPDX-License-Identifier: Apache-2.0
"""When a round closes, what late clients' work is worth, and when a run ends. A policy is a value: the same one serves a
simulator's virtual clock and a server's real one."""

from __future__ import annotations

from typing import Any

from fedweave import names
from fedweave.errors import UsageError
from fedweave.policy.buffered import STALENESS, Constant, FedAsync, FedBuff, Hinge, Polynomial, Staleness
from fedweave.policy.pace import Pace
from fedweave.policy.rounds import Deadline, KofN, OverSelection, Rounds, Standing, Synchronous, Verdict
from fedweave.policy.rules import Rules, cohort_size

Buffered = FedBuff | FedAsync
"""A policy of asynchronous rounds."""

Policy = Rounds | Buffered

POLICIES: dict[str, type[Any]] = {
    "synchronous": Synchronous,
    "deadline": Deadline,
    "over-selection": OverSelection,
    "k-of-n": KofN,
    "fedbuff": FedBuff,
    "fedasync": FedAsync,
}
"""The policies by name."""

PARTS: names.Parts = {"staleness": ("staleness function", STALENESS)}


def policy(choice: str | Policy) -> Policy:
    """The policy itself, or the one named: ``"fedbuff(buffer=10, staleness=polynomial(a=0.5))"``.

    Raises:
        UnknownName, UsageError: there is none of that name; an argument is unknown or out of its range.
    """
    if not isinstance(choice, str):
        if isinstance(choice, tuple(POLICIES.values())):
            return choice
        raise UsageError(f"policy is {choice!r}; give a policy or a name such as 'synchronous'.")
    found: Policy = names.build("policy", POLICIES, choice, PARTS)
    return found


def spell(value: Policy) -> str:
    """The text that ``policy`` turns back into this value."""
    return names.spelled(POLICIES, value, PARTS)


__all__ = [
    "POLICIES", "STALENESS", "Buffered", "Constant", "Deadline", "FedAsync", "FedBuff", "Hinge", "KofN",
    "OverSelection", "Pace", "Policy", "Polynomial", "Rounds", "Rules", "Staleness", "Standing", "Synchronous",
    "Verdict", "cohort_size", "policy", "spell",
]  # fmt: skip

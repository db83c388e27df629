# SPDX-License-Identifier: Apache-2.0
"""The algorithms, one paper per file, by name."""

from __future__ import annotations

from fedweave import names
from fedweave.algorithms.fedavg import FedAvg
from fedweave.algorithms.fedsgd import FedSGD
from fedweave.contract import Algorithm
from fedweave.errors import UsageError

REGISTRY: dict[str, type[Algorithm]] = {"fedavg": FedAvg, "fedsgd": FedSGD}


def algorithms() -> dict[str, type[Algorithm]]:
    """The algorithms that can be chosen by name: name -> class."""
    return dict(REGISTRY)


def algorithm(choice: str | Algorithm) -> Algorithm:
    """The algorithm itself, or the one named: ``"fedsgd(server_lr=0.1)"``, or your own, ``"package.module:Mine(mu=1)"``.

    Raises:
        UnknownName: there is none of that name.
        UsageError: an argument is unknown or out of its range.
    """
    if isinstance(choice, Algorithm):
        return choice
    if not isinstance(choice, str):
        raise UsageError(f"algorithm is {choice!r}; give an Algorithm such as FedAvg() or a name such as 'fedavg'.")
    head, _, _ = choice.partition("(")
    if ":" not in head:
        return names.build("algorithm", REGISTRY, choice)
    found = names.imported("algorithm", head)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UsageError(f"{head!r} is not a fedweave Algorithm; name a class that derives from fedweave.Algorithm.")
    return names.build("algorithm", {head: found}, choice)


def spell(value: Algorithm) -> str:
    """The text that ``algorithm`` turns back into this value."""
    for name, kind in REGISTRY.items():
        if type(value) is kind:
            return names.spell(name, value)
    return names.spell(names.address(type(value)) or type(value).__name__, value)


__all__ = ["REGISTRY", "FedAvg", "FedSGD", "algorithm", "algorithms", "spell"]

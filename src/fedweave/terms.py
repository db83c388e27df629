# SPDX-License-Identifier: Apache-2.0
"""How a run is to go, as values."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedweave.attacks import Attack
from fedweave.attacks import attack as attacks
from fedweave.config import Config
from fedweave.history import Target
from fedweave.policy import Policy, Rules, Synchronous
from fedweave.policy import policy as policies
from fedweave.population import Effort, Full, Source
from fedweave.population import effort as efforts
from fedweave.population import population as populations
from fedweave.sampling import Sampling, Uniform
from fedweave.sampling import sampling as samplings


@dataclass(frozen=True)
class Terms:
    """How a run is to go: what a configuration names, as values."""

    rules: Rules
    effort: Effort = field(default_factory=Full)
    attack: Attack | None = None
    policy: Policy = field(default_factory=Synchronous)
    source: Source | None = None
    sampling: Sampling = field(default_factory=Uniform)

    @classmethod
    def of(cls, config: Config) -> Terms:
        """Raises UnknownName, UsageError: something is not what it should be."""
        return cls(
            Rules(
                config.rounds,
                Target.of(config.target) if config.target else None,
                config.stop_at_target,
                config.patience,
                config.evaluate_every,
            ),
            efforts(config.effort),
            attacks(config.attack),
            policies(config.policy),
            None if config.population is None else populations(config.population),
            samplings(config.sampling),
        )

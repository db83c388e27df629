# SPDX-License-Identifier: Apache-2.0
"""How a cohort is trained. Every engine takes the same job and gives the same blocks; they differ in speed alone."""

from fedweave.engines.base import Block, Engine, Job, Kept
from fedweave.engines.eager import Eager

__all__ = ["Block", "Eager", "Engine", "Job", "Kept"]

# SPDX-License-Identifier: Apache-2.0
"""How a cohort is trained. Every engine takes the same job and gives the same blocks; they differ in speed alone."""

from fedweave.engines.base import Block, Crew, Engine, Job, Kept, Kernel, Scattered, Unit
from fedweave.engines.building import ENGINES, Setup, build
from fedweave.engines.choosing import Work

__all__ = ["ENGINES", "Block", "Crew", "Engine", "Job", "Kept", "Kernel", "Scattered", "Setup", "Unit", "Work", "build"]

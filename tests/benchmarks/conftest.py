# SPDX-License-Identifier: Apache-2.0
"""Puts the benchmarks' folders on the path, as running a script there does."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS / "peers"), str(BENCHMARKS), str(BENCHMARKS.parent / "reproductions")]

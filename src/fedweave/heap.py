# SPDX-License-Identifier: Apache-2.0
"""What becomes of memory that a local step frees."""

from __future__ import annotations

import ctypes
import os
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's mallopt(3)."""
LARGE, KEPT = 1 << 25, 1 << 28
"""Bytes of an allocation from which on it is mapped on its own (the most that glibc takes), and freed bytes that are kept."""
NAMES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Have this process keep what it frees for its next step; whether that was done.

    A step allocates and frees the same few megabytes each time. glibc gives them back to the system, which hands them out again
    page by page, each emptied first: a fifth of a step of a character LSTM. Only with glibc, and not if the environment says
    how its heap is to work.
    """
    if sys.platform != "linux" or any(name in os.environ for name in NAMES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGE)) and bool(mallopt(TRIM_THRESHOLD, KEPT))

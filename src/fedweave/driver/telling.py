# SPDX-License-Identifier: Apache-2.0
"""Small services of the driver."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def as_arrays(initial: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[Any]]:
    """Start weights as they are written to a file."""
    return {name: np.ascontiguousarray(value) for name, value in initial.items()}


def circumstances() -> dict[str, str]:
    """When and with what a run is begun, for its folder."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}",
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads of torch within, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

# SPDX-License-Identifier: Apache-2.0
"""What ``fedweave up`` has its processes load: one client's share of a split, or all of it for who measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedweave.config import Config
from fedweave.data import Split


def whole(config: str) -> Split:
    """The split of a configuration file."""
    from fedweave.simulation import split_of

    return split_of(Config.read(Path(config)))


def share(config: str, client: int) -> tuple[Any, Any]:
    """The examples (x, y) of one of its clients, by number from 0."""
    split = whole(config)
    indices = np.asarray(split.indices(client), np.int64)
    return split.x_train[indices], split.y_train[indices]

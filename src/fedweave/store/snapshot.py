# SPDX-License-Identifier: Apache-2.0
"""All that a run needs to go on, as one flat record of named arrays, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.values import Array, Arrays, State

Host = npt.NDArray[Any]


def pack(state: State, buffers: Array, kept: Mapping[int, Arrays]) -> dict[str, Host]:
    """Named ``state.<name>``, ``buffers`` and ``kept.<client>.<name>``; what is no array becomes one without dimensions."""
    packed = {f"state.{name}": _host(value) for name, value in state.items()}
    packed["buffers"] = _host(buffers)
    for client, arrays in kept.items():
        packed |= {f"kept.{client}.{name}": _host(value) for name, value in arrays.items()}
    return packed


def unpack(packed: Mapping[str, Host], to: Callable[[Host], Array]) -> tuple[State, Array, dict[int, Arrays]]:
    """The inverse of ``pack``; ``to`` makes each array one of the engine's kind."""

    def back(value: Host) -> Array:
        return value.item() if value.ndim == 0 else to(value)

    state: dict[str, Array] = {}
    kept: dict[int, dict[str, Array]] = {}
    for name, value in packed.items():
        head, _, rest = name.partition(".")
        if head == "state":
            state[rest] = back(value)
        elif head == "kept":
            client, _, leaf = rest.partition(".")
            kept.setdefault(int(client), {})[leaf] = back(value)
    return State(**state), to(packed["buffers"]), {client: Arrays(**arrays) for client, arrays in kept.items()}


def _host(value: Array) -> Host:
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value).copy()

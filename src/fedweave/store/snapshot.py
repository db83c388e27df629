# SPDX-License-Identifier: Apache-2.0
"""All that a run needs to go on, as one flat record of named arrays, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.values import Array, Arrays, State

Host = npt.NDArray[Any]


@dataclass(frozen=True)
class Snapshot:
    """A run between two rounds.

    Args:
        state: of the server.
        buffers: of the model, [B].
        memory: what the engine must be given back.
        clients: where the clients' states lie, as ``ClientStates.checkpoint`` describes it.
        layout: of the state's weights as ``Layout.spell`` says it, if they have outgrown the run's own.
        course: of an asynchronous run, what is under way; its models (names with a dot) are arrays as the state's are.
        roster: what is known of the clients.
        errands: what was trained before it was needed; names with a dot are arrays as the state's are.
    """

    state: State
    buffers: Array
    memory: Arrays
    clients: Mapping[str, Host]
    layout: str = ""
    course: Mapping[str, Array] = field(default_factory=dict)
    roster: Mapping[str, Host] = field(default_factory=dict)
    errands: Mapping[str, Array] = field(default_factory=dict)


def pack(snapshot: Snapshot, copy: bool = True) -> dict[str, Host]:
    """Named ``state.<name>``, ``buffers``, ``layout`` and ``<part>.<name>``; what is no array becomes one without
    dimensions.

    Args:
        copy: as it is now, whatever is done to it afterwards; False is for arrays that nobody writes to.
    """

    def host(value: Array) -> Host:
        found = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
        return found.copy() if copy else found

    packed = {f"state.{name}": host(value) for name, value in snapshot.state.items()}
    packed["buffers"] = host(snapshot.buffers)
    packed["layout"] = np.frombuffer(snapshot.layout.encode(), np.uint8)
    packed |= {f"memory.{name}": host(value) for name, value in snapshot.memory.items()}
    packed |= {f"clients.{name}": value for name, value in snapshot.clients.items()}
    packed |= {f"course.{name}": host(value) for name, value in snapshot.course.items()}
    packed |= {f"errands.{name}": host(value) for name, value in snapshot.errands.items()}
    packed |= {f"roster.{name}": value for name, value in snapshot.roster.items()}
    return packed


def unpack(packed: Mapping[str, Host], to: Callable[[Host], Array]) -> Snapshot:
    """The inverse of ``pack``; ``to`` makes each array one of the engine's kind."""

    def back(value: Host) -> Array:
        return value.item() if value.ndim == 0 else to(value)

    names = ("state", "memory", "clients", "buffers", "layout", "course", "roster", "errands")
    parts: dict[str, dict[str, Host]] = {name: {} for name in names}
    for name, value in packed.items():
        head, _, rest = name.partition(".")
        parts[head][rest] = value
    state = State(**{name: back(value) for name, value in parts["state"].items()})
    memory = Arrays(**{name: back(value) for name, value in parts["memory"].items()})
    layout = parts["layout"][""].tobytes().decode()
    course, errands = (
        {name: back(value) if "." in name else value for name, value in parts[part].items()} for part in ("course", "errands")
    )
    return Snapshot(state, to(parts["buffers"][""]), memory, parts["clients"], layout, course, parts["roster"], errands)

# SPDX-License-Identifier: Apache-2.0
"""What a run must be to be served, and a client to take part; a new run made of a configuration and initial weights."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.algorithms import algorithm as named_algorithm
from fedweave.blocks import Room, changed, parts, pointwise
from fedweave.config import Config
from fedweave.contract import Algorithm
from fedweave.coordinator import finite
from fedweave.errors import DataError, UsageError
from fedweave.layout import Layout
from fedweave.policy import cohort_size
from fedweave.store import RunStore, Snapshot, pack
from fedweave.store.events import Member
from fedweave.store.room import Files
from fedweave.terms import Terms
from fedweave.values import Arrays, State
from fedweave.wire import read

Patiently = Callable[[Callable[[], Any]], Any]
Host = npt.NDArray[Any]

LARGE = 1 << 23
"""Bytes of a model from which on the server keeps its vectors in files."""
FACTS = ("split", "model", "classes", "shape", "versions")
"""What the file of initial weights may say of where they come from."""


def begin(config: Config, out: Path, initial: Path, url: str | None = None) -> RunStore:
    """A new run in a folder, from its configuration and its initial weights.

    Raises:
        UsageError, StoreError: something cannot be served; why.
    """
    servable(config)
    try:
        content = read(initial)
    except (OSError, DataError) as error:
        raise UsageError(f"The initial weights {initial} cannot be read: {error}.") from None
    layout, clients = layout_of(content.arrays, content.metadata), config.clients
    if clients is None:
        raise UsageError("clients is not given; say how many clients the run has, e.g. clients = 4.")
    algorithm = named_algorithm(config.algorithm).bind(layout)
    algorithm.check(config.local.value(), cohort_size(config.cohort, clients))
    about = {
        "split": "",
        "model": config.model,
        "versions": f"Python {sys.version.split()[0]}, NumPy {np.__version__}",
        **{key: content.metadata[key] for key in FACTS if key in content.metadata},
        "layout": layout.fingerprint,
        "slots": layout.spell(),
        "clients": str(clients),
        "run": secrets.token_hex(16),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    store = RunStore.create(out, url)
    try:
        room = room_for(layout, out)
        if room is None:
            weights, buffers = layout.flatten(content.arrays)
            state = algorithm.init(weights)
        else:
            weights, buffers = _flattened(layout, content.arrays, room)
            state = _first(algorithm, weights, room)
        if not finite(weights):
            raise UsageError("The initial weights are not all finite.")
        shutil.rmtree(out / "updates", ignore_errors=True)
        kept = config.model_copy(update={"initial": "initial.safetensors"})
        store.copy("initial.safetensors", initial)
        store.events.create()
        store.begin(kept, about, pack(Snapshot(state, buffers, Arrays(seq=0, at=0.0), {}), copy=False))
    except BaseException:
        store.close()
        raise
    return store


def room_for(layout: Layout, folder: Path, patiently: Patiently | None = None) -> Files | None:
    """Where the vectors of a model so large that they should not be in memory are put; None: it is not."""
    return Files(folder, patiently) if layout.nbytes >= LARGE else None


def _flattened(layout: Layout, named: Mapping[str, Any], room: Room) -> tuple[Host, Host]:
    """``layout.flatten``, the parameters a block at a time."""
    sink, buffers = room.sink(layout.dtype), np.empty(layout.buffer_size, layout.dtype)
    for slot, value in layout.values(named):
        if slot.role == "buffer":
            buffers[slot.offset : slot.offset + slot.size] = value.reshape(-1)
        elif slot.size:
            for part in parts(value):
                sink.write(part)
    return sink.close(), buffers


def _first(algorithm: Algorithm, weights: Host, room: Room) -> State:
    """``algorithm.init``, a block at a time where it can be."""
    if not pointwise(algorithm):
        return algorithm.init(weights)
    return changed(lambda start: algorithm.init(start.weights), [State(weights=weights)], room)


def servable(config: Config) -> None:
    """See that nothing is asked for that only a simulation has.

    Raises:
        UsageError: something is.
    """
    for name, value, plain in (("population", config.population, None), ("attack", config.attack, None)):
        if value != plain:
            raise UsageError(
                f"{name} is {value!r}, which only a simulation has; real clients are as they are. Leave it out, or simulate: "
                "fedweave run."
            )
    algorithm = named_algorithm(config.algorithm)
    if algorithm.prepares or algorithm.wires:
        raise UsageError(
            f"{config.algorithm} changes each client's training by how the model's layers hang together, which a coordinator "
            "cannot do over a network yet. Choose another algorithm, or simulate: fedweave run."
        )
    if getattr(Terms.of(config).policy, "late", "drop") == "keep":
        raise UsageError("late is 'keep', but real clients do not stop in the middle of their training yet; use late='drop'.")


def layout_of(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Layout:
    """The layout that a file of initial weights names; one that names none has its arrays in their order, all parameters."""
    if "layout" in metadata:
        return Layout.parse(metadata["layout"])
    return Layout.of((name, array.shape, str(array.dtype)) for name, array in arrays.items())


def refused_again(known: Member, examples: int, own_training: bool) -> str | None:
    """Why a client that has joined before cannot come back as it is now; None if it can."""
    if known.examples != examples:
        return (
            f"{known.name} has joined this run with {known.examples} examples, and now comes with {examples}; what a client "
            f"counts is fixed for a run, so load the same {known.examples} again, or begin a new run for the new data (serve "
            "with another --out)"
        )
    if known.own_training != own_training:
        before, now = ("its own way", "the run's own model") if known.own_training else ("the run's own model", "its own way")
        return (
            f"{known.name} has joined this run to train {before}, and now comes to train {now}; have its data loader return "
            "what it did before, or begin a new run (serve with another --out)"
        )
    return None


def needs_steps(algorithm: Algorithm) -> str | None:
    """Why a client that trains its own way cannot take part; None if it can."""
    kind, name = type(algorithm), type(algorithm).__name__
    for hook, does in (
        ("correct", "corrects every local step"), ("direction", "makes every local step itself"),
        ("start", "says where local training starts"), ("prepare", "changes how clients train"),
    ):  # fmt: skip
        if getattr(kind, hook) is not getattr(Algorithm, hook):
            return f"{name} {does}, which a client that trains its own way cannot do; choose fedavg or fedadam, say"
    if algorithm.surveys or algorithm.needs or algorithm.keeps_buffers or algorithm.personalised:
        return f"{name} asks clients for more than their trained weights, which one that trains its own way does not have"
    return None

# SPDX-License-Identifier: Apache-2.0
"""A crew on a Ray cluster: one actor for each of its CPUs.

    driver   ── recipe, once per run; job, once per conversation ──►  object store, one copy per node
             ── unit ──►  actor  ── Done ──►

Actors read the recipe's data and the job's vectors where the object store has them. A unit depends on nothing but the job, so
one whose actor is lost is given to another, and no bit of the result shows it. Ray is imported when a crew is made, not before.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedweave.engines.base import Done, Job, Unit
from fedweave.engines.performing import Performer
from fedweave.engines.recipe import Recipe
from fedweave.errors import EngineError, FedweaveError, UsageError
from fedweave.models import tensor

AHEAD = 2
"""Units that an actor has at a time: the next is there when one is done, and a large cohort does not fill the object store."""
STRIKES = 3
"""Actors that may be lost over one unit."""
LOOK = 1.0
"""Seconds between looks at what CPUs there are."""
REACH = 10.0
"""Seconds in which a cluster must answer."""
PATIENCE = 60.0
"""Seconds without any actor after which the run says that it is waiting."""
STARTS = 3
"""Actors, for each that lives and one more, that may be lost in a row while they start: nodes come and go."""

VERSIONS = f"fedweave {sys.modules['fedweave'].__version__}, torch {torch.__version__}, NumPy {np.__version__}"
"""What all nodes must have alike."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # messages of Ray's daemons: the only way to keep them off standard output
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it will do from some version on, and warns of until then
}
"""What keeps Ray off the screen and the network; read when it is imported or started."""


# On the way --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sent:
    """A tensor as NumPy array: those need no copy to get out of the object store."""

    array: np.ndarray[Any, Any]


def _packed(value: Any) -> Any:
    return _Sent(_host(value)) if isinstance(value, Tensor) else value


def _shared(value: Any) -> Any:
    """Over the memory of the object store, which must not be written to."""
    return tensor(value.array) if isinstance(value, _Sent) else value


def _own(value: Any) -> Any:
    return _copied(value.array) if isinstance(value, _Sent) else value


def _host(value: Tensor) -> np.ndarray[Any, Any]:
    return value.detach().cpu().numpy()


def _copied(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(array))


class _Actor:
    """Performs units in a process of the cluster."""

    def __init__(self, recipe: Recipe, versions: str) -> None:
        if versions != VERSIONS:
            raise UsageError(
                f"a node has {VERSIONS}, but the run was started with {versions}: results would differ by rounding."
            )
        torch.set_num_threads(1)
        self.ray = _ray()
        # What goes back is written to by who receives it (sums are added in place): it is unpacked as a copy.
        self.ray.util.register_serializer(Tensor, serializer=_host, deserializer=_copied)
        self.performer: Performer = recipe.performer()
        self.number = -1
        self.job: Any = None

    def node(self) -> str:
        """Where it is; answered once it is ready."""
        return str(self.ray.get_runtime_context().get_node_id())

    def perform(self, number: int, held: list[Any], unit: Unit) -> Done:
        """``held`` has the reference of the job, the ``number``-th of the run: it is fetched once for all units."""
        if number != self.number:
            job = self.ray.get(held[0])
            self.job = replace(job, state=job.state.map(_shared), buffers=_shared(job.buffers))
            self.number = number
        mine = [None if m is None else m.map(_own) for m in unit.mine]
        return self.performer(self.job, replace(unit, mine=mine))


# The driver's side -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Piece:
    """A unit, whose clients it has, and how many actors were lost over it."""

    unit: Unit
    round: int
    clients: str
    strikes: int = 0


@dataclass(eq=False)
class _Member:
    """An actor: what says that it is ready, the node it is on once it is, and its pieces by the references of their results."""

    actor: Any
    starting: Any
    node: str | None = None
    pieces: dict[Any, _Piece] = field(default_factory=dict)


class RayCrew:
    """Performs units on the Ray cluster at ``RAY_ADDRESS`` (``auto``: the one that runs on this machine), else on one that is
    started here for the run. A program that is connected to a cluster already stays connected to it.

    Args:
        recipe: what each actor performs with.
        workers: actors; None: one for each CPU of the cluster, those of nodes that join later too.

    Raises:
        UsageError: Ray is not installed.
        EngineError: (when performing) there is no cluster; a unit loses every actor that it is given to.
    """

    name = "Ray"
    single = True

    def __init__(self, recipe: Recipe, workers: int | None = None) -> None:
        self.ray = _ray()
        self.recipe, self.workers = recipe, workers
        self.members: list[_Member] = []
        self._kind: Any = None
        self._connected = False
        self._number = 0
        self._next_look = 0.0
        self._lost_starts = 0

    def perform(self, job: Job, units: Iterable[Unit]) -> Iterator[Done]:
        self._begin()
        self._number += 1
        held = [self.ray.put(replace(job, state=job.state.map(_packed), buffers=_packed(job.buffers)))]
        source, again, over = iter(units), deque[_Piece](), False
        try:
            while True:
                self._recruit()
                while not (over and not again) and (member := self._free()) is not None:
                    piece = _next(job, source, again)
                    if piece is None:
                        over = True
                    else:
                        member.pieces[member.actor.perform.remote(self._number, held, piece.unit)] = piece
                if over and not again and not any(m.pieces for m in self.members):
                    return
                yield from self._awaited(again)
        finally:
            for member in self.members:
                member.pieces.clear()

    def close(self) -> None:
        if self.ray.is_initialized():
            for member in self.members:
                self.ray.kill(member.actor)
            if self._connected:
                self.ray.shutdown()
        self.members, self._kind, self._connected = [], None, False

    def _begin(self) -> None:
        if self._kind is not None:
            return
        if not self.ray.is_initialized():
            self._connect()
            self._connected = True
        self._recipe = self.ray.put(self.recipe.portable())
        self._kind = self.ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)
        self._last_seen = time.monotonic()

    def _connect(self) -> None:
        where = os.environ.get("RAY_ADDRESS", "")
        begun = f"No Ray cluster can be joined at RAY_ADDRESS={where}" if where else "Ray cannot be started on this machine"
        try:
            _reached(where)
            with _environment(QUIET):
                self.ray.init(
                    where or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
                )  # fmt: skip
        except (OSError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
            raise EngineError(f"{begun}: {_reason(error.__cause__ or error)}") from None

    def _recruit(self) -> None:
        """As many actors as there should be by now."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK
        wanted = self.workers or max(1, int(self.ray.cluster_resources().get("CPU", 0)))
        for _ in range(wanted - len(self.members)):
            actor = self._kind.remote(self._recipe, VERSIONS)
            self.members.append(_Member(actor, actor.node.remote()))

    def _free(self) -> _Member | None:
        """Who is ready and has least to do, if it may have more."""
        ready = [m for m in self.members if m.node is not None and len(m.pieces) < AHEAD]
        return min(ready, key=lambda m: len(m.pieces), default=None)

    def _awaited(self, again: deque[_Piece]) -> Iterator[Done]:
        """What is done next, if anything within a while."""
        owners = {ref: m for m in self.members for ref in ([m.starting] if m.node is None else m.pieces)}
        refs = list(owners)
        found, _ = self.ray.wait(refs, num_returns=1, timeout=LOOK)
        if found:  # and whatever else is there by now, so that nobody waits behind others that are always sooner
            found, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in found:
            member = owners[ref]
            if member not in self.members:
                continue
            try:
                value = self.ray.get(ref)
            except self.ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, FedweaveError):
                    raise error.cause from None
                raise
            except self.ray.exceptions.RayError as error:
                self._lost(member, error, again)
                continue
            if member.node is None:
                member.node, self._lost_starts = value, 0
            else:
                del member.pieces[ref]
                yield value
        if any(m.node is not None for m in self.members):
            self._last_seen = time.monotonic()
        elif time.monotonic() - self._last_seen > PATIENCE:
            self._last_seen = math.inf
            warnings.warn(
                "No CPU of the Ray cluster is free, and the run waits. `ray status` shows who has them.", stacklevel=2
            )

    def _lost(self, member: _Member, error: Exception, again: deque[_Piece]) -> None:
        """An actor is gone: its pieces are given to others. It was at work on the first of them."""
        self.members.remove(member)
        self.ray.kill(member.actor)
        reason = _reason(error)
        if member.node is None:
            self._lost_starts += 1
            # What the actor itself raised it would raise again; a node may go while many of them start.
            if getattr(error, "actor_init_failed", False) or self._lost_starts > STARTS * (len(self.members) + 1):
                raise EngineError(f"A process of the Ray cluster cannot start: {reason}") from None
            return
        self._next_look = 0.0
        pieces = list(member.pieces.values())
        if pieces and self._alive(member.node):
            first = pieces[0]
            first.strikes += 1
            if first.strikes >= STRIKES:
                raise EngineError(
                    f"Each of the {STRIKES} Ray processes that were to train client {first.clients} in round {first.round} "
                    f"ended. The last one: {reason}"
                ) from None
        again.extend(pieces)

    def _alive(self, node: str) -> bool:
        return any(known["Alive"] for known in self.ray.nodes() if known["NodeID"] == node)


def _reason(error: BaseException) -> str:
    """What Ray says at the end of a trace that fills the screen."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"^[\w.]+Error: |^The actor is dead because ", "", lines[-1] if lines else repr(error))
    return last.partition(" Some common causes")[0].partition(" For more information")[0]


def _reached(address: str) -> None:
    """See that somebody listens there: Ray itself would try for minutes. Raises OSError."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()


def _next(job: Job, source: Iterator[Unit], again: deque[_Piece]) -> _Piece | None:
    if again:
        return again.popleft()
    unit = next(source, None)
    if unit is None:
        return None
    clients = job.clients[unit.first : unit.last].tolist()
    packed = replace(unit, mine=[None if m is None else m.map(_packed) for m in unit.mine])
    return _Piece(packed, job.round, f"{clients[0]}" if len(clients) == 1 else f"{clients[0]} or one up to {clients[-1]}")


def _ray() -> Any:
    try:
        with _environment(QUIET):
            import ray
    except ImportError as error:
        raise UsageError(f"The engine 'ray' needs Ray: pip install 'fedweave[ray]' ({error}).") from None
    return ray


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while; those that the user has set stay as they are."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


__all__ = ["RayCrew"]

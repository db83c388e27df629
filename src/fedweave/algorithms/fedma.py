# SPDX-License-Identifier: Apache-2.0
"""FedMA: Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni, "Federated Learning with Matched Averaging", ICLR 2020,
arXiv:2002.06440, Algorithm 1; its matching is BBP-MAP of Yurochkin et al., ICML 2019, arXiv:1905.12022 (PFNM).

    paper                                  here
    layer n = 1 .. N - 1                   phase 0 .. S - 1: space n of the model's wiring (a hidden layer's units)
    w_{jl}, neuron l of client j           a row of wiring.rows(...)
    {Pi_j} = BBP-MAP({W_{j,n}})            bbp_map(rows, ...): the global number of each client's neurons
    W_n = 1/J sum_j W_{j,n} Pi_j^T         Frame.averaged, over the clients that have the neuron
    W_{j,n+1} <- Pi_j W_{j,n+1}            prepare: Frame.moved(own weights, places)
    retrain with frozen W_n                Setting.frozen
    last layer N, weighted p_jk            _weights: class by class, by the clients' shares of its examples
    FedMA with communication, section 3.2  communicate: Frame.taken, back to the client's own widths
    gamma_0, sigma^2, sigma_0^2            gamma, sigma, sigma0

One round per layer: phase p = 0 .. S begins with p spaces matched. What makes only matched units is *settled*: the server
has averaged it and sends it, clients leave it alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from array_api_compat import array_namespace

from fedweave.assignment import bbp_map, nearest
from fedweave.contract import Algorithm, Array, Arrays, Ask, Cohort, Local, Setting, State, Update, Wiring, Work, within
from fedweave.errors import UsageError
from fedweave.frames import Frame, Host, packed
from fedweave.layout import Layout
from fedweave.randomness import generator
from fedweave.reduce import Gather
from fedweave.wiring import Wire


@dataclass(frozen=True)
class FedMA(Algorithm):
    """Clients' neurons are matched layer by layer before they are averaged; layers grow where neurons have no match. A round
    per layer; between rounds, what is matched is frozen and clients train the rest.

    Unequal work: a neuron counts once, however long it was trained, so a client of few steps drags its matches back as far as
    any other. A client that misses the matching of a layer takes the nearest matched neurons for its own when it returns.

    Args:
        gamma: the larger, the more neurons stay apart and the wider layers grow (authors: 7 for CNNs, 1e-3 for LSTMs); above 0.
        sigma: standard deviation of clients' neurons around a global one; above 0.
        sigma0: standard deviation of global neurons; above 0.
        sweeps: passes of the matching over all clients.
        communicate: go on after the last layer: clients take their neurons back out of the global model, train, match again.
        one_shot: match all layers after a single training, without any in between (PFNM); a round is then a whole sweep.
        estimate: what a matched neuron becomes: the ``"mean"``, or the paper's ``"map"``, that times
            count / (count + sigma^2 / sigma0^2).
        shared_start: clients begin from the server's initial weights instead of their own draws (those who first come after
            the first sweep draw their own).
        last_epochs: when only the last layer is left, local work is multiplied by it ...
        last_lr: ... and the learning rate by this; the authors' code has 3 and 0.1.
    """

    gamma: float = 7.0
    sigma: float = 1.0
    sigma0: float = 1.0
    sweeps: int = 5
    communicate: bool = True
    one_shot: bool = False
    estimate: Literal["mean", "map"] = "mean"
    shared_start: bool = False
    last_epochs: float = 3.0
    last_lr: float = 0.1
    reduce: Gather = field(default=Gather(), kw_only=True)
    weighting: Literal["examples", "uniform"] = field(default="uniform", kw_only=True)
    wiring: Wiring = field(default=Wiring((), {}), init=False, repr=False, compare=False)
    base: Layout = field(default=Layout(()), init=False, repr=False, compare=False)

    paper: ClassVar[str] = "Wang et al., ICLR 2020, arXiv:2002.06440"
    needs = frozenset({"class_counts"})
    wires: ClassVar[bool] = True
    assumes_rounds: ClassVar[str] = "it matches the neurons of clients that are at one and the same layer"
    departs = {"stacks_broadcast": "each client's weights have a frame of their own"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "sigma", "sigma0", "last_epochs"):
            within(name, getattr(self, name), 0, above=True)
        within("last_lr", self.last_lr, 0)
        if isinstance(self.sweeps, bool) or not isinstance(self.sweeps, int) or self.sweeps < 0:
            raise UsageError(f"sweeps is {self.sweeps!r}; it must be a whole number from 0 up.")
        if self.estimate not in ("mean", "map"):
            raise UsageError(f"estimate is {self.estimate!r}; it must be 'mean' or 'map'.")
        given: object = self.reduce
        if not isinstance(given, Gather):
            kind = type(given).__name__
            raise UsageError(f"FedMA cannot be used with reduce={kind}: it must see each client's neurons. Leave reduce alone.")

    # Before a run --------------------------------------------------------------------------------------------------------

    def bind(self, layout: Layout) -> FedMA:
        wires = {slot.name: Wire(tuple(((n,),) for n in slot.shape)) for slot in layout.slots}
        return self._with(base=layout, wiring=Wiring((), wires))

    def wired(self, wiring: Wiring) -> FedMA:
        return self._with(wiring=wiring)

    def _with(self, **values: Any) -> FedMA:
        bound = copy.copy(self)
        for name, value in values.items():
            object.__setattr__(bound, name, value)
        return bound

    @property
    def draws(self) -> bool:
        return not self.shared_start

    @property
    def period(self) -> int:
        return 1 if self.one_shot else len(self.wiring.spaces) + 1

    @property
    def ends(self) -> int | None:
        return None if self.communicate else self.period

    # The server ----------------------------------------------------------------------------------------------------------

    def init(self, weights: Array) -> State:
        none, widths = np.zeros(0, self.base.dtype), np.array(list(self.wiring.widths.values()), np.int64)
        return State(
            weights=weights,
            widths=widths,
            phase=0,
            sweep=0,
            grown=widths,
            settled=none,
            statistics=none,
            members=np.zeros(0, np.int64),
            places=np.zeros((0, int(widths.sum())), np.int64),
        )

    def ask(self, state: State, client: int) -> Ask:
        sent, statistics, widths = state.settled, state.statistics, state.grown
        if state.phase == 0:
            sent, statistics, widths = state.weights if state.sweep else sent, state.get("buffers", statistics), state.widths
        row = np.flatnonzero(_host(state.members) == client)
        begin = state.weights if self.shared_start and state.sweep == 0 and not len(row) else state.weights[:0]
        places = _host(state.places)[row[0]] if len(row) else np.full(sum(self.wiring.widths.values()), -1)
        position = {"phase": state.phase, "sweep": state.sweep, "client": client}
        return Ask(sent=sent, statistics=statistics, widths=widths, places=places, begin=begin, **position)

    def step(self, state: State, aggregate: Update, cohort: Cohort) -> State:
        phase, last = int(state.phase), len(self.wiring.spaces)
        own = frame = self._frame(state.grown)
        names, done = self._due(phase), own.unpacked(_host(state.settled), self._settled(phase))
        models = [own.unpacked(row, names) for row in _host(aggregate.rows)]
        matched: list[dict[str, Host]] = [{} for _ in models]
        for at in range(phase, last + 1 if self.one_shot else phase + 1):
            compared: list[str] = []
            if at < last:
                space, known = self.wiring.spaces[at], self.wiring.names[:at]
                compared = self.wiring.compared(space.name, known)
                same = [
                    own.moved({n: m[n] for n in compared if n in m}, to, frame) for m, to in zip(models, matched, strict=True)
                ]
                rows = [self.wiring.rows(model, space.name, known, frame.widths) for model in same]
                found = self._match(rows, space.grows, generator(aggregate.seed, "matching", at))
                frame = frame.wider(space.name, 1 + max(int(place.max()) for place in found))
                for to, place in zip(matched, found, strict=True):
                    to[space.name] = place
            for name in (name for name in names if self._round(name) == at):
                tensors, pull = [model[name] for model in models], self._pull if name in compared else 0.0
                weights = self._weights(aggregate, tensors[0].shape if at == last else ())
                done[name] = own.averaged(name, tensors, matched, weights, frame, pull)
        measured = [self._statistics(own, row) for row in _host(aggregate.statistics)]
        weights = self._weights(aggregate)
        buffers = {name: own.averaged(name, [m[name] for m in measured], matched, weights, frame) for name in measured[0]}
        after, grown = last + 1 if self.one_shot else phase + 1, np.array(list(frame.widths.values()), np.int64)
        state, flat = self._remember(state, aggregate, matched, range(phase, min(after, last))), self._flat(buffers, "buffer")
        if after <= last:
            settled = packed(done, self._settled(after), self.base.dtype)
            return state.replace(phase=after, grown=grown, settled=settled, statistics=flat)
        like, begun = array_namespace(state.weights), self.init(state.weights)
        begin = {name: begun[name] for name in ("phase", "grown", "settled", "statistics")}
        weights = like.asarray(self._flat(done, "parameter"))
        state = state.replace(weights=weights, widths=grown, sweep=state.sweep + 1, **begin)
        return state.replace(buffers=like.asarray(flat)) if self.base.buffers else state

    def _match(self, rows: Sequence[Host], grows: bool, draw: np.random.Generator) -> list[Host]:
        return bbp_map(
            rows, generator=draw, gamma=self.gamma, sigma=self.sigma, sigma0=self.sigma0, sweeps=self.sweeps, grows=grows
        )

    @property
    def _pull(self) -> float:
        """Towards the prior's mean, 0, as one more client of so much weight."""
        return (self.sigma / self.sigma0) ** 2 if self.estimate == "map" else 0.0

    def _weights(self, aggregate: Update, shape: tuple[int, ...] = ()) -> list[Any]:
        """How much each client counts, 1 on average; in the last layer, of this shape, by its examples of each class."""
        each = np.asarray(aggregate.weights, np.float64)
        each = each * len(each) / each.sum()
        counts = _host(aggregate.counts)
        if not shape or shape[0] != counts.shape[1] or not counts.any():
            return list(each)
        shares = np.where(counts.any(axis=0), counts, each[:, None])
        return [share.reshape(-1, *[1] * (len(shape) - 1)) for share in shares]

    def _remember(self, state: State, aggregate: Update, matched: Sequence[Mapping[str, Host]], spaces: range) -> State:
        """Everybody's places: who came has those that were found; the others have none in what was matched without them."""
        found = np.array(_host(aggregate.places))
        known = dict(zip(_host(state.members).tolist(), np.array(_host(state.places)), strict=True))
        for at in spaces:
            for row in known.values():
                row[self._columns(at)] = -1
            for row, to in zip(found, matched, strict=True):
                row[self._columns(at)] = to[self.wiring.names[at]]
        known |= dict(zip(aggregate.client, found, strict=True))
        members = np.array(sorted(known), np.int64)
        return state.replace(members=members, places=np.stack([known[client] for client in members.tolist()]))

    def layout(self, state: State) -> Layout | None:
        frame = self._frame(state.widths)
        return None if frame.widths == self.wiring.widths else frame.layout

    def figures(self, state: State) -> dict[str, float]:
        latest = _host(state.grown).tolist()[: state.phase] + _host(state.widths).tolist()[state.phase :]
        return {f"width of {name}": float(width) for name, width in zip(self.wiring.names, latest, strict=True)}

    # A client ------------------------------------------------------------------------------------------------------------

    def prepare(self, setting: Setting, ask: Ask, mine: Arrays | None) -> Setting:
        phase, base, whole = int(ask.phase), self._frame(self.wiring.widths.values()), self._frame(ask.widths)
        places = np.array(_host(ask.places))
        if phase == 0 and ask.sweep == 0:
            frame, named = base, base.named(self._initial(setting, ask), _host(setting.buffers))
        elif phase == 0:
            model = whole.named(_host(ask.sent), _host(ask.statistics))
            self._join(self._own(base, setting, ask, mine), model, whole, places, len(self.wiring.spaces))
            frame, named = base, base.taken(model, self._by_space(places), whole)
        else:
            settled = whole.unpacked(_host(ask.sent), self._settled(phase))
            frame, named = whole, self._join(self._own(base, setting, ask, mine), settled, whole, places, phase)
            known = self._statistics(whole, _host(ask.statistics))
            named |= settled | {name: value for name, value in known.items() if self._round(name) < phase}
        like = array_namespace(setting.buffers)
        return replace(
            setting,
            local=self._local(setting.local, phase),
            weights=like.asarray(self._flat(named, "parameter")),
            buffers=like.asarray(self._flat(named, "buffer")),
            layout=frame.layout,
            frozen=frozenset(self._settled(phase)),
            mine=Arrays(places=places),
        )

    def start(self, ask: Ask, mine: Arrays | None) -> Array:
        raise AssertionError("prepare says where local training starts")

    def report(self, delta: Array, work: Work, ask: Ask, mine: Arrays | None) -> tuple[Update, Arrays | None]:
        assert mine is not None
        widths = _host(ask.widths) if ask.phase else np.array(list(self.wiring.widths.values()), np.int64)
        weights, statistics = _host(work.end.weights), _host(work.end.buffers)
        rows = packed(self._frame(widths).named(weights, statistics), self._due(int(ask.phase)), self.base.dtype)
        counts = np.zeros(self._classes)
        if work.class_counts is not None:
            held = _host(work.class_counts)[: self._classes]
            counts[: len(held)] = held
        update = Update(
            rows=rows, statistics=statistics, places=mine.places, counts=counts, client=ask.client, weight=self.weight(work)
        )
        kept = {"phase": int(ask.phase), "sweep": int(ask.sweep), "widths": widths, "places": mine.places}
        return update, Arrays(own=weights, statistics=statistics, **kept)

    def _initial(self, setting: Setting, ask: Ask) -> Host:
        """The weights that a client begins with."""
        return _host(ask.begin if len(ask.begin) else setting.fresh())

    def _own(self, base: Frame, setting: Setting, ask: Ask, mine: Arrays | None) -> tuple[Frame, dict[str, Host], int]:
        """The client's own model, its frame, and how many spaces of it are numbered as the server numbers them."""
        if mine is None:
            statistics = {s.name: np.full(s.shape, float(s.name.endswith("var"))) for s in self.base.buffers}
            known = self._flat(statistics, "buffer") if ask.sweep else _host(setting.buffers)
            return base, base.named(self._initial(setting, ask), known), 0
        frame = self._frame(mine.widths)
        named = frame.named(_host(mine.own), _host(mine.statistics))
        if mine.sweep == ask.sweep:
            return frame, named, int(mine.phase)
        return base, base.taken(named, self._by_space(_host(mine.places), int(mine.phase)), frame), 0

    def _join(
        self, own: tuple[Frame, dict[str, Host], int], model: dict[str, Host], whole: Frame, places: Host, phase: int
    ) -> dict[str, Host]:
        """The client's own model with the first ``phase`` spaces numbered as the server numbers them. Where it missed a
        matching, its units take the places of the server's nearest ones, and ``places`` is filled in."""
        frame, named, begun = own
        for at in range(begun, phase):
            space, place = self.wiring.names[at], places[self._columns(at)]
            if (place < 0).any():
                both = (self._parameters(named), frame), (self._parameters(model), whole)
                rows = [self.wiring.rows(m, space, self.wiring.names[:at], f.widths) for m, f in both]
                place[:] = nearest(rows[0], rows[1])
            wider = frame.wider(space, whole.widths[space])
            named, frame = frame.moved(named, {space: place}, wider), wider
        return named

    def _local(self, local: Local, phase: int) -> Local:
        """The local training of a phase: the last layer alone is trained longer and more gently."""
        if not 0 < phase == len(self.wiring.spaces):
            return local
        more: dict[str, Any] = {"epochs": None if local.epochs is None else local.epochs * self.last_epochs}
        more["steps"] = None if local.steps is None else round(local.steps * self.last_epochs)
        return replace(local, lr=local.lr * self.last_lr, **more)

    # Names, rounds and columns -------------------------------------------------------------------------------------------

    def _frame(self, widths: Iterable[Any]) -> Frame:
        return Frame(self.wiring, self.base, dict(zip(self.wiring.names, map(int, widths), strict=True)))

    def _flat(self, named: Mapping[str, Host], role: str) -> Host:
        return packed(named, [slot.name for slot in self.base.slots if slot.role == role], self.base.dtype)

    def _statistics(self, frame: Frame, flat: Host) -> dict[str, Host]:
        return frame.unpacked(flat, [slot.name for slot in self.base.buffers])

    def _parameters(self, named: Mapping[str, Host]) -> dict[str, Host]:
        """Those of a model's arrays that are no buffers: what a settled part of it has, too."""
        return {slot.name: named[slot.name] for slot in self.base.parameters if slot.name in named}

    def _round(self, name: str) -> int:
        """The phase at whose end a tensor is settled."""
        return self.wiring.settles(name) - 1 if self.wiring.tensors[name].made else len(self.wiring.spaces)

    def _settled(self, phase: int) -> list[str]:
        """The parameters that are settled before a phase."""
        return [slot.name for slot in self.base.parameters if self._round(slot.name) < phase]

    def _due(self, phase: int) -> list[str]:
        """The parameters that clients send in a phase."""
        return [slot.name for slot in self.base.parameters if self.one_shot or self._round(slot.name) == phase]

    def _columns(self, at: int) -> slice:
        """Where the places of one space's units lie among all."""
        start = sum(space.size for space in self.wiring.spaces[:at])
        return slice(start, start + self.wiring.spaces[at].size)

    def _by_space(self, places: Host, most: int | None = None) -> dict[str, Host]:
        return {name: places[self._columns(at)] for at, name in enumerate(self.wiring.names[:most])}

    @property
    def _classes(self) -> int:
        """Rows of the last layer."""
        last = [slot for slot in self.base.parameters if self._round(slot.name) == len(self.wiring.spaces) and slot.shape]
        return next((slot.shape[0] for slot in reversed(last) if len(slot.shape) > 1), 0)


def _host(value: Any) -> Host:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)

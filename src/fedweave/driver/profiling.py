# SPDX-License-Identifier: Apache-2.0
"""Where a run's time goes, by Python's own profiler, so that a run that is not profiled pays nothing for it.

The profiler charges each call a little, which makes steps of many calls look somewhat longer than they are.
"""

from __future__ import annotations

import cProfile
import json
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any, Self

from fedweave.contract import Algorithm
from fedweave.engines.measuring import Measure
from fedweave.engines.stacks import Chained, Mapped
from fedweave.engines.vectorized import Vectorized, _Gradient
from fedweave.local import Trainer, _Batch, gathered
from fedweave.models import Model
from fedweave.reduce import Reduction
from fedweave.store import ClientStates

FILE = "profile.json"


class Profile:
    """Takes the time of what is done within it: ``with Profile() as profile: ...``."""

    def __init__(self) -> None:
        self._profiler = cProfile.Profile()

    def __enter__(self) -> Self:
        self._profiler.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self._profiler.disable()

    def parts(self, algorithm: Algorithm) -> dict[str, float]:
        """Seconds by what they were spent on, the longest first; together they are all of the time.

        Args:
            algorithm: the one of the run, as it was bound to the model.
        """
        spent: dict[Any, float] = {}
        whole = 0.0
        for entry in self._profiler.getstats():
            if isinstance(entry.code, CodeType):
                spent[entry.code] = spent.get(entry.code, 0.0) + entry.totaltime
            whole += entry.inlinetime

        def of(*functions: Callable[..., Any]) -> float:
            codes = {function.__code__ for function in functions if hasattr(function, "__code__")}
            return sum(spent.get(code, 0.0) for code in codes)

        from fedweave.store import RunStore  # brings SQLAlchemy

        kind, reduction = type(algorithm), type(algorithm.reduce)
        inner = of(_Batch.__call__, _Gradient.__call__)
        steps = of(Model.descend, Model.gradient, Chained.gradient, Chained.descend, Mapped.gradient)
        training = of(Trainer.turn, Trainer.survey, Vectorized._surveyed, Vectorized._stacked)
        data = of(gathered, Vectorized._batches)
        correct = max(of(kind.direction) - inner, 0.0) if algorithm.corrects or _directs(algorithm) else 0.0
        parts = {
            "local steps": steps,
            "correct": correct,
            "data": data,
            "local training, the rest": max(training - steps - correct - data, 0.0),
            "reduce": of(*_methods(reduction, ("add", "add_rows", "merge", "result"))),
            "server step": of(kind.step, kind.surveyed),
            "evaluation": of(Measure.__call__),
            "store": of(RunStore.append, RunStore.checkpoint, ClientStates.get, ClientStates.put, ClientStates.checkpoint),
        }
        parts["everything else"] = max(whole - sum(parts.values()), 0.0)
        return dict(sorted(parts.items(), key=lambda part: -part[1]))


def _directs(algorithm: Algorithm) -> bool:
    return type(algorithm).direction is not Algorithm.direction


def _methods(kind: type[Reduction], names: Iterable[str]) -> list[Callable[..., Any]]:
    return [getattr(kind, name) for name in names if hasattr(kind, name)]


def spelled(parts: dict[str, float]) -> bytes:
    """As a file: JSON, seconds by part."""
    return json.dumps({name: round(seconds, 6) for name, seconds in parts.items()}, indent=1).encode()

# SPDX-License-Identifier: Apache-2.0
"""The kernel on a device: nothing is made, moved or left elsewhere, by a guard that knows what was never put there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import fedweave as fw
from fedweave.algorithms import REGISTRY
from fedweave.engines import building, device, recipe
from fedweave.engines.base import Task, Trained
from fedweave.engines.measuring import Measure
from fedweave.errors import UsageError


class Loose(Tensor):
    """A tensor that no call has put on the device: where there is a GPU, it were in the host's memory.

    It can be moved, looked at and copied from, and nothing else; a number without dimensions may also be an operand, though not
    the place of a result. So it is with tensors of the host and a GPU.
    """

    LOOKS = {"size", "dim", "numel", "stride", "element_size", "is_contiguous", "storage_offset", "is_floating_point"}

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
        if name == "__get__" or name in cls.LOOKS or (name == "copy_" and not isinstance(args[0], Loose)):
            return found
        places = [kwargs.get("out"), *([args[0]] if args and name.endswith("_") and not name.endswith("__") else [])]
        places += [args[0]] if name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__") else []
        loose = [value for value in _tensors((args, kwargs)) if isinstance(value, Loose)]
        others = [value for value in _tensors((args, kwargs)) if not isinstance(value, Loose)]
        if any(isinstance(place, Loose) for place in places) and others:
            raise AssertionError(f"{name} would write from the device to the host")
        if others and any(value.ndim for value in loose):
            raise AssertionError(f"{name} has a tensor of the device and one {tuple(loose[0].shape)} of the host")
        return found if others else _as_loose(found)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _as_loose(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.as_subclass(Loose)
    return type(value)(_as_loose(part) for part in value) if type(value) in (list, tuple) else value


class Guard(TorchFunctionMode):
    """Whatever makes a tensor without saying where makes a loose one, and so does a move to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "to" and any(isinstance(a, torch.device) for a in args):
            with torch._C.DisableTorchFunctionSubclass():
                moved = func(*args, **kwargs).detach().view(args[0].shape).as_subclass(Tensor)
            return _as_loose(moved) if any(a is device.HOST for a in args) else moved
        found = func(*args, **kwargs)
        if func is torch.from_numpy or (func in _device_constructors() and kwargs.get("device") is None):
            return _as_loose(found)
        return found


def _record(record: Any, change: Callable[[Any], Any]) -> Any:
    return None if record is None else record.map(change)


def _host(value: Any) -> Any:
    """From the host, whatever it has been before."""
    return value.detach().as_subclass(Tensor).as_subclass(Loose) if isinstance(value, Tensor) else value


class Watched(device.OnDevice):
    """All that it is given is loose, and so must be all that it gives."""

    seen: ClassVar[set[str]] = set()

    def train(self, tasks: Sequence[Task]) -> Iterator[Trained]:
        given = [t._replace(ask=_record(t.ask, _host), buffers=_host(t.buffers), mine=_record(t.mine, _host)) for t in tasks]
        with Guard():
            found = list(super().train(given))
        self.seen.add(self.name)
        for trained in found:
            outcome = trained.outcome
            records = [trained.update, trained.kept, *([] if outcome is None else [outcome.update, outcome.mine])]
            values = [value for record in records if record is not None for value in record.values()]
            values += [] if outcome is None else [outcome.buffers]
            assert all(isinstance(value, Loose) for value in values if isinstance(value, Tensor))
            strip = lambda v: v.as_subclass(Tensor) if isinstance(v, Tensor) else v  # noqa: E731
            update, kept = _record(trained.update, strip), _record(trained.kept, strip)
            if outcome is not None:
                outcome = replace(outcome, update=update, mine=kept, buffers=strip(outcome.buffers))
            yield Trained(update, kept, outcome, trained.sound)


class Measured(Measure):
    """Measured under the guard."""

    def __call__(self, state: Any, buffers: Any) -> dict[str, float]:
        kept = self.mine
        self.mine = lambda client: _record(kept(client), _host)
        try:
            with Guard():
                return super().__call__(state.map(_host), _host(buffers))
        finally:
            self.mine = kept


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines for a device are built, train and evaluate under the guard; the device is this processor."""
    made, tried = building._on_device, building.refusal

    def built(setup: Any, *arguments: Any) -> Any:
        def fresh(client: int) -> Any:
            with torch._C.DisableTorchFunction():  # a module is made on the host
                return _host(setup.fresh(client))

        with Guard():
            return made(replace(setup, fresh=fresh), *arguments)

    def refused(*arguments: Any) -> Any:
        with torch._C.DisableTorchFunction():  # on the host, where hooks are tried
            return tried(*arguments)

    monkeypatch.setattr(building, "accelerator", lambda: torch.device("cpu"))
    monkeypatch.setattr(building, "_on_device", built)
    monkeypatch.setattr(building, "refusal", refused)
    monkeypatch.setattr(recipe, "OnDevice", Watched)
    monkeypatch.setattr(building, "Measure", Measured)
    Watched.seen.clear()


def split() -> fw.data.Split:
    draw = np.random.default_rng(0)
    parts = [(draw.normal(size=(n, 6)).astype(np.float32), draw.integers(0, 4, n)) for n in (2, 9, 5, 13, 7, 7)]
    return fw.data.from_clients(parts, test=parts[1])


def images() -> fw.data.Split:
    draw = np.random.default_rng(0)
    parts = [(draw.normal(size=(n, 1, 6, 6)).astype(np.float32), draw.integers(0, 4, n)) for n in (4, 9, 5)]
    return fw.data.from_clients(parts, test=parts[1])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 4))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))


def run(engine: str = "cuda", **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "model": perceptron, "data": split(), "cohort": 1.0, "rounds": 2, "local": fw.Local(lr=0.1, batch_size=4),
        "engine": engine, "evaluate": "both",
    }  # fmt: skip
    return fw.simulate(**(arguments | changes))


def same(found: Any, expected: Any) -> None:
    for name, value in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], value, rtol=2e-3, atol=2e-5)
    for a, b in zip(found.history, expected.history, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-3)


@pytest.mark.usefixtures("guarded")
class TestNothingIsMadeElsewhere:
    @pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"fedbn", "fedma"}))
    def test_by_a_stack(self, name: str) -> None:
        same(run(algorithm=name), run("eager", algorithm=name))

    def test_by_a_stack_of_a_module_of_ones_own(self) -> None:
        found = run(model=convolutional, data=images())
        assert any("vmap" in name for name in Watched.seen)
        same(found, run("eager", model=convolutional, data=images()))

    @pytest.mark.parametrize("name", ["fedavg", "fedbn", "scaffold", "mime"])
    def test_one_client_at_a_time(self, name: str) -> None:
        changes: dict[str, Any] = {"model": dropping, "local": fw.Local(lr=0.1, batch_size=None), "algorithm": name}
        found = run(**changes)
        assert all("eager" in name for name in Watched.seen)
        same(found, run("eager", **changes))

    def test_by_networks_that_grow(self) -> None:
        changes: dict[str, Any] = {"algorithm": "fedma", "local": fw.Local(lr=0.1, batch_size=4)}
        same(run(**changes), run("eager", **changes))

    @pytest.mark.parametrize(
        "local",
        [
            fw.Local(lr=0.01, batch_size=3, optimizer="adam", weight_decay=0.1),
            fw.Local(lr=0.1, batch_size=None, clip_norm=0.1, momentum=0.9),
        ],
    )
    def test_however_clients_train(self, local: fw.Local) -> None:
        same(run(local=local), run("eager", local=local))

    def test_by_bad_clients(self) -> None:
        changes: dict[str, Any] = {"attack": "label-flip", "byzantine": 2}
        same(run(**changes), run("eager", **changes))


@dataclass(frozen=True)
class Careless(fw.FedAvg):
    """Makes a tensor without asking where the weights are."""

    def correct(self, grad: Any, y: Any, ask: Any, mine: Any) -> Any:
        return grad + torch.zeros(grad.shape)


@pytest.mark.usefixtures("guarded")
def test_the_guard_sees_what_is_made_elsewhere() -> None:
    with pytest.raises(AssertionError, match="of the host"):
        run(algorithm=Careless())


def test_without_a_gpu_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"engine is 'cuda', but torch .* has no CUDA device.*Choose engine='auto'"):
        run()


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")


@gpu
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_gpu_trains_as_the_plain_engine_does(name: str) -> None:
    found = run(algorithm=name)
    same(found, run("eager", algorithm=name))
    assert found.model_hash == run(algorithm=name).model_hash


@gpu
@pytest.mark.parametrize(("model", "data"), [(convolutional, images)])
def test_a_gpu_trains_convolutions_as_the_plain_engine_does(model: Any, data: Any) -> None:
    before = torch.cuda.get_rng_state()
    found = run(model=model, data=data())
    same(found, run("eager", model=model, data=data()))
    assert found.model_hash == run(model=model, data=data()).model_hash
    assert torch.equal(before, torch.cuda.get_rng_state())

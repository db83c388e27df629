# SPDX-License-Identifier: Apache-2.0
"""``synthetic``: the generator of FedProx's Synthetic(alpha, beta) and Synthetic-IID, for any number of clients.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127, section 5.1 and appendix C.1.

    paper                                    here
    u_k ~ N(0, alpha), B_k ~ N(0, beta)      drift, centre; alpha and beta are standard deviations, as in the authors' code
    W_k, b_k ~ N(u_k, 1)                     weight [60, 10], bias [10]
    v_k ~ N(B_k, 1)                          mean [60]
    x ~ N(v_k, Sigma), Sigma_jj = j^-1.2     x
    y = argmax(softmax(W_k x + b_k))         y

u_k is one number, added to every weight and bias of a client's model, so it raises all ten logits alike: alpha changes no
label, in the paper's generator as here. What differs between clients are W_k and b_k themselves, and by beta the x.
"""

from __future__ import annotations

import hashlib
import math
import shutil

import numpy as np

from fedweave.data import cache, files
from fedweave.data.dataset import AnyArray, Dataset
from fedweave.errors import UsageError
from fedweave.randomness import generator

FEATURES, CLASSES = 60, 10
_BLOCK = 1024
"""Clients per random stream: part of the definition of the data, as is the order of draws below."""
_IN_MEMORY = 1 << 26
"""Above so many bytes the arrays go to the cache, where all processes share one copy."""


def synthetic(
    alpha: float = 1.0,
    beta: float = 1.0,
    clients: int = 30,
    iid: bool = False,
    seed: int = 0,
    examples_per_client: int | None = None,
) -> Dataset:
    """Features [N, 60] float32, labels 0 to 9, column ``"client"``; each client's first int(0.9 n) examples (at least one) are
    training examples, the rest its own test examples.

    Args:
        alpha: how much local models differ from each other (standard deviation).
        beta: how much local data differ from each other (standard deviation).
        clients: how many; a million is fine with few ``examples_per_client``.
        iid: one model and one distribution for all (Synthetic-IID); alpha and beta are then not used.
        seed: of the data; not of a run.
        examples_per_client: train and test together; by default int(lognormal(4, 2)) + 50, drawn per client.

    Raises:
        UsageError: an option is out of its range, or the data would not fit on the disk.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise UsageError(f"{name} is {value!r}; it must be a number from 0 up.")
    for name, whole in (
        ("clients", clients),
        ("examples_per_client", 1 if examples_per_client is None else examples_per_client),
    ):
        if isinstance(whole, bool) or not isinstance(whole, int) or whole < 1:
            raise UsageError(f"{name} is {whole!r}; it must be a whole number from 1 up.")
    if examples_per_client is None:
        sizes = generator(seed, "synthetic/sizes").lognormal(4, 2, clients).astype(np.int64) + 50
    else:
        sizes = np.full(clients, examples_per_client, np.int64)
    described = repr((float(alpha), float(beta), clients, bool(iid), int(seed), examples_per_client))
    key = f"synthetic-1-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
    size = int(sizes.sum()) * (4 * FEATURES + 12)
    if size <= _IN_MEMORY:
        held: dict[str, AnyArray] = (out := _Memory())
        _generate(out, sizes, alpha, beta, iid, seed)
    else:
        free = shutil.disk_usage(files.cache_folder()).free
        if size > free:
            raise UsageError(
                f"{clients:,} clients with {int(sizes.sum()):,} examples would take {size / 2**30:,.0f} GiB, but the cache has "
                f"{free / 2**30:,.0f} GiB left; use fewer clients or a smaller examples_per_client."
            )
        held = cache.decoded(key, [], lambda shelf, _: _generate(_OnDisk(shelf), sizes, alpha, beta, iid, seed))
    return Dataset(
        "synthetic",
        held["x_train"],
        held["y_train"],
        held["x_test"],
        held["y_test"],
        classes=CLASSES,
        columns={"client": held["client_train"]},
        test_columns={"client": held["client_test"]},
        natural="client",
        key=key,
    )


class _Memory(dict[str, AnyArray]):
    """Arrays by name, in memory."""

    def new(self, name: str, shape: tuple[int, ...], dtype: type) -> AnyArray:
        return self.setdefault(name, np.empty(shape, dtype))


class _OnDisk(_Memory):
    """Arrays by name, on a shelf of the cache."""

    def __init__(self, shelf: cache.Shelf) -> None:
        super().__init__()
        self.shelf = shelf

    def new(self, name: str, shape: tuple[int, ...], dtype: type) -> AnyArray:
        return self.setdefault(name, self.shelf.new(name, shape, dtype))


def _generate(out: _Memory, sizes: AnyArray, alpha: float, beta: float, iid: bool, seed: int) -> None:
    trained = np.maximum((sizes * 0.9).astype(np.int64), 1)
    counts = {"train": trained, "test": sizes - trained}
    for part, count in counts.items():
        total = int(count.sum())
        out.new(f"x_{part}", (total, FEATURES), np.float32)
        out.new(f"y_{part}", (total,), np.int64)
        out.new(f"client_{part}", (total,), np.int32)[:] = np.repeat(np.arange(len(sizes), dtype=np.int32), count)
    scale = np.arange(1, FEATURES + 1, dtype=np.float32) ** np.float32(-0.6)
    shared = generator(seed, "synthetic/shared")
    one = shared.standard_normal((FEATURES, CLASSES)), shared.standard_normal(CLASSES)
    place = {"train": 0, "test": 0}
    for first in range(0, len(sizes), _BLOCK):
        block = slice(first, first + _BLOCK)
        held = sizes[block]
        rng = generator(seed, "synthetic/clients", index=first // _BLOCK)
        x = rng.standard_normal((int(held.sum()), FEATURES), np.float32) * scale
        if iid:
            y = np.argmax(x @ one[0] + one[1], axis=1)
        else:
            k = len(held)
            drift, centre = alpha * rng.standard_normal(k), beta * rng.standard_normal(k)
            weight = drift[:, None, None] + rng.standard_normal((k, FEATURES, CLASSES))
            bias = drift[:, None] + rng.standard_normal((k, CLASSES))
            mean = centre[:, None] + rng.standard_normal((k, FEATURES))
            x += np.repeat(mean.astype(np.float32), held, axis=0)
            y = _answers(x, weight, bias, held)
        rank = np.arange(len(x)) - np.repeat(np.cumsum(held) - held, held)
        is_train = rank < np.repeat(trained[block], held)
        for part, mine in (("train", is_train), ("test", ~is_train)):
            start = place[part]
            place[part] = stop = start + int(mine.sum())
            out[f"x_{part}"][start:stop], out[f"y_{part}"][start:stop] = x[mine], y[mine]


def _answers(x: AnyArray, weight: AnyArray, bias: AnyArray, held: AnyArray) -> AnyArray:
    """The label that each client's own model [60, 10] gives to each of its examples."""
    if (held == held[0]).all():
        logits = x.reshape(len(held), -1, FEATURES) @ weight + bias[:, None]
        return np.asarray(logits.argmax(-1).reshape(-1))
    ends = np.cumsum(held).tolist()
    parts = [(x[end - n : end] @ w + b).argmax(1) for n, end, w, b in zip(held.tolist(), ends, weight, bias, strict=True)]
    return np.concatenate(parts)

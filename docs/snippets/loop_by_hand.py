# SPDX-License-Identifier: Apache-2.0
"""Federated linear regression over three clients: the whole loop by hand, in NumPy."""

import numpy as np

import fedweave as fw

rng = np.random.default_rng(0)
clients = []
for examples in (40, 80, 160):
    x = rng.normal(size=(examples, 3))
    clients.append((x, x @ [2.0, -1.0, 0.5] + 0.1 * rng.normal(size=examples)))


# --8<-- [start:loop]
def train(algorithm: fw.Algorithm, steps: int, lr: float = 0.1, rounds: int = 300) -> np.ndarray:
    state = algorithm.init(np.zeros(3))
    for number in range(1, rounds + 1):
        partial = algorithm.reduce.empty()
        for client, (x, y) in enumerate(clients):
            ask = algorithm.ask(state, client)  # the server to the client
            w = ask.weights.copy()
            for _ in range(steps):
                grad = x.T @ (x @ w - y) / len(y)
                w -= lr * algorithm.correct(grad, w, ask, None)
            work = fw.Work(examples=len(y), steps=steps, lr=lr)
            update, _ = algorithm.report(w - ask.weights, work, ask, None)  # the client to the server
            partial = algorithm.reduce.add(partial, update)
        cohort = fw.Cohort(size=3, asked=3, population=3, round=number)
        state = algorithm.step(state, algorithm.reduce.result(partial), cohort)
    return state.weights


# --8<-- [end:loop]

# --8<-- [start:check]
x_all, y_all = (np.concatenate(parts) for parts in zip(*clients, strict=True))
best, *_ = np.linalg.lstsq(x_all, y_all, rcond=None)  # as if the data had been brought together

np.testing.assert_allclose(train(fw.FedAvg(), steps=1), best, rtol=1e-9)  # one full-batch step: gradient descent
np.testing.assert_allclose(train(fw.FedAvg(), steps=5), best, atol=0.01)  # five steps: near it, not on it
# --8<-- [end:check]
print("least squares", best.round(4), "FedAvg, 5 local steps", train(fw.FedAvg(), steps=5).round(4))

# SPDX-License-Identifier: Apache-2.0
"""FedJAX: federated_averaging on its jit backend, in one process whose threads XLA chooses.

FedJAX fills a client's last, partial batch up by drawing examples again, which only W3 has.
"""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from harness import Bench, cores

if not hasattr(jax, "tree_map"):  # jax dropped it in 0.4.26, FedJAX 0.0.17 calls it
    jax.tree_map = jax.tree_util.tree_map

import fedjax


def network(kind: str, x: Any) -> Any:
    drawn = hk.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")  # PyTorch's, so that all learn at the same pace
    if kind == "mlp":
        return hk.nets.MLP([200, 200, 10], w_init=drawn)(x)
    if kind == "logistic":
        return hk.Linear(10, w_init=drawn)(x)
    if kind == "cnn":
        for channels in (32, 64):
            x = jax.nn.relu(hk.Conv2D(channels, 5, padding="SAME", w_init=drawn)(x))
            x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return hk.Linear(10, w_init=drawn)(jax.nn.relu(hk.Linear(512, w_init=drawn)(hk.Flatten()(x))))
    core = hk.DeepRNN([hk.LSTM(256), hk.LSTM(256)])
    output, _ = hk.dynamic_unroll(core, hk.Embed(80, 8)(x), core.initial_state(x.shape[0]), time_major=False)
    return hk.Linear(80)(output)


def main() -> None:
    bench = Bench("fedjax", ["fedjax", "jax"])
    w = bench.workload
    net = hk.without_apply_rng(hk.transform(lambda x: network(w.model, x)))

    def features(x: Any) -> Any:
        if w.model == "cnn":
            return x.reshape(-1, 28, 28, 1)
        return x.astype(np.int32) if w.model == "lstm" else x

    def scores(parameters: Any, x: Any, y: Any) -> tuple[Any, Any]:
        logits = jax.nn.log_softmax(net.apply(parameters, x))
        return jnp.mean(logits.argmax(-1) == y), -jnp.mean(jnp.take_along_axis(logits, y[..., None], -1))

    def loss(parameters: Any, batch: Any, key: Any) -> Any:
        return scores(parameters, batch["x"], batch["y"])[1]

    x, y, offsets = features(w.held.x), w.held.y.astype(np.int32), w.held.offsets
    clients = {k: {"x": x[offsets[k] : offsets[k + 1]], "y": y[offsets[k] : offsets[k + 1]]} for k in range(w.clients)}
    data = fedjax.InMemoryFederatedData(clients)
    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=w.batch, num_epochs=w.epochs, drop_remainder=False)
    with fedjax.for_each_client_backend("jit"):
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            jax.grad(loss), fedjax.optimizers.sgd(w.lr), fedjax.optimizers.sgd(1.0), batches
        )
    state = algorithm.init(net.init(jax.random.PRNGKey(0), jnp.asarray(x[:2])))
    bench.mark()
    for number in range(bench.rounds):
        keys = jax.random.split(jax.random.PRNGKey(number), w.cohort)
        asked = [(k, data.get_client(k), key) for k, key in zip(w.sampled(number), keys, strict=True)]
        state, _ = algorithm.apply(state, asked)
        jax.block_until_ready(state.params)
        bench.mark()
    accuracy, mean = jax.jit(scores)(state.params, features(w.held.x_test), w.held.y_test.astype(np.int32))
    bench.report(float(accuracy), float(mean), f"processes: 1, XLA on {cores()} cores")


if __name__ == "__main__":
    main()

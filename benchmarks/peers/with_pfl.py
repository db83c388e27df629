# SPDX-License-Identifier: Apache-2.0
"""pfl: FederatedAveraging on its SimulatedBackend, evaluation off; several processes are its own mode (torchrun, gloo)."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch
from harness import Bench, relaunch
from modules import measured, module, tensors
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn


class Net(nn.Module):
    """A module as pfl wants it, with its loss and metrics."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = module(kind)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)
        return output

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        self.train(not eval)
        return nn.functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Any]:
        self.eval()
        return {"loss": Weighted(nn.functional.cross_entropy(self(x), y, reduction="sum").item(), y.numel())}


def main() -> None:
    bench = Bench("pfl", ["pfl", "torch"], lambda parser: parser.add_argument("--processes", type=int, default=1))
    w, count = bench.workload, bench.options.processes
    if count > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        relaunch([sys.executable, *torchrun, *sys.argv])
    threads = bench.threads(one=count > 1)
    torch.set_num_threads(threads)
    x, y = tensors(w)

    def held(client: int) -> Dataset:
        first, last = int(w.held.offsets[client]), int(w.held.offsets[client + 1])
        order = torch.randperm(last - first)  # pfl does not shuffle: one permutation per visit, not per epoch
        return Dataset(raw_data=[x[first:last][order], y[first:last][order]], user_id=str(client), eval_kwargs={"eval": True})

    number, left = 0, list[int]()

    def sampled() -> int:
        nonlocal number, left
        if not left:
            left, number = w.sampled(number), number + 1
        return left.pop(0)

    class Marks(TrainingProcessCallback):
        def on_train_begin(self, *, model: Any) -> Any:
            bench.mark()
            return Metrics()

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            bench.mark()
            return False, Metrics()

    logging.disable(logging.INFO)
    data, net = FederatedDataset(held, sampled), Net(w.model)
    FederatedAveraging().run(
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        model=PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=bench.rounds, evaluation_frequency=10**9, train_cohort_size=w.cohort, val_cohort_size=0
        ),
        model_train_params=NNTrainHyperParams(local_learning_rate=w.lr, local_num_epochs=w.epochs, local_batch_size=w.batch),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Marks()],
    )
    if os.environ.get("RANK", "0") == "0":
        bench.report(*measured(net.net, w), f"processes: {count}, threads: {threads}")


if __name__ == "__main__":
    main()

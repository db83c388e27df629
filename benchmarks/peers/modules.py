# SPDX-License-Identifier: Apache-2.0
"""The workloads' models in PyTorch, and how they are measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from workloads import Workload


class CharLSTM(nn.Module):
    """[N, T] symbols to [N, 80, T] scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(80, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.output = nn.Linear(256, 80)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.output(self.lstm(self.embedding(x))[0])
        return scores.transpose(1, 2)


def module(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    if kind == "cnn":
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)),
        )
    return nn.Linear(60, 10) if kind == "logistic" else CharLSTM()


def tensors(workload: Workload) -> tuple[Tensor, Tensor]:
    """All training examples."""
    return torch.from_numpy(workload.images(workload.held.x)), torch.from_numpy(workload.held.y)


@torch.no_grad()
def measured(model: nn.Module, workload: Workload) -> tuple[float, float]:
    """Accuracy and mean loss over the test set."""
    model.eval()
    x, y = torch.from_numpy(workload.images(workload.held.x_test)), torch.from_numpy(workload.held.y_test)
    loss, hits = 0.0, 0
    for xs, ys in zip(x.split(500), y.split(500), strict=True):
        output = model(xs)
        loss += float(nn.functional.cross_entropy(output, ys, reduction="sum"))
        hits += int((output.argmax(1) == ys).sum())
    return hits / y.numel(), loss / y.numel()

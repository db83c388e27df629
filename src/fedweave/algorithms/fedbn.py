# SPDX-License-Identifier: Apache-2.0
"""FedBN: Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
ICLR 2021, arXiv:2102.07623, Algorithm 1.

    paper                                       here
    w^(l)_{t,k}, a layer without BatchNorm      parts.shared(weights): sent, and averaged as in FedAvg
    w^(l)_{t,k}, a BatchNorm layer (gamma,      mine.home: never sent
      beta), and its running statistics         the client's buffers, kept by whoever runs the client (keeps_buffers)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedweave.algorithms.parts import PartlyShared, layer, matching
from fedweave.errors import UsageError
from fedweave.layout import Layout


@dataclass(frozen=True)
class FedBN(PartlyShared):
    """Normalisation layers stay home, with their statistics; all other layers are averaged as in FedAvg.

    Unequal work: as in FedAvg for the shared layers, a client that takes more steps moves their mean further.

    Args:
        norm: a pattern of parameter names, such as ``"*.norm*"``, for normalisation layers that have no running statistics
            (GroupNorm, LayerNorm); those that have them are found without.
    """

    norm: str = ""
    paper: ClassVar[str] = "Li et al., ICLR 2021, arXiv:2102.07623"
    keeps_buffers: ClassVar[bool] = True
    departs = {"finds_the_common_optimum": "the server's normalisation layers keep their first values: they are nobody's"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.norm, str):
            raise UsageError(f"norm is {self.norm!r}; give a pattern of parameter names such as '*.norm*'.")

    def bind(self, layout: Layout) -> FedBN:
        normal = {layer(slot.name) for slot in layout.buffers if slot.name.endswith("running_mean")}
        if self.norm:
            named = matching(layout, self.norm, f"norm={self.norm!r}")
            return self.keeping(layout, lambda name: layer(name) in normal or named(name), f"norm={self.norm!r}")
        if not normal:
            raise UsageError(
                "The model has no batch normalisation for FedBN to keep home: choose e.g. the model 2nn-bn, or name its "
                "normalisation layers by a pattern, norm='...'."
            )
        return self.keeping(layout, lambda name: layer(name) in normal, "FedBN")

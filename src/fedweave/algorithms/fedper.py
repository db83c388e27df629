# SPDX-License-Identifier: Apache-2.0
"""FedPer: Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019, arXiv:1912.00818,
Algorithms 1 (client) and 2 (server).

    paper                         here
    W_B, base layers              parts.shared(weights): all layers but the head; sent, and averaged as in FedAvg
    W_{P_j}, personal layers      mine.home: the head; trained together with the base, and never sent
    gamma_j = n_j / sum n_j       the updates' weights
    K_P, personal layers' number  head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedweave.algorithms.parts import PartlyShared, head_of, is_head
from fedweave.layout import Layout


@dataclass(frozen=True)
class FedPer(PartlyShared):
    """The last layers stay home, each client training its own; the others are averaged as in FedAvg.

    Unequal work: as in FedAvg for the shared layers, a client that takes more steps moves their mean further; a head is its
    client's alone, so one that takes few steps only has a less trained head.

    Args:
        head: how many of the last layers stay home, from 1 up; or a pattern of parameter names, such as ``"classifier.*"``.
    """

    head: int | str = 1
    paper: ClassVar[str] = "Arivazhagan et al., 2019, arXiv:1912.00818"
    departs = {"finds_the_common_optimum": "the server's head keeps its first values: it is nobody's"}

    def __post_init__(self) -> None:
        super().__post_init__()
        is_head(self.head)

    def bind(self, layout: Layout) -> FedPer:
        return self.keeping(layout, head_of(layout, self.head), f"head={self.head!r}")

# SPDX-License-Identifier: Apache-2.0
"""FedRep: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning",
ICML 2021, arXiv:2102.07078, Algorithm 1.

    paper                                here
    phi^t, the representation            parts.shared(weights): the body; sent and averaged
    h_i, client i's head                 mine.home
    tau updates of h_i, phi^t fixed      the first local steps
    then an update of phi, h_i fixed     the last ``body_epochs`` epochs of them
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from fedweave.algorithms.parts import PartlyShared, head_of, is_head
from fedweave.contract import Array, Arrays, Ask, Gradient, Local, Progress, within
from fedweave.errors import UsageError
from fedweave.layout import Layout


@dataclass(frozen=True)
class FedRep(PartlyShared):
    """The last layers stay home; a client first fits them to the shared layers, then trains the shared layers only.

    Unequal work: more local epochs are spent on the client's own head, so they do not move the mean of the shared layers
    further; a client that brings too few epochs for both gives each half of its steps.

    Args:
        head: how many of the last layers stay home, from 1 up; or a pattern of parameter names, such as ``"classifier.*"``.
        body_epochs: the last so many of the local epochs train the shared layers (at most half of the steps); above 0.
    """

    head: int | str = 1
    body_epochs: float = 1
    paper: ClassVar[str] = "Collins et al., ICML 2021, arXiv:2102.07078"
    assumes_sgd: ClassVar[str] = "such rules act on all layers at once, also on those that are frozen"
    departs = {"finds_the_common_optimum": "the server's head keeps its first values: it is nobody's"}

    def __post_init__(self) -> None:
        super().__post_init__()
        is_head(self.head)
        within("body_epochs", self.body_epochs, 0, above=True)

    def bind(self, layout: Layout) -> FedRep:
        return self.keeping(layout, head_of(layout, self.head), f"head={self.head!r}")

    def check(self, local: Local, cohort: int) -> None:
        super().check(local, cohort)
        if local.weight_decay:
            raise UsageError(f"FedRep cannot be used with weight_decay={local.weight_decay}: {self.assumes_sgd}. Set it to 0.")

    def direction(self, y: Array, gradient: Gradient, ask: Ask, mine: Arrays | None, progress: Progress) -> Array:
        body_steps = min(math.ceil(self.body_epochs * progress.per_epoch), (progress.steps + 1) // 2)
        xp, slope = array_namespace(y), gradient(y)
        body, head = self.parts.shared(slope), self.parts.home(slope)
        if progress.done < progress.steps - body_steps:
            return self.parts.joined(xp.zeros_like(body), head)
        return self.parts.joined(body, xp.zeros_like(head))

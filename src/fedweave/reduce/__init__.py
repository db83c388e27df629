# SPDX-License-Identifier: Apache-2.0
"""How many updates become one. A reduction is a value: ``empty``, ``add``, ``merge``, ``result``."""

from fedweave.reduce.base import Reduction
from fedweave.reduce.mean import Mean

__all__ = ["Mean", "Reduction"]

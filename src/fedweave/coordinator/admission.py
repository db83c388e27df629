# SPDX-License-Identifier: Apache-2.0
"""Whether an update may enter the model."""

from __future__ import annotations

import math

from array_api_compat import array_namespace, is_array_api_obj, is_numpy_array

from fedweave import blocks
from fedweave.values import Array, Update


def finite(value: Array) -> bool:
    """Whether a number, or every number of an array, is finite."""
    if is_numpy_array(value) and value.size > blocks.VALUES:
        return all(finite(part) for part in blocks.parts(value))
    if is_array_api_obj(value):
        xp = array_namespace(value)
        # A finite sum has only finite terms, and is found in one pass; one that is not may have overflowed.
        return math.isfinite(float(xp.sum(value))) or bool(xp.all(xp.isfinite(value)))
    return math.isfinite(value)


def fault(update: Update) -> str | None:
    """Why an update may not enter the model; None if it may."""
    weight = float(update.weight)
    if not math.isfinite(weight) or weight < 0:
        return f"its weight is {weight}"
    broken = [name for name, value in update.items() if not finite(value)]
    return f"its {', '.join(broken)} has values that are not finite" if broken else None

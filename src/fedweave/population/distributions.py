# SPDX-License-Identifier: Apache-2.0
"""Distributions of one number over clients. Each is its quantile function, so that a client's value follows from one
uniform draw of its own, whatever is drawn for others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedweave import names
from fedweave.errors import UsageError

Floats = npt.NDArray[np.float64]


@runtime_checkable
class Distribution(Protocol):
    """A number per client."""

    def quantile(self, u: Floats) -> Floats:
        """The value [n] below which a share ``u`` [n] of clients lies, 0 < u < 1."""

    def support(self) -> tuple[float, float]:
        """Between which bounds all values lie."""


@dataclass(frozen=True)
class Constant:
    """The same for every client. A plain number means this."""

    value: float

    def __post_init__(self) -> None:
        _number("value", self.value, -math.inf, infinite=True)

    def quantile(self, u: Floats) -> Floats:
        return np.full(len(u), float(self.value))

    def support(self) -> tuple[float, float]:
        return self.value, self.value


@dataclass(frozen=True)
class Uniform:
    """Any value from ``low`` to ``high`` alike."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _number("low", self.low, -math.inf)
        _number("high", self.high, self.low)

    def quantile(self, u: Floats) -> Floats:
        return self.low + (self.high - self.low) * u

    def support(self) -> tuple[float, float]:
        return self.low, self.high


@dataclass(frozen=True)
class LogNormal:
    """``median * exp(sigma * z)`` for standard normal z."""

    median: float
    sigma: float

    def __post_init__(self) -> None:
        _number("median", self.median, 0, above=True)
        _number("sigma", self.sigma, 0)

    def quantile(self, u: Floats) -> Floats:
        # SciPy is loaded only where it is used: importing fedweave stays light.
        from scipy.special import ndtri

        found: Floats = self.median * np.exp(self.sigma * ndtri(u))
        return found

    def support(self) -> tuple[float, float]:
        return 0.0, math.inf


@dataclass(frozen=True)
class Exponential:
    """With density ``exp(-x / mean) / mean``."""

    mean: float

    def __post_init__(self) -> None:
        _number("mean", self.mean, 0, above=True)

    def quantile(self, u: Floats) -> Floats:
        return -self.mean * np.log1p(-u)

    def support(self) -> tuple[float, float]:
        return 0.0, math.inf


@dataclass(frozen=True)
class Pareto:
    """At least ``minimum``, and above x with probability ``(minimum / x) ** shape``: a long tail, the longer the smaller
    ``shape``."""

    minimum: float
    shape: float

    def __post_init__(self) -> None:
        _number("minimum", self.minimum, 0, above=True)
        _number("shape", self.shape, 0, above=True)

    def quantile(self, u: Floats) -> Floats:
        return self.minimum * np.exp(-np.log1p(-u) / self.shape)

    def support(self) -> tuple[float, float]:
        return self.minimum, math.inf


@dataclass(frozen=True)
class Zipf:
    """``unit * k`` for k = 1 to ``levels``, with probability proportional to ``k ** -exponent``."""

    exponent: float
    levels: int
    unit: float = 1.0

    def __post_init__(self) -> None:
        _number("exponent", self.exponent, 0)
        _number("levels", self.levels, 1)
        if self.levels != int(self.levels) or self.levels > 10_000_000:
            raise UsageError(f"levels is {self.levels}; it must be a whole number from 1 to 10,000,000.")
        _number("unit", self.unit, 0, above=True)

    def quantile(self, u: Floats) -> Floats:
        below = np.cumsum(np.arange(1, int(self.levels) + 1, dtype=np.float64) ** -self.exponent)
        level = np.searchsorted(below, u * below[-1])
        found: Floats = self.unit * (np.minimum(level, len(below) - 1) + 1.0)
        return found

    def support(self) -> tuple[float, float]:
        return self.unit, self.unit * self.levels


DISTRIBUTIONS: dict[str, type[Any]] = {
    "constant": Constant,
    "uniform": Uniform,
    "lognormal": LogNormal,
    "exponential": Exponential,
    "pareto": Pareto,
    "zipf": Zipf,
}

PART = ("distribution", DISTRIBUTIONS)
"""For parameters that are given as a distribution (see ``names.Parts``)."""


def given(name: str, value: object, low: float, high: float) -> float | Distribution:
    """What a parameter's value means: a number (so is a ``Constant``), a distribution, or the text of one.

    Raises:
        UsageError: it is none, or may lie outside ``low`` to ``high``.
    """
    if isinstance(value, str):
        value = names.chosen("distribution", DISTRIBUTIONS, Distribution, value)
    if isinstance(value, Constant):
        value = value.value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        least = most = float(value)
    elif isinstance(value, Distribution):
        least, most = value.support()
    else:
        raise UsageError(f"{name} is {value!r}; give a number or a distribution such as 'lognormal(median=100, sigma=1.0)'.")
    if not (low <= least and most <= high):
        said = "" if least == most else f", which reaches from {least:g} to {most:g}"
        span = f"from {low:g} up" if high == math.inf else f"between {low:g} and {high:g}"
        raise UsageError(f"{name} is {value}{said}; it must lie {span}.")
    return value


def quantile(value: float | Distribution, u: Floats) -> Floats:
    """Of a distribution, cut where a 32-bit float could not hold it; or the number itself for everyone."""
    if not isinstance(value, Distribution):
        return np.full(len(u), float(value))
    with np.errstate(over="ignore"):
        return np.minimum(value.quantile(u), 2.0**100)


def _number(name: str, value: float, low: float, above: bool = False, infinite: bool = False) -> None:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if not fine or not (infinite or math.isfinite(value)) or value < low or (above and value == low):
        span = f"above {low:g}" if above else "a number" if low == -math.inf else f"a number from {low:g} up"
        raise UsageError(f"{name} is {value!r}; it must be {span}.")

# SPDX-License-Identifier: Apache-2.0
"""Charts of measurements as SVG, with logarithmic axes, readable in light and dark; and the slopes of lines in them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 44
COLOURS = ("#d65f5f", "#4878cf", "#2a9d5c", "#b47cc7", "#c4883a", "#4aa5c0", "#8c8c8c", "#a0522d")

Points = Sequence[tuple[float, float]]


def slope(points: Points) -> float:
    """The exponent b of y = a x^b, by least squares on the logarithms; NaN for fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        return math.nan
    x, y = np.log([x for x, _ in points]), np.log([y for _, y in points])
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that span positive values, at least one apart."""
    first, last = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    return first, max(last, first + 1)


def loglog(series: Mapping[str, Points], x: str, y: str) -> str:
    """An SVG document: a line with its points for each series, both axes logarithmic, a legend below."""
    points = [point for line in series.values() for point in line]
    (left, right), (low, high) = decades([p[0] for p in points]), decades([p[1] for p in points])
    across, down, rows = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM, math.ceil(len(series) / 2)

    def place(px: float, py: float) -> tuple[float, float]:
        return (
            LEFT + across * (math.log10(px) - left) / (right - left),
            TOP + down * (1 - (math.log10(py) - low) / (high - low)),
        )

    parts = [_head(HEIGHT + 20 * rows)]
    for power in range(low, high + 1):
        at = place(10.0**left, 10.0**power)[1]
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#8884"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_power(power)}</text>')
    for power in range(left, right + 1):
        at = place(10.0**power, 10.0**low)[0]
        parts.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#8882"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_power(power)}</text>')
    parts += _axes(x, y, across, down)
    for i, (name, line) in enumerate(series.items()):
        colour, places = COLOURS[i % len(COLOURS)], [place(*point) for point in line]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in places]
        parts += _legend(i, name, colour, across, HEIGHT + 6)
    return "\n".join([*parts, "</svg>"]) + "\n"


def dots(groups: Mapping[str, Mapping[str, float]], x: str, line: float | None = 1.0) -> str:
    """An SVG document: a row for each group, a dot for each name in it at its value on a logarithmic axis, a legend below.
    ``line`` is a value to mark."""
    names = list(dict.fromkeys(name for row in groups.values() for name in row))
    values = [value for row in groups.values() for value in row.values()] + ([] if line is None else [line])
    left, right = decades(values)
    across, step = WIDTH - LEFT - RIGHT, 44
    bottom = TOP + step * len(groups)

    def place(value: float) -> float:
        return LEFT + across * (math.log10(value) - left) / (right - left)

    parts = [_head(bottom + 50 + 20 * math.ceil(len(names) / 2))]
    for power in range(left, right + 1):
        for digit in (1, 2, 5) if power < right else (1,):
            at = place(digit * 10.0**power)
            parts.append(f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="{"#8884" if digit == 1 else "#8882"}"/>')
            parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{digit * 10.0**power:g}</text>')
    if line is not None:
        parts.append(f'<path d="M{place(line):.1f} {TOP}V{bottom}" stroke="#888" stroke-width="1.5"/>')
    parts.append(f'<text x="{LEFT + across / 2:.0f}" y="{bottom + 38}" text-anchor="middle">{html.escape(x)}</text>')
    for row, (group, found) in enumerate(groups.items()):
        at = TOP + step * (row + 0.5)
        parts.append(f'<text x="{LEFT - 10}" y="{at + 4:.1f}" text-anchor="end">{html.escape(group)}</text>')
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#8884" stroke-dasharray="2 3"/>')
        for name, value in found.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            parts.append(f'<circle cx="{place(value):.1f}" cy="{at:.1f}" r="5" fill="{colour}" fill-opacity="0.85"/>')
    for i, name in enumerate(names):
        parts += _legend(i, name, COLOURS[i % len(COLOURS)], across, bottom + 58)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _head(height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#7a7a7a">'
    )


def _axes(x: str, y: str, across: int, down: int) -> list[str]:
    middle = TOP + down / 2
    return [
        f'<text x="{LEFT + across / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x)}</text>',
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">{html.escape(y)}</text>',
    ]


def _legend(i: int, name: str, colour: str, across: int, top: int) -> list[str]:
    left, at = LEFT + (i % 2) * across / 2, top + 20 * (i // 2)
    return [
        f'<circle cx="{left + 6:.0f}" cy="{at}" r="5" fill="{colour}"/>',
        f'<text x="{left + 18:.0f}" y="{at + 4}">{html.escape(name)}</text>',
    ]


def _power(power: int) -> str:
    return f'10<tspan dy="-4" font-size="9">{power}</tspan>'

# SPDX-License-Identifier: Apache-2.0
"""Line charts as SVG, plain enough to be read in a page of text, in light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 16, 44
COLOURS = ("#4878cf", "#d65f5f", "#2a9d5c", "#b47cc7", "#c4883a", "#4aa5c0", "#8c8c8c", "#a0522d")
DASHES = ("", "6 3", "2 3")


def chart(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> str:
    """An SVG document with one line per series, axes with round numbers, and a legend below."""
    points = [p for line in series.values() for p in line if math.isfinite(p[1])]
    xs, ys = _ticks(0, max(p[0] for p in points)), _ticks(min(p[1] for p in points), max(p[1] for p in points))
    per_row = 2 if max(map(len, series)) > 22 else 3
    rows = math.ceil(len(series) / per_row)
    height = HEIGHT + 20 * rows
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(px: float, py: float) -> tuple[float, float]:
        return (
            LEFT + across * (px - xs[0]) / (xs[-1] - xs[0]),
            TOP + down * (1 - (py - ys[0]) / (ys[-1] - ys[0])),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#7a7a7a">'
    ]
    for tick in ys:
        _, at = place(xs[0], tick)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#8884" stroke-width="1"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in xs:
        at, _ = place(tick, ys[0])
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<text x="{LEFT + across / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x)}</text>')
    middle = TOP + down / 2
    parts.append(
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">{html.escape(y)}</text>'
    )
    for i, (name, line) in enumerate(series.items()):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[(i // len(COLOURS)) % len(DASHES)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*p) for p in line if math.isfinite(p[1])))
        style = f'stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{path}" fill="none" {style} stroke-linejoin="round"/>')
        column, row = i % per_row, i // per_row
        left, at = LEFT + column * across / per_row, HEIGHT + 6 + 20 * row
        parts.append(f'<path d="M{left:.0f} {at}h22" {style}/>')
        parts.append(f'<text x="{left + 28:.0f}" y="{at + 4}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ticks(least: float, most: float) -> list[float]:
    """Round numbers that span the range."""
    span = max(most - least, 1e-9)
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(least / step), math.ceil(most / step)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    return f"{value:g}"

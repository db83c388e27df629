# SPDX-License-Identifier: Apache-2.0
"""Numbers and tables as text: units, rounding, alignment. Everything that the command line prints goes through here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def size(count: float) -> str:
    """Bytes in decimal units: ``size(1_234_567)`` is ``"1.23 MB"``."""
    value, unit = scaled(count)
    return f"{count:.0f} B" if unit == "B" else f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def scaled(count: float) -> tuple[float, str]:
    """A number of bytes in the largest unit that keeps it above 1."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return value, unit
        value /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``"0.42 s"``, ``"12.3 s"``, ``"3 min 07 s"``, ``"2 h 05 min"``."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 59.95:
        return f"{seconds:.3g} s" if seconds >= 1e-3 else f"{seconds * 1e3:.2g} ms"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: float | None) -> str:
    """A metric: four digits after the point near 1, four significant ones elsewhere; ``"-"`` for none."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def rounds(value: float | None) -> str:
    """Interpolated rounds, one digit after the point."""
    return "not reached" if value is None else f"{value:,.1f}"


def spread(values: Sequence[float], show: str = "number") -> str:
    """Mean and sample standard deviation over seeds, in one unit and to one digit; the mean alone for one value."""
    if not values:
        return "-"
    mean = math.fsum(values) / len(values)
    shown = {"number": number, "rounds": rounds, "size": size, "duration": duration}[show]
    if len(values) == 1:
        return shown(mean)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    if show in ("number", "rounds"):
        digits = len(shown(mean).partition(".")[2])
        return f"{shown(mean)} ± {deviation:,.{digits}f}"
    value, unit = scaled(mean) if show == "size" else (mean, "s") if mean < 60 else (mean / 60, "min")
    return f"{value:.3g} ± {deviation * (value / mean if mean else 1):.2g} {unit}"


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve in one line of text, at most ``width`` characters, the last value always among them."""
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2 or width < 2:
        return ""
    low, high = min(finite), max(finite)
    if len(finite) > width:
        finite = [finite[round(i * (len(finite) - 1) / (width - 1))] for i in range(width)]
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(7, int((v - low) / span * 8))] for v in finite)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Rows under a head, columns aligned; ``right`` holds the numbers of the columns that are aligned to the right."""
    whole = [list(head), *[list(row) for row in rows]]
    width = [max(len(row[i]) for row in whole) for i in range(len(head))]
    flush = set(right)

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(w) if i in flush else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, width, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(whole[0]), "  ".join("-" * w for w in width), *map(line, whole[1:])])


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Name and value, one pair a line, values under each other."""
    kept = list(rows)
    width = max((len(name) for name, _ in kept), default=0)
    return "\n".join(f"  {name.ljust(width)}  {value}".rstrip() for name, value in kept)


def slug(text: str) -> str:
    """A short name for a folder: ``"fedsgd(server_lr=0.5)"`` is ``"fedsgd-server-lr-0.5"``."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "run"


def some(values: Sequence[object], most: int = 8) -> str:
    """The first few of many: ``"3, 7, 9, ... (100)"``."""
    shown = ", ".join(str(v) for v in values[:most])
    return shown if len(values) <= most else f"{shown}, ... ({len(values)})"

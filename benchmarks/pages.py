# SPDX-License-Identifier: Apache-2.0
"""Where a benchmark's numbers are told: on what machine, and in which files the documentation includes."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "figures"


def hardware() -> str:
    names = (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{cores()} cores of {next(names, platform.machine())}, {memory:.0f} GiB, Python {platform.python_version()}"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def today() -> str:
    now = time.localtime()
    return f"{now.tm_mday} {time.strftime('%B %Y', now)}"


def command() -> str:
    """What was typed, without the path of this machine."""
    return " ".join(["python", Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]])


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def write(name: str, text: str, charts: Mapping[str, str]) -> None:
    """The page's part, and its charts by the ends of their names and what they show."""
    RESULTS.mkdir(exist_ok=True)
    shown = []
    for title, chart in charts.items():
        file = FIGURES / f"{title}.svg"
        file.write_text(chart, encoding="utf-8")
        shown.append(f"![{title}](figures/{file.name})")
    (RESULTS / f"{name}.md").write_text("\n\n".join([text.strip(), *shown]) + "\n", encoding="utf-8")
    print(f"\nwritten: {(RESULTS / name).relative_to(ROOT)}.md, {len(charts)} charts in {FIGURES.relative_to(ROOT)}")


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []

# SPDX-License-Identifier: Apache-2.0
"""Runs a program and sees from outside what it takes: time, and the memory of all of its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import BEGAN

TAG = "FEDWEAVE_BENCH_TAG"
"""In the environment of every process of one run, by which they are known even when their parent is gone."""

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Family:
    """The processes of a run: the first, and whoever has inherited the tag or has a parent in it."""

    first: int
    tag: str
    known: dict[int, bool] = field(default_factory=dict)

    def members(self) -> list[int]:
        found, alive = [], {int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid()}
        for pid in sorted(alive):
            if pid not in self.known:
                self.known[pid] = pid == self.first or self._tagged(pid)
            if self.known[pid]:
                found.append(pid)
        self.known = {pid: ours for pid, ours in self.known.items() if pid in alive}
        return found

    def _tagged(self, pid: int) -> bool:
        try:
            if self.tag.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return True
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
        return parent == self.first or self.known.get(parent, False)

    def end(self) -> None:
        """Kill whoever is left."""
        for _ in range(20):
            left = [pid for pid in self.members() if _alive(pid)]
            if not left:
                return
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def resident(pids: Sequence[int]) -> int:
    """Bytes of RSS summed; a shared page counts once for each process."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return total


def proportional(pids: Sequence[int]) -> int:
    """Bytes of PSS summed; a shared page counts once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


@dataclass(frozen=True)
class Seen:
    """What became of a program. ``code`` is None if it had to be ended at its limit."""

    code: int | None
    output: str
    wall: float
    rss: int
    pss: int


def watched(command: Sequence[str], folder: Path, limit: float, environment: Mapping[str, str] | None = None) -> Seen:
    """Run it to its end or for ``limit`` seconds at most; no process of it is left behind.

    RSS is looked at four times a second and PSS once, which takes about a hundredth of one core from all alike.
    """
    tag = uuid.uuid4().hex
    with tempfile.TemporaryFile() as out:
        began, clock = time.time(), time.monotonic()
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**(os.environ if environment is None else environment), TAG: tag, BEGAN: repr(began)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        family, rss, pss, turn = Family(child.pid, tag), 0, 0, 0
        code: int | None = None
        try:
            while time.monotonic() - clock < limit:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = child.wait(0.25)
                    break
                members = family.members()
                rss = max(rss, resident(members))
                if turn % 4 == 3:
                    pss = max(pss, proportional(members))
                turn += 1
        finally:
            wall = time.monotonic() - clock
            family.end()
            child.wait()
        out.seek(0)
        return Seen(code, out.read().decode("utf-8", "replace"), wall, rss, pss)


def busy(seconds: float = 0.3) -> float:
    """The share of all cores' time, in percent, that is taken just now, by whomever."""
    before = _ticks()
    time.sleep(seconds)
    idle, total = (b - a for a, b in zip(before, _ticks(), strict=True))
    return 100.0 * (1 - idle / max(total, 1))


def _ticks() -> tuple[int, int]:
    values = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return values[3] + values[4], sum(values)

# SPDX-License-Identifier: Apache-2.0
"""Makes the peers' environments from the pins, each in a folder of its own under ``FEDWEAVE_BENCH``.

    python benchmarks/peers/environments.py [plain fedjax pfl flower]

PyTorch comes first and with what it needs; which build that is, pip's configuration decides. The rest is installed as pinned,
without asking a package for its own wishes: Flower 1.42.0, for one, wants a newer certifi than there may be. It takes about a
minute each.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from workloads import root

PINS = Path(__file__).parent / "pins"


def names() -> list[str]:
    return sorted(path.stem for path in PINS.glob("*.txt"))


def python(name: str) -> Path:
    """The interpreter of an environment, whether it is there or not."""
    return root() / "env" / name / "bin" / "python"


def ready(name: str) -> bool:
    """Whether the environment is complete and made from the pins of today."""
    stamp = root() / "env" / name / ".ready"
    return python(name).exists() and stamp.is_file() and stamp.read_text() == _digest(name)


def ensure(name: str) -> None:
    """Make the environment unless it is there.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    if ready(name):
        return
    folder, began = root() / "env" / name, time.monotonic()
    print(f"making the environment {name} in {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python(name)), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pins = PINS / f"{name}.txt"
    torch = [line for line in pins.read_text().splitlines() if line.startswith("torch==")]
    if torch:
        subprocess.run([*pip, *torch], check=True)
    subprocess.run([*pip, "--no-deps", "-r", str(pins)], check=True)
    (folder / ".ready").write_text(_digest(name))
    print(f"made in {time.monotonic() - began:.0f} s", flush=True)


def _digest(name: str) -> str:
    """Of the pins and of the Python that they were installed with."""
    return hashlib.sha256((PINS / f"{name}.txt").read_bytes() + sys.version.encode()).hexdigest()


if __name__ == "__main__":
    for asked in sys.argv[1:] or names():
        if asked not in names():
            sys.exit(f"There is no environment {asked!r}; choose from {', '.join(names())}.")
        ensure(asked)

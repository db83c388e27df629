# SPDX-License-Identifier: Apache-2.0
"""S3: every decoder of what strangers send refuses what it cannot use, and does nothing else; `make test-faults` goes on."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROGRAM = Path(__file__).with_name("fuzz.py")
FUZZ: dict[str, Any] = runpy.run_path(str(PROGRAM))


@pytest.mark.parametrize("which", FUZZ["TARGETS"])
def test_a_decoder_refuses_anything(which: str) -> None:
    target, corpus = FUZZ["TARGETS"][which]
    for data in corpus:
        FUZZ["once"](target, data)

    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(data=FUZZ["mutated"](st, corpus))
    def run(data: bytes) -> None:
        FUZZ["once"](target, data)

    run()


def test_the_fuzzer_sees_what_no_input_may_do() -> None:
    def crash(data: bytes) -> None:
        raise KeyError

    def load(data: bytes) -> None:
        sys.modules.pop("this_is_loaded", None)
        sys.modules["this_is_loaded"] = sys

    with pytest.raises(KeyError):
        FUZZ["once"](crash, b"")
    with pytest.raises(AssertionError, match="it loaded"):
        FUZZ["once"](load, b"")
    del sys.modules["this_is_loaded"]


@pytest.mark.slow
def test_the_program_runs() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "1", "header", "name"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 0 failed" in done.stdout

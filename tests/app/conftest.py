# SPDX-License-Identifier: Apache-2.0
"""The command line as a person runs it, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedweave.app.cli import app


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call with the words after ``fedweave``; works in an empty folder, with no settings from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDWEAVE_RUNS", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def quick() -> tuple[str, ...]:
    """Flags of a run that takes a fraction of a second."""
    return "--data", "digits", "--clients", "4", "--cohort", "2", "--rounds", "3", "--lr", "0.2", "--epochs", "1"

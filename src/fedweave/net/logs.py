# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object per line, or lines for people, and never a secret in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import structlog

from fedweave.net.redaction import redact


def logger(file: TextIO, lines: bool = False, **facts: Any) -> Any:
    """A logger into a file: JSON lines, or for people; ``facts`` are in every line."""
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
        structlog.processors.JSONRenderer() if lines else structlog.dev.ConsoleRenderer(colors=file.isatty()),
    ]
    made = structlog.wrap_logger(structlog.PrintLogger(file), processors=processors, wrapper_class=structlog.BoundLogger)
    return made.bind(**facts)


@contextmanager
def kept(path: Path, **facts: Any) -> Iterator[Any]:
    """A logger of JSON lines that are added to a file."""
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield logger(file, lines=True, **facts)

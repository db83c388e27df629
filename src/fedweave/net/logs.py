# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object per line, or lines for people, and never a secret in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import structlog

from fedweave.net.redaction import redact


class Sink(Protocol):
    """What log lines are written to."""

    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


def logger(file: Sink, lines: bool = False, **facts: Any) -> Any:
    """A logger into a file: JSON lines, or for people; ``facts`` are in every line."""
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
        structlog.processors.JSONRenderer() if lines else structlog.dev.ConsoleRenderer(colors=file.isatty()),
    ]
    plain: Any = file
    made = structlog.wrap_logger(structlog.PrintLogger(plain), processors=processors, wrapper_class=structlog.BoundLogger)
    return made.bind(**facts)


class _Lossy:
    """A file whose full disk stops nobody: what cannot be written is lost."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text.encode())
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        return False


@contextmanager
def kept(path: Path, **facts: Any) -> Iterator[Any]:
    """A logger of JSON lines that are added to a file; lines that its disk has no room for are lost."""
    with path.open("ab", buffering=0) as file:
        yield logger(_Lossy(file), lines=True, **facts)

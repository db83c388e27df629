# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object per line, or lines for people, and never a secret in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import structlog

SECRET = re.compile(r"token|secret|passw|private|credential|authorization|csr|pem$", re.IGNORECASE)
IN_URL = re.compile(r"(\w+://[^/\s:@]*):[^@/\s]*@")
IN_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL)
REDACTED = "[redacted]"


def redact(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out what is called like a secret, or looks like one."""
    for key, value in event.items():
        if SECRET.search(key):
            event[key] = REDACTED
        elif isinstance(value, str):
            event[key] = IN_PEM.sub(REDACTED, IN_URL.sub(rf"\1:{REDACTED}@", value))
    return event


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

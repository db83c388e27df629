# SPDX-License-Identifier: Apache-2.0
"""Structured logs: one JSON object per line, or lines for people, and never a secret in them."""

from __future__ import annotations

import re
import sys
from collections.abc import MutableMapping
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


def logger(path: Path | None = None, stream: TextIO | None = None, **facts: Any) -> Any:
    """A logger into a file, as JSON lines, or to a stream, for people; ``facts`` are in every line."""
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    if path is not None:
        file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        processors.append(structlog.processors.JSONRenderer())
    else:
        file = stream or sys.stderr
        processors.append(structlog.dev.ConsoleRenderer(colors=file.isatty()))
    made = structlog.wrap_logger(structlog.PrintLogger(file), processors=processors, wrapper_class=structlog.BoundLogger)
    return made.bind(**facts)

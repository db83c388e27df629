# SPDX-License-Identifier: Apache-2.0
"""Secrets never reach a log: the last processor before structlog's renderer, and a filter for the standard library's logging.

What is under a telling key, and what looks like a secret under any key, is replaced; keys, messages, tracebacks and bytes too.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any

HIDDEN = "[hidden]"

KEYS = re.compile(
    r"authori[sz]ation|(?<![a-z])auth(?![a-z])|token|secret|passw|passphrase|credential|cookie"
    r"|(?:private|signing|api|access|tls|secret)[_-]?key|^key(?:_?pem)?$|signature|dsn",
    re.IGNORECASE,
)
"""Names whose values are never written."""

VALUES = re.compile(
    r"-----BEGIN [A-Z0-9 ]*(?:.*?-----END [A-Z0-9 ]*-----|.*)"  # PEM, also when it was cut off
    r"|fedweave-token_[A-Za-z0-9_=-]*"
    r"|(?<![A-Za-z])(?:Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password of a URL
    r"|(?P<head>(?:authorization|token|secret|password|passwd|passphrase|private_key|api_key)[\"']?\s*[=:]\s*[\"']?)"
    r"(?!\s)[^\s\"',;&)}\]]+",
    re.IGNORECASE | re.DOTALL,
)
"""Texts that are never written, wherever they stand. Certificates are public, but nothing is lost by hiding them too."""

DEEP = 8
"""Levels of a nested value that are looked into; what lies deeper is hidden whole."""


def hidden(text: str) -> str:
    """The text without what looks like a secret."""
    return VALUES.sub(lambda found: (found["head"] or "") + HIDDEN, text)


def scrubbed(value: Any, deep: int = DEEP) -> Any:
    """A value as it may be written; what is no plain value becomes its ``repr`` first, as a renderer would make it."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return hidden(bytes(value).decode("utf-8", "replace"))
    if deep == 0:
        return HIDDEN
    if isinstance(value, Mapping):
        return {
            scrubbed(key, deep - 1) if not isinstance(key, str) else hidden(key): (
                HIDDEN if isinstance(key, str) and KEYS.search(key) else scrubbed(item, deep - 1)
            )
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [scrubbed(item, deep - 1) for item in value]
    try:
        return hidden(repr(value))
    except Exception:  # a log line is not worth a crash
        return f"<{type(value).__name__}>"


def redact(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: put it last, before the renderer. Exceptions that were not formatted yet are, so that no renderer
    does it afterwards."""
    error = event.pop("exc_info", None)
    if error is True or isinstance(error, BaseException):
        error = sys.exc_info() if error is True else (type(error), error, error.__traceback__)
    if isinstance(error, tuple) and len(error) == 3 and error[0] is not None:
        event["exception"] = "".join(traceback.format_exception(*error)).rstrip()
    plain: MutableMapping[str, Any] = scrubbed(dict(event))
    return plain


class Redacting(logging.Filter):
    """The same for records of the standard library's logging, libraries' among them; put it on the handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            said = record.getMessage()
        except Exception:  # a wrong format string must not let its arguments through
            said = f"{record.msg} {record.args!r}"
        record.msg, record.args = hidden(str(said)), ()
        if record.exc_info:
            record.exc_text = hidden(record.exc_text or logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        if record.stack_info:
            record.stack_info = hidden(record.stack_info)
        return True

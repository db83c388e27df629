# SPDX-License-Identifier: Apache-2.0
"""Names and ids that come from elsewhere. None of them ever becomes a path: a folder or file is named by a hash of it."""

from __future__ import annotations

import hashlib
import re

from fedweave.errors import UsageError

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def named(kind: str, text: str) -> str:
    """The text, if it is fit to be the name of a client, a run or a task: what a certificate, a log and a table can hold.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(text, str) or NAME.fullmatch(text) is None:
        raise UsageError(
            f"The {kind} {shown(text)} is no name: use 1 to 64 of the characters a-z, A-Z, 0-9, '.', '_' and '-', with a "
            "letter or digit at both ends."
        )
    return text


def filed(text: str) -> str:
    """What stands for a name on disk: 32 hex digits of its SHA-256, the same on every system, whatever the name holds."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def digest(text: str) -> str:
    """The text, if it is a SHA-256 in lower-case hex, the one kind of id that files are named by as it stands.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(text, str) or DIGEST.fullmatch(text) is None:
        raise UsageError(f"The address {shown(text)} is no SHA-256: it must be 64 lower-case hexadecimal digits.")
    return text


def shown(text: object, most: int = 40) -> str:
    """A value from elsewhere as it may stand in a message: quoted, in ASCII, on one line and short."""
    # Cut first: what is shown of a value costs no more than what is shown.
    whole = text if isinstance(text, str) else type(text).__name__
    return ascii(whole[:most]) + ("..." if len(whole) > most else "")

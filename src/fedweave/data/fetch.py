# SPDX-License-Identifier: Apache-2.0
"""Download a published file: several mirrors, resumed where it broke off, checked, and put in place in one step."""

from __future__ import annotations

import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from fedweave.data.files import Remote, check, locked, sha256
from fedweave.errors import DataError

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes that are here and the bytes that are expected (None if that is not known)."""

_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)
_BLOCK = 1 << 18


@contextmanager
def reporting(progress: Progress | None) -> Iterator[None]:
    """Downloads within the block report to ``progress``; None: a bar on the terminal, or nothing where there is none."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def fetch(target: Path, remote: Remote, *, timeout: float = 20.0, attempts: int = 3, pause: float = 0.5) -> None:
    """Download ``remote`` to ``target``, unless another process has done so meanwhile.

    What arrives is kept in a ``.part`` file beside it, named by the expected checksum, and is continued there after a
    break. It becomes ``target`` only when its size and SHA-256 are right; a wrong one is thrown away.

    Args:
        timeout: seconds without a byte before a try is given up.
        attempts: tries per mirror.
        pause: seconds before the second try; doubled each time.

    Raises:
        DataError: no mirror delivered the right file; it says what happened at each and where to put the file by hand.
    """
    try:
        with locked(target.with_name(f"{target.name}.lock")):
            if target.exists():
                check(target, remote)
                return
            part = target.with_name(f"{target.name}.{remote.sha256[:12]}.part")
            failures = []
            with _shown(remote.name) as show:
                for url in remote.urls:
                    if (failure := _from_mirror(url, part, remote, show, timeout, attempts, pause)) is None:
                        os.replace(part, target)
                        return
                    failures.append(f"{url}: {failure}")
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror or error}); free it, or set FEDWEAVE_CACHE.") from None
    tried = "; ".join(failures) or "no public address is known"
    raise DataError(
        f"{remote.name} could not be downloaded ({tried}). Get it elsewhere, put it at {remote.folder}/{remote.name} in a "
        "folder of your choice and set FEDWEAVE_DATA to that folder."
    )


def _from_mirror(
    url: str, part: Path, remote: Remote, show: Progress, timeout: float, attempts: int, pause: float
) -> str | None:
    """Bring ``part`` to the full and right file; None, or what was wrong at last."""
    failure = "no try was made"
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        resumed = part.exists() and part.stat().st_size > 0
        try:
            _transfer(url, part, remote, show, timeout)
        except urllib.error.HTTPError as error:
            failure = f"HTTP {error.code} {error.reason}"
            error.close()
            if error.code == 416:  # what is here is longer than what is there
                part.unlink(missing_ok=True)
                continue
            if error.code < 500 and error.code not in (408, 429):
                return failure
            continue
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failure = str(getattr(error, "reason", None) or error or type(error).__name__)
            continue
        size = part.stat().st_size
        if remote.size is not None and size < remote.size:
            failure = f"it broke off after {size:,} of {remote.size:,} bytes"
            continue
        digest = sha256(part)
        if size == (remote.size if remote.size is not None else size) and digest == remote.sha256:
            return None
        part.unlink()
        failure = f"it delivered {size:,} bytes with SHA-256 {digest}, expected {remote.sha256}"
        if not resumed:  # the whole file came from here, and it is another one
            return failure
    return failure


def _transfer(url: str, part: Path, remote: Remote, show: Progress, timeout: float) -> None:
    if not url.startswith(("https://", "http://")):
        raise urllib.error.URLError(f"{url} is not an http address")
    here = part.stat().st_size if part.exists() else 0
    if remote.size is not None and here >= remote.size:
        if here == remote.size:
            return
        part.unlink()
        here = 0
    request = urllib.request.Request(url, headers={"User-Agent": "fedweave", "Accept-Encoding": "identity"})
    if here:
        request.add_header("Range", f"bytes={here}-")
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        continued = reply.status == 206 and str(reply.headers.get("Content-Range", "")).startswith(f"bytes {here}-")
        if reply.status == 206 and not continued:
            raise http.client.HTTPException("the answer is another part of the file than was asked for")
        if not continued:
            here = 0
        with part.open("ab" if continued else "wb") as file:
            _copy(reply, file, here, remote, show)


def _copy(reply: Any, file: IO[bytes], here: int, remote: Remote, show: Progress) -> None:
    show(remote.name, here, remote.size)
    while block := reply.read(_BLOCK):
        file.write(block)
        here += len(block)
        show(remote.name, here, remote.size)
        if remote.size is not None and here > remote.size:
            break  # it cannot become right any more
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _shown(name: str) -> Iterator[Progress]:
    """Where this download's progress goes."""
    wanted = _progress.get()
    if wanted is not None:
        yield wanted
        return
    if not sys.stderr.isatty():
        yield lambda name, here, size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    parts = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*parts, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda name, here, size: bar.update(task, completed=here, total=size)

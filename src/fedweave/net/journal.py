# SPDX-License-Identifier: Apache-2.0
"""A client's own memory of a run: what it was asked, what it made of it, what it was told. One line of JSON each; a line that a
crash cut off counts as never written.

    trained    the update is whole and on disk, and from now on the only one for its task; with it what the client will keep
    answered   the coordinator's verdict on it

The line ``trained`` is fsynced before a byte of the update leaves the machine. What it says is small enough for the line, or in
files whose names are numbers.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fedweave.errors import StoreError
from fedweave.values import Arrays
from fedweave.wire import INLINE, Blob, encode, read, write
from fedweave.wire.chunks import sync_folder

LONGEST = 1 << 26
"""Bytes of the journal after which it begins anew; the one before is kept."""


@dataclass(frozen=True)
class Made:
    """An update that is to be sent, or was.

    Args:
        task, round: what it answers.
        blob: what it is.
        source: its bytes, or its file.
        mine: what the client keeps if it is accepted: its bytes or its file; None: what it kept before.
    """

    task: str
    round: int
    blob: Blob
    source: bytes | Path
    mine: bytes | Path | None


class Journal:
    """What one client knows of one run, in a folder of its own.

    Args:
        folder: made if it is not there.

    ``pending`` is the update on which there is no verdict yet, ``settled`` the last task that there is one on.

    Raises:
        StoreError: another process has it open, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (folder / ".lock").open("a")
        except OSError as error:
            raise StoreError(f"The folder {folder} cannot be written: {error.strerror}. Choose another --workdir.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StoreError(
                f"The folder {folder} is in use by another client. Give each one a --workdir of its own."
            ) from None
        self.path = folder / "journal.jsonl"
        self.pending: Made | None = None
        self.settled = ""
        self._kept: bytes | Path | None = None
        self._count = 0
        whole = 0
        for line, end in _lines(self.path):
            whole = end
            self._take(line)
        self._file = self.path.open("ab", buffering=0)
        # What a crash cut off is not to be read as the beginning of the next line.
        self._file.truncate(whole)
        self._tidy()

    def _take(self, line: dict[str, Any]) -> None:
        match line["event"]:
            case "trained":
                self._count = max(self._count, line["count"])
                blob = Blob(line["size"], tuple(bytes.fromhex(chunk) for chunk in line["chunks"]))
                source = self._there(line["update"], "update", line["count"])
                mine = self._there(line["mine"], "mine", line["count"]) if line["keeps"] else None
                self.pending = Made(line["task"], line["round"], blob, source, mine)
            case "answered" if self.pending is not None and self.pending.task == line["task"]:
                if line["verdict"] == "accepted" and self.pending.mine is not None:
                    self._kept = self.pending.mine
                self.pending, self.settled = None, line["task"]
            case "kept":
                self._kept = self._there(line["mine"], "mine", line["count"])
                self._count = max(self._count, line["count"])

    def _there(self, text: str | None, kind: str, count: int) -> bytes | Path:
        return self._named(kind, count) if text is None else base64.b64decode(text)

    def _named(self, kind: str, count: int) -> Path:
        return self.folder / f"{kind}-{count}.safetensors"

    # What a client notes -------------------------------------------------------------------------------------------------

    def mine(self) -> Arrays | None:
        """What the client keeps between its rounds."""
        return None if self._kept is None else Arrays(**read(self._kept).record())

    def trained(self, task: str, round: int, update: dict[str, Any], metadata: dict[str, str], mine: Arrays | None) -> Made:
        """An update is made: keep it, durably, before anybody is told."""
        self._count += 1
        try:
            source, blob, kept = self._laid_down(update, metadata, mine)
        except OSError as error:
            raise self._unwritable(error) from None
        line = {
            "event": "trained", "task": task, "round": round, "count": self._count, "size": blob.size,
            "chunks": [chunk.hex() for chunk in blob.chunks], "update": _text(source), "keeps": mine is not None,
            "mine": _text(kept), "id": blob.id.hex(),
        }  # fmt: skip
        self._write(line, durable=True)
        self.pending = Made(task, round, blob, source, kept)
        return self.pending

    def _laid_down(
        self, update: dict[str, Any], metadata: dict[str, str], mine: Arrays | None
    ) -> tuple[bytes | Path, Blob, bytes | Path | None]:
        """The update and what the client will keep, in files if they are large."""
        files = 0
        small = _bytes(update) + 4096 <= INLINE
        source: bytes | Path = encode(update, metadata) if small else self._named("update", self._count)
        if isinstance(source, Path):
            blob = write(source, update, metadata)
            files += 1
        else:
            blob = Blob.of(source)
        kept: bytes | Path | None = None
        if mine is not None:
            kept = encode(mine) if _bytes(mine) + 4096 <= INLINE else self._named("mine", self._count)
            if isinstance(kept, Path):
                write(kept, mine)
                files += 1
        if files:
            sync_folder(self.folder)
        return source, blob, kept

    def answered(self, verdict: str, reason: str) -> None:
        """The verdict on the update that is pending; what the client keeps follows from it."""
        made = self.pending
        assert made is not None
        self._write({"event": "answered", "task": made.task, "round": made.round, "verdict": verdict, "reason": reason})
        if verdict == "accepted" and made.mine is not None:
            self._kept = made.mine
        self.pending, self.settled = None, made.task
        self._tidy()
        if self._file.tell() > LONGEST:
            self._renew()

    def note(self, event: str, **facts: Any) -> None:
        """Something that is good to know later, and that nothing depends on."""
        self._write({"event": event, **facts})

    def _write(self, line: dict[str, Any], durable: bool = False) -> None:
        content = json.dumps(line).encode() + b"\n"
        file = self._file.fileno()
        end = os.fstat(file).st_size
        try:
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durable:
                os.fsync(file)
        except OSError as error:
            # A line that may not be on disk was never written: nothing that it speaks of has left the machine yet.
            os.ftruncate(file, end)
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"The journal in {self.folder} cannot be written: {error.strerror}. Free some space; the same command goes on."
        )

    def _tidy(self) -> None:
        """Delete the files that nothing refers to."""
        used = {self._kept} | ({self.pending.source, self.pending.mine} if self.pending is not None else set())
        for pattern in ("update-*.safetensors", "mine-*.safetensors"):
            for path in self.folder.glob(pattern):
                if path not in used:
                    path.unlink(missing_ok=True)

    def _renew(self) -> None:
        """Begin the journal anew, with what is still needed; nothing is pending now."""
        aside = self.folder / "journal.new"
        with aside.open("wb") as file:
            if self._kept is not None:
                count = int(self._kept.stem.rpartition("-")[2]) if isinstance(self._kept, Path) else self._count
                line = {"event": "kept", "mine": _text(self._kept), "count": count}
                file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        os.replace(self.path, self.folder / "journal.1.jsonl")
        os.replace(aside, self.path)
        sync_folder(self.folder)
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        """Let another process have the folder."""
        self._file.close()
        self._lock.close()


def _lines(path: Path) -> list[tuple[dict[str, Any], int]]:
    """The whole lines, and where each ends."""
    found, end = [], 0
    if path.exists():
        with path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                try:
                    line = json.loads(raw)
                except ValueError:
                    break
                end += len(raw)
                found.append((line, end))
    return found


def _text(source: bytes | Path | None) -> str | None:
    return base64.b64encode(source).decode() if isinstance(source, bytes) else None


def _bytes(values: Any) -> int:
    return sum(int(getattr(value, "nbytes", 8)) for value in values.values())

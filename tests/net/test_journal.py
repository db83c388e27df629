# SPDX-License-Identifier: Apache-2.0
"""A client's journal, cut off at any byte: what it said is whole, or as if it had never been said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedweave.errors import StoreError
from fedweave.net import journal as journals
from fedweave.net.journal import Journal
from fedweave.values import Arrays
from fedweave.wire import Blob, Outlet, read

METADATA = {"report": "{}"}


def update(value: float, size: int) -> dict[str, Any]:
    return {"delta": np.full(size, value, np.float32), "weight": 3}


@pytest.mark.parametrize("size", [4, 40_000])
def test_what_was_said_is_found_again(size: int, tmp_path: Path) -> None:
    first = Journal(tmp_path / "run")
    made = first.trained("a" * 32, 1, update(1.0, size), METADATA, Arrays(control=np.full(size, 5, np.float32), steps=2))
    assert first.mine() is None
    first.close()
    second = Journal(tmp_path / "run")
    assert second.pending == made
    outlet = Outlet(made.blob, made.source)
    content = b"".join(outlet.chunk(i) for i in range(len(made.blob.chunks)))
    assert Blob.of(content) == made.blob
    assert read(content).arrays["delta"][0] == 1.0
    second.answered("accepted", "")
    mine = second.mine()
    assert mine is not None
    assert (float(mine.control[0]), mine.steps) == (5.0, 2)
    # One that is refused, or too late, leaves what the client keeps as it was.
    for verdict in ("refused", "late"):
        second.trained(verdict, 2, update(2.0, size), METADATA, Arrays(control=np.zeros(size, np.float32), steps=9))
        second.answered(verdict, "why")
        kept = second.mine()
        assert kept is not None
        assert kept.steps == 2
    second.close()
    third = Journal(tmp_path / "run")
    assert third.pending is None
    assert third.settled == "late"
    kept = third.mine()
    assert kept is not None
    assert (float(kept.control[0]), kept.steps) == (5.0, 2)
    assert len(list((tmp_path / "run").glob("*.safetensors"))) == (1 if size > 4 else 0)
    third.close()


def test_cut_off_anywhere(tmp_path: Path) -> None:
    whole = Journal(tmp_path / "whole")
    for n in range(3):
        whole.trained(str(n), n + 1, update(n, 2), METADATA, Arrays(steps=n))
        whole.answered("accepted", "")
    whole.close()
    content = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for cut in sorted({*range(0, len(content), 37), *ends, *(end - 1 for end in ends), len(content)}):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(content[:cut])
        lines = sum(end <= cut for end in ends)
        found = Journal(folder)
        assert (found.pending is not None) == (lines % 2 == 1)
        mine = found.mine()
        assert (None if mine is None else mine.steps) == (lines // 2 - 1 if lines >= 2 else None)
        # And it goes on from there.
        if found.pending is not None:
            found.answered("accepted", "")
        found.trained("next", 9, update(9, 2), METADATA, Arrays(steps=99))
        found.answered("accepted", "")
        found.close()
        again = Journal(folder)
        kept = again.mine()
        assert kept is not None
        assert kept.steps == 99
        again.close()


def test_begun_anew_when_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LONGEST", 2000)
    journal = Journal(tmp_path)
    for n in range(40):
        journal.trained(
            str(n), n + 1, update(n, 40_000 if n % 2 else 2), METADATA, Arrays(steps=n, x=np.zeros(40_000 * (n % 3)))
        )
        journal.answered("accepted", "")
        mine = journal.mine()
        assert mine is not None
        assert mine.steps == n
    assert journal.path.stat().st_size < 8000
    journal.close()
    again = Journal(tmp_path)
    mine = again.mine()
    assert mine is not None
    assert mine.steps == 39
    again.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(StoreError, match="in use by another client"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()

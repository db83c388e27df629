# SPDX-License-Identifier: Apache-2.0
"""The checker of a deployment that met with faults. It shares no code with what it checks: it reads the clients' own journals,
the ledger with sqlite3, and the model with the safetensors library."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy


def journal(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a client's journals of all runs, oldest first."""
    lines: list[dict[str, Any]] = []
    for name in ("journal.1.jsonl", "journal.jsonl"):
        for path in sorted(folder.glob(f"*/{name}")):
            for raw in path.read_bytes().splitlines(keepends=True):
                if raw.endswith(b"\n"):
                    lines.append(json.loads(raw))
    return lines


def check(
    run: Path, clients: Mapping[int, Path], rounds: int, examples: Mapping[int, int],
    final: Callable[[Callable[[int], list[int]]], Any] | None = None,
) -> dict[str, int]:  # fmt: skip
    """See that the invariants I1 to I3 hold.

    Args:
        run: the run's folder.
        clients: number from 0 -> workdir.
        rounds: that there must be.
        examples: of each client.
        final: given who took part in a round, where the run must have ended.

    Returns:
        how much was checked.
    """
    ledger = sqlite3.connect(f"file:{run / 'ledger.sqlite3'}?mode=ro", uri=True)
    rows = ledger.execute('select task, client, round, "update", verdict from answers').fetchall()
    records = {
        number: (np.frombuffer(cohort, "<i8").tolist(), model, json.loads(record))
        for number, cohort, model, record in ledger.execute("select number, cohort, model_hash, record from rounds")
    }
    ledger.close()
    kept = {task: (client, round, update, verdict) for task, client, round, update, verdict in rows}
    assert len(kept) == len(rows), "a task has two verdicts"
    # Verdicts older than a client's last are forgotten with checkpoints: there the client's journal and the rounds speak.
    last: dict[int, int] = defaultdict(int)
    for client, round, _, _ in kept.values():
        last[client] = max(last[client], round)

    acknowledged: Counter[tuple[int, int]] = Counter()
    made: set[tuple[int, int]] = set()
    accepted: dict[int, list[int]] = defaultdict(list)
    for task, (client, round, _, verdict) in kept.items():
        assert task
        if verdict == "accepted" and client >= 0:
            accepted[round].append(client)
    for client, folder in clients.items():
        sent: dict[str, set[str]] = defaultdict(set)
        order: list[int] = []
        for line in journal(folder):
            if line["event"] == "trained":
                sent[line["task"]].add(line["id"])
                made.add((client, line["round"]))
            elif line["event"] == "taken":
                order.append(line["round"])
            elif line["event"] == "answered" and line["verdict"] == "accepted":
                acknowledged[client, line["round"]] += 1
                if line["task"] not in kept and line["round"] < last[client]:
                    continue
                assert line["task"] in kept, f"client {client} was told that {line['task']} is in, and the ledger has it not"
                owner, round, update, verdict = kept[line["task"]]
                assert (owner, round, verdict) == (client, line["round"], "accepted")
                assert sent[line["task"]] == {update}, "what the ledger has is not what the client sent"
        assert all(len(ids) == 1 for ids in sent.values()), "a client made two answers to one task"
        done: set[str] = set()
        for line in journal(folder):
            done |= {line["task"]} if line["event"] == "answered" else set()
            assert line["event"] not in ("taken", "trained") or line["task"] not in done, (
                "a task was done again after its verdict"
            )
        assert order == sorted(order), "a client was asked again in a round that was over"

    assert sorted(n for n in records if n > 0) == list(range(1, rounds + 1)), "a round is lost"
    taken: dict[int, list[int]] = {}
    for number in range(1, rounds + 1):
        cohort, _, record = records[number]
        lost = {*record["dropped"], *(client for client, _ in record["refused"])}
        taken[number] = [client for client in cohort if client not in lost]
        assert Counter(accepted[number]) <= Counter(taken[number]), f"round {number}: accepted is not what was counted"
        for client in taken[number]:
            known = client in accepted[number] or (number < last[client] and (client, number) in made)
            assert known or client not in clients, f"round {number} counted client {client}, which has not answered"
        assert record["examples"] == sum(examples[client] for client in taken[number])

    for (client, round), times in acknowledged.items():
        assert times == 1, f"client {client} was told twice that it is in, in round {round}"
        assert client in taken[round], f"client {client} was told that it is in, and round {round} has not counted it"

    weights = safetensors.numpy.load_file(run / "final.safetensors")
    flat = np.concatenate([value.reshape(-1) for value in weights.values()])
    assert hashlib.sha256(flat.tobytes()).hexdigest() == records[rounds][1], "the model is not the last round's"
    if final is not None:
        assert np.array_equal(flat, final(lambda number: taken[number])), "the model is not what these clients give"
    return {"acknowledged": acknowledged.total(), "rounds": rounds}

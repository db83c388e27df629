# SPDX-License-Identifier: Apache-2.0
"""Every mistake a person can make ends in one clear sentence and exit code 2, without a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

MISTAKES = {
    "data": (["--data", "dgits"], ["'dgits'", "Did you mean 'digits'?"]),
    "partition": (["--partition", "dirichlt(alpha=1)"], ["dirichlt", "Did you mean 'dirichlet'?"]),
    "partition's argument": (["--partition", "dirichlet(alpa=1)"], ["alpha", "min_size"]),
    "partition's value": (["--partition", "dirichlet(alpha=-1)"], ["alpha is -1"]),
    "model": (["--model", "2n"], ["'2n'", "Did you mean '2nn'?"]),
    "algorithm": (["--algorithm", "fedavq"], ["'fedavq'", "Did you mean 'fedavg'?"]),
    "algorithm's argument": (["--algorithm", "fedsgd(lr=1)"], ["server_lr"]),
    "algorithm's text": (["--algorithm", "fedsgd(server_lr=__import__('os'))"], ["Cannot read", "plain values only"]),
    "engine": (["--engine", "eagr"], ["'eagr'", "Did you mean 'eager'?"]),
    "flag": (["--algoritm", "fedavg"], ["No such option", "--algoritm"]),
    "flag's type": (["--rounds", "many"], ["--rounds", "integer"]),
    "optimizer": (["--optimizer", "sdg"], ["optimizer is 'sdg'", "'sgd' or 'adam'"]),
    "shuffle": (["--shuffle", "always"], ["shuffle is 'always'"]),
    "evaluate": (["--evaluate", "centre"], ["evaluate is 'centre'"]),
    "split": (["--clients", "100000"], ["100,000 clients"]),
    "classes": (["--partition", "classes(k=11)"], ["11"]),
    "no clients": (["--clients", "0"], ["clients is 0"]),
    "lr": (["--lr", "-1"], ["lr is -1"]),
    "batch size": (["--batch-size", "lots"], ["batch_size", "lots"]),
    "batch size 0": (["--batch-size", "0"], ["batch_size is 0"]),
    "cohort": (["--cohort", "5"], ["cohort is 5", "4 clients"]),
    "cohort's fraction": (["--cohort", "1.5"], ["cohort is 1.5"]),
    "cohort's text": (["--cohort", "half"], ["cohort", "half"]),
    "model and data": (["--model", "char-lstm"], ["char-lstm"]),
    "rounds": (["--rounds", "-1"], ["rounds is -1"]),
    "seed": (["--seed", "-1"], ["seed is -1"]),
    "epochs and steps": (["--steps", "3"], ["epochs is 1 and steps is 3"]),
    "target": (["--target", "accuracy"], ["target is 'accuracy'", "accuracy=0.97"]),
    "target's value": (["--target", "accuracy=97"], ["97% is written 0.97"]),
    "target's metric": (["--target", "acuracy=0.9"], ["'acuracy'", "Did you mean 'accuracy'?"]),
    "set": (["--set", "local.lr"], ["--set is 'local.lr'"]),
    "set's key": (["--set", "local.momentun=0.9"], ["Did you mean local.momentum?"]),
    "set's top key": (["--set", "round=3"], ["Did you mean rounds?"]),
    "set's depth": (["--set", "seed.of=3"], ["seed"]),
    "threads": (["--threads", "0"], ["threads is 0"]),
}


def refused(result: Any, *words: str) -> None:
    """One sentence on stderr, nothing on stdout, exit code 2."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "?")), lines[0]
    assert result.stdout == ""
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_flags(cli: Any, quick: tuple[str, ...], mistake: str) -> None:
    words, said = MISTAKES[mistake]
    refused(cli("run", *quick, *words), *said)
    assert not list(Path("runs").glob("*")), "a refused run leaves no folder behind"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("rounds = = 3", ["run.toml", "not valid TOML"]),
        ("rouns = 3", ["'rouns'", "Did you mean rounds?"]),
        ("[local]\nlearning = 3", ["local.learning"]),
        ("rounds = 'many'", ["rounds is 'many'"]),
        ("lr = 0.1", ["'lr'", "local.lr"]),
        (b"\xff\xfe", ["run.toml", "cannot be read"]),
    ],
)
def test_configuration_files(cli: Any, content: str | bytes, said: list[str]) -> None:
    Path("run.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(cli("run", "run.toml"), *said)


def test_a_missing_configuration(cli: Any) -> None:
    refused(cli("run", "nowhere.toml"), "nowhere.toml")


def test_an_unwritable_folder(cli: Any, quick: tuple[str, ...]) -> None:
    Path("file").write_text("in the way")
    refused(cli("run", *quick, "--out", "file/run"), "file/run", "--out")
    refused(cli("run", *quick, "--out", "file"), "file", "--out")


def test_a_folder_that_holds_a_run(cli: Any, quick: tuple[str, ...]) -> None:
    assert cli("run", *quick, "--out", "mine", "--quiet").exit_code == 0
    before = Path("mine/rounds.jsonl").read_bytes()
    refused(cli("run", *quick, "--out", "mine"), "mine already holds a run", "fedweave resume mine")
    assert Path("mine/rounds.jsonl").read_bytes() == before


@pytest.mark.parametrize("command", ["resume", "report", "runs show"])
def test_not_a_run_folder(cli: Any, command: str) -> None:
    Path("empty").mkdir()
    for folder in ("empty", "nowhere"):
        refused(cli(*command.split(), folder), folder, "not the folder of a run")


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_corrupt_checkpoint(cli: Any, quick: tuple[str, ...], harm: str) -> None:
    assert cli("run", *quick, "--out", "mine", "--quiet").exit_code == 0
    for blob in Path("mine/blobs").rglob("*.safetensors"):
        content = bytearray(blob.read_bytes())
        if harm == "flip":
            content[-1] ^= 1
        blob.chmod(0o600)
        blob.write_bytes(content if harm == "flip" else content[:100])
    refused(cli("resume", "mine", "--rounds", "5"), "mine")


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_a_corrupt_ledger(cli: Any, content: bytes) -> None:
    Path("mine").mkdir()
    Path("mine/ledger.sqlite3").write_bytes(content)
    refused(cli("resume", "mine"), "mine")


def test_commands_and_names(cli: Any) -> None:
    refused(cli("rum"), "rum", "'run'")
    refused(cli("algorithms", "fedagv"), "Did you mean 'fedavg'?")
    refused(cli("data", "describe", "--data", "minst"), "Did you mean 'mnist'?")
    refused(cli("data", "plot", "--partition", "shard"), "Did you mean 'shards'?")
    refused(cli("compare", "fedavg"), "at least two")
    refused(cli("compare", "fedavg", "fedsdg"), "'fedsdg'", "Did you mean 'fedsgd'?")
    refused(cli("compare", "fedavg", "runs/nowhere"), "runs/nowhere", "not the folder of a run")
    refused(cli("compare", "fedavg", "fedsgd", "--seeds", "0,0"), "--seeds is '0,0'")
    refused(cli("compare", "fedavg", "fedsgd", "--seeds", "a"), "--seeds is 'a'")
    refused(cli("runs", "list", "nowhere"), "nowhere")

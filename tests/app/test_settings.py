# SPDX-License-Identifier: Apache-2.0
"""File, flags and --set make one configuration; the exact command makes it again."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from fedweave.app import settings
from fedweave.app.cli import app
from fedweave.config import Config
from fedweave.errors import FedweaveError, StoreError, UsageError


def parsed(command: str) -> Config:
    """The configuration that the real parser and ``configure`` make of a command line."""
    words = shlex.split(command)
    assert words[:2] == ["fedweave", "run"]
    group: Any = typer.main.get_command(app)
    context = group.commands["run"].make_context("run", words[2:])
    flags = {f.key: context.params[f.name] for f in settings.FLAGS if context.params[f.name] is not None}
    return settings.configure(context.params["config"], flags, context.params["sets"] or ())


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)
positive = st.floats(1e-6, 1e6)
configs = st.fixed_dictionaries(
    {"clients": st.integers(1, 10**6), "rounds": st.integers(0, 10**6), "seed": st.integers(0, 2**31)},
    optional={
        "data": st.sampled_from(["digits", "synthetic(alpha=1.0, beta=0.5)", "a folder/file 'x'.csv"]),
        "partition": st.sampled_from(["iid", "shards(per_client=3)", "dirichlet(alpha=0.3)"]),
        "algorithm": st.sampled_from(["fedavg", "fedsgd", "fedsgd(server_lr=0.25)"]),
        "model": st.sampled_from(["2nn", "cnn", "my.module:make"]),
        "cohort": st.one_of(st.integers(1, 10**6), st.floats(1e-4, 1.0)),
        "target": st.sampled_from(["accuracy=0.9", "loss=0.125"]),
        "stop_at_target": st.booleans(),
        "patience": st.integers(1, 100),
        "max_seconds": positive,
        "evaluate_every": st.integers(0, 50),
        "evaluate": st.sampled_from(["auto", "central", "clients", "both"]),
        "holdout": st.floats(0, 0.9),
        "split_seed": st.integers(0, 99),
        "buffers": st.sampled_from(["mean", "keep"]),
        "loss": st.just("my.module:loss"),
        "initial": st.just("start weights.safetensors"),
        "threads": st.integers(1, 64),
        "local": st.fixed_dictionaries(
            {},
            optional={
                "lr": positive,
                "epochs": st.one_of(st.integers(1, 50), st.floats(0.1, 9.9)),
                "batch_size": st.one_of(st.integers(1, 10**6), st.just("all")),
                "momentum": st.floats(0, 0.99),
                "weight_decay": positive,
                "clip_norm": positive,
                "lr_decay": st.floats(0.1, 1.0),
                "shuffle": st.sampled_from(["epoch", "once", "never"]),
            },
        ),
    },
)


@given(configs)
def test_the_exact_command_makes_the_configuration_again(values: dict[str, Any]) -> None:
    config = Config.make(values)
    assert parsed(settings.command_of(config)) == config


def test_a_saved_split_is_said_in_the_command() -> None:
    config = Config.make({"data": "my/split", "partition": "none"})
    assert settings.unsplit(parsed(settings.command_of(config)).partition)


def test_flags_go_over_the_file_and_set_over_both(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('data = "digits"\nrounds = 7\nclients = 5\nseed = 1\n[local]\nlr = 0.5\nepochs = 3\n')
    config = settings.configure(path, {"rounds": 9, "local.lr": 0.25, "seed": 2}, ["seed=3", "local.momentum=0.9"])
    assert (config.rounds, config.clients, config.seed) == (9, 5, 3)
    assert (config.local.lr, config.local.epochs, config.local.momentum) == (0.25, 3, 0.9)


def test_steps_replace_the_files_epochs_but_not_those_given_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[local]\nepochs = 3\n")
    local = settings.configure(path, {"local.steps": 5}).local
    assert (local.steps, local.epochs) == (5, None)
    with pytest.raises(UsageError, match="epochs is 2 and steps is 5"):
        settings.configure(path, {"local.steps": 5, "local.epochs": 2.0})


@pytest.mark.parametrize(("partition", "clients"), [("iid", 10), ("dirichlet(alpha=1)", 10), ("natural", None), ("none", None)])
def test_ten_clients_where_a_number_is_needed(partition: str, clients: int | None) -> None:
    assert settings.configure(None, {"partition": partition}).clients == clients


@pytest.mark.parametrize("text", ["", "=", "local.lr", "=3", "local.lr="])
def test_a_bad_set_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--set is"):
        settings.configure(None, {}, [text])


@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_set_is_a_configuration_or_an_error_of_ours(sets: list[str]) -> None:
    with contextlib.suppress(FedweaveError):
        settings.configure(None, {}, sets)


def test_folders_are_numbered_and_never_taken_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWEAVE_RUNS", str(tmp_path / "deep" / "runs"))
    made = [settings.next_folder("digits-fedavg") for _ in range(3)]
    assert [p.name for p in made] == ["digits-fedavg-1", "digits-fedavg-2", "digits-fedavg-3"]
    (tmp_path / "deep" / "runs" / "digits-fedavg-x").mkdir()
    (tmp_path / "deep" / "runs" / "digits-fedavg-12").mkdir()
    assert settings.next_folder("digits-fedavg").name == "digits-fedavg-13"


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").touch()
    with pytest.raises(StoreError, match=r"already holds a run.*resume"):
        settings.new_folder(tmp_path, "x")

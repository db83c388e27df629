# SPDX-License-Identifier: Apache-2.0
"""The commands on the digits data, from the words typed to the files and the last line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedweave.history import Round

CONTROL = {chr(i) for i in range(32)} - {"\n"}


def test_a_run_from_nothing(cli: Any) -> None:
    result = cli("run", "--rounds", "2")
    assert result.exit_code == 0
    assert not CONTROL & set(result.stdout)
    folder = Path("runs/digits-fedavg-1")
    names = {path.name for path in folder.iterdir()}
    assert {"config.toml", "rounds.jsonl", "final.safetensors", "ledger.sqlite3", "report.html"} <= names
    for words in (str(folder / "report.html"), f"fedweave run {folder}/config.toml", "accuracy", "exchanged", "round 2/2"):
        assert words in result.stdout
    assert cli("run", "--rounds", "1", "--quiet").exit_code == 0
    assert Path("runs/digits-fedavg-2/report.html").exists()


def test_json_is_one_object_a_line_and_the_last_sums_up(cli: Any, quick: tuple[str, ...]) -> None:
    result = cli("run", *quick, "--json", "--target", "accuracy=0.99", "--out", "mine")
    assert result.exit_code == 0
    *rounds, end = [json.loads(line) for line in result.stdout.splitlines()]
    records = [Round.of(record) for record in rounds]
    assert [record.number for record in records] == [0, 1, 2, 3]
    kept = [json.loads(line) for line in Path("mine/rounds.jsonl").read_text().splitlines()]
    assert [r["model_hash"] for r in kept] == [r["model_hash"] for r in rounds]
    assert end["status"] == "rounds"
    assert end["exit_code"] == 0
    assert end["rounds_to_target"] is None
    assert end["model_hash"] == records[-1].model_hash
    assert end["metrics"]["accuracy"]["best"] == max(r.metrics["accuracy"] for r in records)
    assert end["bytes_up"] == sum(r.bytes_up for r in records)
    assert end["folder"] == "mine"


def test_the_configuration_and_the_exact_command_give_the_same_model(cli: Any, quick: tuple[str, ...]) -> None:
    import shlex

    first = json.loads(cli("run", *quick, "--partition", "dirichlet(alpha=0.5)", "--json").stdout.splitlines()[-1])
    again = json.loads(cli("run", f"{first['folder']}/config.toml", "--json").stdout.splitlines()[-1])
    shown = cli("runs", "show", first["folder"]).stdout.splitlines()[0]
    third = json.loads(cli(*shlex.split(shown)[1:], "--json").stdout.splitlines()[-1])
    assert first["folder"] != again["folder"] != third["folder"]
    assert first["model_hash"] == again["model_hash"] == third["model_hash"]


def test_resume_goes_on_to_a_later_round_as_if_it_had_been_asked_for(cli: Any, quick: tuple[str, ...]) -> None:
    assert cli("run", *quick, "--out", "short", "--quiet").exit_code == 0
    assert cli("run", *quick, "--rounds", "5", "--out", "long", "--quiet").exit_code == 0
    result = cli("resume", "short", "--rounds", "5", "--json")
    assert result.exit_code == 0
    long = json.loads(Path("long/rounds.jsonl").read_text().splitlines()[-1])
    assert json.loads(result.stdout.splitlines()[-1])["model_hash"] == long["model_hash"]


def test_a_diverged_run_ends_with_3(cli: Any, quick: tuple[str, ...]) -> None:
    result = cli("run", *quick, "--set", "local.lr=1e30")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: ")


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_resume_ends_like_the_undisturbed_run(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fedweave.app.cli"]
    flags = ["--data", "digits", "--clients", "4", "--cohort", "4", "--epochs", "2", "--rounds", "12", "--evaluate-every", "4"]
    whole = subprocess.run(
        [*words, "run", *flags, "--out", "whole", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    cut = subprocess.Popen([*words, "run", *flags, "--out", "cut"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert cut.stdout is not None
    for line in cut.stdout:
        if line.startswith("round 1/"):
            cut.send_signal(signal.SIGINT)
            break
    rest = cut.stdout.read()
    assert cut.wait(60) == 130
    cut.stdout.close()
    assert "fedweave resume cut" in rest
    done = subprocess.run([*words, "resume", "cut", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    hashes = [json.loads(text.stdout.splitlines()[-1])["model_hash"] for text in (whole, done)]
    assert hashes[0] == hashes[1]


def test_runs_are_listed_and_shown(cli: Any, quick: tuple[str, ...]) -> None:
    assert "No runs yet" in cli("runs", "list").stdout
    for algorithm in ("fedavg", "fedsgd"):
        assert cli("run", *quick, "--algorithm", algorithm, "--target", "accuracy=0.05", "--quiet").exit_code == 0
    Path("runs/broken").mkdir()
    Path("runs/broken/ledger.sqlite3").write_bytes(b"nothing")
    listed = cli("runs", "list").stdout
    assert all(name in listed for name in ("runs/digits-fedavg-1", "runs/digits-fedsgd-1", "busy or damaged", "accuracy"))
    shown = cli("runs", "show", "runs/digits-fedsgd-1").stdout
    assert "fedweave run --data digits" in shown
    assert "rounds to accuracy=0.05" in shown


def test_report_is_written_again(cli: Any, quick: tuple[str, ...]) -> None:
    assert cli("run", *quick, "--out", "mine", "--quiet").exit_code == 0
    Path("mine/report.html").unlink()
    assert cli("report", "mine").stdout.strip() == "mine/report.html"
    assert Path("mine/report.html").stat().st_size > 1e6
    assert cli("report", "mine", "--out", "other.html").stdout.strip() == "other.html"


def test_data_commands(cli: Any) -> None:
    listed = cli("data", "list").stdout
    assert all(name in listed for name in ("digits", "mnist", "shakespeare", "dirichlet", "alpha", "bycolumn"))
    assert "20" in cli("data", "describe", "--partition", "shards", "--clients", "20").stdout
    assert cli("data", "plot", "--partition", "dirichlet(alpha=0.1)").stdout.strip() == "digits-split.html"
    assert "heatmap" in Path("digits-split.html").read_text(encoding="utf-8")


def test_a_saved_split_can_be_trained_on(cli: Any) -> None:
    import fedweave as fw

    split = fw.data.partition(fw.data.load("digits"), fw.LogNormal(sigma=0.5), clients=5, seed=3)
    split.save(Path("kept"))
    words = ("--data", "./kept", "--partition", "none")
    assert cli("run", *words, "--rounds", "1", "--out", "mine", "--quiet").exit_code == 0
    assert "5" in cli("data", "describe", *words).stdout


def test_algorithms_and_models(cli: Any) -> None:
    assert all(word in cli("algorithms").stdout for word in ("fedavg", "fedsgd", "server_lr=1.0", "AISTATS 2017"))
    explained = cli("algorithms", "FedSGD").stdout
    assert all(word in explained for word in ("gradient", "server_lr", "default 1.0", "arXiv:1602.05629"))
    listed = cli("models").stdout
    assert "199,210" in listed
    assert "1,663,370" in listed


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_a_terminal_gets_the_live_view(tmp_path: Path) -> None:
    import pty

    main, other = pty.openpty()
    words = [sys.executable, "-m", "fedweave.app.cli", "run", "--rounds", "3", "--out", "mine"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=other, stderr=other, env={**os.environ, "TERM": "xterm-256color"})
    os.close(other)
    seen, limit = b"", time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            chunk = os.read(main, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(main)
    assert process.wait(30) == 0
    text = seen.decode()
    assert "\x1b[" in text
    assert "3/3 rounds" in text
    assert "All 3 rounds are done." in text


def test_settings_outside_numpy_text_are_kept(cli: Any, quick: tuple[str, ...]) -> None:
    """A start model from a file is where the run begins."""
    from safetensors.numpy import load_file

    assert cli("run", *quick, "--out", "first", "--quiet").exit_code == 0
    assert (
        cli("run", *quick, "--rounds", "0", "--set", "initial=first/final.safetensors", "--out", "second", "--quiet").exit_code
        == 0
    )
    first, second = load_file("first/final.safetensors"), load_file("second/final.safetensors")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    again = cli("run", "second/config.toml", "--out", "third", "--quiet")
    assert again.exit_code == 0, again.stderr

# SPDX-License-Identifier: Apache-2.0
"""Comparisons: the same split and seeds for all, trained once, and said when they are unfair."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

FLAGS = ("--data", "digits", "--clients", "4", "--cohort", "2", "--rounds", "3", "--target", "accuracy=0.2")


def folders() -> dict[str, dict[str, Any]]:
    return {
        path.parent.name: json.loads(path.read_text().splitlines()[-1]) for path in sorted(Path("both").glob("*/rounds.jsonl"))
    }


def test_two_algorithms_over_two_seeds(cli: Any) -> None:
    words = (
        "compare",
        "fedavg",
        "fedsgd(server_lr=0.5)",
        *FLAGS,
        "--seeds",
        "0,1",
        "--out",
        "both",
        "--set",
        "stop_at_target=false",
    )
    result = cli(*words)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert set(folders()) == {f"{name}-seed{s}" for name in ("fedavg", "fedsgd-server-lr-0.5") for s in (0, 1)}
    splits = {Path(f"both/{name}/config.toml").read_text().split("split_seed = ")[1][0] for name in folders()}
    assert splits == {"0", "1"}
    table = [
        line for line in result.stdout.splitlines() if line.startswith(("fedavg (2 seeds)", "fedsgd(server_lr=0.5) (2 seeds)"))
    ]
    assert len(table) == 2
    final = [record["metrics"]["accuracy"] for name, record in folders().items() if name.startswith("fedavg")]
    assert f"{statistics.fmean(final):.4f} ± {statistics.stdev(final):.4f}" in table[0]
    assert "both/compare.html" in result.stdout
    page = Path("both/compare.html").read_text(encoding="utf-8")
    assert "heatmap" in page
    assert page.count("data-group=") == 2

    # The second time nothing is trained, and the table is the same.
    before = {path: path.stat().st_mtime_ns for path in Path("both").glob("*/rounds.jsonl")}
    again = cli(*words)
    assert [line for line in again.stdout.splitlines() if "seeds)" in line] == table
    assert before == {path: path.stat().st_mtime_ns for path in Path("both").glob("*/rounds.jsonl")}


def test_other_flags_in_the_same_folder_are_refused(cli: Any) -> None:
    assert cli("compare", "fedavg", "fedsgd", *FLAGS, "--out", "both", "--quiet").exit_code == 0
    result = cli("compare", "fedavg", "fedsgd", *FLAGS, "--lr", "0.3", "--out", "both", "--quiet")
    assert result.exit_code == 2
    assert "another configuration" in result.stderr


def test_folders_files_and_algorithms_mix(cli: Any) -> None:
    assert cli("run", *FLAGS, "--out", "runs/mine", "--quiet").exit_code == 0
    Path("slow.toml").write_text('clients = 4\ncohort = 2\nrounds = 2\ntarget = "accuracy=0.2"\n[local]\nlr = 0.01\n')
    result = cli("compare", "runs/mine", "slow.toml", "fedsgd", *FLAGS, "--quiet", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    *runs, end = [json.loads(line) for line in result.stdout.splitlines()]
    assert [run["label"] for run in runs] == ["mine", "slow", "fedsgd"]
    assert end["warnings"] == []
    assert Path(end["page"]).parent.name == "compare-1"


def test_different_splits_models_and_targets_are_warned_about(cli: Any) -> None:
    assert cli("run", *FLAGS, "--out", "a", "--quiet").exit_code == 0
    assert cli("run", *FLAGS, "--partition", "shards", "--model", "logistic", "--out", "b", "--quiet").exit_code == 0
    assert cli("run", *FLAGS, "--target", "accuracy=0.3", "--out", "c", "--quiet").exit_code == 0
    result = cli("compare", "./a", "./b", "./c")
    assert result.exit_code == 0
    warnings = result.stderr.splitlines()
    assert len(warnings) == 3
    assert all(line.startswith("Warning: ") for line in warnings)
    assert "b and a differ in model" in warnings[0]
    assert "b and a differ in split" in warnings[1]
    assert "different targets" in warnings[2]


def test_a_killed_comparison_goes_on(cli: Any) -> None:
    """Runs that were cut are resumed: here one that never reached its last round."""
    words = ("compare", "fedavg", "fedsgd", *FLAGS, "--set", "stop_at_target=false", "--out", "both", "--quiet")
    assert cli(*words).exit_code == 0
    whole = folders()
    for path in Path("both/fedsgd-seed0").iterdir():
        if path.is_file():
            path.unlink()
    assert cli(*words).exit_code == 0
    assert {name: r["model_hash"] for name, r in folders().items()} == {name: r["model_hash"] for name, r in whole.items()}


def test_clients_are_measured_under_all_if_one_gives_them_models_of_their_own(cli: Any) -> None:
    words = ("--data", "digits", "--partition", "shards(per_client=1)", "--clients", "4", "--cohort", "4", "--rounds", "3")
    result = cli("compare", "fedavg", "fedper", *words, "--out", "both")
    assert result.exit_code == 0, result.stderr
    head, _, fedavg, fedper = (line.split("  ") for line in result.stdout.splitlines()[-6:-2])
    assert head[-1].strip() == "final clients_accuracy"
    assert float(fedper[-1]) > float(fedavg[-1]) + 0.1
    last = folders()["fedper-seed0"]["metrics"]
    assert f"{last['clients_accuracy']:.4f}" == fedper[-1].strip()

# SPDX-License-Identifier: Apache-2.0
"""``fedweave recommend``: successive halving, the same for one seed, and gone on with where it was ended."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedweave.app import recommend
from fedweave.app.recommend import ETA, grid, rungs
from fedweave.errors import UsageError

WORDS = (
    "--partition", "shards(per_client=2)", "--clients", "6", "--cohort", "6", "--model", "logistic", "--rounds", "9",
    "--budget", "36",
)  # fmt: skip
ITEMS = ("fedavg", "fedprox(mu=0.01)", "scaffold", "fedavg(weighting='uniform')", "fedadam(server_lr=0.000001)", "fednova")


def search(cli: Any, *more: str, items: tuple[str, ...] = ITEMS, out: str = "search") -> list[dict[str, Any]]:
    result = cli("recommend", *items, *WORDS, "--out", out, "--json", *more)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@given(candidates=st.integers(2, 200), budget=st.integers(1, 5000), most=st.integers(1, 1000))
def test_rungs_keep_the_rule(candidates: int, budget: int, most: int) -> None:
    sizes = [candidates]
    while sizes[-1] // ETA > 1:
        sizes.append(sizes[-1] // ETA)
    if budget < candidates * len(sizes):
        with pytest.raises(UsageError, match="raise it or name fewer"):
            rungs(candidates, budget, most)
        return
    plan = rungs(candidates, budget, most)
    assert [size for size, _ in plan] == sizes
    ends = [0, *(until for _, until in plan)]
    spent = [size * (after - before) for size, before, after in zip(sizes, ends[:-1], ends[1:], strict=True)]
    assert sum(spent) <= budget
    assert ends[-1] <= most
    if most > budget:
        # Jamieson and Talwalkar, figure 3: each rung has the same part, rounded down to whole rounds for each candidate.
        assert all(part <= budget / len(sizes) < part + size for part, size in zip(spent, sizes, strict=True))


def test_the_better_candidates_run_for_longer_and_the_best_is_named(cli: Any) -> None:
    *trials, end = search(cli)
    assert [t["place"] for t in trials] == list(range(1, 7))
    ends = {value["round"] for t in trials for value in t["values"]}
    assert ends == {3, 9}
    assert [len(t["values"]) for t in trials] == [2, 2, 1, 1, 1, 1]
    first = {t["candidate"]: t["values"][0]["clients_accuracy"] for t in trials}
    assert min(first[t["candidate"]] for t in trials[:2]) >= max(first[t["candidate"]] for t in trials[2:])
    assert trials[0]["values"][1]["clients_accuracy"] >= trials[1]["values"][1]["clients_accuracy"]
    assert "fedadam(server_lr=0.000001)" not in [t["candidate"] for t in trials[:2]]
    assert end["best"] == trials[0]["candidate"]
    assert end["measured_on"] == "training examples that clients held out"
    # A fifth of each client's examples; an independent count.
    import fedweave as fw

    split = fw.data.partition(fw.data.load("digits"), fw.Shards(per_client=2), clients=6, seed=0)
    assert end["held_out"] == pytest.approx(0.2 * split.sizes.sum(), abs=6)
    # What each was worth is what a run of its own comes to, measured on the same examples.
    held = fw.data.partition(fw.data.load("digits"), fw.Shards(per_client=2), clients=6, seed=0, holdout=0.2)
    alone = fw.simulate(model="logistic", data=held, algorithm="fedprox(mu=0.01)", cohort=6, rounds=3, evaluate="clients")
    assert alone.history[-1].metrics["clients_accuracy"] == first["fedprox(mu=0.01)"]


def test_the_command_of_the_best_runs_on_all_of_the_data(cli: Any) -> None:
    *_, end = search(cli)
    words = shlex.split(end["command"])
    assert words[:2] == ["fedweave", "run"]
    assert "--set" not in words
    assert cli(*words[1:], "--out", "best", "--quiet").exit_code == 0
    text = Path("best/config.toml").read_text()
    assert "holdout" not in text
    assert f'algorithm = "{end["best"]}"' in text


def test_repeating_trains_nothing_and_says_the_same(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = search(cli)
    files = {path: path.stat().st_mtime_ns for path in Path("search").glob("*/rounds.jsonl")}
    assert len(files) == 6
    assert search(cli) == before
    assert files == {path: path.stat().st_mtime_ns for path in Path("search").glob("*/rounds.jsonl")}
    assert search(cli, out="elsewhere") == before


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_search_that_was_ended_goes_on_to_the_same_end(cli: Any, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    whole = search(cli, out="whole")
    trained, calls = recommend._trained, []

    def dies(*arguments: Any) -> Any:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(arguments)
        return trained(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(recommend, "_trained", dies)
        result = cli("recommend", *ITEMS, *WORDS, "--out", "search", "--json")
    assert result.exit_code == 130
    assert "Repeat the command with --out search" in result.stderr
    assert search(cli) == whole


def test_a_run_that_was_interrupted_ends_the_search_and_is_gone_on_with(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    trained = recommend._trained
    with monkeypatch.context() as patched:
        patched.setattr(recommend, "_trained", lambda *a: replace(trained(*a), status="interrupted"))
        result = cli("recommend", *ITEMS, *WORDS, "--out", "search", "--quiet")
    assert result.exit_code == 130
    assert search(cli) == search(cli, out="whole")


def test_another_search_in_the_same_folder_is_refused(cli: Any) -> None:
    search(cli)
    result = cli("recommend", *ITEMS, *WORDS, "--lr", "0.3", "--out", "search")
    assert result.exit_code == 2
    assert "search holds another search" in result.stderr


def test_a_candidate_that_diverges_is_last_and_one_that_cannot_be_is_said(cli: Any) -> None:
    items = ("fedavg", "fedprox(mu=0.1)", "fedprox(mu=1e30)", "scaffold")
    *trials, end = search(cli, "--momentum", "0.5", "--model", "2nn", items=items)
    assert [t["candidate"] for t in trials][-1] == "fedprox(mu=1e30)"
    assert trials[-1]["diverged"]
    assert end["left_out"][0]["candidate"] == "scaffold"
    assert "plain local SGD" in end["left_out"][0]["why"]


def test_by_loss(cli: Any) -> None:
    *trials, end = search(cli, "--metric", "clients_loss", items=("fedavg", "fednova", "fedavgm(momentum=0.5)"))
    assert end["metric"] == "clients_loss"
    losses = [t["values"][-1]["clients_loss"] for t in trials]
    assert losses == sorted(losses)


def test_the_grid_can_be_tried_and_the_table_is_printed(cli: Any) -> None:
    assert len({(name, lr) for name, lr in grid(0.1)}) == len(grid(0.1)) == 15
    words = ("--model", "logistic", "--clients", "4", "--cohort", "4", "--budget", "30", "--quiet")
    result = cli("recommend", *words, "--out", "grid")
    assert result.exit_code == 0, result.stderr
    table = result.stdout.strip().splitlines()
    assert table[0].split("  ")[0] == "candidate"
    assert table[2].endswith("best")
    assert len([line for line in table if line.startswith(("fed", "scaffold"))]) == 15
    assert "may be chance" in result.stdout
    assert table[-1].startswith("  fedweave run --data digits")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("fedavg", "nothing"), "There is no algorithm called 'nothing'"),
        (("fedavg",), "recommend needs two candidates, and has 1."),
        (("fedavg", "scaffold", "--momentum", "0.9"), "SCAFFOLD cannot be used with momentum=0.9"),
        (("fedavg", "fednova", "--budget", "1"), "budget is 1, but 2 candidates need 2 rounds at least"),
        (("fedavg", "fednova", "--metric", "accuracy"), "There is no metric called 'accuracy'"),
        (("fedavg", "fednova", "--rounds", "0"), "rounds is 0; a candidate needs a round"),
        (("fedavg", "fednova", "--config", "no.toml"), "There is no configuration file no.toml"),
    ],
)
def test_mistakes_are_one_sentence(cli: Any, words: tuple[str, ...], sentence: str) -> None:
    result = cli("recommend", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert not any(Path("runs").glob("*"))


def test_a_saved_split_needs_examples_to_judge_by(cli: Any) -> None:
    import fedweave as fw

    for name, holdout in (("without", 0.0), ("with", 0.25)):
        fw.data.partition(fw.data.load("digits"), fw.IID(), clients=4, seed=0, holdout=holdout).save(name)
    words = ("fedavg", "fednova", "--partition", "none", "--model", "logistic", "--cohort", "4", "--budget", "4")
    result = cli("recommend", *words, "--data", "./without")
    assert result.exit_code == 2
    assert "holdout=0.2" in result.stderr
    assert cli("recommend", *words, "--data", "./with", "--quiet").exit_code == 0

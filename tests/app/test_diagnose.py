# SPDX-License-Identifier: Apache-2.0
"""``fedweave diagnose``: words, JSON and the report's part say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SKEWED = (
    "--data", "digits", "--partition", "shards(per_client=2)", "--clients", "10", "--cohort", "10", "--model", "logistic",
    "--rounds", "8", "--quiet",
)  # fmt: skip


@pytest.fixture
def skewed(cli: Any) -> Path:
    assert cli("run", *SKEWED, "--out", "skewed").exit_code == 0
    return Path("skewed")


def test_words_json_and_report_agree(cli: Any, skewed: Path) -> None:
    words = cli("diagnose", skewed)
    assert words.exit_code == 0
    assert words.stderr == ""
    lines = words.stdout.splitlines()
    assert lines[0] == "Found: label skew."
    assert lines[2] == "1. label skew"
    assert any(line.startswith("   Next: Try fedprox(mu=0.01) to (mu=0.1), which costs no bytes") for line in lines)
    assert max(map(len, lines)) <= 120

    plain = cli("diagnose", skewed, "--json")
    found = json.loads(plain.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(plain.stdout.splitlines()) == 1
    assert found["found"] == ["label skew"]
    assert found["observed_rounds"] == 8
    verdict = next(v for v in found["verdicts"] if v["check"] == "label skew")
    assert verdict["state"] == "found"
    whole = " ".join(words.stdout.split())
    assert verdict["words"] in whole
    assert verdict["remedy"] in whole
    numbers = verdict["numbers"]
    for name in ("distance", "random_distance", "cosine_alike", "cosine_unlike", "correlation"):
        assert f"{numbers[name]:.2f}" in verdict["words"], name
    assert numbers["cosine_alike"] > numbers["cosine_unlike"]

    page = (skewed / "report.html").read_text(encoding="utf-8")
    assert "Why it does or does not converge" in page
    assert "Found: label skew." in page
    assert cli("diagnose", skewed).stdout == words.stdout


def test_a_run_that_noted_nothing(cli: Any, quick: Any) -> None:
    assert cli("run", *quick, "--no-diagnostics", "--out", "blind", "--quiet").exit_code == 0
    result = cli("diagnose", "blind")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: The run in blind noted nothing of its clients; run it again without --no-diagnostics.\n"
    )  # fmt: skip
    assert "Why it does" not in Path("blind/report.html").read_text(encoding="utf-8")
    assert "diagnostics = false" in Path("blind/config.toml").read_text()
    assert "--no-diagnostics" in cli("runs", "show", "blind").stdout


def test_no_run(cli: Any) -> None:
    result = cli("diagnose", "nowhere")
    assert result.exit_code == 2
    assert "nowhere is not the folder of a run" in result.stderr


def test_data_of_ones_own_are_found_in_the_folder(cli: Any) -> None:
    import fedweave as fw

    split = fw.data.partition(fw.data.load("digits"), fw.Shards(per_client=2), clients=10, seed=0)
    own = fw.data.from_clients([split.client(k) for k in range(10)])
    fw.simulate(model="logistic", data=own, cohort=10, rounds=8, out="own", evaluate="clients")
    assert cli("diagnose", "own").stdout.startswith("Found: label skew.")


def test_a_diverged_run_is_diagnosed(cli: Any) -> None:
    words = ("--model", "2nn", "--lr", "1e6", "--rounds", "6", "--cohort", "4", "--clients", "4", "--quiet")
    assert cli("run", *words, "--out", "away").exit_code == 3
    result = cli("diagnose", "away")
    assert result.exit_code == 0
    assert result.stdout.startswith("Found: too large a learning rate.")
    assert "no longer finite in round" in result.stdout

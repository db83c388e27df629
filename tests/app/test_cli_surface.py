# SPDX-License-Identifier: Apache-2.0
"""The commands and their options are a promise: a change here is a change that users see."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer

from fedweave.app.cli import app

SHARED = """--algorithm --attack --batch-size --byzantine --clients --clip-norm --cohort --data --diagnostics --effort --engine
--epochs --evaluate --evaluate-every --lr --lr-decay --max-seconds --model --momentum --no-diagnostics --optimizer --partition
--patience --policy --population --rounds --sampling --seed --set --shuffle --steps --target --threads --weight-decay
--workers""".split()
SPLIT = ["--clients", "--data", "--partition", "--seed", "--set"]
SURFACE = {
    "run": [*SHARED, "--json", "--out", "--profile", "--quiet", "-q", "[CONFIG.toml]"],
    "tune": ["--dry", "--seconds", "CONFIG.toml"],
    "resume": ["--json", "--quiet", "--rounds", "-q", "DIR"],
    "compare": [*SHARED, "--json", "--out", "--quiet", "--seeds", "-q", "A B ..."],
    "report": ["--out", "DIR"],
    "diagnose": ["--json", "DIR"],
    "recommend": [*SHARED, "--budget", "--config", "--json", "--metric", "--out", "--quiet", "-q", "[ALGORITHM ...]"],
    "demo": ["--out", "--quiet", "-q"],
    "algorithms": ["name"],
    "models": [],
    "reductions": [],
    "attacks": [],
    "runs list": ["[FOLDER]"],
    "runs show": ["DIR"],
    "data list": [],
    "data describe": SPLIT,
    "data plot": [*SPLIT, "--out"],
    "prepare": ["--classes", "--out", "--shape", "CONFIG.toml"],
    "serve": [
        "--enrol-listen", "--evaluator", "--events", "--hosts", "--http", "--insecure", "--ledger", "--linger", "--listen",
        "--out", "--pki", "--round-seconds", "--silent-seconds", "[CONFIG.toml]",
    ],
    "join": [
        "--allow", "--data", "--evaluator", "--hours", "--insecure", "--memory", "--name", "--number", "--quiet", "--server",
        "--threads", "--workdir", "-q",
    ],
    "up": [*SHARED, "--json", "--out", "--quiet", "-q", "[CONFIG.toml]"],
    "status": ["--json", "DIR"],
    "logs": ["--follow", "--json", "-f", "DIR"],
    "stop": ["--now", "DIR"],
    "pki init": ["--days", "--json", "--pki"],
    "pki token": ["--json", "--out", "--pki", "--ttl", "CLIENT"],
    "pki enrol": ["--json", "--pki", "--server", "--token-file", "--workdir"],
    "pki revoke": ["--json", "--pki", "CLIENT"],
    "pki list": ["--json", "--pki"],
}  # fmt: skip


def commands(group: Any, prefix: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
            continue
        words = []
        for parameter in command.params:
            if parameter.param_type_name == "option":
                words += [*parameter.opts, *parameter.secondary_opts]
            else:
                words.append(parameter.metavar or parameter.name)
        found[prefix + name] = sorted(words)
    return found


def test_commands_and_options_are_frozen() -> None:
    assert commands(typer.main.get_command(app)) == {name: sorted(words) for name, words in SURFACE.items()}


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["compare", "--help"], ["data", "--help"], ["pki", "enrol", "--help"], ["--version"]],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    heavy = "torch", "sklearn", "plotly", "pandas", "pyarrow", "sqlalchemy", "grpc", "cryptography"
    code = (
        "import sys\nfrom fedweave.app.cli import app\n"
        f"try:\n    app({words!r})\nexcept SystemExit as end:\n    code = end.code\n"
        f"print('HEAVY', sorted(set({heavy!r}) & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY [] 0"
    assert "Usage" in done.stdout or "fedweave" in done.stdout


@pytest.mark.parametrize("group", [[], ["runs"], ["data"], ["pki"]])
def test_a_group_alone_prints_its_help(cli: Any, group: list[str]) -> None:
    result = cli(*group)
    assert "Commands" in result.output
    assert "Error" not in result.output

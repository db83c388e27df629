# SPDX-License-Identifier: Apache-2.0
"""``fedweave tune`` as a person runs it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

CONFIG = """# my run
data = "digits"  # bundled
clients = 10
model = "logistic"
cohort = 4

[local]
lr = 0.1
"""


def test_tuning_from_the_command_line(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG)
    found = cli("tune", str(path), "--seconds", "0.05", "--dry")
    assert found.exit_code == 0, found.output
    assert "s a round" in found.output
    assert "engine" not in tomllib.loads(path.read_text())
    found = cli("tune", str(path), "--seconds", "0.05")
    assert found.exit_code == 0, found.output
    named = tomllib.loads(path.read_text())
    assert named["engine"] in ("eager", "vectorized")
    assert f'now says engine = "{named["engine"]}"' in found.output
    assert cli("tune", str(path), "--seconds", "0").exit_code == 2

# SPDX-License-Identifier: Apache-2.0
"""The demo: shortened here, whole where slow tests run."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedweave.app import demo
from fedweave.errors import StoreError


def test_a_short_demo_tells_the_whole_story(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [replace(task, epochs=1, rounds=12) for task in demo.TASKS]
    assert demo.demo(tmp_path / "demo", quiet=True, tasks=tasks, target="accuracy=0.3") == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("split ")]
    assert [line.split()[3 + line.startswith("split by")] for line in lines] == ["fedavg", "fedsgd"] * 2
    assert "Next:" in out
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert page.count("data-group=") == 4
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    assert sum(trace["type"] == "heatmap" for figure in figures for trace in figure["data"]) == 2
    assert page.count("fedweave run --data digits") == 4


def test_times_fewer_is_the_quotient_on_the_same_split() -> None:
    from types import SimpleNamespace

    from fedweave.history import Round, Target

    def run(rounds: int) -> Any:
        steps = [Round(i, {"accuracy": i / rounds}, (0,), 1, 1, 0.1, "00") for i in range(rounds + 1)]
        return SimpleNamespace(history=steps[1:], start=steps[0], target=Target("accuracy", 0.5))

    avg, sgd, other = demo.TASKS[0], demo.TASKS[1], demo.TASKS[3]
    _, lines = demo.table([(avg, run(10)), (sgd, run(80)), (other, run(4))])
    assert [line[2] for line in lines] == ["5.0", "40.0", "2.0"]
    assert [line[4] for line in lines] == ["8.0 times", "-", "-"]


def test_only_a_previous_demo_is_replaced(tmp_path: Path) -> None:
    demo.prepare(tmp_path / "demo")
    (tmp_path / "demo" / "old").touch()
    demo.prepare(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(StoreError, match="the demo has not made"):
        demo.prepare(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.slow
def test_the_whole_demo_reaches_every_target_in_time(cli: Any) -> None:
    began = time.monotonic()
    result = cli("demo")
    assert result.exit_code == 0
    assert time.monotonic() - began < 90
    assert "not reached" not in result.stdout
    assert result.stdout.count(" times") >= 2
    assert Path("runs/demo/report.html").exists()

# SPDX-License-Identifier: Apache-2.0
"""From lines to medians, ratios and bars; who goes when, and what is not done twice."""

from __future__ import annotations

import json
import math
import statistics
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import drawing
import environments
import numpy as np
import pytest
import report
import roster
import run
import watch
import workloads
from hypothesis import given
from hypothesis import strategies as st
from roster import BARS, MEMORY, PEERS, ROUND


def line(peer: str, workload: str, turn: int, *seconds: float, **more: Any) -> dict[str, Any]:
    usual = {"startup_s": 3.0, "rss_mb": 500.0, "pss_mb": 400.0, "accuracy": 0.5, "warmup": 1, "versions": {"torch": "2"}}
    about = {"peer": peer, "workload": workload, "pass": turn, "rounds": len(seconds), "status": "ok", "busy_before": 1.0}
    return about | usual | {"seconds": [9.9, *seconds], "setting": "threads: 1", "wall_s": 5.0} | more


PEAK = {"peer": "peak", "pass": 1, "status": "ok", "versions": {}, "busy_before": 3.0}
PEAK |= {"gflops": 100.0, "gflops_one_thread": 120.0}

LINES = [
    PEAK,
    line("plain", "W1", 1, 0.4, 0.2, 0.3),
    line("plain", "W1", 2, 0.5),
    line("plain", "W1", 3, 0.1),
    line("fedjax", "W1", 1, 0.2),
    line("fedjax", "W1", 2, 0.0, status="failed (1): no | memory"),
    line("fedweave", "W1", 1, 0.1),
    line("fedweave", "W1", 2, 0.3),
    line("flower", "W1", 1, 0.9, accuracy=0.1),
    {"peer": "pfl", "workload": "W1", "pass": 1, "status": "not done in 60 s", "busy_before": 0.0},
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floors that need no data."""
    monkeypatch.setattr(workloads.Workload, "flops_per_round", lambda self: 1.2e9 * self.cohort)


def test_medians_over_passes_of_medians_over_timed_rounds() -> None:
    row = report.cells(LINES)["W1"]
    assert row["plain"].seconds == [0.3, 0.5, 0.1]
    assert row["plain"].median(ROUND) == 0.3
    assert row["fedjax"].lost == ["failed (1): no | memory"]
    assert report.best(row, PEERS, False, ROUND) == ("fedjax", 0.2)
    assert report.best(row, PEERS, True, ROUND) == ("fedweave", pytest.approx(0.2))
    assert report.best({"pfl": row["pfl"]}, PEERS, False, ROUND) is None


@given(st.lists(st.lists(st.floats(0.001, 100), min_size=1, max_size=5), min_size=1, max_size=5), st.floats(0.01, 10))
def test_ratio_is_of_the_medians(passes: list[list[float]], peer: float) -> None:
    lines = [line("fedweave", "W3", turn, *seconds) for turn, seconds in enumerate(passes)]
    table = report.cells([*lines, line("plain", "W3", 1, peer)])
    verdict = next(v for v in report.verdicts(table, {}, PEERS) if v.bar.quantity == ROUND)
    found = statistics.median(statistics.median(seconds) for seconds in passes) / peer
    assert verdict.ratio == pytest.approx(found)
    assert verdict.met == (verdict.ratio <= 0.1)


def test_bars_are_those_promised() -> None:
    assert {(b.workload, b.quantity, b.floor): b.most for b in BARS} == {
        ("W1", ROUND, False): 0.5,
        ("W2", ROUND, False): 0.7,
        ("W2", ROUND, True): 1.6,
        ("W3", ROUND, False): 0.1,
        ("W3E20", ROUND, False): 0.1,
        ("W4", ROUND, False): 0.75,
        ("W4", ROUND, True): 1.4,
        ("W3", roster.START, False): 0.5,
        ("W2", MEMORY, False): 0.6,
    }


def test_memory_is_compared_among_those_with_two_processes() -> None:
    lines = [
        line("plain", "W2", 1, 5.0, rss_mb=100.0),
        line("plain-2", "W2", 1, 4.0, rss_mb=1000.0),
        line("fedweave", "W2", 1, 4.0, rss_mb=50.0),
        line("fedweave-2", "W2", 1, 3.0, rss_mb=550.0),
    ]
    verdict = next(v for v in report.verdicts(report.cells(lines), {"W2": 2.0}, PEERS) if v.bar.quantity == MEMORY)
    assert (verdict.ours, verdict.other) == (("fedweave-2", 550.0), ("plain-2", 1000.0))
    assert verdict.met
    floor = next(v for v in report.verdicts(report.cells(lines), {"W2": 2.0}, PEERS) if v.bar.floor)
    assert floor.ratio == 1.5


def test_floor_is_the_arithmetic_at_the_best_peak(small: None) -> None:
    assert report.peak(LINES) == 120.0
    assert report.floors(120.0)["W1"] == pytest.approx(0.1)
    assert report.floors(120.0, cohort=5)["W1"] == pytest.approx(0.05)
    assert report.floors(None) == {}


def test_page_tells_what_was_lost_and_what_differs(small: None) -> None:
    header = {"command": "python run.py", "date": "1 May 2030", "hardware": "2 cores", "plan": {"peers": []}}
    page = report.page(header, LINES, PEERS)
    cells = {row.split(" | ")[1]: row.split(" | ")[2:] for row in page.splitlines() if row.startswith("| W1 | ")}
    assert cells["plain PyTorch loop"][:3] == ["0.3 (0.1 to 0.5)", "1.5", "3"]
    assert cells["FedJAX"][0] == "0.2; 1 of 2 passes: failed (1): no | memory".split(" | ")[0]
    assert cells["pfl, 2 processes"][0] == "not done in 60 s"
    assert cells["Flower, 2 Ray actors"][-1].startswith("0.100 (differs)")
    assert "**missed**" in page
    assert "W2: seconds" not in page


def test_chart_is_drawn_from_the_same_ratios() -> None:
    drawn = ET.fromstring(report.chart(LINES, PEERS))
    circles = drawn.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 * 4  # a dot and a legend for each that was measured
    at = {float(c.get("cx", "0")) for c in circles[:4]}
    assert len(at) == 3  # fedjax and fedweave took the same time


def test_slope_is_numpys() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        points = [(float(x), float(y)) for x, y in draw.uniform(0.01, 1e4, (5, 2))]
        x, y = np.log10(np.array(points)).T
        assert drawing.slope(points) == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-9, abs=1e-9)
    assert math.isnan(drawing.slope([(2.0, 1.0), (2.0, 3.0)]))


def test_memory_slope_is_of_the_second_half() -> None:
    import memory

    rounds = list(range(10, 410, 10))
    rss = [10_000_000 * r if r < 200 else 2_000_000_000 + 123 * r for r in rounds]
    assert memory.growth(rounds, rss) == pytest.approx(123)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8))
def test_axes_span_the_values(values: list[float]) -> None:
    first, last = drawing.decades(values)
    assert first < last
    assert 10.0**first <= min(values) * (1 + 1e-6)
    assert max(values) <= 10.0**last * (1 + 1e-6)


def test_lines_are_drawn_in_their_places() -> None:
    points = [(1.0, 0.01), (10.0, 0.1), (100.0, 1.0)]
    drawn = ET.fromstring(drawing.loglog({"slope 1 & more": points}, "clients", "seconds"))
    dots = drawn.findall("{http://www.w3.org/2000/svg}circle")[:3]
    xs, ys = [float(c.get("cx", "0")) for c in dots], [float(c.get("cy", "0")) for c in dots]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2) != 0


# Who goes when -----------------------------------------------------------------------------------------------------------


def test_everyone_takes_a_turn_in_each_pass() -> None:
    planned = run.turns(3, ["W1", "W3"], ["a", "b", "c"])
    assert len(planned) == len(set(planned)) == 3 * (1 + 2 * 3)
    assert planned[0] == (1, "", "peak")
    firsts = [next(peer for turn, _, peer in planned if turn == number and peer != "peak") for number in (1, 2, 3)]
    assert firsts == ["a", "b", "c"]
    assert [turn for turn, _, _ in planned] == sorted(turn for turn, _, _ in planned)


def test_what_is_done_is_not_done_again() -> None:
    planned = run.turns(3, ["W1"], ["a", "b"])
    done = [
        {"peer": "peak", "pass": 1, "status": "ok"},
        {"peer": "a", "workload": "W1", "pass": 1, "status": "failed (1): x"},
        {"peer": "b", "workload": "W1", "pass": 1, "status": "not done in 60 s"},
    ]
    assert (2, "W1", "b") in run.left(planned, done)
    done.append({"peer": "b", "workload": "W1", "pass": 2, "status": "not done in 60 s"})
    assert run.left(planned, done) == [(2, "", "peak"), (2, "W1", "a"), (3, "", "peak"), (3, "W1", "a")]


def test_an_unfinished_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWEAVE_BENCH", str(tmp_path))
    monkeypatch.setattr(run, "command", lambda: "python run.py")
    plan = {"passes": 1, "workloads": ["W1"], "peers": ["plain"], "rounds": None, "commit": "x"}
    file, _, records = run.opened(plan, fresh=False)
    assert records == []
    done = {"peer": "peak", "pass": 1, "status": "ok"}
    with file.open("a") as out:
        out.write(json.dumps(done) + '\n{"peer": "pla')  # killed while it wrote
    again, header, records = run.opened(plan, fresh=False)
    assert (again, records, header["plan"]) == (file, [done], plan)
    last = line("plain", "W1", 1, 0.3)
    with file.open("a") as out:
        out.write(json.dumps(last) + "\n")
    assert run.read(file)[1] == [done, last]
    assert run.guesses(file.parent) == {("plain", "W1", 1): 5.0}
    monkeypatch.setattr(run.time, "strftime", lambda *_: "later")
    assert run.opened(plan, fresh=False)[0] != file
    assert run.opened({**plan, "passes": 2}, fresh=False)[2] == []


def test_rows_of_engines() -> None:
    found = roster.engines(["eager", "vectorized:2"])
    assert found["fedweave-eager"].options == ("--engine", "eager", "--name", "fedweave-eager")
    two = found["fedweave-vectorized-2"]
    assert two.processes == 2
    assert two.ours
    assert two.options[2:4] == ("--workers", "2")


def test_every_peer_has_its_program_and_its_pins() -> None:
    folder = Path(run.__file__).parent
    for peer in PEERS.values():
        assert (folder / peer.program).is_file()
        assert peer.ours or peer.environment in environments.names()
        assert set(peer.expected) == set(workloads.WORKLOADS)
    for name in environments.names():
        pins = [text for text in (environments.PINS / f"{name}.txt").read_text().splitlines() if not text.startswith("#")]
        assert all("==" in pin for pin in pins)


# From outside ------------------------------------------------------------------------------------------------------------


def watched(program: str, tmp_path: Path, limit: float = 30) -> watch.Seen:
    return watch.watched([sys.executable, "-c", program], tmp_path, limit)


def test_crash_is_told(tmp_path: Path) -> None:
    seen = watched("print('so far'); raise SystemExit(3)", tmp_path)
    assert (seen.code, seen.output) == (3, "so far\n")


def test_memory_of_children_counts_and_nobody_is_left(tmp_path: Path) -> None:
    child = "import time; held = b'x' * (60 << 20); print('up', flush=True); time.sleep(600)"
    program = (
        f"import subprocess, sys, time\nc = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, "
        "start_new_session=True)\nc.stdout.readline()\nprint(c.pid, flush=True)\ntime.sleep(3)"
    )
    seen = watched(program, tmp_path, limit=120)
    assert seen.code == 0
    assert seen.rss > 60 << 20
    assert seen.pss > 60 << 20
    assert not watch._alive(int(seen.output))


def test_what_does_not_end_is_ended(tmp_path: Path) -> None:
    assert watched("import time; time.sleep(600)", tmp_path, limit=0.5).code is None


def test_failed_run_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "busy", lambda: 0.0)
    (tmp_path / "program.py").write_text("raise ValueError('a | b')")
    peer = roster.Peer("x", "x", roster.OURS, "program.py", (), 1, 1, {})
    found = run.run(peer, "W1", {"rounds": 2, "threads": None}, 30)
    assert found["status"] == "failed (1): ValueError: a / b"
    assert "Traceback" in found["output"]
    (tmp_path / "program.py").write_text(f"raise ValueError({str(run.ROOT / 'x.py')!r})")
    found = run.run(peer, "W1", {}, 30)
    assert found["status"] == "failed (1): ValueError: ./x.py"
    assert str(run.ROOT) not in found["output"]
    printed = {"peer": "x", "workload": "W1", "own_rss_mb": 99999}
    given = '["--workload", "W1", "--rounds", "2"]'
    (tmp_path / "program.py").write_text(f"import sys\nassert sys.argv[1:] == {given}\nprint({json.dumps(printed)!r})")
    found = run.run(peer, "W1", {"rounds": 2, "threads": None}, 30)
    assert (found["status"], found["rss_mb"]) == ("ok", 99999)

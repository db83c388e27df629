# SPDX-License-Identifier: Apache-2.0
"""What is shown while a run goes on: plain lines, JSON lines, the live view."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from fedweave.app import live
from fedweave.history import ClientDone, Event, Round, RoundStarted, RunEnded, RunStarted, Target

STARTED = RunStarted("2nn", 55_210, "fedavg", "digits", 20, 3, 100, "eager", Target("accuracy", 0.9), None, 0)


def record(number: int, **more: object) -> Round:
    metrics = {"accuracy": number / 100, "loss": 1 / (1 + number)}
    return Round(number, metrics, (1, 5, 9), 10, 10, 0.001, "ab", **more)  # type: ignore[arg-type]


def told(view: live.View, rounds: int) -> None:
    events: list[Event] = [STARTED]
    for number in range(1, rounds + 1):
        events.append(RoundStarted(number, (1, 5, 9)))
        events += [ClientDone(number, client, i) for i, client in enumerate((1, 5, 9), 1)]
        events.append(record(number))
    with view:
        for event in [*events, RunEnded("rounds", "All rounds are done.")]:
            view(event)


def test_fast_rounds_are_shown_at_doubling_intervals_and_always_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    told(live.Lines(), 100)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fedavg on digits: 20 clients, 3 a round, 2nn with 55,210 parameters")
    shown = [int(line.split("/")[0].removeprefix("round ")) for line in lines[1:]]
    assert {1, 2, 4, 8, 16, 32, 64, 100} <= set(shown)
    assert len(shown) < 15
    assert shown == sorted(set(shown))
    assert "accuracy 1.0000" in lines[-1]


def test_slow_rounds_are_all_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(live.time, "perf_counter", lambda: float(next(clock)))
    told(live.Lines(), 30)
    assert len(capsys.readouterr().out.splitlines()) == 31


def test_refused_updates_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    view = live.Lines()
    view(STARTED)
    view(record(1, refused=((5, "its delta has 3 values that are not finite"),)))
    assert "1 refused" in capsys.readouterr().out


def test_json_lines_read_back_as_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    told(live.JsonLines(), 5)
    view = live.JsonLines()
    view(Round(6, {"loss": math.nan}, (), 0, 0, 0.0, "cd"))
    lines = capsys.readouterr().out.splitlines()
    back = [Round.of(json.loads(line)) for line in lines]
    assert back[:5] == [record(n) for n in range(1, 6)]
    assert math.isnan(back[5].metrics["loss"])


def test_the_live_view_shows_the_run_and_redraws_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = 0
    real = live.LiveView._draw

    def counted(self: live.LiveView) -> object:
        nonlocal drawn
        drawn += 1
        return real(self)

    monkeypatch.setattr(live.LiveView, "_draw", counted)
    screen = io.StringIO()
    told(live.LiveView(Console(file=screen, force_terminal=True, width=100), "a [title]"), 100)
    text = screen.getvalue()
    assert drawn < 20, "hundreds of events must not be hundreds of drawings"
    for words in ("100/100 rounds", "a [title]", "All rounds are done.", "target 0.9", "1.0000"):
        assert words in text
    assert any(block in text for block in "▁▂▃▄▅▆▇█")


def test_who_is_training_is_shown() -> None:
    screen = io.StringIO()
    view = live.LiveView(Console(file=screen, force_terminal=True, width=100))
    with view:
        for event in (STARTED, record(1), RoundStarted(2, tuple(range(40))), ClientDone(2, 0, 1)):
            view(event)
    assert "round 2: clients 0, 1, 2, 3, 4, 5, 6, 7, ... (40) - 1 of 40 done" in screen.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(live.view(), live.Lines)
    assert isinstance(live.view(json=True), live.JsonLines)
    assert type(live.view(quiet=True)) is live.View

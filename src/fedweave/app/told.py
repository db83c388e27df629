# SPDX-License-Identifier: Apache-2.0
"""What happens in a run, as lines from one process to another that shows it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fedweave.history import ClientDone, Event, Round, RoundStarted, RunEnded, RunStarted, Target

KINDS = {kind.__name__: kind for kind in (RunStarted, RoundStarted, ClientDone, RunEnded)}


def spell(event: Event) -> str:
    """One line of JSON."""
    if isinstance(event, Round):
        return json.dumps({"event": "Round", **event.plain()})
    plain: dict[str, Any] = asdict(event)
    if isinstance(event, RunStarted) and event.target is not None:
        plain["target"] = f"{event.target.metric}={event.target.value!r}"
    return json.dumps({"event": type(event).__name__, **plain})


def parse(line: str) -> Event | None:
    """The inverse; None if the line is something else."""
    try:
        plain = json.loads(line)
        name = plain.pop("event")
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    if name == "Round":
        return Round.of(plain)
    if name not in KINDS:
        return None
    if plain.get("target"):
        plain["target"] = Target.of(plain["target"])
    if "cohort" in plain and isinstance(plain["cohort"], list):
        plain["cohort"] = tuple(plain["cohort"])
    return KINDS[name](**plain)

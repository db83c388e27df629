# SPDX-License-Identifier: Apache-2.0
"""From entries of the ledger to what the coordinator is told."""

from __future__ import annotations

from fedweave.errors import StoreError
from fedweave.events import Answered, Begin, Evaluated, Event, Failed, Fired, Stop
from fedweave.store.events import Entry


def event_of(entry: Entry) -> Event:
    """What an entry of the ledger tells the coordinator."""
    body = entry.body
    match entry.kind:
        case "begin":
            return Begin()
        case "answered":
            return Answered(body["round"], body["position"], body["survey"])
        case "failed":
            return Failed(body["round"], body["position"], body["reason"], body["survey"], body["refused"])
        case "fired":
            return Fired(body["name"], body["number"])
        case "evaluated":
            return Evaluated(body["round"], body["metrics"], body["seconds"])
        case "stop":
            return Stop(body.get("status", "interrupted"))
    raise StoreError(f"The ledger holds an event {entry.kind!r}, which this fedweave does not know.")

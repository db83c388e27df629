# SPDX-License-Identifier: Apache-2.0
"""The coordinator: the state machine that decides what is done next, without I/O."""

from fedweave.coordinator.admission import fault, finite
from fedweave.coordinator.course import LATE, RETRY, Base, Choose, Gathered
from fedweave.coordinator.flow import FlowCourse
from fedweave.coordinator.machine import Coordinator
from fedweave.coordinator.roster import Roster
from fedweave.coordinator.rounds import RoundCourse
from fedweave.events import (
    Answered,
    Arrived,
    Begin,
    Cancel,
    Collect,
    Effect,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Finish,
    Fired,
    Ignored,
    Publish,
    SetTimer,
    Status,
    Stop,
    Tally,
    Train,
)
from fedweave.reduce.fold import BLOCK

__all__ = [
    "BLOCK", "LATE", "RETRY", "Answered", "Arrived", "Base", "Begin", "Cancel", "Choose", "Collect", "Coordinator",
    "Effect", "Evaluate", "Evaluated", "Event", "Failed", "Finish", "Fired", "FlowCourse", "Gathered", "Ignored",
    "Publish", "Roster", "RoundCourse", "SetTimer", "Status", "Stop", "Tally", "Train", "fault", "finite",
]  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""``fedweave up``: a whole deployment on this machine, one process for the coordinator and one for each client."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedweave.app import told
from fedweave.app.settings import is_run
from fedweave.config import Config
from fedweave.errors import EngineError, StoreError, UsageError
from fedweave.history import Event, RunEnded
from fedweave.interrupt import Interrupt
from fedweave.store import RunStore
from fedweave.store.blobs import write_durably

PARTS = "deployment"
"""In the run's folder: what was prepared, and a folder for each client."""
ASKED = "asked.toml"
"""There: the configuration as it was given."""
AGAIN = 100
"""Times that a process which dies is started again."""


class Process:
    """A process that is started again when it is killed, and not when it refuses.

    Args:
        words: the command's arguments.
        log: where its stderr goes.
        lines: told each line of its stdout.
    """

    def __init__(self, words: list[str], log: Path, lines: Callable[[str], None] | None = None) -> None:
        self.words, self.log, self.lines, self.starts = words, log, lines, 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as errors:
            command = [sys.executable, "-m", "fedweave.app.cli", *self.words]
            out = subprocess.PIPE if self.lines is not None else subprocess.DEVNULL
            # A session of its own: Ctrl-C is for us, and we end the others in order.
            self.process = subprocess.Popen(command, stdout=out, stderr=errors, text=True, start_new_session=True)
        if self.lines is not None:
            threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, stream: Any) -> None:
        assert self.lines is not None
        with stream:
            for line in stream:
                self.lines(line)

    def look(self) -> int | None:
        """Its exit code, once it has ended for good; started again if it was killed."""
        code = self.process.poll()
        if code is not None and code < 0 and self.starts < AGAIN:
            self.start()
            return None
        return code

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def said(self) -> str:
        """The last line of its stderr."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("Error: ") if lines else "it said nothing"


class Deployment:
    """A coordinator, its clients and who measures, as processes.

    Args:
        config: of the run.
        out: the run's folder.
        observer: told of what happens.
    """

    def __init__(self, config: Config, out: Path, observer: Callable[[Event], None]) -> None:
        self.out, self.observer, self.parts = out, observer, out / PARTS
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.address: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.config = self._prepared(config)
        self.processes: dict[str, Process] = {}

    def _prepared(self, config: Config) -> Config:
        from fedweave.net.prepare import CONFIG, prepare
        from fedweave.simulation import split_of

        self.toml = self.parts / CONFIG
        if not self.toml.exists():
            prepare(config, self.parts, split_of(config))
        if not (self.parts / ASKED).exists():
            write_durably(self.parts / ASKED, config.toml().encode())
        return Config.read(self.toml)

    def _heard(self, line: str) -> None:
        if (event := told.parse(line)) is not None:
            self.events.put(event)
        elif line.startswith('{"event": "Serving"'):
            self.address.put(str(json.loads(line)["address"]))

    def run(self) -> None:
        """Start all, and wait until the run is over.

        Raises:
            UsageError: one of the processes refuses; why.
            EngineError: one of them dies again and again.
        """
        measured = self.config.evaluate_every > 0
        self._begin("127.0.0.1:0", measured)
        try:
            address = self._listening()
            self.processes["coordinator"].words = self._serve(address, measured)
            config = str(self.toml)
            for client in range(self.config.clients or 0):
                share = f"fedweave.app.shares:share(config={config!r}, client={client})"
                self._join(f"client-{client + 1}", address, share, ["--number", str(client + 1)])
            if measured:
                self._join("evaluator", address, f"fedweave.app.shares:whole(config={config!r})", ["--evaluator"])
            with Interrupt() as interrupt:
                self._watch(interrupt)
        finally:
            for process in self.processes.values():
                process.stop()
            for process in self.processes.values():
                try:
                    process.process.wait(10)
                except subprocess.TimeoutExpired:
                    process.process.kill()
                    process.process.wait()

    def _serve(self, listen: str, measured: bool) -> list[str]:
        words = ["serve", str(self.toml), "--out", str(self.out), "--listen", listen, "--insecure", "--events"]
        return words + (["--evaluator"] if measured else [])

    def _begin(self, listen: str, measured: bool) -> None:
        self.processes["coordinator"] = Process(self._serve(listen, measured), self.parts / "coordinator.log", self._heard)

    def _listening(self) -> str:
        coordinator, end = self.processes["coordinator"], time.monotonic() + 60
        while time.monotonic() < end:
            try:
                return self.address.get(timeout=0.1)
            except queue.Empty:
                if coordinator.process.poll() is not None:
                    raise UsageError(coordinator.said()) from None
        raise EngineError(f"The coordinator did not begin to listen within 60 s; see {coordinator.log}.")

    def _join(self, name: str, address: str, data: str, more: list[str]) -> None:
        allowed = [code for code in (self.config.model, self.config.loss) if code is not None and ":" in code]
        words = ["join", "--server", address, "--data", data, "--workdir", str(self.parts / name), "--name", name, "--insecure"]
        words += ["--quiet", *more, *(["--allow", ",".join(allowed)] if allowed else [])]
        self.processes[name] = Process(words, self.parts / f"{name}.log")

    def _watch(self, interrupt: Interrupt) -> None:
        coordinator, told = self.processes["coordinator"], False
        while True:
            if interrupt.asked and not told:
                coordinator.stop(signal.SIGINT)
                told = True
            try:
                event = self.events.get(timeout=0.2)
            except queue.Empty:
                self._look(told)
                continue
            self.observer(event)
            if isinstance(event, RunEnded):
                coordinator.process.wait()
                return

    def _look(self, told: bool) -> None:
        for name, process in self.processes.items():
            code = process.look()
            if code is None or (code == 0 and name != "coordinator"):
                continue
            if name == "coordinator" and code == 0 and not self.events.empty():
                continue
            if code < 0 or told:
                raise EngineError(f"The process of {name} ended; see {process.log}.")
            raise UsageError(f"{name}: {process.said()}")


def resumed(out: Path, given: Config | None) -> Config:
    """The configuration of a deployment that is to go on.

    Args:
        given: by flags; None: none were.

    Raises:
        StoreError: the folder's run is another kind of run.
        UsageError: the flags are not those that it was begun with.
    """
    asked = out / PARTS / ASKED
    if not asked.exists():
        raise StoreError(
            f"{out} holds a run that `fedweave up` did not begin. Go on with it by `fedweave resume {out}` if it was "
            f"simulated, or by `fedweave serve --out {out}` if it was served; or choose another --out."
        )
    before = Config.read(asked)
    if given is not None and given != before:
        was, now = _flat(before.model_dump()), _flat(given.model_dump())
        changed = [f"{key} was {was[key]!r} and is {now[key]!r} now" for key in was if was[key] != now[key]]
        raise UsageError(
            f"{out} holds a run that was begun otherwise: {'; '.join(changed)}. Go on with it by `fedweave up --out {out}` "
            "alone, or choose another --out."
        )
    return before


def _over(out: Path) -> bool:
    """Whether a folder's run is over, so that there is nothing to go on with."""
    if not is_run(out):
        return False
    store = RunStore(out, reading=True)
    try:
        return store.about().get("status", "interrupted") != "interrupted"
    finally:
        store.close()


def up(config: Config, out: Path, observer: Callable[[Event], None]) -> Any:
    """Run a configuration as a deployment on this machine; its result."""
    from fedweave.simulation import load_result

    if not _over(out):
        Deployment(config, out, observer).run()
    return load_result(out)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without tables in it, whose names are those of the flags."""
    inner = [(name, value) for value in values.values() if isinstance(value, dict) for name, value in value.items()]
    return {name: value for name, value in values.items() if not isinstance(value, dict)} | dict(inner)

# SPDX-License-Identifier: Apache-2.0
"""The commands of a deployment: ``prepare``, ``serve``, ``join``, ``up``, ``status``, ``logs``, ``stop``."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedweave.app.settings import FLAGS, with_flags
from fedweave.app.shell import Folder, Json, Quiet, Sets, existing, fail
from fedweave.errors import StoreError, UsageError

if TYPE_CHECKING:
    from fedweave.net.gate import Gate
    from fedweave.net.sites import Joining
    from fedweave.simulation import Result

DEPLOY = "Deployment"
Listen = Annotated[str, typer.Option(help="Host and port that clients call; port 0 is any that is free.")]
NAMED = 20
"""Clients whose joining is shown one by one; of more, every hundredth."""
Insecure = Annotated[bool, typer.Option("--insecure", help="No certificates, and so for this machine alone.")]


def prepare(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="A configuration file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where config.toml and initial.safetensors go.", show_default=False)],
    shape: Annotated[str | None, typer.Option(help="Of one example, e.g. 13 or 1,28,28, if the data are not here.")] = None,
    classes: Annotated[int, typer.Option(help="How many kinds of examples there are, if the data are not here.")] = 0,
) -> None:
    """Make what a coordinator without torch serves: the configuration, and the model's initial weights."""
    from fedweave.config import Config
    from fedweave.net.prepare import prepare
    from fedweave.simulation import split_of

    settings = Config.read(config)
    if shape is None and ":" not in settings.model:
        prepare(settings, out, split_of(settings))
    else:
        prepare(settings, out, shape=_shape(shape), classes=classes)
    typer.echo(f"Prepared. Serve it with: fedweave serve {out / 'config.toml'} --out RUN_FOLDER")


def _shape(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"--shape is {text!r}; write it like 13 or 1,28,28.") from None


def serve(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.toml]", help="From `fedweave prepare`; not needed to go on.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; one that holds a run is gone on with.")] = None,
    listen: Listen = "127.0.0.1:7443",
    http: Annotated[int, typer.Option(help="Port on 127.0.0.1 for health, status and Prometheus; 0: any that is free.")] = 0,
    pki: Annotated[
        Path | None, typer.Option(help="The authority's folder, from `fedweave pki init`.", show_default=False)
    ] = None,
    hosts: Annotated[
        str | None, typer.Option(help="Names and addresses by which clients reach this, by commas; --listen's unless given.")
    ] = None,
    enrol_listen: Annotated[
        str | None, typer.Option(help="Host and port at which clients enrol with a token.", show_default=False)
    ] = None,
    insecure: Insecure = False,
    evaluator: Annotated[bool, typer.Option("--evaluator", help="Wait for a process that measures models.")] = False,
    round_seconds: Annotated[float, typer.Option(help="A client that has not answered by then has failed.")] = 3600.0,
    silent_seconds: Annotated[float, typer.Option(help="So has one that has not called for so long.")] = 120.0,
    linger: Annotated[float, typer.Option(help="Seconds for which clients are told that the run is over.")] = 30.0,
    ledger: Annotated[
        str | None,
        typer.Option(envvar="FEDWEAVE_LEDGER", help="URL of a PostgreSQL database for the ledger.", show_default=False),
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="What happens, as JSON lines on stdout.")] = False,
) -> None:
    """Coordinate a run of real clients, until it is over; started again, it goes on where it was."""
    import asyncio

    from fedweave.app import live, settings, told
    from fedweave.config import Config
    from fedweave.net.run import Limits
    from fedweave.net.serving import Serving
    from fedweave.net.serving import serve as serving

    folder = settings.writable(out if out is not None else settings.runs_folder() / "served")
    gate = _gate(pki, hosts, enrol_listen, listen, insecure)

    def tell(event: Any) -> None:
        sys.stdout.write(told.spell(event) + "\n")
        sys.stdout.flush()

    def ready(address: str) -> None:
        if events:
            sys.stdout.write(jsonlib.dumps({"event": "Serving", "address": address}) + "\n")
            sys.stdout.flush()
        else:
            typer.echo(f"Serving {folder} on {address}. Ctrl-C ends it after the round in progress; what is done is kept.")

    lines = live.Lines()

    def show(event: Any) -> None:
        with contextlib.suppress(OSError):  # a run does not end because nobody reads what it says
            lines(event)

    def met(name: str, joined: int, of: int) -> None:
        if not events and (joined <= NAMED or joined % 100 == 0 or joined == of):
            with contextlib.suppress(OSError):
                typer.echo(f"{name} has joined: {joined:,} of {of:,} clients.")

    how = Serving(
        listen, http, gate, limits=Limits(round_seconds, silent_seconds), evaluator=evaluator, linger=linger,
        observer=tell if events else show, url=ledger, ready=ready, met=met,
    )  # fmt: skip
    message = asyncio.run(serving(None if config is None else Config.read(config), folder, how))
    if not events:
        typer.echo(message or f"Stopped. Go on with: fedweave serve --out {folder}")


def _gate(pki: Path | None, hosts: str | None, enrol_listen: str | None, listen: str, insecure: bool) -> Gate:
    """Who is let in, by the flags of ``serve``."""
    if insecure:
        if pki is not None:
            raise UsageError("--insecure and --pki exclude each other: with certificates nothing is insecure. Leave one out.")
        from fedweave.net.gate import Insecure as Open

        return Open()
    if pki is None:
        raise UsageError(
            "There are no certificates: make an authority with `fedweave pki init` and give its folder with --pki; for this "
            "machine alone, --insecure does without."
        )
    from fedweave.net.certified import Certified
    from fedweave.net.pki import Authority

    names = hosts.split(",") if hosts else [listen.rpartition(":")[0]]
    if not hosts and names[0].strip("[]") in ("0.0.0.0", "::", ""):
        raise UsageError(f"--listen is {listen}, which is no name to reach it by: say with --hosts which ones clients use.")
    return Certified(Authority.open(pki), [name.strip() for name in names], enrol_listen)


def _known(given: Joining, name: str | None) -> Joining:
    """A client with the identity in its workdir, which is renewed when it is time."""
    from dataclasses import replace

    from fedweave.net.certified import Known
    from fedweave.net.identity import Identity

    own = Identity.load(given.workdir)
    if name not in (None, own.client):
        raise UsageError(f"--name is {name}, but the certificate in {given.workdir} is of {own.client}. Leave --name out.")
    known = Known(given.workdir, given.server)
    return replace(given, name=own.client, channel=lambda server: known, sign=known.sign, refused=known.refused)


def join(
    server: Annotated[str, typer.Option(help="The coordinator's host and port.", show_default=False)],
    data: Annotated[str, typer.Option(help="What loads this client's data: package.module:load.", show_default=False)],
    workdir: Annotated[Path, typer.Option(help="For what the client must remember; one for each client.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="What this client is called; the workdir's name unless given.")] = None,
    number: Annotated[int | None, typer.Option(help="Its number, from 1; any that is free unless given.")] = None,
    evaluator: Annotated[bool, typer.Option("--evaluator", help="Measure models on these data; train none.")] = False,
    allow: Annotated[str | None, typer.Option(help="Model or loss of a package that the run may name.")] = None,
    threads: Annotated[int | None, typer.Option(help="torch threads at most.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB of memory at most.")] = None,
    hours: Annotated[str | None, typer.Option(help="When to work, e.g. 22-6.")] = None,
    insecure: Insecure = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The log goes into the workdir, not to stderr.")] = False,
) -> None:
    """Take part in a run with this machine's data, which never leave it. Only calls out, and comes back whatever happens."""
    from fedweave.net.sites import Joining
    from fedweave.net.sites import join as joining

    sys.path.insert(0, os.getcwd())
    given = Joining(
        server, data, workdir, name or workdir.resolve().name, number, evaluator, allow, threads, memory, hours, quiet=quiet
    )
    if not insecure:
        given = _known(given, name)
    try:
        typer.echo(joining(given))
    except KeyboardInterrupt:
        fail("Stopped; the same command goes on.", 130)


@with_flags(FLAGS)
def up(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="A configuration file.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; the next free one under runs/ unless given.")] = None,
    sets: Sets = None,
    json: Json = False,
    quiet: Quiet = False,
    *,
    flags: dict[str, Any],
) -> None:
    """The same as `fedweave run`, as a deployment on this machine: a coordinator's process, and one for each client. With the
    --out of one that was ended, it goes on."""
    from fedweave.app import settings, text
    from fedweave.app.cli import _stem, _watched
    from fedweave.app.up import resumed

    again = config is None and not sets and all(value is None for value in flags.values())
    chosen = settings.configure(config, flags, sets or ())
    if out is not None and settings.is_run(out):
        chosen, folder = resumed(out, None if again else chosen), out
    else:
        folder = settings.new_folder(out, text.slug(f"{_stem(chosen.data)}-{_stem(chosen.algorithm)}"))

    def train(view: Any) -> Result:
        from fedweave.app.up import up

        result: Result = up(chosen, folder, view)
        return result

    try:
        _watched(train, folder, json=json, quiet=quiet, again=f"fedweave up --out {folder}")
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def status(folder: Folder, json: Json = False) -> None:
    """Where a served run stands."""
    existing(folder)
    serving = _serving(folder)
    if serving is None:
        from fedweave.simulation import load_result

        result = load_result(folder)
        found: dict[str, Any] = {"phase": "not served", "round": len(result.history), "message": result.message}
    else:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{int(serving['http'])}/status", timeout=5) as answer:
                found = jsonlib.load(answer)
        except OSError as error:
            raise StoreError(f"The coordinator of {folder} does not answer: {error}.") from None
        found |= {"address": serving["address"]}
    if json:
        typer.echo(jsonlib.dumps(found))
        return
    for key, value in found.items():
        if value != "":
            typer.echo(f"{key:9} {value}")


def logs(
    folder: Folder,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The lines as they are kept.")] = False,
) -> None:
    """The log of a served run."""
    path = existing(folder) / "log.jsonl"
    if not path.exists():
        raise StoreError(f"{folder} has no log: it was never served.")
    with path.open(encoding="utf-8") as file:
        while True:
            for line in iter(file.readline, ""):
                typer.echo(line.rstrip() if json else _line(line))
            if not follow:
                return
            time.sleep(0.2)


def _line(text: str) -> str:
    try:
        plain = jsonlib.loads(text)
    except ValueError:
        return text.rstrip()
    plain.pop("run", None)
    head = f"{plain.pop('timestamp', '')[:19]} {plain.pop('level', ''):7} {plain.pop('event', '')}"
    return " ".join([head, *(f"{key}={value}" for key, value in plain.items())])


def stop(
    folder: Folder,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for the round in progress; it is gone on with later.")
    ] = False,
) -> None:
    """End a served run after the round in progress; `fedweave serve --out DIR` goes on with it."""
    serving = _serving(existing(folder))
    if serving is None:
        raise StoreError(f"Nobody serves {folder}.")
    os.kill(int(serving["pid"]), signal.SIGTERM)
    if now:
        os.kill(int(serving["pid"]), signal.SIGTERM)
    typer.echo("Told to stop at once." if now else "Told to stop after the round in progress.")


def _serving(folder: Path) -> dict[str, Any] | None:
    """The process that serves a run, if it is alive."""
    import fcntl

    try:
        found: dict[str, Any] = jsonlib.loads((folder / "serving.json").read_text())
        with (folder / ".lock").open("a") as lock:
            # Whoever holds the lock is alive, whatever became of the number.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return found
    except (OSError, ValueError):
        return None
    return None


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (prepare, serve, join, up, status, logs, stop):
        app.command(rich_help_panel=DEPLOY)(command)

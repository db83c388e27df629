# SPDX-License-Identifier: Apache-2.0
"""All peers and fedweave on all workloads, taking turns in one run; then the table, the bars and the chart.

    python benchmarks/peers/run.py [--workloads W1 W3] [--peers plain fedweave] [--passes 3] [--rounds 2] [--out FILE]

Makes the environments and the data that are missing. Each run of a program is a JSON line in ``runs/`` of the folder
``FEDWEAVE_BENCH`` (``~/.cache/fedweave-bench``). Interrupted, the same command goes on where it stopped. A program that crashes
or does not end in time costs its own row only. Run it with fedweave's own Python on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import environments
import report
from harness import parse
from pages import ROOT, command, hardware, number, today
from pages import write as write_page
from roster import PEERS, Peer, Record, engines
from watch import busy, watched
from workloads import WORKLOADS, make_all, root

PRESCRIBED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PEAK = Peer("peak", "peak", "plain", "peak.py", (), 1, 10, dict.fromkeys(WORKLOADS, 0.0))

Turn = tuple[int, str, str]
"""Pass, workload, peer."""


# What is to be done ------------------------------------------------------------------------------------------------------


def turns(passes: int, workloads: Sequence[str], peers: Sequence[str]) -> list[Turn]:
    """Every peer once on every workload, then again; each pass begins with another peer. The peak is measured once a pass."""
    found = []
    for turn in range(1, passes + 1):
        first = (turn - 1) % len(peers)
        found.append((turn, "", "peak"))
        found += [(turn, workload, peer) for workload in workloads for peer in [*peers[first:], *peers[:first]]]
    return found


def left(planned: Sequence[Turn], records: Iterable[Record]) -> list[Turn]:
    """What is not yet done. Who did not end in time twice is not asked again for the same workload."""
    records = list(records)
    done = {(r["pass"], r.get("workload", ""), r["peer"]) for r in records}
    late = Counter((r.get("workload", ""), r["peer"]) for r in records if r["status"].startswith("not done in"))
    return [turn for turn in planned if turn not in done and late[turn[1:]] < 2]


def read(file: Path) -> tuple[Record, list[Record]]:
    """A run's header and records; a line that was cut off by a crash is left out."""
    lines: list[Record] = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    if not lines or "plan" not in lines[0]:
        raise ValueError(f"{file} does not begin with a run's header.")
    return lines[0], lines[1:]


def opened(plan: Record, fresh: bool) -> tuple[Path, Record, list[Record]]:
    """The newest run of the same plan if it is unfinished, else a new one."""
    folder = root() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.glob("*.jsonl"), reverse=True)[: 0 if fresh else 1]:
        header, records = read(file)
        if header["plan"] == plan and left(turns(**header["turns"]), records):
            print(f"going on with {file}, where {len(records)} runs are done (--fresh begins anew)")
            with file.open("a", encoding="utf-8") as out:
                out.write("\n")  # ends a line that was cut off
            return file, header, records
    file = folder / f"{time.strftime('%Y-%m-%d-%H%M%S')}.jsonl"
    header = {
        "plan": plan,
        "turns": {name: plan[name] for name in ("passes", "workloads", "peers")},
        "command": command(),
        "date": today(),
        "hardware": hardware(),
    }
    file.write_text(json.dumps(header) + "\n", encoding="utf-8")
    return file, header, []


def guesses(folder: Path) -> dict[tuple[str, str, int], float]:
    """Seconds that a (peer, workload, timed rounds) took when it was last run with a whole cohort."""
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        try:
            header, records = read(file)
        except ValueError:
            continue
        if header["plan"].get("cohort"):
            continue
        found.update(
            {(r["peer"], r["workload"], r["rounds"]): r["wall_s"] for r in records if "workload" in r and r["status"] == "ok"}
        )
    return found


# One turn ----------------------------------------------------------------------------------------------------------------


def run(peer: Peer, workload: str, options: Mapping[str, int | None], limit: float) -> Record:
    """One program, once, and what it printed. Options that are None are not passed."""
    interpreter = sys.executable if peer.ours else str(environments.python(peer.environment))
    command = [interpreter, peer.program, *peer.options]
    if workload:
        given = {"workload": workload, **options}
        command += [text for name, value in given.items() if value is not None for text in (f"--{name}", str(value))]
    environment = surroundings() if peer.ours else {k: v for k, v in surroundings().items() if k != "PYTHONPATH"}
    before = busy()
    seen = watched(command, HERE, limit, environment)
    line = parse(seen.output)
    found: Record = line or {"peer": peer.name, **({"workload": workload} if workload else {})}
    if seen.code is None:
        found["status"] = f"not done in {limit:.0f} s"
    elif line is None:
        found["status"] = f"failed ({seen.code}): {_last(seen.output)}"
    else:
        found["status"] = "ok"
    if found["status"] != "ok":
        found["output"] = _placeless(seen.output[-2000:])
    rss = max(seen.rss / 2**20, found.pop("own_rss_mb", 0.0))
    memory = {"rss_mb": round(rss, 1), "pss_mb": round(seen.pss / 2**20, 1)}
    return found | memory | {"wall_s": round(seen.wall, 2), "busy_before": round(before, 1), "at": time.strftime("%H:%M:%S")}


def surroundings() -> dict[str, str]:
    """The environment of a program of ours: fedweave is this checkout's, and no number of threads is prescribed."""
    kept = {name: value for name, value in os.environ.items() if name not in PRESCRIBED}
    return kept | {"PYTHONPATH": str(ROOT / "src")}


def _last(output: str) -> str:
    """The last line of an output, as a table can hold it."""
    lines = [line.strip() for line in _placeless(output).splitlines() if line.strip()]
    return lines[-1].replace("|", "/")[:120] if lines else "no output"


def _placeless(text: str) -> str:
    """Without the paths of this machine, which are nobody's business in a page."""
    places = {str(root()): "$FEDWEAVE_BENCH", str(ROOT): ".", sys.prefix: "$VENV", str(Path.home()): "~"}
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def prepared(peers: dict[str, Peer], workloads: Sequence[str]) -> dict[str, str]:
    """Make what is missing; which environments cannot be had, and why."""
    make_all(dict.fromkeys(WORKLOADS[name].data for name in workloads))
    missing = {}
    for name in dict.fromkeys(["plain", *(peer.environment for peer in peers.values() if not peer.ours)]):
        try:
            environments.ensure(name)
        except (subprocess.CalledProcessError, OSError) as error:
            missing[name] = f"the environment {name} cannot be made: {_placeless(str(error))}"
            print(missing[name], file=sys.stderr)
    return missing


def takes_workers() -> bool:
    """Whether this fedweave's ``simulate`` has workers."""
    ask = "import inspect, fedweave; print('workers' in inspect.signature(fedweave.simulate).parameters)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False, env=surroundings())
    if done.returncode:
        sys.exit(
            f"fedweave cannot be imported by {sys.executable}; run this with the Python that has it.\n{done.stderr[-500:]}"
        )
    return done.stdout.strip() == "True"


# All of them -------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS), metavar="W")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--engines", nargs="*", default=[], metavar="ENGINE[:WORKERS]", help="further rows of fedweave")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="timed rounds per run; each workload's own unless given")
    parser.add_argument("--cohort", type=int, help="clients per round, to try it out; each workload's own unless given")
    parser.add_argument("--threads", type=int, help="of torch in each process; by workload and peer unless given")
    parser.add_argument("--limit", type=float, default=3.0, help="a run may take so many times as expected, and a minute")
    parser.add_argument("--out", type=Path, help="also keep the lines in this file")
    parser.add_argument("--fresh", action="store_true", help="begin anew, though an unfinished run of the same plan is there")
    parser.add_argument("--docs", action="store_true", help="write the table and the chart into the documentation")
    parser.add_argument("--report", type=Path, metavar="FILE", help="run nothing: the table of these lines")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; the same command goes on"))  # so that no program is left behind
    peers = PEERS | engines(asked.engines)
    if asked.report is not None:
        show(*read(asked.report), asked.docs)
        return
    chosen = [*asked.peers, *engines(asked.engines)]
    if any(peers[name].processes > 1 and peers[name].ours for name in chosen) and not takes_workers():
        print("This fedweave has no workers: its rows that need them are left out.")
        chosen = [name for name in chosen if not (peers[name].ours and peers[name].processes > 1)]
    options = {"rounds": asked.rounds, "cohort": asked.cohort, "threads": asked.threads}
    plan = {
        "passes": asked.passes,
        "workloads": asked.workloads,
        "peers": chosen,
        **options,
        "commit": commit(),
    }
    missing = prepared({name: peers[name] for name in chosen}, asked.workloads)
    file, header, records = opened(plan, asked.fresh)
    todo = left(turns(asked.passes, asked.workloads, chosen), records)
    known = guesses(root() / "runs")

    def expected(turn: Turn) -> float:
        _, workload, name = turn
        if name == "peak":
            return PEAK.startup
        rounds = asked.rounds or WORKLOADS[workload].rounds
        return known.get((name, workload, rounds), peers[name].guess(workload, rounds)) + 0.5

    total = sum(map(expected, todo))
    print(f"{len(todo)} runs, about {total / 60:.0f} minutes; lines go to {file}", flush=True)
    spent = 0.0
    while todo:
        turn = todo[0]
        turn_of, workload, name = turn
        peer = PEAK if name == "peak" else peers[name]
        if peer.environment in missing:
            found: Record = {"peer": name, "status": missing[peer.environment], "busy_before": 0.0}
            found |= {"workload": workload} if workload else {}
        else:
            found = run(peer, workload, options, 60 + asked.limit * expected(turn))
        found |= {"pass": turn_of, "rounds": asked.rounds or (WORKLOADS[workload].rounds if workload else 0)}
        records.append(found)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(found) + "\n")
        spent += expected(turn)
        print(f"{_minutes(total - spent)} to go: pass {turn_of} {workload} {name}: {told(found)}", flush=True)
        todo = left(todo, records)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("".join(json.dumps(line) + "\n" for line in (header, *records)), encoding="utf-8")
    show(header, records, asked.docs)


def told(found: Record) -> str:
    if found["status"] != "ok":
        return str(found["status"])
    if "gflops" in found:
        return f"{max(found['gflops'], found['gflops_one_thread']):.0f} GFLOP/s"
    seconds = number(statistics.median(found["seconds"][found["warmup"] :]))
    return (
        f"{seconds} s a round, start-up {found['startup_s']:.1f} s, {found['rss_mb']:.0f} MB, accuracy {found['accuracy']:.3f}"
    )


def _minutes(seconds: float) -> str:
    return f"{max(seconds, 0) / 60:4.1f} min"


def commit() -> str:
    """Of the repository, with a plus if files were changed; empty without git."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def show(header: Record, records: Sequence[Record], write: bool) -> None:
    """Print the page; write it and the chart into the documentation."""
    peers = PEERS | engines(
        name.removeprefix("fedweave-").replace("-", ":") for name in header["plan"]["peers"] if name not in PEERS
    )
    text = report.page(header, records, peers)
    print(f"\n{text}")
    if write:
        write_page("peers", text, {"peers": report.chart(records, peers)})


if __name__ == "__main__":
    main()

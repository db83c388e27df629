# SPDX-License-Identifier: Apache-2.0
"""``fedweave pki`` as a person runs it, and a run whose clients were enrolled with it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc")

LOADER = """
import numpy as np
from fedweave.net.own import Trained

class Step:
    examples = 10
    def train(self, weights, turn):
        return Trained({"w": weights["w"] + np.float32(2)}, 1, 0.5)

def load():
    return Step()
"""


def test_from_an_authority_to_a_revoked_client(cli: Any) -> None:
    made = cli("pki", "init").stdout
    assert "Made an authority in pki" in made
    assert "fedweave pki token" in made
    assert "Nobody was invited yet" in cli("pki", "list").stdout
    token = cli("pki", "token", "zurich").stdout.strip()
    Path("zurich.token").write_text(token + "\n")
    done = cli("pki", "enrol", "--workdir", "zurich", "--token-file", "zurich.token", "--pki", "pki")
    assert "Enrolled zurich" in done.stdout
    assert stat.S_IMODE(Path("zurich/identity.pem").stat().st_mode) == 0o600
    cli("pki", "token", "va", "--out", "va.token")
    assert stat.S_IMODE(Path("va.token").stat().st_mode) == 0o600
    listed = cli("pki", "list").stdout
    assert [line.split()[:2] for line in listed.splitlines()[2:4]] == [["zurich", "enrolled"], ["va", "invited"]]
    assert "1 certificate." in cli("pki", "revoke", "zurich").stdout
    assert "0 certificates." in cli("pki", "revoke", "va").stdout
    states = [json.loads(line) for line in cli("pki", "list", "--json").stdout.splitlines()]
    assert [(entry["client"], entry["state"]) for entry in states] == [("zurich", "revoked"), ("va", "void")]
    assert token not in listed


def test_json(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(json.loads(cli("pki", "init", "--pki", "other", "--json").stdout)["fingerprint"]) == 64
    given = json.loads(cli("pki", "token", "ada", "--pki", "other", "--ttl", "60", "--json").stdout)
    assert (given["client"], given["ttl"]) == ("ada", 60)
    monkeypatch.setenv("FEDWEAVE_TOKEN", given["token"])
    assert json.loads(cli("pki", "enrol", "--workdir", "ada", "--pki", "other", "--json").stdout)["client"] == "ada"
    assert json.loads(cli("pki", "revoke", "ada", "--pki", "other", "--json").stdout) == {"client": "ada", "certificates": 1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init"], "already holds an authority"),
        (["init", "--pki", "x", "--days", "0"], "--days is 0"),
        (["list", "--pki", "nowhere"], "Make one with `fedweave pki init`"),
        (["token", "../x"], "is no name"),
        (["token", "ada", "--ttl", "0"], "ttl is 0"),
        (["token", "ada", "--out", "no/where"], "Cannot write"),
        (["revoke", "nobody"], "never had one"),
        (["enrol", "--workdir", "w"], "No token was given"),
        (["enrol", "--workdir", "w", "--token-file", "nothing"], "cannot be read"),
        (["enrol", "--workdir", "w", "--token-file", "good"], "either --server HOST:PORT or --pki DIR"),
        (["enrol", "--workdir", "w", "--token-file", "good", "--pki", "pki", "--server", "x:1"], "either --server"),
        (["enrol", "--workdir", "w", "--token-file", "bad", "--pki", "pki"], "The enrolment token is not one"),
        (["enrol", "--workdir", "w", "--token-file", "used", "--pki", "pki"], "used already"),
        (["enrol", "--workdir", "w", "--token-file", "good", "--server", "127.0.0.1:1"], "127.0.0.1:1 did not enrol"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(cli: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    from fedweave.net import certified

    monkeypatch.setattr(certified, "ENROLLING", 0.2)
    monkeypatch.delenv("FEDWEAVE_TOKEN", raising=False)
    cli("pki", "init")
    for name in ("good", "used"):
        cli("pki", "token", "ada", "--out", name)
    cli("pki", "enrol", "--workdir", "v", "--token-file", "used", "--pki", "pki")
    Path("bad").write_text("fedweave-token_hunter2")
    result = cli("pki", *words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "hunter2" not in result.output


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{folder}"}
    command = [sys.executable, "-m", "fedweave.app.cli", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_serve_and_join_with_certificates(cli: Any, tmp_path: Path) -> None:
    """Two processes that know nothing of each other but the token and the address."""
    from fedweave.config import Config
    from fedweave.wire import encode

    (tmp_path / "start.safetensors").write_bytes(encode({"w": np.zeros(3, np.float32)}))
    plain = {"initial": "start.safetensors", "clients": 1, "cohort": 1.0, "rounds": 3, "model": "w", "data": "points"}
    Path("config.toml").write_text(Config.make({**plain, "evaluate_every": 0}).toml())
    Path("steps.py").write_text(LOADER)
    cli("pki", "init")
    cli("pki", "token", "zurich", "--out", "token")
    served = start(
        "serve", "config.toml", "--out", "run", "--pki", "pki", "--listen", "127.0.0.1:0", "--enrol-listen", "127.0.0.1:0",
        "--linger", "20", folder=tmp_path,
    )  # fmt: skip
    try:
        while not Path("run/serving.json").exists():
            assert served.poll() is None, served.communicate()
            time.sleep(0.05)
        where = json.loads(Path("run/serving.json").read_text())
        done = cli("pki", "enrol", "--workdir", "site", "--token-file", "token", "--server", where["enrol"])
        assert done.exit_code == 0, done.output
        words = ("join", "--server", where["address"], "--data", "steps:load", "--workdir", "site")
        refused = start(*words, "--name", "va", folder=tmp_path).communicate(timeout=60)[1]
        assert "the certificate in site is of zurich" in refused
        joined = start(*words, folder=tmp_path)
        out, errors = joined.communicate(timeout=60)
        assert joined.returncode == 0, errors
        assert "3 rounds" in out
        assert served.wait(60) == 0
    finally:
        served.kill()
        served.communicate()
    import safetensors.numpy

    np.testing.assert_array_equal(safetensors.numpy.load_file("run/final.safetensors")["w"], np.full(3, 6, np.float32))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve"], "fedweave pki init"),
        (["serve", "--pki", "pki", "--insecure"], "exclude each other"),
        (["serve", "--pki", "pki", "--listen", "0.0.0.0:0"], "say with --hosts"),
        (["serve", "--pki", "nowhere"], "pki init"),
        (["serve", "--insecure", "--listen", "0.0.0.0:0"], "this machine alone"),
        (["join", "--server", "localhost:1", "--data", "x:y", "--workdir", "w"], "Enrol with `fedweave pki enrol`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_without_certificates_must_be_wished_for(cli: Any, words: list[str], said: str) -> None:
    cli("pki", "init")
    result = cli(*words)
    assert result.exit_code == 2
    assert said in result.stderr

# SPDX-License-Identifier: Apache-2.0
"""S7: secrets that are put into everything that is logged are in nothing that is written."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from fedweave.net import certificates
from fedweave.net.identity import Identity, Ticket
from fedweave.net.pki import Authority
from fedweave.net.redaction import HIDDEN, Redacting, hidden, redact, scrubbed


class Canary:
    """Real secrets of every kind, and the texts by which each would be found."""

    def __init__(self, folder: Path) -> None:
        from fedweave.net.identity import enrol

        authority = Authority.create(folder / "authority")
        self.token = authority.token("ada")
        self.own: Identity = enrol(folder / "ada", self.token, authority.enrol)
        self.tls, self.signing = self.own.tls_key.decode(), certificates.key_pem(self.own.signing).decode()
        self.password = "hunter2-Zq9"
        body, tls, signing = self.token.partition("_")[2], self.tls.splitlines()[1], self.signing.splitlines()[1]
        secret = Ticket.parse(self.token).secret.hex()
        self.marks = [body, body[20:60], body[-30:], secret, tls, signing, self.password]

    def things(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "said": f"the token is {self.token}, for now",
            "argv": ["fedweave", "pki", "enrol", self.token],
            "headers": {"Authorization": self.password, "x": ("y", f"Bearer {self.password}")},
            "private_key": self.tls,
            "pem": self.tls,
            "cut": self.signing[:90],
            "raw": self.signing.encode(),
            "own": self.own,
            "nested": [[{"a": ({"deep": self.tls},)}]],
            "url": f"postgresql://fed:{self.password}@db/runs",
            "text": f"password={self.password}&x=1",
            "quoted": json.dumps({"password": self.password, "keys": [self.signing]}),
            self.token: "as a key",
            "error": ValueError(self.token),
        }


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Canary:
    return Canary(tmp_path_factory.mktemp("canary"))


def clean(canary: Canary, text: str) -> None:
    found = [mark for mark in canary.marks if mark in text]
    assert not found, text
    assert HIDDEN in text


RENDERERS = {
    "json": structlog.processors.JSONRenderer(),
    "console": structlog.dev.ConsoleRenderer(colors=False),
    "logfmt": structlog.processors.LogfmtRenderer(),
}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("formatted", [True, False], ids=["formatted", "not"])
def test_structlog_writes_no_secret(canary: Canary, renderer: str, formatted: bool) -> None:
    out = io.StringIO()
    first = [structlog.processors.add_log_level, *([structlog.processors.format_exc_info] if formatted else [])]
    log = structlog.wrap_logger(
        structlog.PrintLogger(out),
        processors=[*first, redact, RENDERERS[renderer]],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        context_class=dict,
    )
    log.info("connected", Password=canary.password, api_key=canary.password)
    for name, value in canary.things().items():
        if name.isidentifier():
            log.debug("said", **{name: value})
        log.info(f"{name} is {value}")
        try:
            raise RuntimeError(f"cannot use {value}") from ValueError(canary.token)
        except RuntimeError:
            log.exception("failed", wrong=value)
    assert "RuntimeError" in out.getvalue()
    assert "failed" in out.getvalue()
    clean(canary, out.getvalue())


def test_the_canary_is_seen_without_the_processor(canary: Canary) -> None:
    out = io.StringIO()
    log = structlog.wrap_logger(structlog.PrintLogger(out), processors=[structlog.processors.JSONRenderer(default=repr)])
    log.info("said", **{name: value for name, value in canary.things().items() if name.isidentifier()})
    assert sum(mark in out.getvalue() for mark in canary.marks) >= 3


def test_the_standard_librarys_logging_writes_no_secret(canary: Canary) -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(Redacting())
    log = logging.Logger("canary", logging.DEBUG)
    log.addHandler(handler)
    for value in canary.things().values():
        log.debug("value %s", value)
        log.info(f"value {value}")
        log.info("wrong %d format", value)
        try:
            raise RuntimeError(f"cannot use {value}")
        except RuntimeError:
            log.exception("failed", stack_info=True)
    log.info("token=%s", canary.password)
    clean(canary, out.getvalue())


def test_what_is_no_secret_is_left_alone() -> None:
    event = {"event": "round 3 is over", "run": "digits-1", "round": 3, "client": "ada", "loss": 0.25, "model_hash": "ab" * 32}
    event |= {"monkey": "George", "clients": ["ada", "bob"], "author": "ada", "done": True, "nothing": None}
    assert redact(None, "info", dict(event)) == event
    event |= {"tokens": 12, "key": 7}
    assert redact(None, "info", dict(event)) == event | {"tokens": HIDDEN, "key": HIDDEN}


@settings(max_examples=300)
@given(
    before=st.text(max_size=30),
    after=st.text(max_size=30),
    body=st.text(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"), min_size=40, max_size=60),
)
def test_a_token_is_hidden_in_any_text(before: str, after: str, body: str) -> None:
    assert body not in hidden(f"{before}fedweave-token_{body}{after}")


plain = st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.binary(), st.complex_numbers())
nested = st.recursive(
    plain,
    lambda part: st.one_of(st.lists(part), st.dictionaries(st.one_of(st.text(), st.integers()), part), st.tuples(part)),
    max_leaves=20,
)


@settings(max_examples=100)
@given(value=nested)
def test_anything_can_be_logged(value: Any) -> None:
    json.dumps(scrubbed(value))


def test_a_value_without_a_repr_or_an_end_is_no_crash() -> None:
    class Wrong:
        def __repr__(self) -> str:
            raise RuntimeError

    loop: list[Any] = []
    loop.append(loop)
    assert scrubbed({"a": Wrong()}) == {"a": "<Wrong>"}
    assert HIDDEN in json.dumps(scrubbed(loop))

# SPDX-License-Identifier: Apache-2.0
"""Decoders of what strangers send, fed with anything. A program of its own, because it runs for as long as one likes:

    python fuzz.py SECONDS [TARGET ...]

With atheris installed, inputs are led by the coverage that they reach; without it they are Hypothesis's, from the same corpus
changed at random. Prints a line per target; ends with 1 if an input does what no input may do: raise
anything but the refusal, load a module, take more memory than ``MEMORY`` or more time than ``SECONDS``.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import importlib.util
import json
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedweave.errors import FedweaveError
from fedweave.net import certificates, pki, signing
from fedweave.net.admission import Claim, misplaced
from fedweave.net.identifiers import digest, filed, named
from fedweave.net.identity import Ticket
from fedweave.net.redaction import redact
from fedweave.wire.headers import HeaderError, Tensor, parse, write

SECONDS = 1.0
"""Processor time that one input may take."""
MEMORY = 256 << 20
"""Bytes by which the process may grow."""

SCHEMA = {"delta": Tensor("float32", (3, 2)), "buffers": Tensor("float64", (4,))}
GOOD = write(SCHEMA) + bytes(56)
KEY = signing.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TLS = certificates.tls_key()
REQUEST = certificates.request("ada", TLS, KEY)
ROOT = certificates.root(TLS, "root", datetime.datetime.now(datetime.UTC), 1)
LEAF = certificates.client(ROOT, TLS, certificates.read_request(REQUEST), datetime.datetime.now(datetime.UTC), 1)
DER = serialization.Encoding.DER
AWAITED = Claim("r", 1, "t", "ada", 4096)


def header(data: bytes) -> None:
    import safetensors

    try:
        parse(data, SCHEMA)
    except HeaderError:
        return
    # What passes is what the library reads, too, as the schema says.
    read = dict(safetensors.deserialize(data))
    assert {name: tuple(found["shape"]) for name, found in read.items()} == {name: t.shape for name, t in SCHEMA.items()}


def pem(kind: str, data: bytes) -> bytes:
    """Text as it is; anything else as if it were the DER of one, so that the parser behind the base64 is reached."""
    if data.startswith(b"-----"):
        return data
    return f"-----BEGIN {kind}-----\n".encode() + base64.encodebytes(data) + f"-----END {kind}-----\n".encode()


def request(data: bytes) -> None:
    assert certificates.read_request(pem("CERTIFICATE REQUEST", data)).client == "ada"


def certificate(data: bytes) -> None:
    # What is kept of a certificate, without the memory of those that were seen.
    assert pki._facts.__wrapped__(pem("CERTIFICATE", data))


def token(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    assert Ticket.parse(text).client


def signature(data: bytes) -> None:
    nonces = signing.Nonces(lambda key, ceiling: None)
    parts = [data[place::5] for place in range(5)]
    fields: dict[str, Any] = {
        "method": parts[0].decode("utf-8", "replace"), "body_sha256": parts[1], "run": parts[2].decode("utf-8", "replace"),
        "round": int.from_bytes(parts[3], "big", signed=True), "nonce": parts[4][:8],
    }  # fmt: skip
    assert signing.fault(KEY.public_key().public_bytes_raw(), nonces, "ada", data[:64], **fields)
    assert not len(nonces), "whoever cannot sign used up a nonce"


def name(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    assert filed(text).isalnum()
    for check in (lambda: named("client", text), lambda: digest(text)):
        try:
            found = check()
        except FedweaveError as error:
            if not str(error).isprintable():
                raise AssertionError("a message of more than one line") from error
        else:
            assert found == text
            assert not set(text) & set("/\\\0:")


def claim(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    number = int.from_bytes(data[:20], "little", signed=True)
    said = misplaced(Claim(text, number, text, text, number), AWAITED)
    assert said is not None
    assert said.isprintable()


def log(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    json.dumps(redact(None, "info", {"event": text, "value": value, "raw": data}))


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "header": (header, [GOOD, GOOD[:40], struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 40) + b'{"a":' + b"[" * 35]),
    "request": (request, [REQUEST, x509.load_pem_x509_csr(REQUEST).public_bytes(DER)]),
    "certificate": (certificate, [certificates.pem(LEAF), LEAF.public_bytes(DER), ROOT.public_bytes(DER), REQUEST]),
    "token": (token, [Ticket("ada", bytes(32), bytes(100)).spell().encode(), b"fedweave-token_W10"]),
    "signature": (signature, [bytes(range(200))]),
    "name": (name, [b"ada", b"../x", b"0" * 64, b"\xff"]),
    "claim": (claim, [b"r", b"\n"]),
    "log": (log, [b'{"token": "x", "a": [{"password": 1}]}', b"Bearer abc", b"-----BEGIN PRIVATE KEY-----"]),
}


def once(target: Callable[[bytes], None], data: bytes) -> None:
    """Feed one input; raises AssertionError, or what the decoder should not have raised."""
    before, began = set(sys.modules), time.process_time()
    with contextlib.suppress(FedweaveError):
        target(data)
    took = time.process_time() - began
    assert took < SECONDS, f"{took:.2f} s"
    new = {module for module in set(sys.modules) - before if not module.startswith(("encodings", "safetensors", "numpy", "_"))}
    assert not new, f"it loaded {sorted(new)}"


def with_atheris(which: str, seconds: float) -> None:
    """Until the time is over; libFuzzer ends the process."""
    import atheris

    target, corpus = TARGETS[which]
    for data in corpus:
        once(target, data)
    options = [f"-max_total_time={seconds:.0f}", "-rss_limit_mb=2048", "-max_len=8192", "-timeout=10", "-print_final_stats=1"]
    options.append(f"-artifact_prefix={tempfile.gettempdir()}/fedweave-{which}-")
    with tempfile.TemporaryDirectory() as folder:
        for place, data in enumerate(corpus):
            (Path(folder) / str(place)).write_bytes(data)
        atheris.Setup([sys.argv[0], *options, folder], lambda data: once(target, data))
        atheris.Fuzz()


INSTRUMENTED = """
import atheris, runpy, sys
with atheris.instrument_imports(include=["fedweave.net", "fedweave.wire"], enable_loader_override=False):
    import fedweave.net.admission, fedweave.net.pki, fedweave.net.redaction, fedweave.net.signing, fedweave.wire.headers
runpy.run_path(sys.argv[1])["with_atheris"](sys.argv[2], float(sys.argv[3]))
"""
"""Only what is ours is made to tell its coverage: all of the libraries would take minutes."""


PLAIN = "import runpy, sys; runpy.run_path(sys.argv[1])['with_hypothesis'](sys.argv[2], float(sys.argv[3]))"


def with_hypothesis(which: str, seconds: float) -> None:
    """Examples until the time is over."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    target, corpus = TARGETS[which]
    before, end, tried = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() + seconds, 0

    @settings(
        max_examples=200,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(mutated(st, corpus))
    def run(data: bytes) -> None:
        nonlocal tried
        tried += 1
        once(target, data)

    while time.monotonic() < end:
        run()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY / 1024, f"it grew by {grown} KiB"
    print(f"{which}: {tried} inputs of Hypothesis", flush=True)


def mutated(st: Any, corpus: list[bytes]) -> Any:
    """Anything, and members of the corpus with pieces replaced, removed, doubled and moved."""

    def change(draw: Any) -> bytes:
        data = draw(st.sampled_from(corpus))
        for _ in range(draw(st.integers(1, 4))):
            first, last = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
            piece = draw(
                st.one_of(st.binary(max_size=16), st.just(b""), st.just(data[first:last] * 2), st.sampled_from(PIECES))
            )
            data = data[:first] + piece + data[last:]
        return data

    return st.one_of(st.binary(max_size=300), st.composite(change)())


PIECES = [
    b"{",
    b"}",
    b"[",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b"-1",
    b"1e9",
    b"NaN",
    b"9" * 30,
    b"\xff",
    b"\0",
    b"null",
    b'"F32"',
    b"../",
    b"=",
]


def main(seconds: float, which: list[str]) -> int:
    led, failed = importlib.util.find_spec("atheris") is not None, []
    for target in which or TARGETS:
        # A process for each: libFuzzer ends the one that it is in, and memory is counted from the beginning.
        code = INSTRUMENTED if led else PLAIN
        words = [sys.executable, "-c", code, __file__, target, str(seconds)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        tried = re.findall(r"stat::number_of_executed_units: (\d+)|: (\d+) inputs", done.stdout + done.stderr)
        count = max(map(int, filter(None, tried[-1]))) if tried else 0
        print(f"{target}: {count} inputs, led by {'coverage' if led else 'chance'}", flush=True)
        if done.returncode:
            print((done.stdout + done.stderr)[-5000:])
            failed.append(target)
    print(f"{len(which or TARGETS) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))

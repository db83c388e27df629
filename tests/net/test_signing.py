# SPDX-License-Identifier: Apache-2.0
"""Signatures and nonces: whatever is changed, used elsewhere or sent twice is refused, also after a restart."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedweave.net.signing import AHEAD, Nonces, Refusal, Signer, fault, message, verify

METHODS = ["Join", "PushChunk", "Commit", "Fail"]
texts = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = {
    "method": st.one_of(st.sampled_from(METHODS), texts),
    "body_sha256": st.binary(max_size=50).map(lambda body: hashlib.sha256(body).digest()),
    "run": texts,
    "round": st.integers(-(2**63), 2**63 - 1),
    "nonce": st.binary(min_size=8, max_size=8),
}
fields = st.fixed_dictionaries(VALUES)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()


@given(signed=fields, used=fields)
def test_a_signature_is_good_for_what_was_signed_and_for_nothing_else(signed: Any, used: Any) -> None:
    signature = Signer(KEY).sign(**signed)
    assert verify(PUBLIC, signature, **signed)
    assert verify(PUBLIC, signature, **used) == (used == signed)
    assert not verify(OTHER, signature, **signed)


@settings(max_examples=150)
@given(signed=fields, data=st.data())
def test_one_changed_field_is_refused(signed: Any, data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(signed)))
    changed = signed | {name: data.draw(VALUES[name].filter(lambda value: value != signed[name]))}
    assert not verify(PUBLIC, Signer(KEY).sign(**signed), **changed)


@given(signed=fields, place=st.integers(0, 63), bit=st.integers(0, 7))
def test_one_changed_bit_of_the_signature_is_refused(signed: Any, place: int, bit: int) -> None:
    signature = bytearray(Signer(KEY).sign(**signed))
    signature[place] ^= 1 << bit
    assert not verify(PUBLIC, bytes(signature), **signed)


@given(signed=fields, signature=st.binary(max_size=100), key=st.binary(max_size=40))
def test_what_is_no_signature_or_no_key_is_refused(signed: Any, signature: bytes, key: bytes) -> None:
    assert not verify(PUBLIC, signature, **signed)
    assert not verify(key, Signer(KEY).sign(**signed), **signed)


@given(one=fields, other=fields)
def test_two_requests_are_never_one_message(one: Any, other: Any) -> None:
    """Fields cannot lend each other their ends: ("ab", "c") is not ("a", "bc")."""
    assert (message(**one) == message(**other)) == (one == other)


def test_the_message_is_what_the_page_says() -> None:
    """Written out by hand, so that a client in another language can be written from it."""
    body, number = hashlib.sha256(b"body").digest(), (7).to_bytes(8, "big")
    expected = (
        b"\0\0\0\x13fedweave request v1" b"\0\0\0\x06Commit" b"\0\0\0\x20" + body + b"\0\0\0\x03run"
        b"\0\0\0\x08\0\0\0\0\0\0\0\x05" b"\0\0\0\x08" + number
    )  # fmt: skip
    assert message("Commit", body, "run", 5, number) == expected
    assert KEY.sign(expected) == Signer(KEY).sign("Commit", body, "run", 5, number)


@pytest.mark.parametrize(("name", "value"), [("body_sha256", b"short"), ("nonce", b"1"), ("round", 2**63)])
def test_what_cannot_be_signed_is_neither_signed_nor_verified(name: str, value: Any) -> None:
    good = {"method": "Commit", "body_sha256": bytes(32), "run": "r", "round": 1, "nonce": bytes(8)}
    with pytest.raises(ValueError, match=name):
        Signer(KEY).sign(**(good | {name: value}))
    assert not verify(PUBLIC, Signer(KEY).sign(**good), **(good | {name: value}))


def test_the_key_is_in_no_repr() -> None:
    assert repr(Signer(KEY)).startswith("Signer(clock=")


# Nonces ------------------------------------------------------------------------------------------------------------------


def taken(numbers: Nonces, number: int, key: str = "ada") -> bool:
    return numbers.take(key, number.to_bytes(8, "big")) is None


@settings(max_examples=150)
@given(
    steps=st.lists(
        st.one_of(st.tuples(st.just("take"), st.sampled_from("ab"), st.integers(1, 60)), st.tuples(st.just("restart"))),
        max_size=60,
    ),
    window=st.integers(1, 8),
)
def test_no_nonce_is_taken_twice_whatever_the_order_and_whenever_it_restarts(steps: Any, window: int) -> None:
    """Against a memory that forgets nothing."""
    disk: dict[str, int] = {}
    nonces, seen = Nonces(disk.__setitem__, disk, window), set()
    for step in steps:
        if step[0] == "restart":
            nonces = Nonces(disk.__setitem__, dict(disk), window)
        elif taken(nonces, step[2], step[1]):
            assert step[1:] not in seen
            seen.add(step[1:])
    assert len(nonces) <= 2 * window


@given(numbers=st.permutations(range(1, 9)), window=st.integers(8, 20))
def test_requests_that_overtake_each_other_are_taken(numbers: list[int], window: int) -> None:
    nonces = Nonces(lambda key, ceiling: None, window=window)
    assert all(taken(nonces, number) for number in numbers)
    assert not any(taken(nonces, number) for number in numbers)


def test_memory_is_bounded() -> None:
    written = []
    nonces = Nonces(lambda key, ceiling: written.append(ceiling), window=32)
    for number in range(1, 10_001):
        assert taken(nonces, number)
    assert len(nonces) == 32
    assert written == [1 + AHEAD], "a write per nonce would be a write too many"


def test_after_a_restart_a_client_goes_on_above_the_floor_that_it_is_told() -> None:
    disk: dict[str, int] = {}
    signer = Signer(KEY, clock=lambda: 10**18)
    first = Nonces(disk.__setitem__)
    old = [signer.nonce() for _ in range(5)]
    assert not any(first.take("ada", nonce) for nonce in old)
    again = Nonces(disk.__setitem__, disk)
    assert all(isinstance(again.take("ada", nonce), Refusal) for nonce in old)
    refusal = again.take("ada", signer.nonce())
    assert refusal is not None
    assert refusal.floor is not None
    signer.catch_up(refusal.floor)
    assert again.take("ada", signer.nonce()) is None
    assert all(isinstance(again.take("ada", nonce), Refusal) for nonce in old)


def test_a_clock_that_is_set_back_costs_one_request() -> None:
    disk: dict[str, int] = {}
    nonces, now = Nonces(disk.__setitem__, window=1), [2 * 10**18]
    for _ in range(3):
        assert nonces.take("ada", Signer(KEY, clock=lambda: now[0]).nonce()) is None
        now[0] += 1
    now[0] -= 3600 * 10**9
    signer = Signer(KEY, clock=lambda: now[0])
    refusal = nonces.take("ada", signer.nonce())
    assert refusal is not None
    assert refusal.floor is not None
    signer.catch_up(refusal.floor)
    # One above the floor may be the latest one itself.
    assert None in [nonces.take("ada", signer.nonce()) for _ in range(2)]


def test_a_nonce_that_cannot_be_written_down_is_not_taken() -> None:
    full = [True]

    def persist(key: str, ceiling: int) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")

    nonces = Nonces(persist)
    with pytest.raises(OSError, match="No space"):
        nonces.take("ada", (5).to_bytes(8, "big"))
    full[0] = False
    assert taken(nonces, 5)
    assert not taken(nonces, 5)


@pytest.mark.parametrize("nonce", [b"", b"1234567", b"123456789", b"\xff" * 8])
def test_what_is_no_nonce(nonce: bytes) -> None:
    nonces = Nonces(lambda key, ceiling: None)
    assert isinstance(nonces.take("ada", nonce), Refusal)
    assert taken(nonces, 1)


# Both together -----------------------------------------------------------------------------------------------------------


def request(signer: Signer, number: int) -> dict[str, Any]:
    method = METHODS[number % len(METHODS)]
    body, nonce = hashlib.sha256(number.to_bytes(4, "big")).digest(), signer.nonce()
    signed = {"method": method, "body_sha256": body, "run": f"run{number % 3}", "round": number // 7, "nonce": nonce}
    return signed | {"signature": signer.sign(**signed)}


def test_ten_thousand_replays_and_uses_elsewhere_are_refused() -> None:
    """S2: every request is taken once; afterwards it is neither taken again nor in place of another, also after restarts."""
    disk: dict[str, int] = {}
    nonces, signer = Nonces(disk.__setitem__), Signer(KEY)
    sent = [request(signer, number) for number in range(300)]
    assert not any(fault(PUBLIC, nonces, "ada", **one) for one in sent)
    accepted = tried = 0
    for place, one in enumerate(sent):
        other = sent[(place + 97) % len(sent)]
        crossed = [one | {name: other[name]} for name in one if one[name] != other[name]]
        for attempt in [one, *crossed]:
            for memory in (nonces, Nonces(disk.__setitem__, dict(disk))):
                for public, key in ((PUBLIC, "ada"), (OTHER, "bob"), (PUBLIC, "ada")):
                    accepted += fault(public, memory, key, **attempt) is None
                    tried += 1
    assert tried >= 10_000
    assert accepted == 0


def test_who_cannot_sign_cannot_use_up_a_nonce() -> None:
    nonces, signer = Nonces(lambda key, ceiling: None), Signer(KEY)
    one = request(signer, 1)
    refusal = fault(PUBLIC, nonces, "ada", **(one | {"signature": bytes(64)}))
    assert refusal is not None
    assert "signature" in refusal.reason
    assert fault(PUBLIC, nonces, "ada", **one) is None

# SPDX-License-Identifier: Apache-2.0
"""S4: names are never paths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedweave.errors import UsageError
from fedweave.net.identifiers import digest, filed, named, shown

CORPUS = [
    "", ".", "..", "../x", "..\\x", "../../etc/passwd", "/etc/passwd", "\\\\host\\share", "C:\\x", "C:x", "x/y", "x\\y",
    "~", "~root", "x\x00y", "\x00", "x\ny", "x\r", "\x1b[31m", " ", " x", "x ", "x.", ".x", "-x", "x-", "--help", "x;y",
    "$(x)", "`x`", "x|y", "x*", "x?", "<x>", "x:y", "x%00", "x%2f..", "%2e%2e%2f", "\uff41\uff44\uff41", "x\u202ey",
    "x\u2028y", "x\xadY", "\u0430da", "\xe9", "e\u0301", "\ud800", "\uffff", "\U0001f642", "x" * 4096, "x" * 65,
    "../" * 1000, "file:///etc/passwd", "x\tb", "\u2215etc", "x\x00.pem",
]  # fmt: skip
DEVICES = ["CON", "nul", "COM1", "lpt9", "AUX", "con.txt", "PRN"]


@pytest.mark.parametrize("text", CORPUS)
def test_what_is_no_name_is_refused_on_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="is no name") as caught:
        named("client", text)
    said = str(caught.value)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 400


@pytest.mark.parametrize("text", [*CORPUS, *DEVICES, "ada", "Ada"])
def test_what_stands_for_a_name_on_disk_is_a_plain_file_there(tmp_path: Path, text: str) -> None:
    path = tmp_path / filed(text)
    path.write_text("x")
    assert [entry.name for entry in tmp_path.iterdir()] == [filed(text)]
    assert path.resolve().parent == tmp_path.resolve()
    assert os.path.normcase(path.name) == path.name


@settings(max_examples=500)
@given(one=st.text(), other=st.text())
def test_names_on_disk_are_hexadecimal_and_different(one: str, other: str) -> None:
    assert len(filed(one)) == 32
    assert set(filed(one)) <= set("0123456789abcdef")
    assert (filed(one) == filed(other)) == (one == other)
    assert filed("Ada").lower() != filed("ada").lower()


@settings(max_examples=500)
@given(text=st.text(max_size=70))
def test_names_are_of_a_small_alphabet(text: str) -> None:
    try:
        found = named("run", text)
    except UsageError:
        return
    assert found == text
    assert 1 <= len(text) <= 64
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
    assert text[0].isalnum()
    assert text[-1].isalnum()


@pytest.mark.parametrize("text", ["ada", "Cleveland", "a", "site-1", "hospital_2.zurich", "x" * 64, "0" * 32])
def test_names(text: str) -> None:
    assert named("client", text) == text


@pytest.mark.parametrize("text", [*CORPUS, "A" * 64, "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="no SHA-256"):
        digest(text)
    assert digest("0f" * 32) == "0f" * 32


def test_what_is_shown_of_a_huge_value_is_short() -> None:
    assert len(shown("\0" * 10**7)) < 250
    assert shown(b"\0" * 100) == "'bytes'"

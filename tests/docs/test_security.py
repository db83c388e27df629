# SPDX-License-Identifier: Apache-2.0
"""The security matrix names tests that exist, and leaves out none of the tests that are there to be named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
CELL = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def _tests(name: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / "net" / name).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_the_matrix_names_exists() -> None:
    named = CELL.findall(PAGE)
    assert len(named) > 40
    assert not [f"{file}::{name}" for file, name in named if name not in _tests(file)]


def test_every_row_of_the_matrix_names_a_test() -> None:
    matrix = PAGE.partition("## The matrix")[2]
    rows = [line for line in matrix.splitlines() if line.startswith("| ") and not re.search(r"\| tests \|$", line)]
    assert len(rows) > 20
    assert not [row for row in rows if not CELL.search(row)]


def test_every_endpoint_of_the_protocol_is_in_the_matrix() -> None:
    """The list that the tests go through is the protocol's."""
    protocol = (ROOT / "src" / "fedweave" / "wire" / "fedweave.proto").read_text(encoding="utf-8")
    calls = re.findall(r"^\s+rpc (\w+)\(", protocol, re.MULTILINE)
    tree = ast.parse((ROOT / "tests" / "net" / "test_tls.py").read_text(encoding="utf-8"))
    lists = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ENDPOINTS"]
    assert ast.literal_eval(lists[0].value) == calls

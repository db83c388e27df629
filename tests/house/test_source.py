# SPDX-License-Identifier: Apache-2.0
"""Rules that every file keeps."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "fedweave"
GENERATED = {"fedweave_pb2.py"}
"""Made by `make proto`: nobody's style."""
SOURCES = sorted(path for path in SRC.rglob("*.py") if path.name not in GENERATED)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LICENCE = "# SPDX-License-Identifier: Apache-2.0"

RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
RESTRICTED = {"data/cifar.py", "engines/parcels.py"}
"""A reader of a published pickle, whose unpickler resolves no name to anything that runs; and what passes between a process and
those that it forked, over pipes that nobody else has."""

MACHINE = re.compile(r"(?<![\w.})$-])/(?:work|root|tmp|home|Users)/\w")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tracked() -> list[Path]:
    """Files of the repository: what git has or would take, else what is there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    if not names:
        hidden = re.compile(r"^(\.(?!ci/|gitignore)|site/|dist/|runs/)|__pycache__|\.egg-info")
        names = [_name(path) for path in ROOT.rglob("*") if not hidden.search(_name(path))]
    return [path for path in (ROOT / name for name in names) if path.is_file()]


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=_name)
def test_begins_with_licence_and_purpose(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not text and path.name == "__init__.py" and path in TESTS:
        return
    assert text.startswith(f"{LICENCE}\n"), "its first line is not the SPDX line"
    assert ast.get_docstring(ast.parse(text)), "it has no docstring that says its job"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_is_small_and_near_the_top(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert len(path.relative_to(SRC).parts) <= 3


def _faults(text: str) -> list[str]:
    """What in the source could run code that came with data."""
    faults = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RUNS_CODE:
            faults.append(f"line {node.lineno} calls {node.func.id}()")
        if isinstance(node, ast.Call):
            faults += [
                f"line {node.lineno} passes {keyword.arg}"
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant)
                and (keyword.arg, keyword.value.value) in {("allow_pickle", True), ("weights_only", False), ("shell", True)}
            ]
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            modules = []
        faults += [f"line {node.lineno} imports {name}" for name in modules if name.partition(".")[0] in UNPICKLERS]  # type: ignore[attr-defined]
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_runs_no_code_from_data(path: Path) -> None:
    faults = _faults(path.read_text(encoding="utf-8"))
    if path.relative_to(SRC).as_posix() in RESTRICTED:
        faults = [fault for fault in faults if not fault.endswith("imports pickle")]
    assert not faults


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec('x = 1')",
        "import pickle",
        "from pickle import load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import torch\ntorch.load('x', weights_only=False)",
    ],
)
def test_the_rule_sees_what_it_forbids(text: str) -> None:
    assert _faults(text)


def test_no_path_of_one_machine() -> None:
    found = []
    for path in _tracked():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{_name(path)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def test_the_path_rule_sees_a_path() -> None:
    assert MACHINE.search("open('" + "/".join(["", "tmp", "x"]) + "')")
    assert not MACHINE.search("https://example.org/home/page and ../tmp/x and $PWD/tmp/x")

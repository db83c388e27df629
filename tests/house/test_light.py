# SPDX-License-Identifier: Apache-2.0
"""``import fedweave`` is light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fedweave

HEAVY = ["torch", "pandas", "scipy", "sklearn", "plotly", "sqlalchemy", "pydantic", "pyarrow", "datasets", "rich", "typer"]

LOADED = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def _after(statement: str) -> set[str]:
    """Top-level modules loaded in a fresh interpreter after the statement."""
    source = str(Path(fedweave.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); {statement}; {LOADED}"
    done = subprocess.run([sys.executable, "-W", "error", "-I", "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import fedweave",
        "import fedweave as fw; fw.FedSGD(server_lr=0.1); fw.algorithms(); fw.Local(); fw.Dirichlet(alpha=0.3); dir(fw)",
        "import fedweave.errors, fedweave.layout, fedweave.history, fedweave.randomness",
    ],
)
def test_import_leaves_heavy_libraries_alone(statement: str) -> None:
    loaded = _after(statement)
    assert "fedweave" in loaded
    assert not loaded & set(HEAVY)


def test_identity_needs_neither_torch_nor_grpc() -> None:
    """Certificates are made, and updates and headers judged, where neither is installed."""
    names = "admission", "identifiers", "identity", "pki", "redaction", "signing"
    statement = (
        f"import {', '.join(f'fedweave.net.{name}' for name in names)}, fedweave.wire.headers, fedweave.app.pki_commands"
    )
    loaded = _after(statement)
    assert "fedweave" in loaded
    assert not loaded & {"torch", "grpc", "structlog", "google"}


def test_the_check_sees_a_heavy_import() -> None:
    assert "torch" in _after("import fedweave; fedweave.simulate")


def test_server_half_of_an_algorithm_needs_no_torch() -> None:
    """A machine without torch can run the loop by hand."""
    snippet = Path(__file__).parents[2] / "docs" / "snippets" / "loop_by_hand.py"
    statement = f"sys.modules['torch'] = None; import runpy; sys.stdout = open(__import__('os').devnull, 'w'); \
runpy.run_path({str(snippet)!r}); sys.stdout.close(); sys.stdout = sys.__stdout__"
    assert not _after(statement) & (set(HEAVY) - {"torch"})

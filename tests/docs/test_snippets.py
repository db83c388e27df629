# SPDX-License-Identifier: Apache-2.0
"""The documentation's snippets are files, every one runs, and the pages show nothing else."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SNIPPETS = ROOT / "docs" / "snippets"
PAGES = sorted((ROOT / "docs").rglob("*.md"))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INCLUDE = re.compile(r'^--8<-- "([^":]+)(?::[^"]*)?"$')
ENTRY = "import sys; from fedweave.app.cli import main; sys.exit(main())"
"""What the installed command runs."""

PLAIN = ("pip install ", "make ", "git clone ", "ray ", "export RAY_")
"""Commands that set a machine up: no test runs them from here."""


def _cases(pattern: str) -> list[object]:
    """A snippet that needs a real data set says so in its first line, and is slow."""
    cases = []
    for path in sorted(SNIPPETS.glob(pattern)):
        needs = re.match(r"# needs: (\S+)", path.read_text(encoding="utf-8"))
        absent = needs is not None and "FEDWEAVE_DATA" not in os.environ
        marks = [pytest.mark.slow, pytest.mark.skipif(absent, reason="needs the real data sets: set FEDWEAVE_DATA")]
        cases.append(pytest.param(path, id=path.name, marks=marks if needs else []))
    return cases


@pytest.mark.parametrize("path", _cases("*.py"))
def test_python_snippet_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("path", _cases("*.sh"))
def test_shell_snippet_runs(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, words in (("fedweave", f'"{sys.executable}" -c "{ENTRY}"'), ("python", f'"{sys.executable}"')):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        command.chmod(0o755)
    import fedweave

    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(fedweave.__file__).parents[1]),
        "SNIPPETS": str(SNIPPETS),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_in_pages_is_included_from_files(page: Path) -> None:
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language not in ("python", "sh", "toml"):
            continue
        for line in body.strip().splitlines():
            include = INCLUDE.match(line)
            if include is None:
                fine = language == "sh" and line.startswith(PLAIN)
                assert fine, f"{page.name} shows {line!r}: make it a file in docs/snippets"
            else:
                assert (ROOT / include[1]).is_file(), f"{page.name} includes {include[1]}, which does not exist"


def test_every_snippet_is_shown() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    unused = [path.name for path in SNIPPETS.iterdir() if path.is_file() and f"docs/snippets/{path.name}" not in shown]
    assert not unused, f"no page includes {unused}"


def test_readme_shows_snippets_that_run() -> None:
    sources = [re.sub(r"^\s*# --8<--.*\n", "", p.read_text(encoding="utf-8"), flags=re.MULTILINE) for p in SNIPPETS.iterdir()]
    blocks = FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 4
    for language, body in blocks:
        assert language in ("python", "sh"), f"a block of README.md has the language {language!r}"
        if not body.startswith(PLAIN):
            assert any(body in source for source in sources), f"README.md shows what is in no snippet:\n{body}"

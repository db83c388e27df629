# SPDX-License-Identifier: Apache-2.0
"""Every test here has a cache of its own and sees the real data sets only if it asks for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

REAL = os.environ.get("FEDWEAVE_DATA")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests on real data, so that each set is decoded once; up to 1 GiB, so it is not left behind."""
    folder = tmp_path_factory.mktemp("shared-cache")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEDWEAVE_CACHE", str(folder))
    monkeypatch.delenv("FEDWEAVE_DATA", raising=False)
    return folder


@pytest.fixture
def real(cache: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real data sets."""
    if not REAL:
        pytest.skip("FEDWEAVE_DATA does not name the folder of the real data sets")
    monkeypatch.setenv("FEDWEAVE_CACHE", str(shared_cache))
    monkeypatch.setenv("FEDWEAVE_DATA", REAL)
    return Path(REAL)

# SPDX-License-Identifier: Apache-2.0
"""An authority and its clients in temporary folders."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("grpc")
pytest.importorskip("cryptography")

from fedweave.net.identity import Identity, enrol
from fedweave.net.pki import Authority


class Site:
    """An authority with clients that are enrolled when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "authority")

    def client(self, name: str) -> Identity:
        path = self.folder / name
        return Identity.load(path) if path.exists() else enrol(path, self.authority.token(name), self.authority.enrol)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Settings that all tests share."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fedweave", deadline=None)
settings.load_profile("fedweave")

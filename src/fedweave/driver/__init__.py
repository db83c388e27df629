# SPDX-License-Identifier: Apache-2.0
"""One simulated run: carries out what the coordinator decides, with an engine, a clock and the store."""

from fedweave.driver.run import Driver, Observer

__all__ = ["Driver", "Observer"]

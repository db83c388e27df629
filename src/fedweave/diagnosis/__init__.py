# SPDX-License-Identifier: Apache-2.0
"""Why does it not converge? What is noted of each update, the figures of a round, and what they say of a run."""

from fedweave.diagnosis.observing import Seen, observe, observe_stack, watched
from fedweave.diagnosis.rounds import Observed, figures_of, observed

__all__ = ["Observed", "Seen", "figures_of", "observe", "observe_stack", "observed", "watched"]

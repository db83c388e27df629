# SPDX-License-Identifier: Apache-2.0
"""Real clients over a network: the coordinator's process, and the client's."""

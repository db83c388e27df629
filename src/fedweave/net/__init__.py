# SPDX-License-Identifier: Apache-2.0
"""Clients and a coordinator over a real network, and who may say what in it."""

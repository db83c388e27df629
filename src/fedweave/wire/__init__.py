# SPDX-License-Identifier: Apache-2.0
"""What travels: messages and tensors as bytes, and the readers that trust none of them."""

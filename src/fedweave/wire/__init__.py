# SPDX-License-Identifier: Apache-2.0
"""What travels: the protocol (``fedweave.proto``), and arrays as safetensors in content-addressed chunks."""

from fedweave.wire.chunks import CHUNK, INLINE, Blob, Intake, Outlet
from fedweave.wire.tensors import Content, encode, read, write

__all__ = ["CHUNK", "INLINE", "Blob", "Content", "Intake", "Outlet", "encode", "read", "write"]

"""The bytes of a constant, or how many there would be."""

import hashlib
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pockmobile.graph.joint import memory_of


@final
@dataclass(frozen=True)
class Content:
    """What a constant holds: its bytes, and the same `key` for the same bytes.

    Of a tensor on the meta device only the number of its bytes is known, and `key` tells
    where it would lie; `tensor` keeps that place from being taken by another.
    """

    key: str
    num_bytes: int
    data: bytes | None
    tensor: Tensor | None = None

    @staticmethod
    def of(value: Tensor) -> "Content":
        """Returns the content of a tensor, in its own order and type."""
        if value.is_meta:
            size = value.numel() * value.element_size()
            return Content(str(memory_of(value)), size, None, value)
        # A view of one number may have any stride.
        flat = value.contiguous().as_strided((value.numel(),), (1,))
        data = flat.view(torch.uint8).numpy().tobytes()
        return Content(hashlib.sha256(data).hexdigest(), len(data), data)

    @staticmethod
    def made_of(source: Tensor, kind: str, num_bytes: int) -> "Content":
        """Returns what is made of a tensor on the meta device; `kind` says how."""
        return Content(f"{kind} of {memory_of(source)}", num_bytes, None, source)

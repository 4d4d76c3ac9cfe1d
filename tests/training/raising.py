# SPDX-License-Identifier: MIT
"""A step of a model whose backward raises when told to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, now: bool) -> Tensor:
        ctx.now = now
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.now:
            raise ValueError("on purpose")
        return gradient, None

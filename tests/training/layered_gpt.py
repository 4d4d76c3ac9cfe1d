# SPDX-License-Identifier: MIT
"""A GPT in pieces that can be split: by rows and columns of its layers, and into pipeline stages.

It is a Sequential of token, layer0, ..., norm and output. Its parameters are float64: a split sums
in another order than one process does, and that must be told from a wrong sum. 12 heads and 48
hidden channels, so that 2, 3 and 4 ranks can share them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from gpt import BYTES
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS = 24, 12, 4
# What may differ from one process where sums are split: some thousand roundings of float64.
ROUNDING = {"rtol": 1e-10, "atol": 1e-13}


class Attention(nn.Module):
    """Causal attention with as many heads as this rank's part of the weights makes."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        # A bias of the keys changes nothing: its gradient would be mere rounding.
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, WIDTH) to the same shape."""

        def heads(packed: Tensor) -> Tensor:
            return packed.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)

        query, key, value = (heads(part(x)) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """Attention, then two linear layers; both residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_hidden = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.hidden = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, WIDTH) to the same shape."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.hidden(self.norm_hidden(x))


def layered_gpt() -> nn.Sequential:
    """The model, the same weights at every call."""
    torch.manual_seed(1)
    layers = OrderedDict((f"layer{i}", Layer()) for i in range(LAYERS))
    model = nn.Sequential(
        OrderedDict(
            token=nn.Embedding(BYTES, WIDTH),
            **layers,
            norm=nn.LayerNorm(WIDTH),
            output=nn.Linear(WIDTH, BYTES, bias=False),
        )
    )
    return model.double()


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of logits (batch, length, BYTES) for targets (batch, length)."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1))

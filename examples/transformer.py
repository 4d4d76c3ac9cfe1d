# SPDX-License-Identifier: MIT
"""A GPT whose parts can be spread over ranks: what train_gpt.py trains in any layout.

Nothing here knows of more than one process. What makes it fit for tensor parallelism is that query,
key and value are layers of their own, and that an attention takes its number of heads from an
attribute; for pipelines, that its forward is its layers one after the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Embedding(nn.Module):
    """Tokens and their positions to channels."""

    def __init__(self, vocabulary: int, block_size: int, width: int) -> None:
        """Make the tables."""
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(block_size, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, length) int64 to (batch, length, width)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.token(tokens) + self.position(positions)


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Make the layers; `width` is a multiple of `heads`."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)  # a bias of all keys cancels out

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""

        def split(packed: Tensor) -> Tensor:
            return packed.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = (split(part(x)) for part in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Mix positions, then channels; both residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Make the layers."""
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        x = x + self.dropout(self.attention(self.norm_attention(x)))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class Transformer(nn.Module):
    """Predict the next token."""

    def __init__(
        self,
        vocabulary: int,
        block_size: int = 64,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
    ) -> None:
        """Make the layers and draw their weights from torch's global generator."""
        super().__init__()
        self.block_size = block_size
        self.embedding = Embedding(vocabulary, block_size, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # residual branches start smaller: `layers` pairs add up
                last = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def pipeline_layers(self) -> list[str]:
        """Name the submodules whose composition is the forward, for pipelines."""
        blocks = [f"blocks.{i}" for i in range(len(self.blocks))]
        return ["embedding", *blocks, "norm", "output"]

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, length) int64 to logits (batch, length, vocabulary)."""
        x = tokens
        for name in self.pipeline_layers():
            x = self.get_submodule(name)(x)
        return x


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean loss, in nats per token, of logits for targets (batch, length)."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1))

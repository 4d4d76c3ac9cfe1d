# SPDX-License-Identifier: MIT
"""A small GPT over bytes, and the real text that it learns: what ddp_unchanged.py trains.

Nothing here knows of more than one process. One token is one byte, so there is no tokenizer and
nothing to download; the default text comes with every Python.
"""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES = 256  # size of the vocabulary


class Block(nn.Module):
    """Mix positions by causal attention, then channels by a two-layer network; both residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Make the layers; `width` is a multiple of `heads`."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        batch, length, _ = x.shape
        packed = self.query_key_value(self.norm_attention(x))
        query, key, value = packed.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True
        )  # (batch, heads, length, width / heads)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))


class Gpt(nn.Module):
    """Predict the next byte: embeddings, a stack of blocks, output weights tied to the input's."""

    def __init__(self, block_size: int, layers: int, heads: int, width: int, dropout: float):
        """Make the layers and draw their weights from torch's global generator."""
        super().__init__()
        self.token, self.position = nn.Embedding(BYTES, width), nn.Embedding(block_size, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # residual branches start smaller: `layers` pairs add up
                last = name.endswith(("attention_out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map bytes (batch, length) int64 to logits (batch, length, 256)."""
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        x = self.blocks(self.token(inputs) + self.position(positions))
        return functional.linear(self.norm(x), self.token.weight)


class Windows:
    """Text cut into blocks, in an order fixed by seed and epoch: sample i is the same for all."""

    def __init__(self, text: Tensor, block_size: int, seed: int) -> None:
        """Keep `text`, uint8; blocks and their targets need at least two of it."""
        self.text, self.block_size, self.seed = text, block_size, seed
        self.per_epoch = len(text) // block_size - 1  # one block less leaves room for the shift
        self.epoch, self.shift, self.order = -1, 0, torch.empty(0)
        if self.per_epoch < 1:
            raise SystemExit(f"text of {len(text)} bytes is too short for blocks of {block_size}")

    def start(self, index: int) -> int:
        """Return where sample `index` begins, in bytes."""
        epoch, place = divmod(index, self.per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self.shift = int(torch.randint(self.block_size, (), generator=generator))
            self.order = torch.randperm(self.per_epoch, generator=generator)
            self.epoch = epoch
        return int(self.order[place]) * self.block_size + self.shift

    def batch(self, first: int, count: int) -> Tensor:
        """Return samples `first` to `first + count`: (count, block_size + 1) int64."""
        starts = [self.start(index) for index in range(first, first + count)]
        return torch.stack([self.text[s : s + self.block_size + 1] for s in starts]).long()


def load_text(source: str, limit: int) -> Tensor:
    """Read the manual's prose, the standard library's source or a file: uint8, at most `limit`."""
    if source == "manual":
        from pydoc_data.topics import topics

        data = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    elif source == "stdlib":
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        data = b"\n".join(file.read_bytes() for file in files)
    else:
        data = Path(source).read_bytes()
    return torch.frombuffer(bytearray(data[:limit]), dtype=torch.uint8)

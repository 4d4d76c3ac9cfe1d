# SPDX-License-Identifier: MIT
"""TokenDataset: a token file as samples to train a language model on."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pycomm.data.token_file import map_tokens, read_header
from pycomm.errors import UsageError

SPLITS = ("train", "validation", "all")


class TokenDataset(Dataset[tuple[Tensor, Tensor]]):
    """Blocks of a token file and, for each position, the token that comes next.

        dataset = TokenDataset("text.tokens", block_size=256)
        inputs, targets = dataset[0]                  # int64[256] each, targets one further on

    Sample i is tokens i * block_size to (i + 1) * block_size; what does not fill a block is left
    out. The file is mapped, not read: workers and ranks of a host share its pages. A pickled data
    set is its path, so it goes to DataLoader's workers whatever way they are started.

    Args:
        path: A file that prepare_text wrote.
        block_size: Tokens of a sample, 1 or more.
        split: "train", "validation" or "all".

    Attributes:
        header: The file's header: vocab_size, tokens, ...
        vocab_size: Every token is below it.

    Raises:
        UsageError: the file is not a whole token file, or has no block.
    """

    def __init__(self, path: str | os.PathLike[str], block_size: int, split: str = "train") -> None:
        if split not in SPLITS:
            raise UsageError(
                f"TokenDataset: got split={split!r}, expected one of {', '.join(SPLITS)}"
            )
        if block_size < 1:
            raise UsageError(f"TokenDataset: got block_size={block_size}, expected 1 or more")
        self.path, self.block_size, self.split = os.fspath(path), block_size, split
        self._open()
        if len(self) < 1:
            raise UsageError(
                f"TokenDataset: {self.path} has {len(self.tokens)} tokens in split {split!r}, "
                f"expected {block_size + 1} or more for block_size={block_size}"
            )

    def _open(self) -> None:
        self.header = read_header(self.path)
        train = self.header.train_tokens
        begin, end = {
            "train": (0, train),
            "validation": (train, self.header.tokens),
            "all": (0, self.header.tokens),
        }[self.split]
        self.tokens: npt.NDArray[np.unsignedinteger[Any]] = map_tokens(self.path, self.header)[
            begin:end
        ]

    @property
    def vocab_size(self) -> int:
        """Every token is below it."""
        return self.header.vocab_size

    def __len__(self) -> int:
        """Return the number of samples."""
        return max(0, len(self.tokens) - 1) // self.block_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, int64[block_size] each."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        begin = index * self.block_size
        block = torch.from_numpy(self.tokens[begin : begin + self.block_size + 1].astype(np.int64))
        return block[:-1], block[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "block_size": self.block_size, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

# SPDX-License-Identifier: MIT
"""Data for training on several ranks: text as tokens, and who gets which samples.

    pycomm.data.prepare_text("books/", "books.tokens", vocab_size=8192, processes=4)
    dataset = pycomm.data.TokenDataset("books.tokens", block_size=256)
    sampler = pycomm.data.ShardedSampler(dataset, batch_size=8)
    loader = pycomm.data.ShardedLoader(dataset, sampler, num_workers=2)

docs/data.md describes all of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pycomm.data.prepare import Prepared, prepare_text
from pycomm.data.token_file import load_tokenizer
from pycomm.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pycomm.data.loader import ShardedLoader
    from pycomm.data.sampler import ShardedSampler
    from pycomm.data.token_dataset import TokenDataset

# These need torch, which the command line does without: `pycomm doctor` says what is wrong with it.
_LATER = {
    "ShardedLoader": "pycomm.data.loader",
    "ShardedSampler": "pycomm.data.sampler",
    "TokenDataset": "pycomm.data.token_dataset",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Prepared",
    "ShardedLoader",
    "ShardedSampler",
    "TokenDataset",
    "Tokenizer",
    "load_tokenizer",
    "prepare_text",
]

# SPDX-License-Identifier: MIT
"""Text to token numbers and back: bytes, characters, or byte-level BPE."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pycomm.errors import UsageError

KINDS = ("bpe", "byte", "char")
END_OF_TEXT = "<|endoftext|>"


class Tokenizer(ABC):
    """Maps text to numbers below vocab_size and back; made by prepare_text or load_tokenizer.

    Attributes:
        kind: "bpe", "byte" or "char".
        vocab_size: Number of tokens.
        end_of_text: The token that ends a document; no text has it.
    """

    kind = ""
    vocab_size = 0
    end_of_text = 0

    @abstractmethod
    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return a text's tokens, int64[n]."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def to_json(self) -> str:
        """Return what from_json makes it of again."""


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8, and 256 as the end of a document."""

    kind, vocab_size, end_of_text = "byte", 257, 256

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the text's bytes."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of bytes."""
        return bytes(one for one in tokens if one != self.end_of_text).decode(errors="replace")

    def to_json(self) -> str:
        """Return {"kind": "byte"}."""
        return json.dumps({"kind": self.kind})


class CharTokenizer(Tokenizer):
    """One token for each character of the text it was made from, one for all others, and an end."""

    kind = "char"

    def __init__(self, characters: str) -> None:
        """Number the characters in code point order, after the end of text and the unknown one."""
        self.characters = "".join(sorted(set(characters) - {"\ufffd"}))
        self.vocab_size = len(self.characters) + 2
        self._table = {ord(one): number for number, one in enumerate(self.characters, 2)}

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return each character's number, 1 for one that is not known."""
        return np.array([self._table.get(ord(one), 1) for one in text], dtype=np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the characters, U+FFFD for unknown ones."""
        return "".join("\ufffd" if t == 1 else self.characters[t - 2] for t in tokens if t)

    def to_json(self) -> str:
        """Return the characters."""
        return json.dumps({"kind": self.kind, "characters": self.characters})


class BpeTokenizer(Tokenizer):
    """Byte-level BPE as GPT-2's (Radford et al. 2019), by the package tokenizers."""

    kind, end_of_text = "bpe", 0

    def __init__(self, description: str) -> None:
        """Read the package's own JSON."""
        self._inner = _package().Tokenizer.from_str(description)
        # A text that spells the end of text is a text.
        self._inner.encode_special_tokens = True
        self.vocab_size = self._inner.get_vocab_size()

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the text's tokens."""
        return np.array(self._inner.encode(text).ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._inner.decode([int(one) for one in tokens]))

    def to_json(self) -> str:
        """Return the package's own JSON, which its Tokenizer.from_file reads, too."""
        return str(self._inner.to_str())


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Return a tokenizer of vocab_size tokens, 257 or more, made from texts."""
    package = _package()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = package.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return BpeTokenizer(inner.to_str())


def from_json(description: str) -> Tokenizer:
    """Return the tokenizer that a to_json() describes."""
    kind = json.loads(description).get("kind")
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        return CharTokenizer(json.loads(description)["characters"])
    return BpeTokenizer(description)


def beside(tokens: Path) -> Path:
    """Return where the tokenizer of a token file is."""
    return tokens.with_name(tokens.name + ".tokenizer.json")


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UsageError(
            "byte-level BPE needs the package tokenizers, which is not installed: "
            "pip install tokenizers; or use tokenizer='byte' or 'char', which need nothing"
        ) from error
    return tokenizers

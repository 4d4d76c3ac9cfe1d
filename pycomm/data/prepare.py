# SPDX-License-Identifier: MIT
"""prepare_text: text files to a token file and a tokenizer, over several processes."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pycomm.data import token_file
from pycomm.data.cleaning import clean
from pycomm.data.pieces import Piece, cut, find_files, split
from pycomm.data.tokenizer import (
    KINDS,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    beside,
    train_bpe,
)
from pycomm.durable import write_text
from pycomm.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """What prepare_text has made.

    Attributes:
        path: The token file.
        header: Its header: tokens, train_tokens, documents, vocab_size, sha256.
        tokenizer: What made the tokens; its file is beside the token file.
    """

    path: Path
    header: token_file.Header
    tokenizer: Tokenizer


def prepare_text(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: str = "bpe",
    vocab_size: int = 4096,
    processes: int = 1,
    validation: float = 0.1,
    pattern: str = "*.txt",
    progress: bool = True,
) -> Prepared:
    """Clean text files, make a tokenizer from them, and write them as tokens. Blocking.

        prepared = pycomm.data.prepare_text("books/", "books.tokens", vocab_size=8192, processes=4)

    Writes `out` and, beside it, `out`.tokenizer.json; each is there whole or not at all. The bytes
    of both are the same for any number of processes. The tokenizer is made from the text to train
    on only. Where Python does not fork (from 3.14 on), processes > 1 needs
    `if __name__ == "__main__":` in the calling script, as with all of multiprocessing.

    Args:
        paths: UTF-8 files and folders, one or several. Each file is a document.
        out: The token file.
        tokenizer: "bpe": byte-level BPE, needs the package tokenizers; "byte" or "char".
        vocab_size: Tokens of the BPE vocabulary, at most, 257 or more.
        processes: That clean and encode.
        validation: Share of the text that is for validation, 0 to below 1, by pieces of the files.
        pattern: Which files of folders are meant, at any depth.
        progress: Show a bar on a terminal, if tqdm is installed.

    Raises:
        UsageError: an argument is not understood, a file does not exist, or tokenizers is missing.
    """
    _check(tokenizer, vocab_size, processes, validation)
    target = Path(out)
    if not target.parent.is_dir():
        raise UsageError(f"prepare_text: out={str(out)!r}: the folder {target.parent} is missing")
    pieces = cut(find_files(paths, pattern))
    if len(pieces) < (2 if validation else 1):
        raise UsageError(
            f"prepare_text: {len(pieces)} pieces of text are too few to split off validation="
            f"{validation}; expected more than {4 << 10} bytes, or validation=0"
        )
    train, held_out = split(pieces, validation)
    _load.cache_clear()
    with _workers(processes) as over, _bar(pieces, tokenizer, progress) as advance:
        made = _make(tokenizer, vocab_size, over(_text_of, train, advance), processes)
        write_text(beside(target), made.to_json())
        encode = _Encode(str(beside(target)))
        header = token_file.write(
            target, made, over(encode, train, advance), over(encode, held_out, advance)
        )
    return Prepared(target, header, made)


def _check(tokenizer: str, vocab_size: int, processes: int, validation: float) -> None:
    if tokenizer not in KINDS:
        raise UsageError(
            f"prepare_text: got tokenizer={tokenizer!r}, expected one of {', '.join(KINDS)}"
        )
    if tokenizer == "bpe" and not 257 <= vocab_size < 1 << 32:
        raise UsageError(f"prepare_text: got vocab_size={vocab_size}, expected 257 or more")
    if processes < 1:
        raise UsageError(f"prepare_text: got processes={processes}, expected 1 or more")
    if not 0 <= validation < 1:
        raise UsageError(f"prepare_text: got validation={validation}, expected 0 to below 1")


def _make(kind: str, vocab_size: int, texts: Iterable[str], processes: int) -> Tokenizer:
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return CharTokenizer("".join(seen))
    # Counting words is the package's own threads' work: as many as there are processes.
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if processes > 1 else "false"
    os.environ.setdefault("RAYON_NUM_THREADS", str(processes))
    try:
        return train_bpe(texts, vocab_size)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


_THREADS = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")


# ---- what processes do


def _text_of(piece: Piece) -> str:
    return clean(piece.read())


class _Encode:
    """Makes a piece's tokens, uint32; knows its tokenizer by file, so it travels at no cost."""

    def __init__(self, tokenizer: str) -> None:
        self._path = tokenizer

    def __call__(self, piece: Piece) -> npt.NDArray[np.uint32]:
        tokenizer = _load(self._path)
        tokens = tokenizer.encode(clean(piece.read()))
        if piece.last:
            tokens = np.append(tokens, tokenizer.end_of_text)
        return tokens.astype(np.uint32)


@functools.lru_cache(maxsize=1)
def _load(path: str) -> Tokenizer:
    return token_file.load_tokenizer(path)


Over = Callable[[Callable[[Piece], T], Sequence[Piece], Callable[[Piece], None]], Iterator[T]]


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[Over[Any]]:
    """Give a function that maps over pieces, in order, on so many processes."""
    with contextlib.ExitStack() as stack:
        pool: Any = None
        if processes > 1:
            # In Python's own way, as DataLoader: before 3.14 a fork, which costs milliseconds where
            # a new process costs an import of torch, as much as making 1 MB of text into tokens.
            pool = stack.enter_context(multiprocessing.Pool(processes))

        def over(
            function: Callable[[Piece], T],
            pieces: Sequence[Piece],
            advance: Callable[[Piece], None],
        ) -> Iterator[T]:
            results = map(function, pieces) if pool is None else pool.imap(function, pieces)
            for piece, result in zip(pieces, results, strict=True):
                advance(piece)
                yield result

        yield over


@contextlib.contextmanager
def _bar(
    pieces: Sequence[Piece], tokenizer: str, progress: bool
) -> Iterator[Callable[[Piece], None]]:
    """Give a function that counts a piece as done on a bar, in bytes of all passes over it."""
    try:
        from tqdm import tqdm
    except ImportError:
        progress = False
    total = sum(piece.end - piece.begin for piece in pieces)
    if not progress:
        yield lambda piece: None
        return
    passes = 1 if tokenizer == "byte" else 2
    with tqdm(total=total * passes, unit="B", unit_scale=True, desc="tokens", disable=None) as bar:
        yield lambda piece: bar.update(piece.end - piece.begin) and None

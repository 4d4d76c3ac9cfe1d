# SPDX-License-Identifier: MIT
"""Texts cut into pieces of some hundred kilobytes at line ends: what one process works on at once.

Where the cuts are depends on the files alone, so the outcome is the same for any number of
processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pycomm.data.order import hashes
from pycomm.errors import UsageError

# Few enough that a small text still has pieces for every process and for validation; large enough
# that handing one over costs nothing against encoding it.
_PIECES_MIN = 64
_PIECE_BYTES = (4 << 10, 1 << 20)


@dataclass(frozen=True)
class Piece:
    """Lines of a file: those that begin in bytes begin + 1 to end, and the first if begin is 0.

    Attributes:
        path: The file.
        begin: Bytes.
        end: Bytes; the file's size for its last piece.
        last: Whether the document ends with it.
    """

    path: str
    begin: int
    end: int
    last: bool

    def read(self) -> bytes:
        """Return the piece's bytes: whole lines, perhaps none."""
        with open(self.path, "rb") as file:
            begin = _line_begin(file, self.begin)
            end = _line_begin(file, self.end)
            file.seek(begin)
            return file.read(end - begin)


def _line_begin(file: object, at: int) -> int:
    """Where the first line begins that begins at `at` or later."""
    if at == 0:
        return 0
    file.seek(at - 1)  # type: ignore[attr-defined]
    file.readline()  # type: ignore[attr-defined]
    return int(file.tell())  # type: ignore[attr-defined]


def find_files(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], pattern: str
) -> list[Path]:
    """Return the files that are meant: folders stand for all files in them that match pattern.

    Raises:
        UsageError: one does not exist, or there is none.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            files += sorted(one for one in path.rglob(pattern) if one.is_file())
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError(f"prepare_text: {path} does not exist; expected a file or a folder")
    if not files:
        raise UsageError(
            f"prepare_text: no file in {[str(path) for path in given]}; expected files, or folders "
            f"with files that match {pattern!r}"
        )
    return files


def cut(files: Sequence[Path]) -> list[Piece]:
    """Return all files in pieces, in order."""
    sizes = [file.stat().st_size for file in files]
    low, high = _PIECE_BYTES
    size = min(max(sum(sizes) // _PIECES_MIN, low), high)
    pieces = []
    for file, total in zip(files, sizes, strict=True):
        for begin in range(0, total, size):
            end = min(begin + size, total)
            pieces.append(Piece(str(file), begin, end, end == total))
    return pieces


def split(pieces: Sequence[Piece], validation: float) -> tuple[list[Piece], list[Piece]]:
    """Return the pieces to train on and those to validate with, chosen by a hash of their number.

    At least one piece is for validation if any share is asked for.
    """
    count = round(validation * len(pieces))
    if validation > 0:
        count = min(max(count, 1), len(pieces) - 1)
    order = np.argsort(hashes(np.arange(len(pieces), dtype=np.int64), 1), kind="stable")
    chosen = set(order[:count].tolist())
    train = [piece for number, piece in enumerate(pieces) if number not in chosen]
    return train, [piece for number, piece in enumerate(pieces) if number in chosen]

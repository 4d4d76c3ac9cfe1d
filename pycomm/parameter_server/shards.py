# SPDX-License-Identifier: MIT
"""Which server keeps which part of which parameter. Pure: every process computes the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from pycomm.errors import UsageError

KINDS = ("range", "hash")
# Elements. A model is dealt out in at least this many chunks a server, so that their sizes even
# out, but in none so small that it costs more to name than to send, or so large that one decides.
_CHUNKS_PER_SERVER, _CHUNK_MIN, _CHUNK_MAX = 16, 1024, 65536


@dataclass(frozen=True)
class Piece:
    """Elements begin to end of a parameter, counted in its flat order."""

    name: str
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Elements."""
        return self.end - self.begin


def deal(sizes: Mapping[str, int], servers: int, kind: str) -> list[list[Piece]]:
    """Deals a model out to servers.

    Args:
        sizes: Elements of each parameter, in the model's order.
        servers: How many there are.
        kind: "range": all parameters one behind the other, cut into equal parts, which differ by at
            most one element. "hash": in chunks, in the order of the hash of their names and places,
            each to the server that has least; parts differ by at most one chunk, and neighbours are
            spread, so that a layer's load is.

    Returns:
        The pieces of each server, in the model's order.

    Raises:
        UsageError: there are fewer elements than servers, or no such kind.
    """
    if kind not in KINDS:
        raise UsageError(f"shards={kind!r}: expected one of {', '.join(KINDS)}")
    total = sum(sizes.values())
    if not 1 <= servers <= total:
        raise UsageError(
            f"servers={servers}: expected 1 to {total}, the number of elements that are trained"
        )
    return _by_range(sizes, servers) if kind == "range" else _by_hash(sizes, servers)


def _by_range(sizes: Mapping[str, int], servers: int) -> list[list[Piece]]:
    total = sum(sizes.values())
    bounds = [total * server // servers for server in range(servers + 1)]
    begins = accumulate(sizes.values(), initial=0)
    placed = list(zip(sizes.items(), begins, strict=False))
    return [
        [
            Piece(name, max(low - at, 0), min(high - at, size))
            for (name, size), at in placed
            if max(low, at) < min(high, at + size)
        ]
        for low, high in zip(bounds, bounds[1:], strict=False)
    ]


def _by_hash(sizes: Mapping[str, int], servers: int) -> list[list[Piece]]:
    chunk = sum(sizes.values()) // (servers * _CHUNKS_PER_SERVER)
    chunk = min(max(chunk, _CHUNK_MIN), _CHUNK_MAX)
    chunk = min(chunk, max(1, sum(sizes.values()) // servers))  # small models: one each at least
    chunks = [
        Piece(name, begin, min(begin + chunk, size))
        for name, size in sizes.items()
        for begin in range(0, size, chunk)
    ]
    place = {piece: index for index, piece in enumerate(chunks)}
    dealt: list[list[Piece]] = [[] for _ in range(servers)]
    loads = [0] * servers
    for piece in sorted(chunks, key=_hash):
        least = loads.index(min(loads))
        dealt[least].append(piece)
        loads[least] += piece.size
    return [_joined(sorted(pieces, key=place.__getitem__)) for pieces in dealt]


def _hash(piece: Piece) -> bytes:
    return hashlib.sha256(f"{piece.name}:{piece.begin}".encode()).digest()


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours made one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is not None and last.name == piece.name and last.end == piece.begin:
            joined[-1] = Piece(last.name, last.begin, piece.end)
        else:
            joined.append(piece)
    return joined

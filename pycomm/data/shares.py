# SPDX-License-Identifier: MIT
"""Who gets which of the samples that are left of an epoch, and in which batches.

Everything here is a function of its arguments, so that all ranks work out the same without talking.
The lengths come first and do not depend on the partition; the partition says who gets which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pycomm.data.order import Integers, hashes

PARTITIONS = ("random", "range", "hash")
UNEVEN = ("spread", "drop", "join")


@dataclass(frozen=True)
class Shares:
    """How samples are shared out: the same on all ranks.

    Attributes:
        world_size: Number of ranks.
        batch_size: Samples of a batch, at the mean over ranks.
        weights: One positive number for each rank: its share is proportional to it.
        partition: "random", "range" or "hash".
        uneven: "spread", "drop" or "join": what becomes of samples that do not fill a step.
    """

    world_size: int
    batch_size: int
    weights: tuple[float, ...]
    partition: str
    uneven: str

    def batch_sizes(self) -> list[int]:
        """Return how many samples each rank has in a whole step; at least one each."""
        if self.uneven == "join":  # there a rank with a smaller weight has fewer batches
            return [self.batch_size] * self.world_size
        return apportion(self.batch_size * self.world_size, self.weights, 1)


@dataclass(frozen=True)
class Dealt:
    """The samples left of an epoch, shared out.

    Attributes:
        owners: For each sample left, in order, the rank that gets it, or -1: nobody.
        sizes: int64[steps, ranks]: how many samples a rank has in a step; 0 only with "join".
    """

    owners: Integers
    sizes: Integers

    def places(self, rank: int) -> Integers:
        """Return where the samples of a rank are in the order, in the order it gets them."""
        return np.flatnonzero(self.owners == rank).astype(np.int64)

    def ends(self, rank: int) -> Integers:
        """Return where each batch of a rank ends, counted in its samples."""
        sizes = self.sizes[:, rank]
        return np.cumsum(sizes[sizes > 0], dtype=np.int64)


def apportion(total: int, weights: tuple[float, ...] | list[int], minimum: int = 0) -> list[int]:
    """Return whole numbers that add up to total, each as near to its weight's share as can be.

    Hamilton's method of largest remainders, on what is left after everybody has the minimum; among
    equals the lower rank gets more. `total` must be at least minimum for each.
    """
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [max(minimum, int(share)) for share in exact]
    while sum(parts) > total:  # minima took too much: those who are most above their share give
        most = max(
            (i for i in range(len(parts)) if parts[i] > minimum), key=lambda i: parts[i] - exact[i]
        )
        parts[most] -= 1
    while sum(parts) < total:
        least = max(range(len(parts)), key=lambda i: exact[i] - parts[i])
        parts[least] += 1
    return parts


def step_sizes(left: int, shares: Shares) -> Integers:
    """Return how many samples each rank has in each step, int64[steps, ranks].

    "drop": whole steps only. "spread": all samples, in the same number of batches for every rank,
    none of them empty: what is left over is one more step, or, if that is fewer samples than ranks,
    makes the last batch of some ranks larger by one. "join": all samples, ranks have as many
    batches as their weight says. With "spread" and fewer samples than ranks there is no step.
    """
    sizes = shares.batch_sizes()
    if shares.uneven == "join":
        # Every rank has something in a fresh epoch, however small its weight is.
        minimum = int(left >= shares.world_size)
        lengths = np.array(apportion(left, shares.weights, minimum), dtype=np.int64)
        steps = -(-lengths.max() // shares.batch_size) if left else 0
        before = np.arange(steps, dtype=np.int64)[:, None] * shares.batch_size
        return np.asarray(np.clip(lengths[None, :] - before, 0, shares.batch_size), np.int64)
    whole, rest = divmod(left, sum(sizes))
    table = np.tile(np.array(sizes, dtype=np.int64), (whole, 1))
    if shares.uneven == "drop" or rest == 0:
        return table
    if rest >= shares.world_size:
        last = np.array([apportion(rest, sizes, 1)], dtype=np.int64)
        return np.concatenate([table, last])
    if whole:
        by_size = sorted(range(shares.world_size), key=lambda rank: -sizes[rank])
        table[-1, by_size[:rest]] += 1
    return table


def deal(ids: Integers, shares: Shares) -> Dealt:
    """Share out samples, given by id in the order in which they are to come."""
    sizes = step_sizes(len(ids), shares)
    lengths = sizes.sum(axis=0)
    owners = np.full(len(ids), -1, dtype=np.int64)
    if shares.partition == "random":
        ranks = np.tile(np.arange(shares.world_size, dtype=np.int64), len(sizes))
        owners[: lengths.sum()] = np.repeat(ranks, sizes.ravel())
    elif shares.partition == "range":
        owners[np.argsort(ids, kind="stable")[: lengths.sum()]] = np.repeat(
            np.arange(shares.world_size, dtype=np.int64), lengths
        )
    else:
        owners[:] = _by_hash(ids, lengths, shares)
    return Dealt(owners, sizes)


def _scores(ids: Integers, rank: int, weight: float) -> npt.NDArray[np.float64]:
    """How much a rank wants each sample: weighted rendezvous hashing.

    A rank gets a share proportional to its weight, and one that joins or leaves moves only its own
    share (Schindelhauer, Schomaker: Weighted distributed hash tables, 2005).
    """
    uniform = (hashes(ids, rank).astype(np.float64) + 1.0) / (2.0**64 + 2.0**12)
    return np.asarray(-weight / np.log(uniform), np.float64)


def _by_hash(ids: Integers, lengths: Integers, shares: Shares) -> Integers:
    """Owners by hash; who is over its length passes on to the next best rank that has room."""
    owners = np.full(len(ids), -1, dtype=np.int64)
    best = np.full(len(ids), -1.0)
    for rank, weight in enumerate(shares.weights):
        scores = _scores(ids, rank, weight)
        owners[scores > best] = rank
        best = np.maximum(best, scores)
    room = lengths.copy()
    over = []
    for rank in range(shares.world_size):
        mine = np.flatnonzero(owners == rank)
        mine = mine[np.argsort(-best[mine], kind="stable")]
        over.append(mine[int(lengths[rank]) :])
        room[rank] -= min(len(mine), int(lengths[rank]))
    moved = np.sort(np.concatenate(over))
    owners[moved] = -1
    table = np.stack([_scores(ids[moved], r, w) for r, w in enumerate(shares.weights)], axis=1)
    for place, wishes in zip(moved, np.argsort(-table, axis=1, kind="stable"), strict=True):
        for rank in wishes:
            if room[rank] > 0:
                owners[place] = rank
                room[rank] -= 1
                break
    return owners

# SPDX-License-Identifier: MIT
"""ShardedSampler: each rank's part of a data set, resumable in mid-epoch at any world size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler

from pycomm.data import position
from pycomm.data.order import hashes
from pycomm.data.position import Course, Position
from pycomm.data.shares import PARTITIONS, UNEVEN, Shares, deal
from pycomm.errors import UsageError


class ShardedSampler(Sampler[int]):
    """Samples of a data set for one of several ranks; takes DistributedSampler's place.

        sampler = ShardedSampler(dataset, batch_size=8)         # rank from torch.distributed
        loader = ShardedLoader(dataset, sampler, num_workers=2)

    An iteration goes on where the last one stopped, and begins the next epoch after a whole one.
    Nothing here communicates: all ranks must be given the same arguments except for rank.

    Args:
        dataset: What has a length; samples are its indices.
        rank: This rank. Default: the default group's, or 0 without one.
        world_size: Number of ranks. Default: the default group's, or 1 without one.
        partition: "random": each step takes the next samples of one shuffled order, so that the
            samples of a step do not depend on the world size; "range": rank r gets a contiguous
            range of the data set; "hash": a sample stays with its rank over epochs, and few move
            when the world size changes.
        weights: A positive number for each rank: shares are proportional to them. Default: equal.
        batch_size: Samples of a batch at the mean over ranks. With weights a step's samples,
            batch_size times world_size, are split by weight. Default: not known here.
        uneven: What becomes of samples that do not fill a step. "spread": all ranks have the same
            number of batches and every sample comes once; one batch of an epoch has another size.
            "drop": they are left out. "join": every sample comes once in batches of batch_size,
            ranks have different numbers of batches; use it with Join or where ranks do not wait
            for each other. Default: "spread" if batch_size is given, else "drop".
        shuffle: Whether the order of an epoch is random; it is a function of seed and epoch.
        seed: Of the order.

    Raises:
        UsageError: an argument is not understood, or the data set is too small.
    """

    def __init__(
        self,
        dataset: Sized,
        rank: int | None = None,
        world_size: int | None = None,
        *,
        partition: str = "random",
        weights: Sequence[float] | None = None,
        batch_size: int | None = None,
        uneven: str | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        if world_size is None:
            world_size = dist.get_world_size() if grouped else 1
        self.dataset = dataset
        self.rank = rank if rank is not None else (dist.get_rank() if grouped else 0)
        if uneven is None:
            uneven = "drop" if batch_size is None else "spread"
        size = 1 if batch_size is None else batch_size
        self.shares = _shares(self.rank, world_size, size, weights, partition, uneven)
        self._course = Course(len(dataset), seed, shuffle)
        self._loaded = False
        self._at = Position(0, 0, {})
        self._take(self._at)
        need = sum(self.shares.batch_sizes()) if uneven == "drop" else world_size
        if len(dataset) < need:
            raise UsageError(
                f"ShardedSampler: {len(dataset)} samples do not make one step on {world_size} "
                f"ranks with batch_size={batch_size} and uneven={uneven!r}; expected {need} or more"
            )

    @property
    def epoch(self) -> int:
        """The epoch under way or, before the first iteration, to come."""
        return self._at.epoch

    @property
    def seed(self) -> int:
        """What the order follows from, with the epoch."""
        return self._course.seed

    def seed_of_draws(self) -> int:
        """Return a seed for what is drawn from here on: another one on each rank and at each place.

        Begins the next epoch after a whole one.
        """
        self._begin()
        salts = self.seed, self.rank, self._at.epoch
        return int(hashes(np.array([self._at.consumed]), *salts)[0] >> np.uint64(1))

    # ---- iteration

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices from where it stopped; each counts as consumed."""
        if self.shares.uneven == "spread":
            raise UsageError(
                "ShardedSampler: with uneven='spread' a batch may be larger than batch_size, which "
                "sampler= cannot say; give DataLoader batch_sampler=sampler.batches(), use "
                "ShardedLoader, or make the sampler with uneven='drop' or 'join'"
            )
        self._begin()
        for index in self._mine[self._at.consumed :].tolist():
            self._at = self._at._replace(consumed=self._at.consumed + 1)
            yield index

    def __len__(self) -> int:
        """Return how many samples this rank has in the epoch: those left of it, once resumed."""
        return len(self._mine)

    def batches(self) -> Batches:
        """Return this sampler for DataLoader's batch_sampler=: lists of indices."""
        return Batches(self, counts=True)

    def consume(self, batches: int = 1) -> None:
        """Count batches as consumed; for loaders that fetch ahead of their consumer."""
        done = self._batches_done() + batches
        if done > len(self._ends):
            raise UsageError(
                f"ShardedSampler: batch {done} of {len(self._ends)} consumed; do two loaders "
                "iterate over one sampler?"
            )
        self._at = self._at._replace(consumed=int(self._ends[done - 1]))

    def _batches_done(self) -> int:
        return int(np.searchsorted(self._ends, self._at.consumed, side="right"))

    @property
    def weight(self) -> float:
        """Of the batch last consumed: its size by the mean size over the ranks of its step.

        A loss that is a mean over the batch, times this, makes the mean of gradients over ranks
        the mean over the samples of the step. It is 1 where all batches of a step are equal.
        """
        step = self._batches_done() - 1
        sizes = self._dealt.sizes[step] if step >= 0 else np.ones(self.shares.world_size)
        return float(sizes[self.rank] / sizes.mean())

    # ---- epochs

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; nothing happens if it is the one under way.

        After load_state_dict go on with `for epoch in range(sampler.epoch, epochs)`.
        """
        if epoch == self.epoch and not self._finished():
            return
        if self._loaded and epoch < self.epoch:
            warnings.warn(
                f"ShardedSampler: set_epoch({epoch}) drops the position that was loaded, in epoch "
                f"{self.epoch}; begin the loop with range(sampler.epoch, ...)",
                stacklevel=2,
            )
        self._loaded = False
        self._go_to(epoch)

    def _finished(self) -> bool:
        return bool(self._at.consumed >= len(self._mine))

    def _begin(self) -> None:
        if self._finished():
            self._go_to(self.epoch + 1)

    def _go_to(self, epoch: int) -> None:
        at = Position(epoch, 0, self._at.records)
        self._take(position.at_a_step(self._course, self.shares, self.rank, at))

    def _take(self, at: Position) -> None:
        """Stand there, and work out what this rank gets from there on."""
        ids = position.left(self._course, at.records, at.epoch)
        self._dealt = deal(ids, self.shares)
        self._mine = ids[self._dealt.places(self.rank)]
        self._ends = self._dealt.ends(self.rank)
        self._at = at

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return where this rank is: plain numbers, strings and lists. Local.

        Where all ranks go in step any rank's will do for all of them; otherwise all ranks' are
        needed to go on at another world size, see load_rank_states.
        """
        return position.to_state(self._course, self.shares, self.rank, self._at)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from one rank's state, of ranks that went in step: all did as many batches. Local.

        With another world size, weights, batch size or partition than saved, the samples left of
        the epoch are shared out anew: each still comes once. Seed and shuffle are the state's.

        Raises:
            UsageError: the data set has another length, or the state is not understood.
        """
        self._load([state], in_step=True)

    def load_rank_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from the states of all ranks, which may have gone at different speeds. Local.

        Raises:
            UsageError: states do not belong together or one is missing, or as load_state_dict.
        """
        self._load(states, in_step=False)

    def reshard(
        self,
        rank: int,
        world_size: int,
        *,
        weights: Sequence[float] | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Share out what is left of the epoch among other ranks, or with other weights. Local.

        For ranks that went in step; all call it between the same two batches.
        """
        state, old = self.state_dict(), self.shares
        size = old.batch_size if batch_size is None else batch_size
        self.shares = _shares(rank, world_size, size, weights, old.partition, old.uneven)
        self.rank = rank
        self._load([state], in_step=True)

    def _load(self, states: Sequence[dict[str, Any]], in_step: bool) -> None:
        course = position.course_of(states, self._course.length)
        at = position.resume(course, self.shares, self.rank, states, in_step)
        self._course, self._loaded = course, True
        self._take(at)


class Batches(Sampler[list[int]]):
    """A ShardedSampler's batches, for DataLoader's batch_sampler=.

    Attributes:
        sampler: The sampler.
    """

    def __init__(self, sampler: ShardedSampler, counts: bool) -> None:
        """Count batches as consumed when they are yielded, or leave that to another."""
        self.sampler, self._counts = sampler, counts

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches from where it stopped."""
        sampler = self.sampler
        sampler._begin()
        mine, ends, begin = sampler._mine, sampler._ends, sampler._at.consumed
        for end in ends[sampler._batches_done() :].tolist():
            if self._counts:
                sampler.consume()
            yield mine[begin:end].tolist()
            begin = end

    def __len__(self) -> int:
        """Return how many batches the next iteration yields."""
        ends = self.sampler._ends
        return len(ends) - self.sampler._batches_done() or len(ends)


def _shares(
    rank: int,
    world_size: int,
    batch_size: int,
    weights: Sequence[float] | None,
    partition: str,
    uneven: str,
) -> Shares:
    """Check a sampler's arguments."""

    def refuse(what: str, given: object, expected: str) -> UsageError:
        return UsageError(f"ShardedSampler: got {what}={given!r}, expected {expected}")

    if world_size < 1 or not 0 <= rank < world_size:
        raise refuse("rank", rank, f"0 to {world_size - 1}, as world_size is {world_size}")
    if batch_size < 1:
        raise refuse("batch_size", batch_size, "1 or more samples")
    if partition not in PARTITIONS:
        raise refuse("partition", partition, f"one of {', '.join(PARTITIONS)}")
    if uneven not in UNEVEN:
        raise refuse("uneven", uneven, f"one of {', '.join(UNEVEN)}")
    given = [1.0] * world_size if weights is None else [float(weight) for weight in weights]
    if len(given) != world_size or not all(0 < weight < math.inf for weight in given):
        raise refuse("weights", weights, f"{world_size} positive numbers, one for each rank")
    return Shares(world_size, batch_size, tuple(given), partition, uneven)

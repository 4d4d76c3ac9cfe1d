# SPDX-License-Identifier: MIT
"""ShardedLoader: torch's DataLoader over a ShardedSampler, counting what reaches the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from pycomm.data.sampler import Batches, ShardedSampler
from pycomm.errors import UsageError

T = TypeVar("T")
# What DataLoader has as attributes under the names of its arguments.
_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
)


class ShardedLoader(DataLoader[T]):
    """A DataLoader whose position is what its consumer got, not what its workers have fetched.

        loader = ShardedLoader(dataset, ShardedSampler(dataset, batch_size=8), num_workers=2)
        for epoch in range(loader.epoch, epochs):
            for batch in loader:
                ...
                state = loader.state_dict()      # this batch counts, those fetched ahead do not

    Batches come from the sampler, so batch_size, shuffle and drop_last are said there. An iteration
    that is left early is gone on with by the next. Workers are seeded from a generator of the
    loader's own, so that making an iterator draws nothing from torch's global one and a resumed run
    sees the random numbers of one that never stopped. They draw other numbers on every rank and in
    every epoch.

    Args:
        dataset: A map-style data set.
        sampler: Its sampler.
        options: DataLoader's other arguments.

    Attributes:
        shards: The sampler. (DataLoader's own attribute `sampler` is another, which nobody uses.)
    """

    def __init__(self, dataset: Dataset[T], sampler: ShardedSampler, **options: Any) -> None:
        if not isinstance(sampler, ShardedSampler):
            raise UsageError(
                f"ShardedLoader: got a sampler of type {type(sampler).__name__}, expected a "
                "ShardedSampler; torch's DataLoader takes others"
            )
        own = torch.Generator() if options.get("generator") is None else None
        options["generator"] = options.get("generator") or own
        super().__init__(dataset, batch_sampler=Batches(sampler, counts=False), **options)
        self.shards, self._own_generator = sampler, own

    @classmethod
    def like(
        cls,
        loader: DataLoader[T],
        rank: int | None = None,
        world_size: int | None = None,
        **how: Any,
    ) -> ShardedLoader[T]:
        """Return a loader of one rank's share, with the data set and options of a plain one.

        Args:
            loader: Of a map-style data set, with a batch size. It shuffles if its sampler does,
                which must be sequential, or shuffle all samples.
            rank: As ShardedSampler's.
            world_size: As ShardedSampler's.
            how: More of ShardedSampler's arguments. The batch size is the loader's, on each rank.
        """
        if loader.batch_size is None or not hasattr(loader.dataset, "__len__"):
            raise UsageError(
                "ShardedLoader.like: got a loader without a batch size or with a data set without "
                "a length, expected DataLoader(dataset, batch_size=...) of a map-style data set"
            )
        how.setdefault("batch_size", loader.batch_size)
        how.setdefault("shuffle", shuffles(loader, "ShardedLoader.like"))
        how.setdefault("uneven", "drop" if loader.drop_last else None)
        sampler = ShardedSampler(loader.dataset, rank, world_size, **how)
        options = {name: getattr(loader, name) for name in _OPTIONS if hasattr(loader, name)}
        return cls(loader.dataset, sampler, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches that are left of the epoch, or those of the next epoch."""
        if self._own_generator is not None:
            self._own_generator.manual_seed(self.shards.seed_of_draws())
        for batch in super().__iter__():
            self.shards.consume()
            yield batch

    @property
    def weight(self) -> float:
        """The last batch's size by the mean over ranks: see ShardedSampler.weight."""
        return self.shards.weight

    @property
    def epoch(self) -> int:
        """The epoch under way or, before the first iteration, to come."""
        return self.shards.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch: see ShardedSampler.set_epoch."""
        self.shards.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where this rank is: see ShardedSampler.state_dict."""
        return self.shards.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from one rank's state: see ShardedSampler.load_state_dict."""
        self.shards.load_state_dict(state)

    def load_rank_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from all ranks' states: see ShardedSampler.load_rank_states."""
        self.shards.load_rank_states(states)


def shuffles(loader: DataLoader[Any], who: str) -> bool:
    """Return whether a loader shuffles; local.

    Args:
        loader: A plain loader, or one with torch's DistributedSampler.
        who: Whom an error names.

    Raises:
        UsageError: its sampler leaves samples out or repeats them: another one cannot take its
            place.
    """
    sampler = loader.sampler
    if loader.batch_size is not None or loader.batch_sampler is None:
        if isinstance(sampler, SequentialSampler):
            return False
        if isinstance(sampler, DistributedSampler):
            return bool(sampler.shuffle)
        every = len(loader.dataset)  # type: ignore[arg-type]
        if (
            isinstance(sampler, RandomSampler)
            and not sampler.replacement
            and sampler.num_samples == every
        ):
            return True
    else:
        sampler = loader.batch_sampler
    raise UsageError(
        f"{who}: the loader has a {type(sampler).__name__}, whose choice of samples would be lost; "
        "expected DataLoader(dataset, batch_size=..., shuffle=...); for some samples of a data set "
        "give torch.utils.data.Subset(dataset, indices)"
    )

# SPDX-License-Identifier: MIT
"""ShardedLoader: a position that is what the loop got, and DataLoader's own ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from pycomm import UsageError
from pycomm.data import ShardedLoader, ShardedSampler


class Numbers(Dataset[int]):
    """Sample i is i."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class Draws(Numbers):
    """Sample i is a random number."""

    def __getitem__(self, index: int) -> int:
        return int(torch.randint(1 << 30, ()))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loaders_state_counts_what_was_consumed_not_what_was_fetched(workers: int) -> None:
    data = Numbers(61)
    options: dict[str, Any] = {"num_workers": workers}
    if workers:
        options |= {"prefetch_factor": 4, "persistent_workers": True}

    def loader(rank: int, world_size: int) -> ShardedLoader[int]:
        sampler = ShardedSampler(data, rank, world_size, batch_size=3)
        return ShardedLoader(data, sampler, **options)

    handed: list[int] = []
    states = []
    for rank in range(2):
        one = loader(rank, 2)
        for number, batch in enumerate(one, 1):
            handed += batch.tolist()
            if number == 4:
                break
        states.append(one.state_dict())
        if workers:  # leaving a loop early loses nothing of what was fetched ahead
            again = loader(rank, 2)
            again.load_state_dict(states[-1])
            assert [b.tolist() for b in one] == [b.tolist() for b in again]
    assert len(handed) == 24
    for rank in range(3):
        one = loader(rank, 3)
        one.load_rank_states(states)
        handed += [int(index) for batch in one for index in batch]
    assert sorted(handed) == list(range(61))


def test_a_loader_draws_nothing_from_torchs_generator() -> None:
    data = Numbers(20)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(ShardedLoader(data, ShardedSampler(data, 0, 1, batch_size=3)))
    assert torch.equal(before, torch.get_rng_state())


def test_workers_draw_other_numbers_on_every_rank_and_in_every_epoch() -> None:
    def drawn(rank: int, epochs: int) -> list[int]:
        data = Draws(12)
        loader = ShardedLoader(data, ShardedSampler(data, rank, 2, batch_size=3), num_workers=1)
        return [int(one) for _ in range(epochs) for batch in loader for one in batch]

    first = drawn(0, 2)
    assert len(first) == 12 and len(set(first + drawn(1, 2))) == 24
    assert drawn(0, 2) == first


@pytest.mark.parametrize(
    "sampler",
    [
        SubsetRandomSampler([1, 2, 3]),
        WeightedRandomSampler([1.0] * 8, 8),
        RandomSampler(range(8), num_samples=4),
        RandomSampler(range(8), replacement=True),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_sampler_that_chooses_samples_is_refused(sampler: Any) -> None:
    plain = DataLoader(Numbers(8), 2, sampler=sampler)
    with pytest.raises(UsageError, match=f"has a {type(sampler).__name__}, whose choice"):
        ShardedLoader.like(plain, 0, 1)


def test_torchs_distributed_sampler_is_taken_over() -> None:
    for shuffle in (False, True):
        sampler: Any = DistributedSampler(range(8), 2, 0, shuffle=shuffle)
        one = ShardedLoader.like(DataLoader(Numbers(8), 4, sampler=sampler), 0, 1)
        assert (torch.cat(list(one)).tolist() != list(range(8))) == shuffle


def test_a_loader_like_a_plain_one_keeps_its_options() -> None:
    data = Numbers(50)
    plain = DataLoader(data, batch_size=4, shuffle=True, num_workers=0, collate_fn=list)
    got = []
    for rank in range(2):
        one = ShardedLoader.like(plain, rank, 2, seed=7)
        assert isinstance(one, DataLoader) and one.collate_fn is list
        got += [index for batch in one for index in batch]
        assert one.shards.shares.batch_size == 4
    assert sorted(got) == list(range(50)) and got != sorted(got)
    in_order = ShardedLoader.like(DataLoader(data, batch_size=4, drop_last=True), 0, 1)
    assert torch.cat(list(in_order)).tolist() == list(range(48))


def test_weights_of_batches_make_the_mean_over_ranks_the_mean_over_samples() -> None:
    data = torch.arange(43, dtype=torch.float64)
    loaders = [
        ShardedLoader(data, ShardedSampler(data, r, 3, batch_size=4, weights=[3, 2, 1]))
        for r in range(3)
    ]
    steps = 0
    for step in zip(*loaders, strict=True):
        means = [batch.mean() * one.weight for batch, one in zip(step, loaders, strict=True)]
        torch.testing.assert_close(sum(means) / 3, torch.cat(step).mean())
        steps += 1
    assert steps == 4


def test_the_sampler_takes_the_place_of_distributed_sampler() -> None:
    data = Numbers(50)
    got = []
    for rank in range(4):
        sampler = ShardedSampler(data, rank, 4)
        loader = DataLoader(data, batch_size=5, sampler=sampler)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches = [batch.tolist() for batch in loader]
            assert [len(batch) for batch in batches] == [5, 5, 2] and len(sampler) == 12
        got += [index for batch in batches for index in batch]
    assert len(set(got)) == 48

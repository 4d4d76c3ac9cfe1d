# SPDX-License-Identifier: MIT
"""What the loader of ctx.shard draws, and which loaders it refuses. One process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

from pycomm import UsageError
from pycomm.train.batches import StepLoader, loader_of


class Draws(Dataset[Tensor]):
    """Sample i is i and what three generators give."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        drawn = [torch.rand(()).item(), float(np.random.rand()), random.random()]
        return torch.tensor([index, *drawn], dtype=torch.float64)


def loader(replica: int = 0, workers: int = 0) -> StepLoader:
    plain = DataLoader(Draws(), 4, shuffle=True, num_workers=workers)
    return StepLoader(plain, 4, 2, replica, 2, seed=5)


def rows(one: StepLoader) -> list[list[float]]:
    return [row.tolist() for batch in one for row in batch]


@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_of_a_replica_draw_alike_and_replicas_apart(workers: int) -> None:
    torch.manual_seed(1)  # as one rank of a pipeline
    first, other = rows(loader(0, workers)), rows(loader(1, workers))
    torch.manual_seed(2)  # as another
    again = loader(0, workers)
    assert rows(again) == first
    drawn = [one for row in first + other + rows(again) for one in row[1:]]
    assert len(drawn) == 54 and len(set(drawn)) == 54


def test_a_resumed_run_draws_what_it_would_have_drawn() -> None:
    one = loader()
    steps = iter(one)
    next(steps)
    state, rest = one.state_dict(), [row.tolist() for batch in steps for row in batch]
    resumed = loader()
    resumed.load_state_dict(state)
    assert rows(resumed) == rest and len(rest) == 4


def test_the_programs_generators_are_left_as_they_were() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    rows(loader())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


def test_a_loader_whose_sampler_chooses_samples_is_refused() -> None:
    data = TensorDataset(torch.arange(8))
    batches: Any = [[0, 1], [2, 3]]
    for plain, name in (
        (DataLoader(data, 4, sampler=SubsetRandomSampler([1, 2, 3, 4])), "SubsetRandomSampler"),
        (DataLoader(data, batch_sampler=batches), "list"),
    ):
        with pytest.raises(UsageError, match=f"shard: the loader has a {name}, whose choice"):
            StepLoader(loader_of(plain, 4), 4, 4, 0, 1, seed=0)

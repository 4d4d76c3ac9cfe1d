# SPDX-License-Identifier: MIT
"""What could go wrong with pycomm.DataParallel without anybody noticing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Rank, run_ranks
from torch import Tensor, nn

import pycomm


class Assigns(nn.Module):
    """Its buffer is a new tensor after each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, rows: Tensor) -> Tensor:
        self.mean = self.mean / 2 + rows.detach().mean(0)
        return self.layer(rows)


def with_assigned_buffers(me: Rank) -> list[bool]:
    model = pycomm.DataParallel(Assigns(), bucket_bytes=1)
    for _ in range(2):
        model(torch.ones(2, 2) * (me.rank + 1)).sum().backward()
    with torch.no_grad():
        model(torch.zeros(2, 2))
    return [model.mean.equal(torch.full((2,), 0.75))]


def test_a_buffer_that_the_forward_assigns_is_that_of_rank_0() -> None:
    for found in run_ranks(with_assigned_buffers, 2):
        assert all(found), found


def changed(me: Rank) -> list[str]:
    def convert(model: Any) -> None:
        model.double()

    def assign(model: Any) -> None:
        model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)

    def unfreeze(model: Any) -> None:
        model.module[0].requires_grad_(True)

    told = []
    for change in (convert, assign, unfreeze):
        plain = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1))
        plain[0].requires_grad_(False)
        model = pycomm.DataParallel(plain)
        change(model)
        with pytest.raises(pycomm.UsageError) as raised:
            model(torch.ones(2, 5, dtype=plain[0].weight.dtype))
        told.append(str(raised.value))
        model.requires_grad_(False)
        assert model.buckets() == [["1.bias", "1.weight"]]
    return told


def test_parameters_that_change_after_wrapping_are_named() -> None:
    for told in run_ranks(changed, 2):
        for text, name in zip(told, ["weight", "1.weight", "0.weight"], strict=True):
            assert f"parameter {name} " in text

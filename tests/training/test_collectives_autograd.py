# SPDX-License-Identifier: MIT
"""Collectives that autograd runs backwards: torch.distributed.nn and functional collectives.

A collective is a linear map A from all ranks' inputs to all ranks' outputs, and what backward
gives is its adjoint: the sum over ranks of <A x, y> is that of <x, A' y> for any x and y. The
numbers are small integers in float64, so both sides are exact.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as autograd
from ranks import Rank, run_ranks
from torch import Tensor

Map = Callable[[Tensor], list[Tensor]]
ROOT = 1


def integers(shape: tuple[int, ...] | torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=generator).double()


def expect_adjoint(what: str, apply: Map, me: Rank, shape: tuple[int, ...]) -> None:
    """Checks that <A x, y> = <x, A' y>, summed over all ranks."""
    for trial in range(3):
        x = integers(shape, 100 * trial + me.rank).requires_grad_()
        outs = apply(x)
        ys = [
            integers(out.shape, 7000 + 100 * trial + 10 * i + me.rank) for i, out in enumerate(outs)
        ]
        forward = sum((out * y).sum() for out, y in zip(outs, ys, strict=True))
        (gradient,) = torch.autograd.grad(forward, x)
        backward = (x * gradient).sum()
        sides = torch.stack([forward, backward, gradient.abs().sum()]).detach()
        dist.all_reduce(sides)
        assert sides[0] == sides[1], f"{what}: <A x, y> = {sides[0]}, <x, A' y> = {sides[1]}"
        assert sides[2] != 0, f"{what}: no gradient anywhere"


def maps_of_torch_distributed_nn(me: Rank) -> None:
    p, rank = me.world_size, me.rank
    # Named, as the default is the group there was when torch imported this module.
    world = dist.group.WORLD
    maps: dict[str, tuple[Map, tuple[int, ...]]] = {
        "all_reduce": (lambda x: [autograd.all_reduce(x, group=world)], (3, 2)),
        "broadcast": (lambda x: [autograd.broadcast(x, ROOT, world)], (3, 2)),
        "reduce": (lambda x: [autograd.reduce(x, ROOT, group=world) * (rank == ROOT)], (3, 2)),
        "all_gather": (lambda x: list(autograd.all_gather(x, world)), (3, 2)),
        "gather": (lambda x: list(autograd.gather(x, ROOT, world)), (3, 2)),
        "scatter": (lambda x: [autograd.scatter(list(x.unbind()), ROOT, world)], (p, 3)),
        "reduce_scatter": (
            lambda x: [
                autograd.reduce_scatter(torch.zeros(3).double(), list(x.unbind()), group=world)
            ],
            (p, 3),
        ),
        "all_to_all": (
            lambda x: list(
                autograd.all_to_all(
                    [torch.zeros(3).double() for _ in range(p)], list(x.unbind()), world
                )
            ),
            (p, 3),
        ),
        "all_to_all_single": (
            lambda x: [autograd.all_to_all_single(torch.zeros_like(x), x, group=world)],
            (p, 3),
        ),
        "all_to_all_single, uneven": (
            lambda x: [
                autograd.all_to_all_single(
                    torch.zeros(p * (rank + 1), 2).double(),
                    x,
                    output_split_sizes=[rank + 1] * p,
                    input_split_sizes=[r + 1 for r in range(p)],
                    group=world,
                )
            ],
            (p * (p + 1) // 2, 2),
        ),
    }
    for what, (apply, shape) in maps.items():
        expect_adjoint(what, apply, me, shape)


def maps_of_functional_collectives(me: Rank) -> None:
    p, world = me.world_size, dist.group.WORLD
    maps: dict[str, tuple[Map, tuple[int, ...]]] = {
        "all_gather": (
            lambda x: [functional.all_gather_tensor_autograd(x, gather_dim=1, group=world)],
            (3, 2),
        ),
        "reduce_scatter": (
            lambda x: [functional.reduce_scatter_tensor_autograd(x, "sum", 0, group=world)],
            (2 * p, 3),
        ),
        "all_to_all": (
            lambda x: [functional.all_to_all_single_autograd(x, None, None, group=world)],
            (2 * p, 3),
        ),
    }
    for what, (apply, shape) in maps.items():
        expect_adjoint(what, apply, me, shape)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_backward_is_the_adjoint_of_forward(world_size: int) -> None:
    run_ranks(maps_of_torch_distributed_nn, world_size)
    run_ranks(maps_of_functional_collectives, world_size)

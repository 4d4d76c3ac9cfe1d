# SPDX-License-Identifier: MIT
"""DTensor: changes of placement, uneven and empty shards, products, against whole tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from ranks import Rank, run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    empty,
)

# Rows and columns that 2, 3 and 4 ranks share evenly, unevenly, and with ranks left empty-handed.
SHAPES = [(12, 12), (7, 5), (2, 3), (1, 1), (0, 4)]
PLACEMENTS: list[Placement] = [Replicate(), Shard(0), Shard(1), Partial()]


def whole_tensor(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-50, 50, shape, generator=generator, dtype=torch.float64)


def placed(whole: Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    """`whole` in these placements; a Partial one is spread so that no rank holds all of it."""
    spread = whole
    for dim, placement in enumerate(placements):
        if placement.is_partial():
            index, count = mesh.get_local_rank(dim), mesh.size(dim)
            spread = spread * (1 - 2 * (count - 1)) if index == 0 else spread * 2
    plain = [Replicate() if one.is_partial() else one for one in placements]
    local = distribute_tensor(whole, mesh, plain).to_local()
    if any(one.is_partial() for one in placements):
        local = distribute_tensor(spread, mesh, plain, src_data_rank=None).to_local()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def every_change_of_placement(me: Rank) -> None:
    mesh = init_device_mesh("cpu", (me.world_size,))
    for shape in SHAPES:
        whole = whole_tensor(shape)
        for before, after in itertools.product(PLACEMENTS, PLACEMENTS):
            if after.is_partial():
                continue  # torch makes no partial tensor of another
            what = f"{shape}: {before} to {after}"
            given = placed(whole, mesh, [before])
            changed = given.redistribute(placements=[after])
            assert changed.placements == (after,), what
            assert torch.equal(changed.full_tensor(), whole), what
            expected = distribute_tensor(whole, mesh, [after], src_data_rank=None).to_local()
            assert torch.equal(changed.to_local(), expected), what


def every_change_on_a_grid(me: Rank) -> None:
    mesh = init_device_mesh("cpu", (2, me.world_size // 2))
    for shape in ((12, 8), (7, 5)):
        whole = whole_tensor(shape)
        for before in itertools.product(PLACEMENTS, repeat=2):
            given = placed(whole, mesh, list(before))
            assert torch.equal(given.full_tensor(), whole), f"{shape}: {before}"
            for after in itertools.product(PLACEMENTS[:3], repeat=2):
                changed = given.redistribute(placements=after)
                assert torch.equal(changed.full_tensor(), whole), f"{shape}: {before} to {after}"


def test_every_change_of_placement_keeps_the_tensor() -> None:
    for world_size in (2, 3, 4):
        run_ranks(every_change_of_placement, world_size)


def test_every_change_of_placement_on_a_grid_keeps_the_tensor() -> None:
    run_ranks(every_change_on_a_grid, 4)


def products(me: Rank) -> None:
    """Whole numbers in float64: the sums of any split are exact."""
    mesh = init_device_mesh("cpu", (me.world_size,))
    a, b = whole_tensor((7, 10), 1), whole_tensor((10, 5), 2)
    for left, right in itertools.product(PLACEMENTS, PLACEMENTS):
        da, db = placed(a, mesh, [left]), placed(b, mesh, [right])
        product = da @ db
        assert torch.equal(product.full_tensor(), a @ b), f"{left} @ {right}"
        assert (da.sum(0).full_tensor() == a.sum(0)).all(), left
        assert (da.max().full_tensor() == a.max()).all(), left
    norm = torch.linalg.vector_norm(placed(a, mesh, [Shard(0)])).full_tensor()
    torch.testing.assert_close(norm, torch.linalg.vector_norm(a))


def gradients(me: Rank) -> None:
    """Autograd through placements gives whole tensors' gradients."""
    mesh = init_device_mesh("cpu", (me.world_size,))
    a, b = whole_tensor((7, 10), 1), whole_tensor((10, 5), 2)
    ra, rb = a.clone().requires_grad_(), b.clone().requires_grad_()
    (ra @ rb).square().sum().backward()
    for left, right in itertools.product(PLACEMENTS[:3], repeat=2):
        da = distribute_tensor(a, mesh, [left]).requires_grad_()
        db = distribute_tensor(b, mesh, [right]).requires_grad_()
        product = (da @ db).redistribute(placements=[Shard(1)])
        product.square().sum().backward()
        assert torch.equal(da.grad.full_tensor(), ra.grad), f"{left} @ {right}"
        assert torch.equal(db.grad.full_tensor(), rb.grad), f"{left} @ {right}"


@pytest.mark.parametrize("world_size", [2, 3])
def test_products_and_gradients_equal_those_of_whole_tensors(world_size: int) -> None:
    run_ranks(products, world_size)
    run_ranks(gradients, world_size)


def shared_from_rank_zero(me: Rank) -> None:
    """distribute_tensor takes rank 0's values; the others' are ignored."""
    mesh = init_device_mesh("cpu", (me.world_size,))
    theirs = whole_tensor((5, 4), seed=me.rank)
    for placement in PLACEMENTS[:3]:
        got = distribute_tensor(theirs, mesh, [placement]).full_tensor()
        assert torch.equal(got, whole_tensor((5, 4), seed=0)), placement
    torch.manual_seed(me.rank)
    module = distribute_module(nn.Linear(4, 3), mesh)
    weight = module.weight.to_local().detach()
    gathered = DTensor.from_local(weight[None], mesh, [Shard(0)]).full_tensor()
    assert (gathered == gathered[0]).all(), "replicated weights differ"
    assert empty(7, 3, device_mesh=mesh, placements=[Shard(0)]).shape == (7, 3)


def test_distributing_takes_the_values_of_the_first_rank() -> None:
    run_ranks(shared_from_rank_zero, 3)

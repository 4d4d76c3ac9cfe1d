# SPDX-License-Identifier: MIT
"""all_reduce of sparse COO tensors, against the dense sum."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from ranks import Rank, run_ranks, run_threads

import pycomm


def sparse(seed: int, sizes: tuple[int, ...], dims: int, entries: int, dtype: torch.dtype):
    """`entries` at random places, some of them given twice."""
    generator = torch.Generator().manual_seed(seed)
    places = [torch.randint(0, size, (entries,), generator=generator) for size in sizes[:dims]]
    values = torch.randint(-8, 8, (entries, *sizes[dims:]), generator=generator).to(dtype)
    return torch.sparse_coo_tensor(
        torch.stack(places), values, sizes, dtype=dtype, check_invariants=True
    )


@seed(20261121)
@settings(max_examples=25, deadline=None)
@given(
    world_size=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bfloat16]),
)
def test_the_sum_is_that_of_the_dense_tensors(world_size, sizes, data, dtype) -> None:
    dims = data.draw(st.integers(1, len(sizes)))
    entries = data.draw(st.lists(st.integers(0, 9), min_size=world_size, max_size=world_size))
    given_ = [sparse(i, tuple(sizes), dims, n, dtype) for i, n in enumerate(entries)]
    wanted = sum(one.to_dense() for one in given_)

    def rank(me: Rank) -> torch.Tensor:
        mine = given_[me.rank].clone()
        work = me.group.allreduce([mine])
        work.wait()
        assert mine.is_sparse and mine.is_coalesced()
        assert work.get_future().value()[0] is not None
        return mine

    results = run_threads(rank, world_size)
    for result in results:
        assert torch.equal(result.to_dense(), wanted)
        assert torch.equal(result.indices(), results[0].indices())
        assert torch.equal(result.values(), results[0].values())


def through_dist(me: Rank) -> None:
    mine = sparse(me.rank, (50, 3), 1, 10, torch.float32)
    wanted = sum(sparse(r, (50, 3), 1, 10, torch.float32).to_dense() for r in range(me.world_size))
    x = mine.clone()
    dist.all_reduce(x)
    assert torch.equal(x.to_dense(), wanted)
    x = mine.clone()
    dist.all_reduce(x, op=dist.ReduceOp.AVG)
    torch.testing.assert_close(x.to_dense(), wanted / me.world_size)
    # Several under way, dense ones between them.
    xs = [mine.clone() for _ in range(3)]
    dense = torch.ones(7)
    works = []
    for x in xs:
        works += [dist.all_reduce(x, async_op=True), dist.all_reduce(dense, async_op=True)]
    for work in reversed(works):
        work.wait()
    assert all(torch.equal(x.to_dense(), wanted) for x in xs)
    assert (dense == me.world_size**3).all()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_sum_and_avg_through_dist(world_size: int, transport: str) -> None:
    run_ranks(through_dist, world_size, transport=transport)


def refused(me: Rank) -> None:
    x = sparse(0, (5,), 1, 2, torch.float32)
    with pytest.raises(pycomm.UsageError, match="only sum and avg have a meaning on a sparse"):
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    with pytest.raises(pycomm.UsageError, match="a sparse complex tensor"):
        dist.all_reduce(sparse(0, (5,), 1, 2, torch.complex64))


def test_other_ops_and_complex_numbers_are_refused() -> None:
    run_ranks(refused, 2)


def shapes_differ(me: Rank) -> str:
    x = sparse(0, (5 + me.rank,), 1, 2, torch.float32)
    with pytest.raises(pycomm.Mismatch) as raised:
        dist.all_reduce(x)
    return str(raised.value)


def test_different_shapes_are_a_mismatch_with_both_sides() -> None:
    for text in run_ranks(shapes_differ, 2):
        assert "Float[5]" in text and "Float[6]" in text


def embeddings(me: Rank) -> None:
    """DDP with sparse gradients equals one process."""
    torch.manual_seed(0)
    model = torch.nn.Embedding(20, 4, sparse=True)
    alone = torch.nn.Embedding(20, 4, sparse=True)
    alone.load_state_dict(model.state_dict())
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    batches = [torch.tensor([r, r + 1, 7, 7]) for r in range(me.world_size)]
    weight = torch.arange(16.0).reshape(4, 4)
    for net, mine in ((ddp, [batches[me.rank]]), (alone, batches)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            (sum((net(b) * weight).sum() for b in mine) / len(mine)).backward()
            optimizer.step()
    torch.testing.assert_close(model.weight, alone.weight, rtol=1e-6, atol=1e-6)


def test_ddp_with_sparse_gradients_equals_one_process() -> None:
    run_ranks(embeddings, 2)

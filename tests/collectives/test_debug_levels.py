# SPDX-License-Identifier: MIT
"""TORCH_DISTRIBUTED_DEBUG: torch's wrapper around the backend, and what DDP does under it.

With DETAIL torch puts a ProcessGroupWrapper over each group, which compares every collective over a
Gloo group of its own before it lets the backend run it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks
from torch.nn.parallel import DistributedDataParallel

import pycomm


@contextlib.contextmanager
def group_at(me: Rank, level: str) -> Iterator[None]:
    """A default group made at a debug level, as the variable would set it for a whole process."""
    before = dist.get_debug_level()
    dist.set_debug_level(getattr(dist.DebugLevel, level))
    try:
        me.init()
        yield
        dist.destroy_process_group()
    finally:
        dist.set_debug_level(before)


def is_wrapped() -> bool:
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    return type(backend).__name__ == "_ProcessGroupWrapper"


def calls_through_the_wrapper(me: Rank) -> None:
    with group_at(me, "DETAIL"):
        assert is_wrapped()
        p, rank = me.world_size, me.rank
        subgroup = dist.new_group([p - 1, 0])
        for is_async in (False, True):

            def done(work: dist.Work | None, is_async: bool = is_async) -> None:
                if is_async:
                    work.wait()

            x = torch.full((5,), float(rank + 1))
            done(dist.all_reduce(x, async_op=is_async))
            assert (x == p * (p + 1) / 2).all()
            done(dist.broadcast(x.fill_(rank), 1, async_op=is_async))
            assert (x == 1).all()
            done(dist.reduce(x, p - 1, async_op=is_async))
            assert (x == (p if rank == p - 1 else 1)).all()
            mine = torch.tensor([float(rank)])
            everybody = torch.arange(float(p))
            out = torch.zeros(p)
            done(dist.all_gather_into_tensor(out, mine, async_op=is_async))
            assert torch.equal(out, everybody)
            outs = [torch.zeros(1) for _ in range(p)]
            done(dist.all_gather(outs, mine, async_op=is_async))
            assert torch.equal(torch.cat(outs), everybody)
            outs = [torch.zeros(1) for _ in range(p)] if rank == 1 else None
            done(dist.gather(mine, outs, 1, async_op=is_async))
            assert outs is None or torch.equal(torch.cat(outs), everybody)
            block = torch.zeros(1)
            given = list(everybody.split(1)) if rank == 0 else None
            done(dist.scatter(block, given, 0, async_op=is_async))
            assert block == rank
            done(dist.reduce_scatter(block, list(everybody.split(1)), async_op=is_async))
            assert block == rank * p
            done(dist.reduce_scatter_tensor(block, everybody, async_op=is_async))
            assert block == rank * p
            done(dist.all_to_all_single(out, torch.full((p,), float(rank)), async_op=is_async))
            assert torch.equal(out, everybody)
            outs = [torch.zeros(1) for _ in range(p)]
            done(dist.all_to_all(outs, [mine] * p, async_op=is_async))
            assert torch.equal(torch.cat(outs), everybody)
            done(dist.barrier(async_op=is_async))
            if rank in (0, p - 1):
                y = torch.tensor([rank + 1.0])
                done(dist.all_reduce(y, group=subgroup, async_op=is_async))
                assert y == p + 1
        messages_through_the_wrapper(p, rank)


def messages_through_the_wrapper(p: int, rank: int) -> None:
    x = torch.zeros(1)
    works = [
        dist.isend(torch.tensor([float(rank)]), (rank + 1) % p),
        dist.irecv(x, (rank - 1) % p),
    ]
    for work in works:
        work.wait()
    assert x == (rank - 1) % p
    if rank == 0:
        assert {dist.recv(x) for _ in range(p - 1)} == set(range(1, p))
    else:
        dist.send(x, 0)
    objects: list[object] = [None] * p
    dist.all_gather_object(objects, {"rank": rank})
    assert objects == [{"rank": r} for r in range(p)]
    xs = [torch.ones(1), torch.ones(2)]
    with dist._coalescing_manager():
        for one in xs:
            dist.all_reduce(one)
    assert all((one == p).all() for one in xs)


def test_every_call_works_through_the_wrapper_of_level_detail() -> None:
    run_ranks(calls_through_the_wrapper, 3, init=False)


def refused_by_the_wrapper(me: Rank) -> list[str]:
    texts = []
    with group_at(me, "DETAIL"):
        with pytest.raises(RuntimeError) as shapes:
            dist.all_reduce(torch.ones(4 + (me.rank == 1)))
        texts.append(str(shapes.value))
        with pytest.raises(RuntimeError) as collectives:
            if me.rank == 1:
                dist.broadcast(torch.ones(4), 0)
            else:
                dist.all_reduce(torch.ones(4))
        texts.append(str(collectives.value))
        # The backend never saw these calls.
        x = torch.ones(4)
        dist.all_reduce(x)
        assert (x == me.world_size).all()
    return texts


def test_the_wrapper_names_a_mismatch_and_the_group_goes_on() -> None:
    for shapes, collectives in run_ranks(refused_by_the_wrapper, 3, init=False):
        assert "Detected mismatch between collectives on ranks" in shapes
        assert "ALLREDUCE" in shapes and "TensorShape=[5]" in shapes, shapes
        assert "BROADCAST" in collectives and "ALLREDUCE" in collectives, collectives


def refused_by_the_backend(me: Rank) -> str:
    with group_at(me, "INFO"):
        assert not is_wrapped()
        with pytest.raises(pycomm.Mismatch) as mismatch:
            dist.all_reduce(torch.ones(4 + (me.rank == 1)))
    return str(mismatch.value)


def test_below_level_detail_the_backend_itself_names_the_mismatch() -> None:
    for text in run_ranks(refused_by_the_backend, 3, init=False):
        assert "float32[5]" in text and "float32[4]" in text and "rank 1" in text, text


class Branches(torch.nn.Module):
    """A model whose second branch some batches leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.second = torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        y = self.first(x).relu()
        return self.second(y) if both else y


def train_steps(me: Rank) -> list[torch.Tensor]:
    torch.manual_seed(5)
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(4):
        x = torch.randn(8, 6)[me.rank :: me.world_size]
        optimizer.zero_grad()
        model(x, both=step % 2 == 0).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def train(me: Rank, level: str) -> list[torch.Tensor]:
    with group_at(me, level):
        # The model goes before the group. The other way round DDP would drop the wrapper's group,
        # which is Gloo's, with the GIL held, and Gloo's thread, which is joined, may want the GIL.
        return train_steps(me)


def test_ddp_trains_alike_at_every_debug_level() -> None:
    plain = run_ranks(train, 2, "OFF", init=False)
    for level in ("INFO", "DETAIL"):
        for rank, parameters in enumerate(run_ranks(train, 2, level, init=False)):
            for ours, theirs in zip(parameters, plain[0], strict=True):
                assert torch.equal(ours, theirs), f"{level}: rank {rank} differs"


def step_after_an_unused_parameter() -> str:
    model = DistributedDataParallel(Branches())
    model(torch.ones(2, 6), both=False).sum().backward()
    try:
        model(torch.ones(2, 6), both=False)
    except RuntimeError as error:
        return str(error)
    return "no error"


def unused_parameter(me: Rank, level: str) -> str:
    with group_at(me, level):
        return step_after_an_unused_parameter()


def test_level_detail_names_the_parameters_that_got_no_gradient() -> None:
    for text in run_ranks(unused_parameter, 2, "DETAIL", init=False):
        assert "second.weight" in text and "second.bias" in text, text

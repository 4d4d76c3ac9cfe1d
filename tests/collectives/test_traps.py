# SPDX-License-Identifier: MIT
"""Traps that a first version of this library fell into, each held shut by a test."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

import pycomm

BLOCK = 300_000  # elements; several segments, more than a channel holds at once


def callback_waits_for_another_collective(me: Rank) -> float:
    x = torch.ones(8)
    y = torch.full((8,), float(me.rank))

    def then_reduce(_: torch.futures.Future) -> float:
        dist.all_reduce(y, async_op=True).get_future().wait()
        return float(y[0])

    future = dist.all_reduce(x, async_op=True).get_future().then(then_reduce)
    return float(future.wait())


def test_a_callback_may_wait_for_another_collective_of_its_group() -> None:
    assert run_ranks(callback_waits_for_another_collective, 2) == [1.0, 1.0]


def train_with_powersgd(me: Rank) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64))
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    losses = []
    for step in range(5):
        torch.manual_seed(10 * step + me.rank)
        loss = model(torch.randn(4, 64)).square().mean()
        loss.backward()
        losses.append(float(loss))
    gradient = next(model.parameters()).grad
    return [float(gradient.sum()), float(gradient.norm())]


def test_ddp_trains_with_the_powersgd_hook_and_ranks_hold_the_same_gradients() -> None:
    one, other = run_ranks(train_with_powersgd, 2)
    assert one == other and one[1] > 0


def exchange_over_itself(me: Rank) -> None:
    p, r = me.world_size, me.rank
    if r == 0:
        time.sleep(0.2)  # peers write into their own outputs long before this rank has sent
    x = torch.arange(p, dtype=torch.float32).repeat_interleave(BLOCK) + 100 * r
    dist.all_to_all_single(x, x)
    blocks = torch.arange(p, dtype=torch.float32) * 100 + r
    assert torch.equal(x, blocks.repeat_interleave(BLOCK))

    # The input lies where another rank's block will be written.
    out = torch.zeros(p * BLOCK)
    own = out[((r + 1) % p) * BLOCK :][:BLOCK]
    own.fill_(r + 1.0)
    dist.all_gather_into_tensor(out, own)
    assert torch.equal(out, (torch.arange(p) + 1.0).repeat_interleave(BLOCK))

    # The output lies in a block that another rank still needs.
    x = torch.full((p * BLOCK,), r + 1.0)
    dist.reduce_scatter_tensor(x[((r + 1) % p) * BLOCK :][:BLOCK], x)
    begin = ((r + 1) % p) * BLOCK
    assert (x[begin : begin + BLOCK] == p * (p + 1) / 2).all()


@pytest.mark.parametrize("world_size", [2, 3])
def test_inputs_that_lie_in_outputs_are_sent_as_they_were(world_size: int) -> None:
    run_ranks(exchange_over_itself, world_size)


def shared_outputs(me: Rank) -> None:
    one = torch.zeros(4)
    with pytest.raises(pycomm.UsageError, match="share memory"):
        dist.all_gather([one, one], torch.ones(4))


def test_outputs_that_share_memory_are_refused() -> None:
    run_ranks(shared_outputs, 2)


def one_rank_is_refused(me: Rank) -> str:
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    if me.rank == 0:
        with pytest.raises(pycomm.UsageError):
            backend.allreduce([torch.ones(4, device="meta")], dist.AllreduceOptions())
    try:
        dist.all_reduce(torch.ones(4))
        dist.all_reduce(torch.ones(4))
    except pycomm.Mismatch as error:
        return str(error)
    return "nothing"


def test_a_refused_call_is_not_paired_with_the_next_one_of_other_ranks() -> None:
    for text in run_ranks(one_rank_is_refused, 2):
        assert "#1" in text and "#2" in text, text


def uneven_own_block(me: Rank) -> None:
    sizes = {"output_split_sizes": [2, 2], "input_split_sizes": [1, 3]}
    if me.rank == 1:
        sizes = {"output_split_sizes": [3, 2], "input_split_sizes": [2, 3]}
    rows = sum(sizes["output_split_sizes"])
    with pytest.raises(pycomm.UsageError, match="its own input"):
        dist.all_to_all_single(torch.zeros(rows, 2), torch.ones(4 + me.rank, 2), **sizes)
    with pytest.raises(pycomm.UsageError, match="without dimensions"):
        dist.all_to_all_single(torch.zeros(()), torch.ones(()))


def test_all_to_all_refuses_an_own_block_of_two_sizes_and_tensors_without_rows() -> None:
    run_ranks(uneven_own_block, 2)


def overtaken(me: Rank) -> list[float]:
    if me.rank == 0:
        for value in (1.0, 2.0):
            dist.send(torch.full((BLOCK,), value), 1, tag=7)
        dist.send(torch.full((3,), 3.0), 1, tag=8)
        return []
    late = torch.zeros(3)
    work = dist.irecv(late, 0, tag=8)  # sets the two before it aside
    first, second = torch.zeros(BLOCK), torch.zeros(BLOCK)
    works = [dist.irecv(first, 0, tag=7), dist.irecv(second, 0, tag=7)]
    for one in (work, *works):
        one.wait()
    return [float(x[0]) for x in (first, second, late)]


def test_messages_of_one_tag_arrive_in_order_while_they_are_being_set_aside() -> None:
    for _ in range(10):
        assert run_ranks(overtaken, 2)[1] == [1.0, 2.0, 3.0]


def fork_and_destroy(me: Rank) -> int:
    child = os.fork()
    if child == 0:
        own = os.open("/dev/null", os.O_RDONLY)
        dist.destroy_process_group()
        os.fstat(own)  # raises if the group has closed a descriptor that is not its own
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    dist.barrier()
    return status


def test_a_forked_child_may_destroy_the_group_and_keeps_its_own_files() -> None:
    assert run_ranks(fork_and_destroy, 2) == [0, 0]


def leave_with_a_message_unread(me: Rank) -> float:
    x = torch.full((BLOCK,), 5.0)
    if me.rank == 0:
        dist.isend(x, 1).wait()
        return 0.0
    dist.isend(torch.ones(8), 0).wait()  # nobody will read it
    time.sleep(0.5)
    y = torch.zeros(BLOCK)
    dist.recv(y, 0)
    return float(y.sum()) / BLOCK


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_what_was_sent_arrives_though_the_sender_has_left(transport: str) -> None:
    assert run_ranks(leave_with_a_message_unread, 2, transport=transport)[1] == 5.0

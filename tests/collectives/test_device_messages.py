# SPDX-License-Identifier: MIT
"""Messages between devices: crossing, from several peers, in batches, and where queues are few."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import DEVICE, busy, gpu, here, run_on_devices
from ranks import Rank


def messages(me: Rank) -> None:
    other = 1 - me.rank
    for count in (1, 0, 3_000_000):
        out = torch.empty(count, device=here())
        receive = dist.irecv(out, other)  # before the other has sent, and before this one sends
        busy(5)
        send = dist.isend(torch.full((count,), float(me.rank), device=here()), other)
        send.wait()
        receive.wait()
        assert torch.equal(out.cpu(), torch.full((count,), float(other)))
    columns = torch.zeros(50, 2, device=here())
    mine = torch.arange(100.0, device=here()).view(50, 2)
    ops = [
        dist.P2POp(dist.isend, mine[:, 1], other),
        dist.P2POp(dist.irecv, columns[:, 0], other),
        dist.P2POp(dist.isend, mine[:, 0].to(torch.bfloat16), other),
        dist.P2POp(
            dist.irecv, later := torch.empty(50, dtype=torch.bfloat16, device=here()), other
        ),
    ]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert torch.equal(columns[:, 0].cpu(), mine[:, 1].cpu())
    assert not columns[:, 1].any().item()
    assert torch.equal(later.cpu(), mine[:, 0].cpu().to(torch.bfloat16))


def test_messages_cross_and_a_batch_goes_out_as_one() -> None:
    run_on_devices(messages, 2)


def batches_of_one_queue(me: Rank, said: Path) -> list[str]:
    keep = os.dup(2)
    with said.with_suffix(f".{me.rank}").open("w+b") as file:
        os.dup2(file.fileno(), 2)
        try:
            me.init(timeout_s=20)
            left, right = (me.rank - 1) % me.world_size, (me.rank + 1) % me.world_size
            for count in (1, 300_000):
                mine = torch.full((count,), float(me.rank), device=here())
                outs = [torch.empty(count, device=here()) for _ in range(3)]
                ops = [
                    dist.P2POp(dist.irecv, outs[0], left),
                    dist.P2POp(dist.irecv, outs[1], right),
                    dist.P2POp(dist.isend, mine, right),
                    dist.P2POp(dist.irecv, outs[2], left),
                    dist.P2POp(dist.isend, mine + 10, left),
                    dist.P2POp(dist.isend, mine + 20, right),
                ]
                works = dist.batch_isend_irecv(ops)
                assert [len(work.result()) for work in works] == [6]
                for one, wanted in zip(works[0].result(), [op.tensor for op in ops], strict=True):
                    assert one.data_ptr() == wanted.data_ptr()
                for work in works:
                    work.wait()
                wanted = [float(left), right + 10.0, left + 20.0]
                assert [out[-1].item() for out in outs] == wanted
                dist.all_reduce(mine)
                assert mine[-1].item() == sum(range(me.world_size))
            some = dist.new_group(list(range(me.world_size)))
            dist.all_reduce(torch.ones(2, device=here()), group=some)
            gpu().synchronize()
            dist.destroy_process_group()
        finally:
            os.dup2(keep, 2)
            os.close(keep)
        file.seek(0)
        return file.read().decode().splitlines()


@pytest.mark.skipif(DEVICE != "fakegpu", reason="needs a GPU whose streams share one queue")
def test_a_batch_sends_before_it_receives_where_streams_share_a_queue(tmp_path: Path) -> None:
    all_said = run_on_devices(
        batches_of_one_queue,
        3,
        tmp_path / "said",
        init=False,
        mode="H",
        gpus="uuid=SHARED,one_queue=1",
        env={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
    )
    for said in all_said:
        about = [line for line in said if "CUDA_DEVICE_MAX_CONNECTIONS=1" in line]
        assert len(about) == 1, said
        assert "send first" in about[0]


def no_message_waits_for_another_peer(me: Rank) -> None:
    """Rank 2 sends only when rank 0 has got what rank 1 sent, though rank 0 asked for it first."""
    x = torch.zeros(4, device=here())
    if me.rank == 0:
        first, second = torch.zeros(4, device=here()), torch.zeros(4, device=here())
        from_two = dist.irecv(first, 2)
        from_one = dist.irecv(second, 1)
        from_one.wait()
        dist.send(second + 1, 2)
        from_two.wait()
        assert (first[0].item(), second[0].item()) == (7.0, 5.0)
        assert dist.recv(x) == 1
        assert x[0].item() == 9.0
    elif me.rank == 1:
        dist.send(x + 5, 0)
        dist.send(x + 9, 0)
    else:
        dist.recv(x, 0)
        dist.send(x + 1, 0)


def test_a_receive_does_not_wait_for_those_from_other_ranks() -> None:
    run_on_devices(no_message_waits_for_another_peer, 3)

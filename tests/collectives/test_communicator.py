# SPDX-License-Identifier: MIT
"""pycomm.Communicator: handles, messages, refusals, stores, splits, and how groups end.

Ranks are processes without a process group of torch's, but for one test with threads.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Died, Rank, run_ranks, run_threads
from test_arrays import connect, of_all, same, values
from torch.distributed import PrefixStore

import pycomm


def refusals(me: Rank) -> list[str]:
    one, two = np.ones(4, np.float32), np.ones(4, np.float64)
    frozen = np.ones(4)
    frozen.flags.writeable = False
    repeated = np.lib.stride_tricks.as_strided(np.ones(4), (4, 2), (8, 0))
    said = []
    with connect(me) as comm:
        calls = [
            lambda: comm.all_reduce(3),
            lambda: comm.all_reduce(frozen),
            lambda: comm.all_reduce(one, frozen[:4].astype(np.float32)[:3]),
            lambda: comm.all_reduce(one, two),
            lambda: comm.all_reduce(repeated),
            lambda: comm.all_reduce(np.ones(2, ">f4")),
            lambda: comm.all_reduce(np.array(["text"])),
            lambda: comm.all_reduce(np.array([object()])),
            lambda: comm.all_reduce(np.ones(2, "datetime64[s]")),
            lambda: comm.all_reduce(np.ones(2, np.longdouble)),
            lambda: comm.all_reduce(one, op="mean"),
            lambda: comm.all_reduce(one, op=1),
            lambda: comm.all_reduce(one, op="bxor"),
            lambda: comm.all_reduce(torch.empty(4, device="meta")),
            lambda: comm.broadcast(one, root=2),
            lambda: comm.reduce(one, one.copy(), root=1 - me.rank),
            lambda: comm.all_gather(one, one),
            lambda: comm.gather(one, one.copy(), root=1 - me.rank),
            lambda: comm.scatter(None, one, root=me.rank),
            lambda: comm.reduce_scatter(one, one.copy()),
            lambda: comm.all_to_all(one[:3], one[:3].copy()),
            lambda: comm.send(one, me.rank),
            lambda: comm.send(one, 5),
            lambda: comm.recv(one, 1 - me.rank, tag=-1),
        ]
        for call in calls:
            with pytest.raises(pycomm.UsageError) as error:
                call()
            said.append(str(error.value))
        wrong = [
            lambda: comm.all_reduce(),
            lambda: comm.all_reduce(one, array=one),
            lambda: comm.all_reduce(one, nothing=1),
            lambda: comm.barrier(1, 2),
            lambda: comm.broadcast(one, "0"),
        ]
        for call in wrong:
            with pytest.raises(TypeError):
                call()
        same(comm.all_reduce(one), np.full(4, 2.0, np.float32))  # the group is as before
    return said


def test_a_call_that_cannot_work_says_why_and_harms_nothing() -> None:
    for said in run_ranks(refusals, 2, init=False):
        assert all("expected" in text or "nobody" in text for text in said), said
        assert "read-only" in said[1]
        assert "float32[4] and, for the result, float32[3]" in said[2]
        assert "'>f'" in said[5]


def handles(me: Rank) -> None:
    with connect(me) as comm:
        arrays = [values(me.rank, 100 + k) for k in range(20)]
        wanted = [np.sum(of_all(me.world_size, 100 + k), axis=0) for k in range(20)]
        works = [comm.all_reduce(one, async_op=True) for one in arrays]
        for k in reversed(range(20)):
            assert works[k].wait() is arrays[k]
            assert works[k].wait(timeout_s=1) is arrays[k]
            assert works[k].is_completed()
            same(arrays[k], wanted[k])
        dropped = values(me.rank, 1000)
        comm.all_reduce(dropped, async_op=True)  # nobody keeps the handle
        comm.all_reduce(values(me.rank, 50_000), async_op=True)  # nor the array
        comm.barrier(async_op=True).wait()
        same(dropped, np.sum(of_all(me.world_size, 1000), axis=0))
        work = comm.all_reduce(arrays[0][::-1], out := np.empty(100, np.float32), async_op=True)
        assert work.wait() is out
        with pytest.raises(pycomm.UsageError):
            work.wait(timeout_s=-1)
        if me.rank == 0:
            late = comm.recv(arrays[0], async_op=True)
            with pytest.raises(pycomm.Timeout):
                late.wait(timeout_s=0.05)
            comm.barrier()
            assert late.wait() == 1
        else:
            comm.barrier()
            comm.send(arrays[1][:100], 0)


def test_handles_wait_in_any_order_and_may_be_dropped() -> None:
    run_ranks(handles, 2, init=False)


def messages(me: Rank) -> None:
    with connect(me) as comm:
        after, before = (me.rank + 1) % me.world_size, (me.rank - 1) % me.world_size
        got = np.empty((2, 5), np.float32)
        sent = [comm.send(values(me.rank + tag, 5), after, tag, async_op=True) for tag in (0, 7)]
        assert comm.recv(got[1], before, tag=7) == before
        assert comm.recv(got[0]) == before
        for tag, row in ((0, got[0]), (7, got[1])):
            same(row, values(before + tag, 5))
        assert [work.wait() for work in sent] == [None, None]


def test_messages_are_matched_by_tag() -> None:
    run_ranks(messages, 3, init=False)


def splits(me: Rank) -> Any:
    comm = connect(me)
    halves = comm.split(me.rank % 2, key=-me.rank)
    alone = comm.split(None if me.rank else 2**62)
    comm.close()
    with pytest.raises(pycomm.Aborted):
        comm.barrier()
    with pytest.raises(pycomm.UsageError):
        halves.split("red")
    ranks = halves.all_gather(np.array([me.rank]), np.empty(halves.world_size, np.int64))
    halves.close()
    if alone is not None:
        assert alone.all_reduce(np.ones(1))[0] == 1
    return ranks.tolist(), None if alone is None else alone.world_size


def test_split_numbers_ranks_by_key() -> None:
    assert run_ranks(splits, 3, init=False) == [([2, 0], 1), ([1], None), ([2, 0], None)]


def leaves(me: Rank) -> str:
    one = np.ones(1)
    try:
        with connect(me) as comm:
            comm.all_reduce(one)
            if me.rank == 0:
                raise KeyError("no such word")
            comm.all_reduce(one)
    except (KeyError, pycomm.PeerFailure) as error:
        return str(error)
    return ""


def test_peers_are_told_what_ended_a_with_block() -> None:
    texts = run_ranks(leaves, 2, init=False)
    assert "its with block raised KeyError: 'no such word'" in texts[1]


def disagrees(me: Rank) -> None:
    comm = connect(me)
    with pytest.raises(pycomm.Mismatch) as error:
        comm.all_reduce(np.ones(4 + me.rank))
    assert len(error.value.ranks) == 1
    with pytest.raises(pycomm.Mismatch):
        comm.barrier(async_op=True)


def test_ranks_that_disagree_hear_of_it() -> None:
    run_ranks(disagrees, 2, init=False)


def loses_one(me: Rank) -> Any:
    comm = connect(me)
    work = comm.all_reduce(np.ones(4), async_op=True)
    work.wait()
    if me.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(pycomm.PeerFailure) as error:
        comm.all_reduce(np.ones(1 << 20))
    return error.value.ranks


def test_a_killed_rank_is_named() -> None:
    assert run_ranks(loses_one, 3, init=False, dies=[1]) == [(1,), Died(-signal.SIGKILL), (1,)]


def meets(me: Rank, store: str | None, port: int) -> float:
    if store is None:  # as torchrun does
        os.environ.update(RANK=str(me.rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(port)
        first, second = pycomm.Communicator(), pycomm.Communicator()
        first.close()
    else:
        second = pycomm.Communicator(me.rank, me.world_size, store)
    with second as comm:
        return float(comm.all_reduce(np.ones(3))[0])


@pytest.mark.parametrize("kind", ["environment", "tcp", "file"])
def test_ranks_meet_over_any_store(kind: str, tmp_path: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    store = {"tcp": f"tcp://127.0.0.1:{free_port}", "file": f"file://{tmp_path}/store"}.get(kind)
    assert run_ranks(meets, 2, store, free_port, init=False) == [2.0, 2.0]


def test_one_rank_needs_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pycomm.Communicator(0, 1) as comm:
        same(comm.all_reduce(np.ones(2)), np.ones(2))
        same(comm.all_gather(np.ones(2), np.empty(2)), np.ones(2))
    with pycomm.Communicator() as comm:  # nobody has started several
        assert (comm.rank, comm.world_size) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(pycomm.UsageError, match="RANK='1' is in the environment and WORLD_SIZE is"):
        pycomm.Communicator()
    monkeypatch.delenv("RANK")
    with pytest.raises(pycomm.UsageError, match="MASTER_ADDR"):
        pycomm.Communicator(0, 2)
    with pytest.raises(pycomm.UsageError, match="HOST:PORT"):
        pycomm.Communicator(0, 2, "127.0.0.1:29500")


def test_a_waiting_rank_lets_other_threads_run() -> None:
    def work(me: Rank) -> float:
        store = PrefixStore("arrays", me.store)
        with pycomm.Communicator(me.rank, me.world_size, store) as comm:
            for _ in range(50):
                comm.barrier()
            return float(comm.all_reduce(np.ones(1))[0])

    assert run_threads(work, 3) == [3.0] * 3

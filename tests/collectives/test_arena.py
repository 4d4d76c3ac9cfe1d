# SPDX-License-Identifier: MIT
"""Tensors in the arena: who gets them, what torch does with them, and what fork and death leave."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Died, Pool, Rank, run_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import pycomm
from pycomm import memory

LARGE = 1 << 16  # float32 elements, 256 KiB


def enter(rank: int) -> None:
    """What PYCOMM_ARENA=1 does in a process that has imported torch before."""
    os.environ["PYCOMM_ARENA"] = "1"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool(enter=enter)
    yield made
    made.close()


# ---- the context


def test_large_tensors_made_in_the_context_are_in_the_arena() -> None:
    with pycomm.arena():
        inside = torch.ones(LARGE)
        small = torch.ones(1000)
    outside = torch.ones(LARGE)
    assert memory.holds(inside) and not memory.holds(outside) and not memory.holds(small)
    assert (inside + outside == 2).all()
    # The storage remembers its allocator, after the context too.
    inside.untyped_storage().resize_(0)
    inside.untyped_storage().resize_(8 * LARGE)
    assert memory.holds(inside)


def test_the_context_nests_and_can_be_entered_again() -> None:
    context = pycomm.arena()

    @context
    def decorated() -> torch.Tensor:
        return torch.empty(LARGE)

    with context:
        with context, pycomm.arena():
            assert memory.holds(decorated())
        assert memory.holds(torch.empty(LARGE))
    assert not memory.holds(torch.empty(LARGE))
    with pytest.raises(ValueError, match="mine"), context:
        raise ValueError("mine")
    assert not memory.holds(torch.empty(LARGE))


def test_the_context_holds_for_other_threads() -> None:
    found: list[bool] = []
    with pycomm.arena():
        thread = threading.Thread(target=lambda: found.append(memory.holds(torch.empty(LARGE))))
        thread.start()
        thread.join()
    assert found == [True]


def test_memory_is_freed_used_again_and_given_back() -> None:
    gc.collect()
    before = memory.statistics()
    with pycomm.arena():
        tensor = torch.empty(100 * LARGE)
    place = tensor.data_ptr()
    during = memory.statistics()
    assert during["used_bytes"] == before["used_bytes"] + 400 * LARGE
    assert during["blocks"] == before["blocks"] + 1
    del tensor
    assert memory.statistics()["used_bytes"] == before["used_bytes"]
    with pycomm.arena():
        assert torch.empty(100 * LARGE).data_ptr() == place
    assert memory.trim() >= 400 * LARGE
    after = memory.statistics()
    assert after["touched_bytes"] == after["used_bytes"]


def test_memory_that_cannot_be_had_is_ordinary() -> None:
    before = memory.statistics()
    with pycomm.arena():
        huge = torch.empty(before["capacity_bytes"] // 4 + 1)  # untouched, so it costs nothing
    assert not memory.holds(huge)
    assert memory.statistics()["fallbacks"] == before["fallbacks"] + 1


# ---- what torch does with tensors


def test_numpy_views_saving_and_moving_to_shared_memory_work() -> None:
    with pycomm.arena():
        tensor = torch.arange(LARGE, dtype=torch.float32)
    array = tensor.numpy()
    array[5] = -1
    assert tensor[5] == -1
    del tensor
    gc.collect()
    assert array[7] == 7  # the array keeps the memory
    with pycomm.arena():
        tensor = torch.arange(LARGE, dtype=torch.float32)
        file = io.BytesIO()
        torch.save(tensor, file)
        file.seek(0)
        loaded = torch.load(file)
    assert torch.equal(loaded, tensor)
    tensor.share_memory_()
    assert tensor.is_shared() and not memory.holds(tensor)
    assert torch.equal(loaded, tensor)


def test_the_profiler_sees_what_is_allocated_and_freed() -> None:
    def allocated() -> list[int]:
        with torch.profiler.profile(profile_memory=True) as profiler:
            tensor = torch.empty(LARGE)
            del tensor
        events = profiler.profiler.kineto_results.events()
        return [event.nbytes() for event in events if event.name() == "[memory]"]

    ordinary = allocated()
    with pycomm.arena():
        assert allocated() == ordinary == [4 * LARGE, -4 * LARGE]


def test_pinned_memory_is_refused_as_without_the_arena() -> None:
    def pin() -> tuple[type, bool]:
        try:
            return type(None), torch.empty(LARGE, pin_memory=True).is_pinned()
        except Exception as error:
            return type(error), False

    ordinary = pin()
    with pycomm.arena():
        assert pin() == ordinary


# ---- fork


class Rows(Dataset):
    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        row = self.rows[index].clone()
        self.rows[index] = -1  # private to the worker
        return row


def loaded(me: Rank) -> list[int]:
    rows = torch.arange(8, dtype=torch.float32).repeat_interleave(LARGE).view(8, LARGE)
    assert memory.holds(rows)
    loader = DataLoader(Rows(rows), num_workers=2, multiprocessing_context="fork")
    batches = iter(loader)
    rows.fill_(100)  # after the fork: workers must not see it
    seen = [int(batch[0, 0]) for batch in batches]
    assert (rows == 100).all(), "what a worker writes reached its parent"
    me.init()
    batches = iter(loader)  # again, now beside a group
    rows.fill_(200)
    assert [int(batch[0, 0]) for batch in batches] == [100] * 8
    total = torch.ones(LARGE)
    dist.all_reduce(total)
    assert memory.holds(total) and (total == me.world_size).all()
    dist.destroy_process_group()
    return seen


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_of_a_data_loader_see_the_data_as_of_the_fork(pool: Pool, world_size: int) -> None:
    code = "from pycomm import memory; memory.install()"
    results = run_ranks(after, world_size, code, loaded, pool=pool, init=False)
    assert results == [list(range(8))] * world_size


def after(me: Rank, code: str, function: Any) -> Any:
    exec(code)
    return function(me)


def test_a_forked_child_allocates_ordinary_memory_and_a_copy_is_freed() -> None:
    with pycomm.arena():
        tensor = torch.ones(LARGE)
        child = os.fork()
        if child == 0:
            good = not memory.holds(torch.empty(LARGE)) and not memory.holds(tensor)
            good = good and bool((tensor == 1).all())
            good = good and memory.statistics()["capacity_bytes"] == 0
            tensor.fill_(2)
            good = good and bool((tensor == 2).all())
            del tensor
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tensor == 1).all()


def test_children_that_run_a_program_do_not_wait_for_a_copy() -> None:
    with pycomm.arena():
        tensor = torch.ones(LARGE)
    command = [sys.executable, "-S", "-c", "print(1)"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "1\n"
    assert (tensor == 1).all()


# ---- whole programs


def run_program(text: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_importing_torch_alone_turns_it_on_and_tensors_live_until_the_end() -> None:
    program = """
import pycomm, sys, torch
from pycomm import memory
x = torch.ones(1 << 16)
print(memory.holds(x), memory.statistics()["used_bytes"])
class AtExit:
    def __del__(self): self.x.fill_(1)
sys.late = AtExit(); sys.late.x = x
"""
    assert run_program(program, PYCOMM_ARENA="1") == f"True {4 * LARGE}\n"
    limited = run_program(program, PYCOMM_ARENA="1", PYCOMM_ARENA_BYTES="200K")
    assert limited == "False 0\n"
    off = "import sys, torch; print('pycomm._C' in sys.modules)"
    assert run_program(off, PYCOMM_ARENA="0") == "False\n"


# ---- ranks


def gpt_like() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(300, 300) for _ in range(6)))  # 352 KiB each


def ddp(me: Rank) -> Any:
    model = DistributedDataParallel(gpt_like(), bucket_cap_mb=0.8)
    assert all(memory.holds(p) for p in model.parameters() if p.numel() > 300)
    held: list[bool] = []
    sizes: list[list[int]] = []  # by step

    def watch(state, bucket):  # DDP checks annotations, and would not know these
        held.append(memory.holds(bucket.buffer()))
        sizes[-1].append(bucket.buffer().numel())
        work = dist.all_reduce(bucket.buffer(), dist.ReduceOp.AVG, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    model.register_comm_hook(None, watch)
    for step in range(3):
        sizes.append([])
        model(torch.full((2, 300), float(step + me.rank))).sum().backward()
        assert all(memory.holds(p.grad) for p in model.parameters() if p.numel() > 300)
    gradient = model.module[0].weight.grad.clone()
    return held, sizes, gradient


@pytest.mark.parametrize("world_size", [2, 3])
def test_ddp_has_its_buckets_in_the_arena_the_rebuilt_ones_too(pool: Pool, world_size: int) -> None:
    results = run_ranks(ddp, world_size, pool=pool)
    for held, sizes, gradient in results:
        assert all(held) and len(held) == sum(map(len, sizes))
        assert sizes[0] != sizes[1] == sizes[2], "the first step's buckets are not the final ones"
        assert torch.equal(gradient, results[0][2])


def fsdp(me: Rank, from_group: bool) -> list[bool]:
    model = gpt_like()
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    if from_group:
        for module in model.modules():
            if hasattr(module, "set_allocate_memory_from_process_group_for_comm"):
                module.set_allocate_memory_from_process_group_for_comm(True)
    gathered: list[bool] = []
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    gather = getattr(dist, name)

    def watch(*args: Any, **more: Any) -> Any:
        gathered.append(memory.holds(args[0] if args else next(iter(more.values()))))
        return gather(*args, **more)

    setattr(dist, name, watch)
    try:
        for step in range(2):
            model(torch.full((2, 300), float(step + me.rank))).sum().backward()
    finally:
        setattr(dist, name, gather)
    return gathered


@pytest.mark.parametrize("world_size", [2, 3])
def test_fsdp2_gathers_into_the_arena(pool: Pool, world_size: int) -> None:
    for gathered in run_ranks(fsdp, world_size, False, pool=pool):
        assert len(gathered) >= 12 and all(gathered)


def test_fsdp2_that_asks_the_group_for_memory_needs_no_opt_in() -> None:
    for gathered in run_ranks(fsdp, 2, True):
        assert len(gathered) >= 12 and all(gathered)
    for gathered in run_ranks(fsdp, 2, False):
        assert not any(gathered)


def die(me: Rank, inodes: Any) -> int:
    tensor = torch.ones(64 * LARGE)
    assert memory.holds(tensor)
    dist.all_reduce(tensor)
    (inode,) = {os.stat(path).st_ino for path in open_arenas("self")[:1]}
    if me.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(pycomm.PeerFailure):
        dist.all_reduce(tensor)
    return inode


def open_arenas(pid: str) -> list[str]:
    folder = f"/proc/{pid}/fd"
    paths = [f"{folder}/{name}" for name in os.listdir(folder)]
    return [path for path in paths if "pycomm arena" in link_of(path)]


def link_of(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def test_a_killed_rank_leaves_nothing(pool: Pool) -> None:
    shared = set(os.listdir("/dev/shm"))
    mine = Pool(enter=enter)
    try:
        results = run_ranks(die, 2, None, pool=mine, dies=[1])
        assert isinstance(results[1], Died)
    finally:
        mine.close()
    inode = results[0]
    users = [
        (pid, path)
        for pid in os.listdir("/proc")
        if pid.isdigit() and os.access(f"/proc/{pid}/fd", os.R_OK)
        for path in open_arenas(pid)
        if os.stat(path).st_ino == inode
    ]
    assert not users
    assert {n for n in os.listdir("/dev/shm") if "pycomm" in n} <= shared

# SPDX-License-Identifier: MIT
"""Backend.allocate_tensor: memory in the arena, kept and given out again."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import pytest
import torch
from ranks import Rank, run_threads

import pycomm
from pycomm import memory

CPU = torch.device("cpu")


def use(me: Rank) -> None:
    pool = me.backend
    assert pool.supports_tensor_alloc(CPU)
    assert not pool.supports_tensor_alloc(torch.device("cuda", 0))
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        tensor = pool.allocate_tensor(1000, dtype=dtype, device=CPU)
        assert tensor.dtype == dtype and tensor.shape == (1000,) and tensor.is_contiguous()
        assert tensor.data_ptr() % 4096 == 0
        assert memory.holds(tensor)
    assert pool.allocate_tensor(0, dtype=torch.float32, device=CPU).numel() == 0
    tensor = pool.allocate_tensor(3_000_000, dtype=torch.float32, device=CPU)
    place = tensor.data_ptr()
    view = tensor[5:10]
    del tensor
    other = pool.allocate_tensor(3_000_000, dtype=torch.float32, device=CPU)
    assert other.data_ptr() != place, "a view still has it"
    del view
    gc.collect()
    touched = memory.statistics()["touched_bytes"]
    again = pool.allocate_tensor(2_990_000, dtype=torch.float32, device=CPU)
    assert memory.statistics()["touched_bytes"] == touched, "freed memory is given out again"
    assert again.data_ptr() < other.data_ptr()
    with pytest.raises(pycomm.UsageError, match="expected cpu"):
        pool.allocate_tensor(1, dtype=torch.float32, device=torch.device("meta"))
    with pytest.raises(pycomm.UsageError, match="expected 0 or more"):
        pool.allocate_tensor(-1, dtype=torch.float32, device=CPU)


def test_tensors_come_from_memory_that_is_used_again() -> None:
    run_threads(use, 1)


def communicate(me: Rank) -> None:
    x = me.backend.allocate_tensor(100_000, dtype=torch.float32, device=CPU)
    x.fill_(me.rank + 1)
    me.group.allreduce([x]).wait()
    assert (x == me.world_size * (me.world_size + 1) / 2).all()


def test_collectives_work_on_them() -> None:
    run_threads(communicate, 3)


def packed(me: Rank) -> None:
    for held in (True, False):
        x = torch.ones(100_000)
        if held:
            x = me.backend.allocate_tensor(100_000, dtype=torch.float32, device=CPU).fill_(1)
        before = memory.statistics()
        me.backend.allreduce([x.view(250, 400).t()]).wait()
        after = memory.statistics()
        assert after["blocks"] - before["blocks"] == held
        assert after["used_bytes"] == before["used_bytes"] and (x == 1).all()


def test_the_packed_copy_of_one_that_is_not_contiguous_lies_there_too() -> None:
    run_threads(packed, 1)


OVERRIDDEN = """
import ctypes, warnings, torch
from pathlib import Path
c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
current = c10._ZN3c1015GetCPUAllocatorEv
current.restype = ctypes.c_void_p
c10._ZN3c1015SetCPUAllocatorEPNS_9AllocatorEh(ctypes.c_void_p(current()), ctypes.c_ubyte(5))
import pycomm
from pycomm import memory
warnings.simplefilter("error")
try:
    with pycomm.arena():
        raise SystemExit("no warning")
except RuntimeWarning as warning:
    assert "with a higher priority" in str(warning), warning
warnings.simplefilter("ignore")
with pycomm.arena():
    assert not memory.holds(torch.ones(1 << 16))
"""


def test_an_allocator_of_higher_priority_is_spoken_of() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OVERRIDDEN], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def threads(me: Rank) -> None:
    def churn(seed: int) -> None:
        kept = []
        for i in range(200):
            x = me.backend.allocate_tensor(
                1 + (seed * 7919 + i * 104729) % 50_000, dtype=torch.uint8, device=CPU
            )
            x.fill_(seed)
            kept.append(x)
            if len(kept) > 5:
                assert (kept.pop(0) == seed).all()

    workers = [threading.Thread(target=churn, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_threads_never_share_a_block() -> None:
    run_threads(threads, 1)


def fork(me: Rank) -> None:
    x = me.backend.allocate_tensor(1 << 20, dtype=torch.uint8, device=CPU)
    x.fill_(1)
    child = os.fork()
    if child == 0:
        x.fill_(2)  # private to the child
        os._exit(0 if (x == 2).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (x == 1).all()


def test_a_forked_child_has_a_copy_of_its_own() -> None:
    run_threads(fork, 1)

# SPDX-License-Identifier: MIT
"""Runs scenarios on ranks that have a device: the fake GPU, or CUDA by PYCOMM_TEST_DEVICE=cuda.

    def sums(me):                                  # at module level
        x = torch.full((4,), float(me.rank), device=here())
        dist.all_reduce(x)
        return x.cpu()

    run_on_devices(sums, 3)

All ranks share one GPU unless `gpus` gives the fake GPUs of each rank, as FakeOptions::parse reads
them. Their processes are apart from those of other tests: torch has another device there.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fake_cuda import fakegpu
from ranks import Pool, Rank, run_ranks

DEVICE = os.environ.get("PYCOMM_TEST_DEVICE", fakegpu.NAME)
# One GPU that all ranks share; a little slow and irregular, so that streams run apart.
SHARED = "uuid=SHARED,delay_us=200"


def _enter(rank: int, extension: Path | None, gpus: str) -> None:
    if extension is not None:
        os.environ["PYCOMM_TEST_FAKE_GPUS"] = f"{gpus},seed={rank + 1}"
        fakegpu.load(extension)


@cache
def _pool(gpus: str) -> Pool:
    extension = fakegpu.build() if DEVICE == fakegpu.NAME else None
    pool = Pool(enter=partial(_enter, extension=extension, gpus=gpus))
    atexit.register(pool.close)
    return pool


def run_on_devices(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    gpus: str = SHARED,
    mode: str = "auto",
    env: Mapping[str, str] | None = None,
    **given: Any,
) -> list[Any]:
    """As ranks.run_ranks, in processes that have the device; `mode` is PYCOMM_DEVICE_MODE."""
    env = {**(env or {}), "PYCOMM_DEVICE_MODE": mode}
    return run_ranks(function, world_size, *args, pool=_pool(gpus), env=env, **given)


def mode_now() -> str:
    """The mode of the default group, "H" or "S"."""
    return dist.group.WORLD._get_backend(here()).device_mode()[:1]


def meet() -> None:
    """A first collective, at which the ranks' devices connect; it waits for all ranks."""
    dist.all_reduce(torch.zeros(1, device=here()))


def here(index: int = 0) -> torch.device:
    """The device of this rank."""
    return torch.device(DEVICE, index)


def gpu() -> Any:
    """torch.fakegpu or torch.cuda."""
    return getattr(torch, DEVICE)


def busy(ms: int) -> None:
    """Keeps the current stream from going on for a while."""
    if DEVICE == fakegpu.NAME:
        gpu().sleep_ms(ms)
    else:
        torch.cuda._sleep(ms * 1_500_000)


def tell(me: Rank, what: str) -> None:
    me.store.set(what, b"1")


def hear(me: Rank, what: str) -> None:
    me.store.wait([what])

# SPDX-License-Identifier: MIT
"""Runs scenarios on ranks that have a device: the fake GPU, or CUDA by PYCOMM_TEST_DEVICE=cuda.

    def sums(me):                                  # at module level
        x = torch.full((4,), float(me.rank), device=here())
        dist.all_reduce(x)
        return x.cpu()

    run_on_devices(sums, 3)

All ranks share one GPU, and in mode K each has one of its own; or `gpus` gives the fake GPUs of
each rank, as FakeOptions::parse reads them, with {rank} for its number. Their processes are apart
from those of other tests: torch has another device there.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cuda import fakegpu
from ranks import Pool, Rank, run_ranks

DEVICE = os.environ.get("PYCOMM_TEST_DEVICE", fakegpu.NAME)
# One GPU that all ranks share, and one that is the rank's alone; a little slow and irregular, so
# that streams run apart.
SHARED_AND_OWN = "uuid=SHARED,delay_us=200;uuid=OWN-{rank},delay_us=200"


def _enter(rank: int, extension: Path | None, gpus: str) -> None:
    if extension is not None:
        each = [f"{one.format(rank=rank)},seed={rank + 1}" for one in gpus.split(";")]
        os.environ["PYCOMM_TEST_FAKE_GPUS"] = ";".join(each)
        fakegpu.load(extension)


@cache
def _pool(gpus: str) -> Pool:
    extension = fakegpu.build() if DEVICE == fakegpu.NAME else None
    pool = Pool(enter=partial(_enter, extension=extension, gpus=gpus))
    atexit.register(pool.close)
    return pool


def _on_its_device(me: Rank, function: Callable[..., Any], own: bool, *args: Any) -> Any:
    index = 0 if not own else 1 if DEVICE == fakegpu.NAME else me.rank
    gpu().set_device(index)
    return function(me, *args)


def run_on_devices(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    gpus: str = SHARED_AND_OWN,
    mode: str = "auto",
    env: Mapping[str, str] | None = None,
    **given: Any,
) -> list[Any]:
    """As ranks.run_ranks, in processes that have the device; `mode` is PYCOMM_DEVICE_MODE."""
    env = {**(env or {}), "PYCOMM_DEVICE_MODE": mode}
    own = mode == "K"
    if own and DEVICE != fakegpu.NAME and gpu().device_count() < world_size:
        pytest.skip(f"needs {world_size} GPUs")
    call = (_on_its_device, world_size, function, own, *args)
    return run_ranks(*call, pool=_pool(gpus), env=env, **given)


def mode_now() -> str:
    """The mode of the default group, "H", "S" or "K"."""
    return dist.group.WORLD._get_backend(here()).device_mode()[:1]


def meet() -> None:
    """A first collective, at which the ranks' devices connect; it waits for all ranks."""
    dist.all_reduce(torch.zeros(1, device=here()))


def here(index: int | None = None) -> torch.device:
    """The device of this rank."""
    return torch.device(DEVICE, gpu().current_device() if index is None else index)


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

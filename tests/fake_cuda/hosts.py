# SPDX-License-Identifier: MIT
"""Ranks of one machine that take themselves for ranks of several, with a backend between them.

    run_on_hosts(sums, "aabb")      # ranks 0 and 1 on one host, 2 and 3 on another

"handed" is a registered backend that torch creates as it does any other: see REGISTERED.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from fake_cuda.device_ranks import gpu, here, run_on_devices
from ranks import Rank

# What has been created under the name "handed" in this process.
REGISTERED: list[Any] = []


def run_on_hosts(
    function: Callable[..., Any],
    hosts: str,
    *args: Any,
    inter: str = "pycomm",
    init: bool = True,
    **given: Any,
) -> list[Any]:
    """As run_on_devices, with one rank for each letter of `hosts`, which names its host."""
    job = (hosts, inter, init, function, *args)
    return run_on_devices(_on_its_host, len(hosts), *job, init=False, **given)


def handed_over() -> str:
    """What the default group says of itself."""
    return dist.group.WORLD._get_backend(here()).device_mode()


def _on_its_host(
    me: Rank, hosts: str, inter: str, init: bool, function: Callable[..., Any], *args: Any
) -> Any:
    _register()
    os.environ |= {"PYCOMM_HOST_ID": f"host_{hosts[me.rank]}", "PYCOMM_INTER": inter}
    if init:
        me.init()
    value = function(me, *args)
    if init and dist.is_initialized():
        gpu().synchronize()
        dist.destroy_process_group()
    return value


def _register() -> None:
    REGISTERED.clear()
    if "HANDED" in dist.Backend._plugins:
        return

    def create(store: Any, rank: int, world_size: int, timeout: Any) -> Any:
        from pycomm.backend import connect
        from pycomm.options import Options

        values: Mapping[str, Any] = Options(inter="none").resolved()
        settings = {"timeout_s": timeout.total_seconds(), **values}
        made = connect(store, rank, world_size, settings, "handed")
        REGISTERED.append(made)
        return made

    dist.Backend.register_backend("handed", create, devices=["cpu"])

# SPDX-License-Identifier: MIT
"""Other backends between hosts: what Options(inter=) may name, and one rank's group of it.

The C++ backend asks for the group at the first call that goes through one: see
csrc/torch/hierarchy.h.
"""

from datetime import timedelta
from typing import Any

from pycomm.errors import UsageError


def check(name: str, value: str) -> None:
    """Refuses a backend that this process does not have; local.

    Args:
        name: What gave the value, for the text.
        value: The backend's name.

    Raises:
        UsageError: torch.distributed knows no such backend, or it is "nccl" and there is no NCCL
            or no GPU for it.
    """
    import torch
    import torch.distributed as dist

    if value == "nccl":
        if not dist.is_nccl_available():
            raise UsageError(
                f"{name}='nccl': this torch has no NCCL (torch.distributed.is_nccl_available() is "
                "False), expected a build for CUDA; install one, or leave the setting out"
            )
        if not torch.cuda.is_available():
            raise UsageError(
                f"{name}='nccl': this process sees no CUDA device, which NCCL needs "
                "(torch.cuda.is_available() is False); check the driver and "
                "CUDA_VISIBLE_DEVICES, or leave the setting out"
            )
    elif value != "pycomm" and _creator(value) is None:
        known = sorted({one.lower() for one in dist.Backend._plugins})
        raise UsageError(
            f"{name}={value!r}: torch.distributed knows no such backend, expected nccl or one "
            f"that is registered ({', '.join(known)}); import what registers it first"
        )


def make(
    name: str,
    store: Any,
    rank: int,
    world_size: int,
    timeout: timedelta,
    group_name: str,
    device: Any,
) -> Any:
    """Returns a group of another backend; collective where that backend connects at once.

    Args:
        name: Of the backend, as check() accepts it; not "pycomm".
        store: A store that all ranks of the group share, and nobody else.
        rank: This rank in the group.
        world_size: How many ranks there are.
        timeout: What an operation may take.
        group_name: For that backend's own logs.
        device: The one device that it will work on.
    """
    import torch.distributed as dist

    creator = _creator(name)
    if creator is not None:
        create, extended = creator
        if not extended:
            return create(store, rank, world_size, timeout)
        return create(_torch_options(store, rank, world_size, timeout, group_name, device), None)
    options: Any = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    options.group_name = group_name
    return dist.ProcessGroupNCCL(store, rank, world_size, options)


def _creator(name: str) -> tuple[Any, bool] | None:
    """What makes a registered backend, and whether it takes torch's options object."""
    from torch.distributed import Backend

    # torch 2.14 and later register their own backends, and those of installed packages, when
    # they are first asked for.
    register = getattr(Backend, "_ensure_backend_registered", None)
    if register is not None:
        register(name)
    plugin = Backend._plugins.get(name.upper())
    return None if plugin is None else (plugin.creator_fn, plugin.extended_api)


def _torch_options(
    store: Any, rank: int, world_size: int, timeout: timedelta, group_name: str, device: Any
) -> Any:
    from torch._C._distributed_c10d import ProcessGroup, _DistributedBackendOptions

    options = _DistributedBackendOptions()
    options.store = store
    options.group_rank = rank
    options.group_size = world_size
    options.timeout = timeout
    options.group_id = group_name
    options.global_ranks_in_group = []
    if hasattr(options, "process_group"):  # torch 2.14: says which device to connect
        options.process_group = ProcessGroup(store, rank, world_size)
        options.process_group.bound_device_id = device
    return options

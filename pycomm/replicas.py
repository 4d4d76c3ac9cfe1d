# SPDX-License-Identifier: MIT
"""What DataParallel asks of a model and a group before it trusts them."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pycomm.errors import UsageError
from pycomm.native import load
from pycomm.options import Options

CPU = torch.device("cpu")


def backend_of(
    group: dist.ProcessGroup | None, where: torch.device = CPU
) -> tuple[Any, dist.ProcessGroup]:
    """Returns the backend of a group for cpu and a device, and the group; local.

    Raises:
        UsageError: there is no group, this rank is not in it, or it is not pycomm's for cpu and
            the device.
    """
    if group is None:
        if not dist.is_initialized():
            raise UsageError(
                'DataParallel: there is no process group; call init_process_group("pycomm") first'
            )
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        raise UsageError(
            f"DataParallel: process_group is a {type(group).__name__}, expected a ProcessGroup "
            "that this rank belongs to, or None"
        )
    for device in {CPU.type: CPU, where.type: where}.values():
        try:
            backend = group._get_backend(device)
            found = inner_of(backend)
        except RuntimeError as error:  # torch's, which lists what the group has
            raise UsageError(f"DataParallel: the group has nothing for {device}: {error}") from None
        if not isinstance(found, load().Backend):
            raise UsageError(
                f"DataParallel: the group's backend for {device.type} is {found.name()}, expected "
                'pycomm; make it with init_process_group("pycomm") or new_group(backend="pycomm")'
            )
    return backend, group


def inner_of(backend: Any) -> Any:
    """Returns what TORCH_DISTRIBUTED_DEBUG=DETAIL wraps; local."""
    return getattr(backend, "wrapped_pg", backend)


def settings_of(backend: Any) -> Options:
    """Returns what another group needs to be like this one, but for wire, algorithm and inter."""
    native = inner_of(backend).options
    low, high = native.port_range
    given = {
        "transport": native.transports,
        "socket_interface": native.socket_interface,
        "port_range": f"{low}-{high}" if low else None,
        "host_id": native.host_id,
        "tcp_connections": native.tcp_connections,
        "segment_bytes": native.segment_bytes,
        "device_mode": native.device_mode,
        "flight_dir": native.flight_dir,
    }
    return Options(
        timeout_s=native.timeout_ms / 1000,
        detect_timeout_s=native.detect_timeout_ms / 1000,
        connect_timeout_s=native.connect_timeout_ms / 1000,
        check_plans=native.check_plans,
        blocking_wait=native.blocking_wait,
        **{name: value for name, value in given.items() if value},
    )


def check_model(module: nn.Module) -> torch.device:
    """Returns where the model is: cpu, or one device; local.

    Raises:
        UsageError: it is no module, has nothing to train, is on several devices, or has parameters
            or buffers that cannot travel.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"DataParallel: got a {type(module).__name__}, expected a torch.nn.Module")
    if not any(p.requires_grad for p in module.parameters()):
        raise UsageError(
            "DataParallel: no parameter of the module needs a gradient, so there is nothing to "
            "average; use the module as it is"
        )
    first, where = next((n, p.device) for n, p in module.named_parameters())
    for name, parameter in module.named_parameters():
        dtype = getattr(parameter, "grad_dtype", None)  # torch 2.10 and later
        if dtype not in (None, parameter.dtype):
            raise UsageError(
                f"DataParallel: the gradient of {name} is to be {dtype}, expected "
                f"{parameter.dtype} as the parameter; leave grad_dtype as it is"
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise UsageError(
                f"DataParallel: {name} has no shape yet; run one forward of the lazy module first"
            )
        if tensor.layout != torch.strided or not _served(tensor.device):
            raise UsageError(
                f"DataParallel: {name} is {tensor.layout} on {tensor.device}, expected a dense "
                "tensor on cpu or on a GPU that pycomm serves"
            )
        if tensor.device != where:
            raise UsageError(
                f"DataParallel: {name} is on {tensor.device} and {first} on {where}, expected "
                "the whole model on one device; split a model that needs several by layers, as "
                "pycomm.Layout(pp=...) does"
            )
    return where


def _served(device: torch.device) -> bool:
    capable = dist.Backend.backend_capability.get("pycomm", [])
    return device.type == "cpu" or device.type in capable


def check_same_on_all(
    module: nn.Module, group: dist.ProcessGroup, who: str = "DataParallel"
) -> None:
    """Compares names, shapes, strides and dtypes with the other ranks; collective.

    Raises:
        UsageError: they differ; the text names the first difference, on every rank.
    """
    mine = describe(module)
    digest = hashlib.sha256("\n".join(mine).encode()).digest()
    block = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    blocks = [torch.empty_like(block) for _ in range(group.size())]
    dist.all_gather(blocks, block, group=group)
    if all(torch.equal(one, blocks[0]) for one in blocks):
        return
    found: list[list[str]] = [[] for _ in blocks]
    dist.all_gather_object(found, mine, group=group)
    for rank, theirs in enumerate(found):
        if theirs != found[0]:
            raise UsageError(f"{who}: {_difference(rank, theirs, found[0])}")


def describe(module: nn.Module) -> list[str]:
    """A line for each parameter and buffer, such as "parameter 0.weight: float32[3, 4]"."""
    lines = []
    for kind, named in (
        ("parameter", module.named_parameters()),
        ("buffer", module.named_buffers()),
    ):
        for name, tensor in named:
            shape = ", ".join(map(str, tensor.shape))
            line = f"{kind} {name}: {str(tensor.dtype).removeprefix('torch.')}[{shape}]"
            if not tensor.is_contiguous():
                line += f" with strides {tensor.stride()}"
            if kind == "parameter" and not tensor.requires_grad:
                line += ", frozen"
            lines.append(line)
    return lines


def _difference(rank: int, theirs: list[str], reference: list[str]) -> str:
    for a, b in zip(theirs, reference, strict=False):
        if a != b:
            break
    else:
        longer = max(theirs, reference, key=len)
        extra = longer[min(len(theirs), len(reference))]
        a, b = (extra, "nothing") if longer is theirs else ("nothing", extra)
    return f"rank {rank} has {a} where rank 0 has {b}; build the same model on all ranks"

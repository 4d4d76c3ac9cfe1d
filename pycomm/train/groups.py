# SPDX-License-Identifier: MIT
"""The groups of a layout: torch's DeviceMesh of pp x dp x tp over pycomm."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pycomm.launch import Launch
from pycomm.layout import Layout
from pycomm.native import load
from pycomm.options import Options
from pycomm.replicas import inner_of

_TIMEOUT_S = 1800.0


def join(launch: Launch, layout: Layout, timeout_s: float | None) -> bool:
    """Makes the default group where there is none; collective, blocking.

    Returns:
        Whether it did: under Ray Train, for example, there is one already.
    """
    if dist.is_initialized():
        return False
    common: dict[str, Any] = {
        "rank": launch.rank,
        "world_size": launch.world_size,
        "timeout": timedelta(seconds=_TIMEOUT_S if timeout_s is None else timeout_s),
        "pg_options": Options(deterministic=layout.deterministic or None),
    }
    if launch.init_method:
        dist.init_process_group("pycomm", init_method=launch.init_method, **common)
    else:
        dist.init_process_group("pycomm", store=HashStore(), **common)
    return True


class Groups:
    """The groups of a resolved layout; making one is collective.

    Attributes:
        all: All ranks of the layout.
        mesh: Of pp x dp x tp, with these names.
        replica: This rank's index in dp.
    """

    def __init__(self, layout: Layout) -> None:
        _forget_other_meshes()
        options = Options(deterministic=layout.deterministic or None)
        ours = _is_ours(dist.group.WORLD)
        self.all: Any = dist.group.WORLD if ours else dist.new_group(backend="pycomm")
        override: dict[Any, Any] = {}
        if not ours or layout.deterministic:
            override = {name: ("pycomm", options) for name in ("pp", "dp", "tp")}
        if layout.wire != "fp32" and layout.mode == "sync":
            wire = Options(deterministic=layout.deterministic or None, wire=layout.wire)
            override["dp"] = ("pycomm", wire)
        shape = (layout.pp, layout.dp or 1, layout.tp)
        self.mesh: DeviceMesh = init_device_mesh(
            "cpu",
            shape,
            mesh_dim_names=("pp", "dp", "tp"),
            backend_override=override or None,
        )
        self.replica = int(self.mesh.get_local_rank("dp"))

    def of(self, name: str) -> dist.ProcessGroup:
        """Returns this rank's group along "pp", "dp" or "tp"; local."""
        return self.mesh.get_group(name)

    def rank_in(self, name: str) -> int:
        """Returns this rank's place along "pp", "dp" or "tp"; local."""
        return int(self.mesh.get_local_rank(name))


def _is_ours(group: Any) -> bool:
    """Whether pycomm carries a group's CPU tensors."""
    try:
        backend = group._get_backend(torch.device("cpu"))
    except RuntimeError:  # it has none for them
        return False
    return isinstance(inner_of(backend), load().Backend)


def _forget_other_meshes() -> None:
    """Empties DTensor's memory of what operators do; local.

    It goes by mesh, and meshes over the same ranks are one to it, though the groups of an earlier
    one may be destroyed: then a DTensor of this mesh would look for groups that are gone.
    """
    try:
        from torch.distributed.tensor.debug import _clear_sharding_prop_cache
    except ImportError:  # another version of torch
        return
    _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]

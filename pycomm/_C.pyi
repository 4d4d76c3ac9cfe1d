# SPDX-License-Identifier: MIT
"""What csrc/torch/module.cc and plans.cc bind. tests/unit/test_stub.py holds the two together."""

from typing import Any

from torch._C._distributed_c10d import Backend as _TorchBackend
from torch._C._distributed_c10d import Store

class BackendOptions(_TorchBackend.Options):
    """Settings of one group. pycomm.Options is the face of it."""

    transports: str
    socket_interface: str
    port_range: tuple[int, int]
    host_id: str
    store_host: str
    tcp_connections: int
    segment_bytes: int
    connect_timeout_ms: int
    detect_timeout_ms: int
    timeout_ms: int
    check_plans: bool
    flight_dir: str
    group_name: str  # type: ignore[assignment]
    def __init__(self) -> None: ...
    def set_algorithms(self, arg0: str) -> None: ...
    def __copy__(self) -> BackendOptions: ...
    def __deepcopy__(self, arg0: dict[Any, Any]) -> BackendOptions: ...

class Backend(_TorchBackend):
    """One group on one rank. The constructor is collective: it connects all ranks."""

    def __init__(
        self, store: Store, rank: int, world_size: int, options: BackendOptions
    ) -> None: ...
    def close(self, reason: str, drain: bool) -> None: ...
    @property
    def options(self) -> BackendOptions: ...
    def perform_nocolor_split(self, arg0: object) -> None: ...
    def flight_json(self) -> str: ...
    def algorithm_for(self, collective: str, bytes: int) -> str: ...
    def transport_to(self, peer: int) -> str: ...
    def _inject_fault(self, peer: int, kind: str, frame: int, signal: int = 0) -> None: ...

def algorithms_for(collective: str) -> list[str]: ...
def plan_text(
    collective: str, algorithm: str, world_size: int, rank: int, root: int = 0
) -> str: ...
def plan_check(collective: str, algorithm: str, world_size: int, root: int = 0) -> str: ...
def plan_cost(
    collective: str,
    algorithm: str,
    world_size: int,
    bytes: int,
    alpha_s: float,
    beta_s_per_byte: float,
    gamma_s_per_byte: float,
) -> dict[str, Any]: ...
def build_info() -> dict[str, Any]: ...
def close_all(reason: str) -> None: ...
